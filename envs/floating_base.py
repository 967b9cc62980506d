"""What ant, anymal, humanoid and go1 share: a floating root, one motor per joint, and one layout of observations.

With n joints, all of them driven:

    observation            meaning                                                       unit
    0                      height of the root's origin                                   m
    1 2 3 4                orientation of the root, quaternion xyzw                      -
    5 6 7                  velocity of the root's origin, world axes                     m/s
    8 9 10                 angular velocity of the root, world axes                      rad/s
    11 .. 10+n             joint angles                                                  rad
    11+n .. 10+2n          0.1 * joint rates                                             rad/s
    11+2n                  uprightness: height of the root's "up" axis, -1 to 1          -
    12+2n                  heading: cosine between the root's "forward" axis and the     -
                           horizontal direction towards a target far ahead on the x axis
    13+2n .. 12+3n         the clamped action of the step before; 0 at the start         -

Links are z up and face +x, the world is y up.  At rest the root is turned by -90 degrees about x.
Reset, unless a task says otherwise: position +-0.1 m per axis, orientation turned by up to 7.5 degrees about a random
axis, joints +-0.2 rad, and all velocities +-0.25: the joints' and the twist's, which is taken about the world origin.

DFlex shows the last action to PPO and SAC only: its gradient mode has zeros in that block.  Here everybody sees it,
and gradients flow through it.
"""

import math

import torch
from torch.nn.functional import normalize, pad

from envs.physics import Z_UP
from envs.quaternion import product
from envs.vector_env import VectorEnv


class FloatingBase(VectorEnv):
    """A robot whose link 0 has a free joint; tasks add the reward. The methods are described in vector_env.py."""

    motor_torque = None  # N m at action 1: a number, or one per joint
    start_height = None  # m
    start_angles = None  # rad, one per joint
    target_x = 10_000.0  # m, where the heading points
    termination_height = None  # m
    position_noise, joint_noise, velocity_noise = 0.1, 0.2, 0.25  # m; rad; m/s and rad/s

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        start = [0.0, self.start_height, 0.0, *Z_UP, *self.start_angles]
        self.start = self.constant(start).repeat(self.num_envs, 1)
        if self.motor_torque is not None:
            self.torque = self.constant(self.motor_torque)

    @property
    def reset_noise_size(self):
        return 3 + 1 + 3 + self.num_actions + 6 + self.num_actions

    def actuate(self, action):
        return pad(self.torque * action, (6, 0))  # nothing pushes the root

    def observe(self, joint_q, joint_qd, last_action):
        position, quaternion, angles = joint_q.split([3, 4, self.num_actions], dim=1)
        angular, linear, rates = joint_qd.split([3, 3, self.num_actions], dim=1)
        velocity = linear + torch.linalg.cross(angular, position)  # of the root's origin: v + w x p
        up_y, forward_x, forward_z = _axes_of_root(quaternion)
        to_target = torch.stack([self.target_x - position[:, 0], -position[:, 2]], dim=1)
        direction = normalize(to_target, dim=1, eps=1e-9)
        heading = forward_x * direction[:, 0] + forward_z * direction[:, 1]
        posture = [position[:, 1:2], quaternion, velocity, angular, angles, 0.1 * rates]
        return torch.cat([*posture, up_y[:, None], heading[:, None], last_action], dim=1)

    def is_terminal(self, obs):
        return obs[:, 0] < self.termination_height

    def sample_state(self, noise):
        n = self.num_actions
        position, quaternion, angles = self.start.split([3, 4, n], dim=1)
        shift, turn, axis, joints, joint_qd = noise.split([3, 1, 3, n, 6 + n], dim=1)
        half_angle, axis = math.pi / 48.0 * turn, normalize(axis, dim=1)
        quaternion = product(quaternion, torch.cat([axis * half_angle.sin(), half_angle.cos()], dim=1))
        position, angles = position + self.position_noise * shift, angles + self.joint_noise * joints
        return torch.cat([position, quaternion, angles], dim=1), self.velocity_noise * joint_qd

    def rest_state(self):
        return self.start.clone(), self.zeros(6 + self.num_actions)


def _axes_of_root(quaternion):
    """The y component of the root's z axis ("up"), and the x and z components of its x axis ("forward")."""
    x, y, z, w = quaternion.unbind(1)
    # elements of the rotation matrix of a unit quaternion
    return 2.0 * (y * z - w * x), 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * z - w * y)
