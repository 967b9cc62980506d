"""The articulation as Warp arrays, which the kernels read.

What may differ from environment to environment has a row for each: see parameters.py.  The rest are constants.

Lists of different lengths, such as the children of each link, stand one after the other in one array; a second array
says where each begins: those of link i are child[child_start[i] : child_start[i + 1]].
"""

import numpy as np
import warp as wp

from envs.physics.articulation import FREE, NUM_COORDS, NUM_DOFS, Articulation, check
from envs.physics.parameters import dof_links, own_values, sorted_contacts


@wp.struct
class Model:
    """Links, joints and ground contacts."""

    num_links: int
    num_dofs: int
    num_shifted: int  # leading coordinates measured from the reference point: 3, 1 (along x) or 0
    gravity: wp.vec3
    # per link
    link_parent: wp.array[int]
    child_start: wp.array[int]
    child: wp.array[int]
    link_com: wp.array[wp.vec3]
    joint_type: wp.array[int]
    joint_axis: wp.array[wp.vec3]
    joint_frame: wp.array[wp.transform]  # parent frame -> joint frame
    q_start: wp.array[int]
    qd_start: wp.array[int]
    # per degree of freedom
    dof_link: wp.array[int]
    dof_q: wp.array[int]  # its coordinate; -1 for those of a free joint, which have no spring and no damper
    ancestor_start: wp.array[int]  # the dofs between dof i and the root, nearest first, are
    ancestor: wp.array[int]  # ancestor[ancestor_start[i] : ancestor_start[i + 1]]
    armature: wp.array[float]
    target: wp.array[float]
    limit_lower: wp.array[float]
    limit_upper: wp.array[float]
    limit_stiffness: wp.array[float]
    limit_damping: wp.array[float]
    limit_damping_depth: wp.array[float]
    # per contact point, sorted by link
    contact_start: wp.array[int]
    contact_point: wp.array[wp.vec3]
    contact_radius: wp.array[float]
    contact_material: wp.array[wp.vec3]  # stiffness ke, damping kd, friction stiffness kf
    # per environment and link
    link_mass: wp.array2d[float]
    tree_mass: wp.array2d[float]  # of the link and everything it carries
    link_inertia: wp.array2d[wp.mat33]
    # per environment and degree of freedom
    stiffness: wp.array2d[float]
    damping: wp.array2d[float]  # with limit_damping where that acts always
    motor_damping: wp.array2d[float]
    effort_limit: wp.array2d[float]
    # per environment and contact point
    contact_friction: wp.array2d[float]  # coefficient mu


@wp.struct
class PairModel:
    """Pairs of shapes that push each other away."""

    # per pair: of its first and its second shape
    links: wp.array[wp.vec2i]
    centers: wp.array2d[wp.vec3]
    half_extents: wp.array2d[wp.vec3]
    radii: wp.array[wp.vec2]
    reach: wp.array[float]  # farther apart than this the centres of shapes that touch cannot be
    link_reach: wp.array[float]  # nor the origins of their links than this
    material: wp.array[wp.vec3]  # as that of a contact point
    pair_start: wp.array[int]  # the pairs of link i are pair[pair_start[i] : pair_start[i + 1]]
    pair: wp.array[int]
    sign: wp.array[float]  # 1 where the link has the first shape, -1 where it has the second
    # the edges of the cube from -1 to 1 run from middle - direction to middle + direction
    edge_middle: wp.array[wp.vec3]
    edge_direction: wp.array[wp.vec3]
    # per environment and pair
    pair_friction: wp.array2d[float]


def build_model(articulation: Articulation, device, num_envs=1) -> Model:
    """Copy an articulation to the Warp arrays that the kernels read on `device`, the same for all environments."""
    check(articulation)
    model = Model()
    model.num_links = len(articulation.links)
    model.num_dofs = articulation.num_dofs
    model.num_shifted = _num_shifted(articulation)
    model.gravity = wp.vec3(*articulation.gravity)
    columns = _link_columns(articulation.links) | _dof_columns(articulation.links) | _contact_columns(articulation)
    return _share(_fill(model, columns, device), own_values(articulation), device, num_envs)


def build_pair_model(articulation: Articulation, device, num_envs=1) -> PairModel:
    """The same for its contact pairs."""
    pairs = _fill(PairModel(), _pair_columns(articulation) | _edge_columns(), device)
    return _share(pairs, own_values(articulation), device, num_envs)


def _fill(model, columns, device):
    for name, (values, dtype) in columns.items():
        values = np.array(values, dtype=np.int32 if dtype in (int, wp.vec2i) else np.float32)
        setattr(model, name, wp.array(values, dtype=dtype, device=device))
    return model


def _share(model, values, device, num_envs):
    """Give all environments the same row in memory."""
    for name, value in values.items():
        if hasattr(model, name):
            rows = value.to(wp.device_to_torch(device)).expand(num_envs, *value.shape)
            setattr(model, name, wp.from_torch(rows, dtype=wp.mat33 if rows.dim() == 4 else wp.float32))
    return model


def _num_shifted(articulation):
    return 3 if articulation.floats else int(articulation.translates_along_x)


def _link_columns(links):
    children = [[i for i, link in enumerate(links) if link.parent == parent] for parent in range(len(links))]
    q_sizes = [NUM_COORDS[link.joint] for link in links]
    qd_sizes = [NUM_DOFS[link.joint] for link in links]
    return {
        "link_parent": ([link.parent for link in links], int),
        "child_start": (_offsets([len(c) for c in children]), int),
        "child": ([i for c in children for i in c], int),
        "link_com": ([link.com for link in links], wp.vec3),
        "joint_type": ([link.joint for link in links], int),
        "joint_axis": ([link.axis for link in links], wp.vec3),
        "joint_frame": ([(*link.offset, *link.rotation) for link in links], wp.transform),
        "q_start": (_offsets(q_sizes), int),
        "qd_start": (_offsets(qd_sizes), int),
    }


def _dof_columns(links):
    owners = dof_links(links)
    q_start = _offsets([NUM_COORDS[link.joint] for link in links])
    ancestors = [_ancestors(links, owners, dof) for dof in range(len(owners))]
    springs = {
        "armature": [links[i].armature for i in owners],
        "target": [links[i].target for i in owners],
        "limit_lower": [links[i].limits[0] for i in owners],
        "limit_upper": [links[i].limits[1] for i in owners],
        "limit_stiffness": [links[i].limit_stiffness for i in owners],
        "limit_damping": [links[i].limit_damping for i in owners],
        "limit_damping_depth": [links[i].limit_damping_depth for i in owners],
    }
    return {
        "dof_link": (owners, int),
        "dof_q": ([-1 if links[i].joint == FREE else q_start[i] for i in owners], int),
        "ancestor_start": (_offsets([len(a) for a in ancestors]), int),
        "ancestor": ([dof for a in ancestors for dof in a], int),
    } | {name: (values, float) for name, values in springs.items()}


def _contact_columns(articulation):
    points = sorted_contacts(articulation)
    per_link = [sum(c.link == i for c in points) for i in range(len(articulation.links))]
    materials = [(c.stiffness, c.damping, c.friction_stiffness) for c in points]
    return {
        "contact_start": (_offsets(per_link), int),
        "contact_point": (np.reshape([c.point for c in points], (-1, 3)), wp.vec3),
        "contact_radius": ([c.radius for c in points], float),
        "contact_material": (np.reshape(materials, (-1, 3)), wp.vec3),
    }


def _pair_columns(articulation):
    pairs = articulation.contact_pairs
    centers = np.reshape([pair.centers for pair in pairs], (-1, 2, 3))
    extents = np.reshape([pair.half_extents for pair in pairs], (-1, 2, 3))
    radii = np.reshape([pair.radii for pair in pairs], (-1, 2))
    reach = (np.linalg.norm(extents, axis=2) + radii).sum(axis=1)
    materials = [(pair.stiffness, pair.damping, pair.friction_stiffness) for pair in pairs]
    per_link = [
        [(k, sign) for k, pair in enumerate(pairs) for link, sign in zip(pair.links, (1.0, -1.0)) if link == i]
        for i in range(len(articulation.links))
    ]
    return {
        "links": (np.reshape([pair.links for pair in pairs], (-1, 2)), wp.vec2i),
        "centers": (centers, wp.vec3),
        "half_extents": (extents, wp.vec3),
        "radii": (radii, wp.vec2),
        "reach": (reach, float),
        "link_reach": (reach + np.linalg.norm(centers, axis=2).sum(axis=1), float),
        "material": (np.reshape(materials, (-1, 3)), wp.vec3),
        "pair_start": (_offsets([len(entries) for entries in per_link]), int),
        "pair": ([k for entries in per_link for k, _ in entries], int),
        "sign": ([sign for entries in per_link for _, sign in entries], float),
    }


def _edge_columns():
    edges = [
        (np.roll((0, y, z), axis), np.roll((1, 0, 0), axis)) for axis in range(3) for y in (-1, 1) for z in (-1, 1)
    ]
    return {name: ([edge[k] for edge in edges], wp.vec3) for k, name in enumerate(("edge_middle", "edge_direction"))}


def _ancestors(links, owners, dof):
    """The dofs on the way from `dof` to the root, nearest first; within one joint the later hang on the earlier."""
    link = owners[dof]
    chain = [other for other in range(dof) if owners[other] == link][::-1]
    while links[link].parent >= 0:
        link = links[link].parent
        chain += [other for other in range(dof) if owners[other] == link][::-1]
    return chain


def _offsets(sizes):
    return [0, *np.cumsum(sizes, dtype=int).tolist()]
