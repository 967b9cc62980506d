"""Hopper: a one-legged planar robot that is to run along +x, as in DFlex (AHAC fork, imgeorgiev/DiffRL @bb59db5).

Robot: torso, thigh, shin and foot are capsules of density 1000 kg/m^3, driven by three motors.  The three root joints
keep the torso in the x-y plane (y is up).  All six carry armature, 1 kg or kg m^2, and damping, 10 N s/m or N m s/rad
at the root and 12 N m s/rad at the motors (10 of it is Link's limit_damping, which acts always).  Of the inertias of
the upright capsules only the part about y is there, which is all that matters in the plane.  Each end of a capsule is a
contact point: eight in all.

    action   motor (torque = 200 N m * action)      observation   meaning                           unit
    0        hip (thigh)                            0             height of the torso - 1.25        m
    1        knee (shin)                            1             pitch                             rad
    2        ankle (foot)                           2 3 4         hip, knee, ankle angle            rad
                                                    5             forward velocity                  m/s
                                                    6             vertical velocity                 m/s
                                                    7             pitch rate                        rad/s
                                                    8 9 10        hip, knee, ankle rate             rad/s

Reward, from the observation o after the step and the clamped action a:

    o5  +  height  +  1 - (o1 / 0.524)^2  -  0.1 |a|^2
    height = h if h >= 0 else -200 h^2,   h = clip(o0 + 0.3, -1, 0.3)      no gradient above o0 = 0

Termination: o0 < -0.45.  Time limit: 1000 steps of 1/60 s (16 substeps, mass matrix rebuilt every 4).
Reset: every coordinate and every velocity uniform in +-0.05.
"""

import torch
from torch.nn.functional import pad

from envs.physics import PRISMATIC, REVOLUTE, Z_UP, Articulation, Capsule, Link, end_contacts
from envs.vector_env import VectorEnv

LINKS = [
    Link("root_x", parent=-1, joint=PRISMATIC, axis=(1, 0, 0), rotation=Z_UP, armature=1.0),
    Link("root_z", parent=0, joint=PRISMATIC, axis=(0, 0, 1), offset=(0, 0, 1.25), armature=1.0),
    Link(
        name="torso",
        parent=1,
        joint=REVOLUTE,
        axis=(0, 1, 0),
        mass=3.665191429,
        inertia=(0, 0.06924593809, 0),
        armature=1.0,
    ),
    Link(
        name="thigh",
        parent=2,
        joint=REVOLUTE,
        axis=(0, -1, 0),
        offset=(0, 0, -0.2),
        limits=(-2.61799, 0.0),
        mass=4.057890511,
        com=(0, 0, -0.225),
        inertia=(0, 0.09329875683, 0),
        damping=2.0,
        armature=1.0,
    ),
    Link(
        name="shin",
        parent=3,
        joint=REVOLUTE,
        axis=(0, -1, 0),
        offset=(0, 0, -0.45),
        limits=(-2.61799, 0.0),
        mass=2.781356696,
        com=(0, 0, -0.25),
        inertia=(0, 0.07230254017, 0),
        damping=2.0,
        armature=1.0,
    ),
    Link(
        name="foot",
        parent=4,
        joint=REVOLUTE,
        axis=(0, -1, 0),
        offset=(0, 0, -0.5),
        limits=(-0.785398, 0.785398),
        mass=5.315574770,
        com=(0.06, 0, 0),
        inertia=(0.009242314259, 0.1035230806, 0.1035233369),
        damping=2.0,
        armature=1.0,
    ),
]

SHAPES = [
    Capsule(link=2, start=(0, 0, -0.2), end=(0, 0, 0.2), radius=0.05),
    Capsule(link=3, start=(0, 0, -0.45), end=(0, 0, 0), radius=0.05),
    Capsule(link=4, start=(0, 0, -0.5), end=(0, 0, 0), radius=0.04),
    Capsule(link=5, start=(-0.135, 0, 0), end=(0.255, 0, 0), radius=0.06),
]
GROUND = {"stiffness": 2.0e4, "damping": 2.0e3, "friction_stiffness": 1.0e3, "friction": 0.9}


class Hopper(VectorEnv):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(
        links=LINKS,
        contacts=end_contacts(SHAPES, **GROUND),
        shapes=SHAPES,
        translates_along_x=True,
    )
    num_obs, num_actions = 11, 3
    dt, substeps, mass_matrix_interval = 1.0 / 60.0, 16, 4
    max_episode_steps = 1000
    reset_noise_size = 12
    motor_torque = 200.0  # N m
    termination_height = -0.45  # m
    height_margin = 0.15  # m above that, where the penalty of the height begins
    pitch_scale = 0.524  # rad

    def actuate(self, action):
        return pad(self.motor_torque * action, (3, 0))  # the motors are the last three joints

    def observe(self, joint_q, joint_qd, last_action):
        return torch.cat([joint_q[:, 1:], joint_qd], dim=1)

    def reward(self, obs, action):
        h = (obs[:, 0] - (self.termination_height + self.height_margin)).clamp(-1.0, 0.3)
        height = torch.where(h < 0.0, -200.0 * h**2, h)
        upright = 1.0 - (obs[:, 1] / self.pitch_scale) ** 2
        return obs[:, 5] + height + upright - 0.1 * (action**2).sum(dim=1)

    def is_terminal(self, obs):
        return obs[:, 0] < self.termination_height

    def sample_state(self, noise):
        return (0.05 * noise).split(6, dim=1)

    def rest_state(self):
        return self.zeros(6), self.zeros(6)
