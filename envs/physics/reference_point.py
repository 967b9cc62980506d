"""The reference point: during a step, spatial quantities refer to a point near the robot.

DFlex refers them to the world origin.  There the linear part of a twist, v = p_dot - w x p, grows with the distance,
and 200 m away float32 has lost the observation.  So a step begins by moving the origin to a point c, and ends by
moving it back:

    p' = p - c,     v' = v + w x c,     all else unchanged

c is the point on the ground below a floating robot, the place of a robot that slides along x, and the world origin for
all others: robots that stay where they are, and several roots, whose places matter to each other.
c is a constant for the gradient: the choice of the reference point changes no physical quantity.
"""

import warp as wp

from envs.physics.model import Model


@wp.kernel(enable_backward=False)
def choose_reference_point(
    # Model:
    model: Model,
    # State in:
    joint_q: wp.array2d[float],
    # State out:
    reference_point: wp.array[wp.vec3],
):
    """Below a free root that is the only one, or at the place of a root that slides along x; else the world origin."""
    env = wp.tid()
    c = wp.vec3()
    if model.num_shifted >= 1:
        c[0] = joint_q[env, 0]
    if model.num_shifted == 3:
        c[2] = joint_q[env, 2]
    # any point would do: a robot whose position is not a number, and will be reported as diverged, gets one that is
    if not (wp.isfinite(c[0]) and wp.isfinite(c[2])):
        c = wp.vec3()
    reference_point[env] = c


@wp.kernel
def move_origin_of_positions(
    # Model:
    model: Model,
    # Parameters:
    sign: float,
    # State in:
    reference_point: wp.array[wp.vec3],
    joint_q: wp.array2d[float],
    # State out:
    joint_q_out: wp.array2d[float],
):
    """Moves to the reference point with sign 1, back with -1."""
    k, env = wp.tid()
    shift = wp.float32(0.0)
    if k < model.num_shifted:
        shift = sign * reference_point[env][k]
    joint_q_out[env, k] = joint_q[env, k] - shift


@wp.kernel
def move_origin_of_velocities(
    # Model:
    model: Model,
    # Parameters:
    sign: float,
    # State in:
    reference_point: wp.array[wp.vec3],
    joint_qd: wp.array2d[float],
    # State out:
    joint_qd_out: wp.array2d[float],
):
    k, env = wp.tid()
    shift = wp.float32(0.0)
    if model.num_shifted == 3 and k >= 3 and k < 6:
        w = wp.vec3(joint_qd[env, 0], joint_qd[env, 1], joint_qd[env, 2])
        turned = wp.cross(w, sign * reference_point[env])
        shift = turned[k - 3]
    joint_qd_out[env, k] = joint_qd[env, k] + shift
