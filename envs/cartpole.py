"""Cartpole: a pole on a cart that is to be swung up and held, as in DFlex (AHAC fork, imgeorgiev/DiffRL @bb59db5).

Robot (asset cartpole.urdf): a cart of 50 kg on a rail 2.5 m above the ground that it never touches, and a free hinge
with a pole of 1 m and 2.5 kg.  The angle of the pole is 0 where it stands upright.

    action      motor (force = 1000 N * action)            observation     meaning                          unit
    0           pushes the cart along x                    0               position x of the cart           m
                                                           1               velocity of the cart             m/s
                                                           2 3             sine and cosine of the angle     -
                                                           4               rate of the angle                rad/s

Reward, from the observation o after the step, with the angle theta = atan2(o2, o3) between -pi and pi:

    - theta^2  -  0.1 o4^2  -  0.05 o0^2  -  0.1 o1^2

It never ends early.  Time limit: 240 steps of 1/60 s (4 substeps, mass matrix rebuilt once per step).
Reset: x and theta uniform in +-pi/2, both velocities uniform in +-0.25.  At rest: upright in the middle.

Where DFlex's robot is not what one expects: the end stops at x = +-4 m are soft springs (100 N/m), through which a
force of 1000 N pushes the cart; and cart and pole carry an armature of 0.1 and a damping of 1.
"""

import math

import torch
from torch.nn.functional import pad

from envs.physics import FIXED, PRISMATIC, REVOLUTE, Z_UP, Articulation, Box, Link
from envs.vector_env import VectorEnv

JOINT = {"armature": 0.1, "limit_stiffness": 100.0, "limit_damping": 1.0}
LINKS = [
    Link("rail", parent=-1, joint=FIXED, offset=(0, 2.5, 0), rotation=Z_UP),
    Link(
        name="cart",
        parent=0,
        joint=PRISMATIC,
        axis=(1, 0, 0),
        limits=(-4.0, 4.0),
        mass=50.0,
        inertia=(1.208333333, 1.208333333, 2.083333333),
        **JOINT,
    ),
    Link(
        name="pole",
        parent=1,
        joint=REVOLUTE,
        axis=(0, 1, 0),
        mass=2.5,
        com=(0, 0, 0.5),
        inertia=(0.2088541667, 0.2088541667, 0.001041666667),
        **JOINT,
    ),
]
SHAPES = [
    Box(link=1, center=(0, 0, 0), half_extents=(0.25, 0.25, 0.1)),
    Box(link=2, center=(0, 0, 0.5), half_extents=(0.025, 0.025, 0.5)),
    Box(link=0, center=(0, 0, 0), half_extents=(4.5, 0.02, 0.02)),
]


class Cartpole(VectorEnv):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(links=LINKS, shapes=SHAPES)
    num_obs, num_actions = 5, 1
    dt, substeps, mass_matrix_interval = 1.0 / 60.0, 4, 4
    max_episode_steps = 240
    reset_noise_size = 4
    motor_force = 1000.0  # N
    camera_distance, camera_height = 6.0, 2.5  # m

    def actuate(self, action):
        return pad(self.motor_force * action, (0, 1))  # nothing drives the hinge

    def observe(self, joint_q, joint_qd, last_action):
        (x, theta), (x_rate, theta_rate) = joint_q.unbind(1), joint_qd.unbind(1)
        return torch.stack([x, x_rate, theta.sin(), theta.cos(), theta_rate], dim=1)

    def reward(self, obs, action):
        x, x_rate, sine, cosine, theta_rate = obs.unbind(1)
        theta = torch.atan2(sine, cosine)
        return -(theta**2) - 0.1 * theta_rate**2 - 0.05 * x**2 - 0.1 * x_rate**2

    def is_terminal(self, obs):
        return torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def sample_state(self, noise):
        return 0.5 * math.pi * noise[:, :2], 0.25 * noise[:, 2:]

    def rest_state(self):
        return self.zeros(2), self.zeros(2)
