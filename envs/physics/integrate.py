"""Symplectic Euler: velocities first, then positions with the new velocities; quaternions are renormalised.

And the test whether the result has blown up: a coordinate or velocity beyond 1e6, or not finite.
"""

import warp as wp

from envs.physics.articulation import FREE, PRISMATIC, REVOLUTE
from envs.physics.model import Model

DIVERGED = wp.constant(1.0e6)


@wp.func
def vec3_at(x: wp.array2d[float], env: int, k: int):
    return wp.vec3(x[env, k], x[env, k + 1], x[env, k + 2])


@wp.func
def turn(r: wp.quat, w: wp.vec3, h: float):
    """The quaternion r after turning with angular velocity w (world axes) for a time h: dr/dt = (w, 0) r / 2."""
    return wp.normalize(r + wp.quat(w[0], w[1], w[2], 0.0) * r * (0.5 * h))


@wp.kernel
def integrate_velocity(
    # Parameters:
    h: float,
    # State in:
    joint_qd: wp.array2d[float],
    joint_qdd: wp.array2d[float],
    # State out:
    joint_qd_out: wp.array2d[float],
):
    d, env = wp.tid()
    joint_qd_out[env, d] = joint_qd[env, d] + h * joint_qdd[env, d]


@wp.kernel
def integrate_position(
    # Model:
    model: Model,
    # Parameters:
    h: float,
    # State in:
    joint_q: wp.array2d[float],
    joint_qd: wp.array2d[float],
    # State out:
    joint_q_out: wp.array2d[float],
):
    i, env = wp.tid()
    kind = model.joint_type[i]
    q = model.q_start[i]
    d = model.qd_start[i]
    if kind == PRISMATIC or kind == REVOLUTE:
        joint_q_out[env, q] = joint_q[env, q] + h * joint_qd[env, d]
    if kind == FREE:
        # the body's own origin moves with v + w x p
        p = vec3_at(joint_q, env, q)
        w = vec3_at(joint_qd, env, d)
        p_new = p + h * (vec3_at(joint_qd, env, d + 3) + wp.cross(w, p))
        r = wp.quat(joint_q[env, q + 3], joint_q[env, q + 4], joint_q[env, q + 5], joint_q[env, q + 6])
        r_new = turn(r, w, h)
        for k in range(3):
            joint_q_out[env, q + k] = p_new[k]
        for k in range(4):
            joint_q_out[env, q + 3 + k] = r_new[k]


@wp.func
def is_beyond(x: wp.array2d[float], env: int, size: int):
    beyond = wp.bool(False)
    for k in range(size):
        # written so that NaN, for which every comparison is false, counts
        if not (wp.abs(x[env, k]) <= DIVERGED):
            beyond = True
    return beyond


@wp.kernel(enable_backward=False)
def find_diverged(
    # State in:
    joint_q: wp.array2d[float],
    joint_qd: wp.array2d[float],
    # State out:
    diverged: wp.array[wp.bool],
):
    env = wp.tid()
    diverged[env] = is_beyond(joint_q, env, joint_q.shape[1]) or is_beyond(joint_qd, env, joint_qd.shape[1])
