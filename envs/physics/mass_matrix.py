"""The joint-space mass matrix H, its sparse factorisation, and the solve H qdd = tau with its derivative.

H comes from the composite-rigid-body algorithm: H_ij = S_i . (I_subtree(i) S_j) for dof j on the way from dof i to the
root, zero for dofs on different branches (Featherstone 2008, section 6.2).  Only the lower triangle is stored.
It is factorised as L' D L from the leaves to the root, which fills in no zeros of the tree (section 6.5).

The factorisation is not differentiated through.  With qdd = H^-1 tau and the gradient g = dJ/dqdd of a loss J,

    lambda = H^-1 g,     dJ/dtau = lambda,     dJ/dH = -lambda qdd'

so the adjoint of a solve is one more solve with the same factors.
"""

from typing import Any

import warp as wp

from envs.physics.lanes import for_floats_and_lanes, over, times
from envs.physics.model import Model


@wp.func
def sum_of_first_moments(model: Model, tree_moment: wp.array2d[wp.vec3], env: int, link: int):
    total = wp.vec3()
    for k in range(model.child_start[link], model.child_start[link + 1]):
        total += tree_moment[env, model.child[k]]
    return total


@wp.func
def sum_of_inertias(model: Model, tree_inertia: wp.array2d[wp.mat33], env: int, link: int):
    total = wp.mat33()
    for k in range(model.child_start[link], model.child_start[link + 1]):
        total += tree_inertia[env, model.child[k]]
    return total


@wp.func
def inertia_about_reference(inertia: wp.mat33, mass: float, rotation: wp.quat, c: wp.vec3):
    """R I R' + m (|c|^2 1 - c c'): rotational inertia about the reference point of a body with centre of mass c."""
    R = wp.quat_to_matrix(rotation)
    C = wp.skew(c)
    return R * inertia * wp.transpose(R) - mass * (C * C)


@wp.kernel
def composite_inertias(
    # Model:
    model: Model,
    # State in:
    link_pose: wp.array2d[wp.transform],
    # State out:
    tree_moment: wp.array2d[wp.vec3],
    tree_inertia: wp.array2d[wp.mat33],
):
    env = wp.tid()
    # the children's entries are read back; each is written once, before its reader, so the adjoint is right
    for k in range(model.num_links):
        i = model.num_links - 1 - k
        pose = link_pose[env, i]
        m = model.link_mass[env, i]
        c = wp.transform_point(pose, model.link_com[i])
        own = inertia_about_reference(model.link_inertia[env, i], m, wp.transform_get_rotation(pose), c)
        tree_moment[env, i] = m * c + sum_of_first_moments(model, tree_moment, env, i)
        tree_inertia[env, i] = own + sum_of_inertias(model, tree_inertia, env, i)


@wp.func
def spatial_momentum(mass: float, moment: wp.vec3, inertia: wp.mat33, twist: wp.spatial_vector):
    """Spatial inertia (m, h = m c, I) times a twist (w; v): (I w + h x v; m v + w x h)."""
    w = wp.spatial_top(twist)
    v = wp.spatial_bottom(twist)
    return wp.spatial_vector(inertia * w + wp.cross(moment, v), mass * v + wp.cross(w, moment))


@wp.kernel
def mass_matrix(
    # Model:
    model: Model,
    # State in:
    motion_subspace: wp.array2d[wp.spatial_vector],
    tree_moment: wp.array2d[wp.vec3],
    tree_inertia: wp.array2d[wp.mat33],
    # State out:
    H: wp.array3d[float],
):
    i, env = wp.tid()
    link = model.dof_link[i]
    S = motion_subspace[env, i]
    momentum = spatial_momentum(model.tree_mass[env, link], tree_moment[env, link], tree_inertia[env, link], S)
    H[env, i, i] = wp.spatial_dot(S, momentum)
    for k in range(model.ancestor_start[i], model.ancestor_start[i + 1]):
        j = model.ancestor[k]
        H[env, i, j] = wp.spatial_dot(motion_subspace[env, j], momentum)


@wp.kernel(enable_backward=False)
def factorise(
    # Model:
    model: Model,
    # State in:
    H: wp.array3d[Any],
    # State out:
    factor: wp.array3d[Any],
):
    """H + diag(armature) = L' D L: the strict lower triangle of `factor` holds L, its diagonal 1 / D."""
    env = wp.tid()
    for i in range(model.num_dofs):
        factor[env, i, i] = H[env, i, i] + H.dtype(model.armature[i])
        for a in range(model.ancestor_start[i], model.ancestor_start[i + 1]):
            factor[env, i, model.ancestor[a]] = H[env, i, model.ancestor[a]]
    for k in range(model.num_dofs):
        i = model.num_dofs - 1 - k
        inv_d = over(factor.dtype(1.0), factor[env, i, i])
        factor[env, i, i] = inv_d
        last = model.ancestor_start[i + 1]
        for a in range(model.ancestor_start[i], last):
            j = model.ancestor[a]
            l_ij = times(factor[env, i, j], inv_d)
            for b in range(a, last):
                m = model.ancestor[b]
                factor[env, j, m] = factor[env, j, m] - times(l_ij, factor[env, i, m])
            factor[env, i, j] = l_ij


@wp.kernel(enable_backward=False)
def solve(
    # Model:
    model: Model,
    # State in:
    factor: wp.array3d[Any],
    rhs: wp.array2d[Any],
    # State out:
    x: wp.array2d[Any],
):
    """x = (L' D L)^-1 rhs."""
    env = wp.tid()
    for i in range(model.num_dofs):
        x[env, i] = rhs[env, i]
    for k in range(model.num_dofs):
        i = model.num_dofs - 1 - k
        x_i = x[env, i]
        for a in range(model.ancestor_start[i], model.ancestor_start[i + 1]):
            j = model.ancestor[a]
            x[env, j] = x[env, j] - times(factor[env, i, j], x_i)
    for i in range(model.num_dofs):
        x_i = times(x[env, i], factor[env, i, i])
        for a in range(model.ancestor_start[i], model.ancestor_start[i + 1]):
            x_i = x_i - times(factor[env, i, model.ancestor[a]], x[env, model.ancestor[a]])
        x[env, i] = x_i


@wp.kernel(enable_backward=False)
def solve_adjoint(
    # Model:
    model: Model,
    # State in:
    joint_qdd: wp.array2d[Any],
    grad_tau: wp.array2d[Any],
    # State out:
    grad_H: wp.array3d[Any],
    grad_qdd: wp.array2d[Any],
):
    """dJ/dH -= lambda qdd' with lambda = dJ/dtau; an entry below the diagonal stands for its mirror image too.

    The gradient with respect to qdd is used up and left at zero, as Warp's own adjoint of a store does.
    """
    i, env = wp.tid()
    qdd_i = joint_qdd[env, i]
    lambda_i = grad_tau[env, i]
    grad_H[env, i, i] = grad_H[env, i, i] - times(lambda_i, qdd_i)
    for a in range(model.ancestor_start[i], model.ancestor_start[i + 1]):
        j = model.ancestor[a]
        grad_H[env, i, j] = grad_H[env, i, j] - times(lambda_i, joint_qdd[env, j]) - times(grad_tau[env, j], qdd_i)
    grad_qdd[env, i] = grad_qdd.dtype(0.0)


for_floats_and_lanes(factorise, "H", "factor")
for_floats_and_lanes(solve, "factor", "rhs", "x")
for_floats_and_lanes(solve_adjoint, "joint_qdd", "grad_tau", "grad_H", "grad_qdd")
