"""Where the links are and how they move: poses, motion subspaces, twists and bias accelerations, root to leaves.

Everything is expressed in world axes about one reference point (the origin of `joint_q`), so nothing has to be
transformed between links: a twist is the sum of the joint twists from the root to the link.  Spatial vectors are
(angular; linear).  See Featherstone, Rigid Body Dynamics Algorithms, 2008, chapters 2 and 4.
"""

import warp as wp

from envs.physics.articulation import FREE, PRISMATIC, REVOLUTE
from envs.physics.model import Model


@wp.func
def motion_cross(v: wp.spatial_vector, m: wp.spatial_vector):
    """v x m: the rate at which a motion vector m changes when it is carried along with twist v."""
    w = wp.spatial_top(v)
    return wp.spatial_vector(
        wp.cross(w, wp.spatial_top(m)),
        wp.cross(w, wp.spatial_bottom(m)) + wp.cross(wp.spatial_bottom(v), wp.spatial_top(m)),
    )


@wp.func
def joint_transform(model: Model, link: int, joint_q: wp.array2d[float], env: int):
    """Pose of the link in its joint frame."""
    kind = model.joint_type[link]
    start = model.q_start[link]
    axis = model.joint_axis[link]
    X = wp.transform_identity()
    if kind == PRISMATIC:
        X = wp.transform(axis * joint_q[env, start], wp.quat_identity())
    if kind == REVOLUTE:
        X = wp.transform(wp.vec3(), wp.quat_from_axis_angle(axis, joint_q[env, start]))
    if kind == FREE:
        X = wp.transform(
            wp.vec3(joint_q[env, start], joint_q[env, start + 1], joint_q[env, start + 2]),
            wp.quat(joint_q[env, start + 3], joint_q[env, start + 4], joint_q[env, start + 5], joint_q[env, start + 6]),
        )
    return X


@wp.func
def unit_twist(k: int):
    """Column k of the identity: the motion subspace of a free joint."""
    return wp.spatial_vector(
        wp.vec3(float(k == 0), float(k == 1), float(k == 2)), wp.vec3(float(k == 3), float(k == 4), float(k == 5))
    )


@wp.func
def motion_axis(model: Model, link: int, k: int, X_joint: wp.transform):
    """Column k of the joint's motion subspace S: the twist of the link per unit of this degree of freedom."""
    kind = model.joint_type[link]
    S = unit_twist(k)
    if kind == PRISMATIC:
        S = wp.spatial_vector(wp.vec3(), wp.transform_vector(X_joint, model.joint_axis[link]))
    if kind == REVOLUTE:
        a = wp.transform_vector(X_joint, model.joint_axis[link])
        S = wp.spatial_vector(a, wp.cross(wp.transform_get_translation(X_joint), a))
    return S


@wp.func
def joint_twist(
    model: Model, link: int, motion_subspace: wp.array2d[wp.spatial_vector], qd: wp.array2d[float], env: int
):
    """S qd: the velocity of the link relative to its parent."""
    total = wp.spatial_vector()
    for d in range(model.qd_start[link], model.qd_start[link + 1]):
        total += motion_subspace[env, d] * qd[env, d]
    return total


@wp.kernel
def forward_kinematics(
    # Model:
    model: Model,
    # State in:
    joint_q: wp.array2d[float],
    joint_qd: wp.array2d[float],
    # State out:
    link_pose: wp.array2d[wp.transform],
    motion_subspace: wp.array2d[wp.spatial_vector],
    link_twist: wp.array2d[wp.spatial_vector],
    link_bias: wp.array2d[wp.spatial_vector],
):
    env = wp.tid()
    # the parents' entries are read back; each is written once, before its readers, so the adjoint is right
    for i in range(model.num_links):
        parent = model.link_parent[i]
        X_joint = model.joint_frame[i]
        v = wp.spatial_vector()
        a = wp.spatial_vector()
        if parent >= 0:
            X_joint = wp.transform_multiply(link_pose[env, parent], model.joint_frame[i])
            v = link_twist[env, parent]
            a = link_bias[env, parent]
        for d in range(model.qd_start[i], model.qd_start[i + 1]):
            motion_subspace[env, d] = motion_axis(model, i, d - model.qd_start[i], X_joint)
        # v_i = v_parent + S qd,   a_i = a_parent + v_i x S qd   (the part of the acceleration that does not need qdd)
        v_joint = joint_twist(model, i, motion_subspace, joint_qd, env)
        link_pose[env, i] = wp.transform_multiply(X_joint, joint_transform(model, i, joint_q, env))
        link_twist[env, i] = v + v_joint
        link_bias[env, i] = a + motion_cross(v + v_joint, v_joint)
