"""What each link needs at qdd = 0, and what is left for the joints: inertia, gravity, ground contact, springs, limits.

Together these kernels are the recursive Newton-Euler algorithm with qdd = 0 (Featherstone 2008, section 5.3) plus the
contact model of DFlex.  The wrench of a link is what its joints must supply: inertia less gravity and ground contact.
So the joint forces are actuation, springs and limits less the bias force C = S . (sum of wrenches over the subtree).
Wrenches are (moment about the reference point; force) in world axes.

Ground contact is a penalty force on points sunk d > 0 below the plane y = 0, moving with velocity u:

    normal      f_n = ke d + kd d max(-u_y, 0)            damping grows with depth and never pulls
    friction    f_t = -u_t / |u_t| min(kf |u_t|, mu ke d)   viscous up to a Coulomb cone of the elastic part

What is smoothed: the force is continuous at touch-down (both terms vanish with d), at |u_t| = 0 (viscous branch) and
at a joint limit, where spring and damper start at zero; with limit_damping_depth 0 the damper acts always.
What is not differentiated: the choice of a branch (touching or not, sinking or rising, sticking or sliding, inside or
outside a joint limit, a motor below or at its effort_limit); the force has a kink there and the gradient is the one of
the branch taken, which at an effort_limit is 0.
"""

import warp as wp

from envs.physics.model import Model


@wp.func
def lowest_height(model: Model, k: int, pose: wp.transform):
    """Height of the lowest point of contact sphere k above the ground: p_y - radius.

    Most are in the air, and one row of the rotation matrix tells so more cheaply than ground_wrench and its adjoint.
    """
    r = wp.transform_get_rotation(pose)
    row_y = wp.vec3(
        2.0 * (r[0] * r[1] + r[3] * r[2]), 1.0 - 2.0 * (r[0] * r[0] + r[2] * r[2]), 2.0 * (r[1] * r[2] - r[3] * r[0])
    )
    return pose[1] + wp.dot(row_y, model.contact_point[k]) - model.contact_radius[k]


@wp.func
def ground_wrench(model: Model, env: int, k: int, pose: wp.transform, twist: wp.spatial_vector):
    """Wrench of the ground on contact point k, which is sunk into it, of a link with this pose and twist."""
    material = model.contact_material[k]
    ke = material[0]
    kd = material[1]
    kf = material[2]
    mu = model.contact_friction[env, k]
    p = wp.transform_point(pose, model.contact_point[k]) - wp.vec3(0.0, model.contact_radius[k], 0.0)
    depth = wp.max(-p[1], 0.0)  # by rounding, a point that lowest_height finds sunk may be out here
    u = wp.spatial_bottom(twist) + wp.cross(wp.spatial_top(twist), p)
    u_t = wp.vec3(u[0], 0.0, u[2])
    f_n = ke * depth + kd * depth * wp.max(-u[1], 0.0)
    cone = mu * ke * depth
    slip = wp.length(u_t)
    f_t = -kf * u_t
    if kf * slip > cone:
        f_t = -(cone / slip) * u_t
    f = wp.vec3(f_t[0], f_n, f_t[2])
    return wp.spatial_vector(wp.cross(p, f), f)


@wp.func
def ground_contact(model: Model, env: int, link: int, pose: wp.transform, twist: wp.spatial_vector):
    total = wp.spatial_vector()
    for k in range(model.contact_start[link], model.contact_start[link + 1]):
        if lowest_height(model, k, pose) < 0.0:
            total += ground_wrench(model, env, k, pose, twist)
    return total


@wp.func
def inertial_wrench(
    model: Model, env: int, link: int, pose: wp.transform, twist: wp.spatial_vector, bias: wp.spatial_vector
):
    """What must act on the link, less gravity: Newton-Euler about the centre of mass, moved to the reference point."""
    m = model.link_mass[env, link]
    r = wp.transform_get_rotation(pose)
    w = wp.spatial_top(twist)
    c = wp.transform_point(pose, model.link_com[link])
    v_c = wp.spatial_bottom(twist) + wp.cross(w, c)
    # classical acceleration of the centre of mass from the spatial one: a_c = a + dw x c + w x v_c
    dw = wp.spatial_top(bias)
    a_c = wp.spatial_bottom(bias) + wp.cross(dw, c) + wp.cross(w, v_c)
    force = m * (a_c - model.gravity)
    # Euler's equation with the inertia in link axes: n_c = I dw + w x I w
    w_link = wp.quat_rotate_inv(r, w)
    inertia = model.link_inertia[env, link]
    moment_link = inertia * wp.quat_rotate_inv(r, dw) + wp.cross(w_link, inertia * w_link)
    return wp.spatial_vector(wp.quat_rotate(r, moment_link) + wp.cross(c, force), force)


@wp.kernel
def link_wrenches(
    # Model:
    model: Model,
    # State in:
    link_pose: wp.array2d[wp.transform],
    link_twist: wp.array2d[wp.spatial_vector],
    link_bias: wp.array2d[wp.spatial_vector],
    # State out:
    link_wrench: wp.array2d[wp.spatial_vector],
):
    """What the joints must supply to each link at qdd = 0: inertia less gravity and ground contact."""
    i, env = wp.tid()
    pose = link_pose[env, i]
    twist = link_twist[env, i]
    inertial = inertial_wrench(model, env, i, pose, twist, link_bias[env, i])
    link_wrench[env, i] = inertial - ground_contact(model, env, i, pose, twist)


@wp.func
def sum_of_children(model: Model, tree_wrench: wp.array2d[wp.spatial_vector], env: int, link: int):
    total = wp.spatial_vector()
    for k in range(model.child_start[link], model.child_start[link + 1]):
        total += tree_wrench[env, model.child[k]]
    return total


@wp.func
def motor_and_damper(model: Model, env: int, dof: int, q: float, qd: float, act: float):
    """Actuation and spring, as strong as effort_limit allows, and the damper of a joint with one degree of freedom."""
    effort = act - model.stiffness[env, dof] * (q - model.target[dof]) - model.motor_damping[env, dof] * qd
    limit = model.effort_limit[env, dof]
    return wp.clamp(effort, -limit, limit) - model.damping[env, dof] * qd


@wp.func
def joint_limit(model: Model, dof: int, q: float, qd: float):
    """Torque of spring and damper beyond the limits of a joint with one degree of freedom."""
    below = wp.max(model.limit_lower[dof] - q, 0.0)
    above = wp.max(q - model.limit_upper[dof], 0.0)
    damper = wp.float32(0.0)
    depth = model.limit_damping_depth[dof]
    if depth > 0.0:
        damper = model.limit_damping[dof] * wp.min((below + above) / depth, 1.0) * qd
    return model.limit_stiffness[dof] * (below - above) - damper


@wp.kernel
def joint_forces(
    # Model:
    model: Model,
    # State in:
    joint_q: wp.array2d[float],
    joint_qd: wp.array2d[float],
    joint_act: wp.array2d[float],
    motion_subspace: wp.array2d[wp.spatial_vector],
    link_wrench: wp.array2d[wp.spatial_vector],
    # State out:
    tree_wrench: wp.array2d[wp.spatial_vector],
    joint_tau: wp.array2d[float],
):
    env = wp.tid()
    # leaves to root: what must act on the subtree of each link.  The children's entries are read back; each is written
    # once, before its reader, so the adjoint is right
    for k in range(model.num_links):
        i = model.num_links - 1 - k
        tree_wrench[env, i] = link_wrench[env, i] + sum_of_children(model, tree_wrench, env, i)
    # tau = -S . F_subtree + actuation, spring and damper + limit
    for d in range(model.num_dofs):
        tau = joint_act[env, d]
        if model.dof_q[d] >= 0:
            q = joint_q[env, model.dof_q[d]]
            tau = motor_and_damper(model, env, d, q, joint_qd[env, d], tau) + joint_limit(model, d, q, joint_qd[env, d])
        joint_tau[env, d] = tau - wp.spatial_dot(motion_subspace[env, d], tree_wrench[env, model.dof_link[d]])
