"""Symplectic Euler: velocities first, then positions with the new velocities; quaternions are renormalised."""

import warp as wp

from envs.articulation import Model
from envs.kinematics import JOINT_FREE, JOINT_PRISMATIC, JOINT_REVOLUTE


@wp.func
def new_velocity(joint_qd: wp.array2d[float], joint_qdd: wp.array2d[float], h: float, env: int, dof: int):
    return joint_qd[env, dof] + h * joint_qdd[env, dof]


@wp.func
def new_velocity3(joint_qd: wp.array2d[float], joint_qdd: wp.array2d[float], h: float, env: int, dof: int):
    return wp.vec3(
        new_velocity(joint_qd, joint_qdd, h, env, dof),
        new_velocity(joint_qd, joint_qdd, h, env, dof + 1),
        new_velocity(joint_qd, joint_qdd, h, env, dof + 2),
    )


@wp.kernel
def symplectic_euler(
    # Model:
    model: Model,
    h: float,
    # State in:
    joint_q: wp.array2d[float],
    joint_qd: wp.array2d[float],
    joint_qdd: wp.array2d[float],
    # State out:
    joint_q_out: wp.array2d[float],
    joint_qd_out: wp.array2d[float],
):
    env, i = wp.tid()
    kind = model.joint_type[i]
    q = model.q_start[i]
    d = model.qd_start[i]
    if kind == JOINT_PRISMATIC or kind == JOINT_REVOLUTE:
        qd = new_velocity(joint_qd, joint_qdd, h, env, d)
        joint_qd_out[env, d] = qd
        joint_q_out[env, q] = joint_q[env, q] + h * qd
    if kind == JOINT_FREE:
        w = new_velocity3(joint_qd, joint_qdd, h, env, d)
        v = new_velocity3(joint_qd, joint_qdd, h, env, d + 3)
        p = wp.vec3(joint_q[env, q], joint_q[env, q + 1], joint_q[env, q + 2])
        r = wp.quat(joint_q[env, q + 3], joint_q[env, q + 4], joint_q[env, q + 5], joint_q[env, q + 6])
        # the body's own origin moves with v + w x p; the quaternion with (w, 0) r / 2
        p_new = p + h * (v + wp.cross(w, p))
        r_new = wp.normalize(r + wp.quat(w[0], w[1], w[2], 0.0) * r * (0.5 * h))
        for k in range(3):
            joint_qd_out[env, d + k] = w[k]
            joint_qd_out[env, d + 3 + k] = v[k]
            joint_q_out[env, q + k] = p_new[k]
        for k in range(4):
            joint_q_out[env, q + 3 + k] = r_new[k]
