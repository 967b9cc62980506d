"""Contact between two bodies: boxes against boxes, spheres against boxes and spheres.

Two boxes overlap only where an edge of one runs through the other.  Each such edge is one contact, at the middle of
the part of it that is inside, so a box cannot sink onto an edge, a corner or a face without being met.  A sphere is
one contact, where it is deepest.  With depth d, normal n out of the box, and relative velocity u at that point:

    normal      f_n = ke d + kd min(d / 1 mm, 1) max(-u_n, 0)         never pulls
    friction    f_t = -u_t / |u_t| min(kf |u_t|, mu f_n)              viscous up to a Coulomb cone

What is smoothed: damping grows over the first millimetre, so the force is continuous at touch-down.  The depth d inside
a box is not the distance to the nearest face but, with the distances s to all six, (sum of s^-2)^(-1/2): equal to it
near a face, smaller by 1/sqrt(2) and 1/sqrt(3) where two and three faces are equally near.  The normal is the direction
in which d falls, which turns smoothly from face to face; in the middle of the box, where it has none, the normal force
fades.
What is not differentiated: which edges touch (their number sets the stiffness: a cube that lies on a face has eight,
four of them whole and four upright ones as deep by half), and the branches of friction and damping.
"""

import warp as wp

from envs.physics.model import PairModel

DAMPING_DEPTH = wp.constant(1.0e-3)  # m, where damping has its full strength
SMALL = wp.constant(1.0e-7)  # m, below every length that means anything


@wp.struct
class Meeting:
    """A shape and the box that it has run into."""

    X: wp.transform  # pose of the shape, seen from the box
    half: wp.vec3  # half extents of the shape
    box: wp.transform  # pose of the box in the world
    box_half: wp.vec3
    material: wp.vec3  # stiffness ke, damping kd, friction stiffness kf
    friction: float  # coefficient mu


@wp.func
def shape_frame(pairs: PairModel, k: int, side: int, link_pose: wp.array2d[wp.transform], env: int):
    """Pose of the first (side 0) or second (1) shape of pair k."""
    pose = link_pose[env, pairs.links[k][side]]
    center = wp.transform_point(pose, pairs.centers[k, side])
    return wp.transform(center, wp.transform_get_rotation(pose))


@wp.func
def part_inside(o: wp.vec3, d: wp.vec3, half: wp.vec3):
    """The line o + t d, -1 <= t <= 1, is inside a box between these two t; the first is larger if it never is."""
    enter = wp.float32(-1.0)
    leave = wp.float32(1.0)
    for k in range(3):
        # a line along a face never crosses it, and nothing is divided by zero
        slope = wp.where(wp.abs(d[k]) < SMALL, SMALL, d[k])
        t1 = (-half[k] - o[k]) / slope
        t2 = (half[k] - o[k]) / slope
        enter = wp.max(enter, wp.min(t1, t2))
        leave = wp.min(leave, wp.max(t1, t2))
    return enter, leave


@wp.func
def edges_inside(pairs: PairModel, X: wp.transform, half: wp.vec3, other: wp.vec3):
    """Bit e is set where edge e of a box, seen at pose X from another one, runs through that one."""
    A = wp.quat_to_matrix(wp.transform_get_rotation(X)) * wp.diag(half)
    c = wp.transform_get_translation(X)
    edges = wp.int32(0)
    for e in range(pairs.edge_middle.shape[0]):
        o = c + A * pairs.edge_middle[e]
        d = A * pairs.edge_direction[e]
        enter, leave = part_inside(o, d, other)
        if enter < leave:
            edges = edges | (1 << e)
    return edges


@wp.func
def is_beside(X: wp.transform, half: wp.vec3, other: wp.vec3):
    """Whether a box at pose X is wholly beyond one of the faces of another box."""
    R = wp.quat_to_matrix(wp.transform_get_rotation(X))
    c = wp.transform_get_translation(X)
    beside = wp.bool(False)
    for k in range(3):
        size = wp.abs(R[k, 0]) * half[0] + wp.abs(R[k, 1]) * half[1] + wp.abs(R[k, 2]) * half[2]
        if wp.abs(c[k]) > other[k] + size:
            beside = True
    return beside


@wp.func
def touching_edges(pairs: PairModel, k: int, link_pose: wp.array2d[wp.transform], env: int):
    """Edges of the first box that run through the second and of the second through the first; (1, 0) for a sphere."""
    first = shape_frame(pairs, k, 0, link_pose, env)
    second = shape_frame(pairs, k, 1, link_pose, env)
    half_1 = pairs.half_extents[k, 0]
    half_2 = pairs.half_extents[k, 1]
    X = wp.transform_multiply(wp.transform_inverse(second), first)
    edges = wp.vec2i(0, 0)
    if pairs.radii[k][0] > 0.0:
        c = wp.transform_get_translation(X)
        radius = pairs.radii[k][0] + pairs.radii[k][1]
        edges[0] = int(wp.length(c - wp.min(wp.max(c, -half_2), half_2)) < radius)
    else:
        X_inverse = wp.transform_inverse(X)
        if not (is_beside(X, half_1, half_2) or is_beside(X_inverse, half_2, half_1)):
            edges[0] = edges_inside(pairs, X, half_1, half_2)
            edges[1] = edges_inside(pairs, X_inverse, half_2, half_1)
    return edges


@wp.kernel(enable_backward=False)
def find_touching(
    # Model:
    pairs: PairModel,
    # Parameters:
    lanes: int,
    # State in:
    link_pose: wp.array2d[wp.transform],
    # State out:
    touching: wp.array2d[wp.vec2i],
):
    """What touching_edges says of every pair, without calling it for shapes that are out of each other's reach.

    The links' origins are compared first: that turns away half of the pairs, and needs no rotation.
    """
    lane, env = wp.tid()
    for k in range(lane, pairs.reach.shape[0], lanes):
        edges = wp.vec2i(0, 0)
        links = pairs.links[k]
        first = link_pose[env, links[0]]
        second = link_pose[env, links[1]]
        apart = wp.transform_get_translation(first) - wp.transform_get_translation(second)
        if wp.length_sq(apart) < pairs.link_reach[k] * pairs.link_reach[k]:
            apart = wp.transform_point(first, pairs.centers[k, 0]) - wp.transform_point(second, pairs.centers[k, 1])
            if wp.length_sq(apart) < pairs.reach[k] * pairs.reach[k]:
                edges = touching_edges(pairs, k, link_pose, env)
        touching[env, k] = edges


@wp.func
def depth_inside(p: wp.vec3, half: wp.vec3):
    """Smoothed distance of a point in a box from its surface, and the normal out of it."""
    # distances to the faces; by rounding the point may be a little outside
    s = wp.max(half - p, wp.vec3(SMALL, SMALL, SMALL))
    t = wp.max(half + p, wp.vec3(SMALL, SMALL, SMALL))
    depth = 1.0 / wp.sqrt(
        1.0 / (s[0] * s[0])
        + 1.0 / (s[1] * s[1])
        + 1.0 / (s[2] * s[2])
        + 1.0 / (t[0] * t[0])
        + 1.0 / (t[1] * t[1])
        + 1.0 / (t[2] * t[2])
    )
    # minus the gradient of the depth, (depth / s)^3 - (depth / t)^3 along each axis
    a = depth * wp.cw_div(wp.vec3(1.0, 1.0, 1.0), s)
    b = depth * wp.cw_div(wp.vec3(1.0, 1.0, 1.0), t)
    n = wp.cw_mul(wp.cw_mul(a, a), a) - wp.cw_mul(wp.cw_mul(b, b), b)
    # its length is 1 at a face, 1/2 at an edge, 1/3 at a corner and 0 in the middle
    return depth, n / wp.max(wp.length(n), 1.0 / 3.0)


@wp.func
def contact_wrench(m: Meeting, velocity: wp.spatial_vector, depth: float, normal: wp.vec3, p: wp.vec3):
    """Wrench on the shape, whose twist relative to the box is velocity; normal and point p are in the box's frame."""
    material = m.material
    ke = material[0]
    kd = material[1]
    kf = material[2]
    mu = m.friction
    n = wp.transform_vector(m.box, normal)
    point = wp.transform_point(m.box, p)
    u = wp.spatial_bottom(velocity) + wp.cross(wp.spatial_top(velocity), point)
    u_n = wp.dot(u, n)
    f_n = ke * depth + kd * wp.min(depth / DAMPING_DEPTH, 1.0) * wp.max(-u_n, 0.0)
    u_t = u - u_n * n
    slip = wp.length(u_t)
    cone = mu * f_n
    f_t = -kf * u_t
    if kf * slip > cone:
        f_t = -(cone / slip) * u_t
    f = f_n * n + f_t
    return wp.spatial_vector(wp.cross(point, f), f)


@wp.func
def edge_wrench(pairs: PairModel, m: Meeting, velocity: wp.spatial_vector, e: int):
    """Wrench on edge e of a box that has run into another one."""
    o = wp.transform_point(m.X, wp.cw_mul(pairs.edge_middle[e], m.half))
    d = wp.transform_vector(m.X, wp.cw_mul(pairs.edge_direction[e], m.half))
    enter, leave = part_inside(o, d, m.box_half)
    p = o + 0.5 * (enter + leave) * d
    depth, normal = depth_inside(p, m.box_half)
    return contact_wrench(m, velocity, depth, normal, p)


@wp.func
def edges_wrench(pairs: PairModel, m: Meeting, velocity: wp.spatial_vector, edges: int):
    """Their sum over the edges whose bit is set."""
    total = wp.spatial_vector()
    for e in range(pairs.edge_middle.shape[0]):
        if (edges >> e) & 1 == 1:
            total += edge_wrench(pairs, m, velocity, e)
    return total


@wp.func
def sphere_wrench(m: Meeting, velocity: wp.spatial_vector, radii: wp.vec2):
    """Wrench on a sphere that has run into a box, or into a sphere, which is a box without extents; radii of both."""
    c = wp.transform_get_translation(m.X)
    outside = c - wp.min(wp.max(c, -m.box_half), m.box_half)
    distance = wp.length(outside)
    depth = radii[0] + radii[1] - distance
    normal = wp.normalize(outside)
    if distance < SMALL:  # the centre is inside
        inner, n = depth_inside(c, m.box_half)
        depth = radii[0] + inner
        normal = n
    return contact_wrench(m, velocity, depth, normal, c - radii[0] * normal)


@wp.func
def wrench_on_first(
    pairs: PairModel,
    k: int,
    edges: wp.vec2i,
    link_pose: wp.array2d[wp.transform],
    link_twist: wp.array2d[wp.spatial_vector],
    env: int,
):
    """Wrench of the second shape of pair k on the first, about the reference point, in world axes."""
    first = shape_frame(pairs, k, 0, link_pose, env)
    second = shape_frame(pairs, k, 1, link_pose, env)
    velocity = link_twist[env, pairs.links[k][0]] - link_twist[env, pairs.links[k][1]]
    half_1 = pairs.half_extents[k, 0]
    half_2 = pairs.half_extents[k, 1]
    material = pairs.material[k]
    mu = pairs.pair_friction[env, k]
    X = wp.transform_multiply(wp.transform_inverse(second), first)
    X_inverse = wp.transform_multiply(wp.transform_inverse(first), second)
    first_in_second = Meeting(X, half_1, second, half_2, material, mu)
    second_in_first = Meeting(X_inverse, half_2, first, half_1, material, mu)
    wrench = wp.spatial_vector()
    if pairs.radii[k][0] > 0.0:
        wrench = sphere_wrench(first_in_second, velocity, pairs.radii[k])
    else:
        on_first = edges_wrench(pairs, first_in_second, velocity, edges[0])
        on_second = edges_wrench(pairs, second_in_first, -velocity, edges[1])
        wrench = on_first - on_second
    return wrench


@wp.kernel
def pair_wrenches(
    # Model:
    pairs: PairModel,
    # Parameters:
    lanes: int,
    # State in:
    link_pose: wp.array2d[wp.transform],
    link_twist: wp.array2d[wp.spatial_vector],
    touching: wp.array2d[wp.vec2i],
    # State out:
    pair_wrench: wp.array2d[wp.spatial_vector],
):
    """Wrench of the second shape on the first of every pair; the opposite acts on the second."""
    lane, env = wp.tid()
    for k in range(lane, pairs.reach.shape[0], lanes):
        edges = touching[env, k]
        if edges[0] != 0 or edges[1] != 0:
            pair_wrench[env, k] = wrench_on_first(pairs, k, edges, link_pose, link_twist, env)
        else:
            pair_wrench[env, k] = wp.spatial_vector()


@wp.func
def sum_of_pairs(
    pair: wp.array[int],
    sign: wp.array[float],
    pair_wrench: wp.array2d[wp.spatial_vector],
    env: int,
    start: int,
    end: int,
):
    total = wp.spatial_vector()
    for k in range(start, end):
        total += sign[k] * pair_wrench[env, pair[k]]
    return total


@wp.kernel
def subtract_pair_wrenches(
    # Model:
    pairs: PairModel,
    # State in:
    link_wrench: wp.array2d[wp.spatial_vector],
    pair_wrench: wp.array2d[wp.spatial_vector],
    # State out:
    net_wrench: wp.array2d[wp.spatial_vector],
):
    i, env = wp.tid()
    contact = sum_of_pairs(pairs.pair, pairs.sign, pair_wrench, env, pairs.pair_start[i], pairs.pair_start[i + 1])
    net_wrench[env, i] = link_wrench[env, i] - contact
