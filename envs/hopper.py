"""Hopper: a one-legged planar robot that is to run along +x.  DFlex's version (AHAC fork), in numbers and in units.

Robot: torso, thigh, shin and foot are capsules of density 1000 kg/m^3; three motors.  The three root joints keep the
torso in the x-y plane (y is up) and carry armature and damping like the others: 1 kg or kg m^2, and 10 N s/m or
N m s/rad.  The inertias of the upright capsules lack the parts about x and z, which do not matter in the plane.

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
    height = h if h >= 0 else -200 h^2,   h = clip(o0 + 0.3, -1, 0.3)

Termination: o0 < -0.45.  Time limit: 1000 steps of 1/60 s (16 substeps, mass matrix rebuilt every 4).
Reset: every coordinate and every velocity uniform in +-0.05.
"""

import torch
from torch.nn.functional import pad

from envs.articulation import PRISMATIC, REVOLUTE, Articulation, ContactPoint, Link
from envs.vector_env import VectorEnv

# joint frames are z up, the world is y up: a quarter turn about -x
Z_UP = (-(0.5**0.5), 0.0, 0.0, 0.5**0.5)
HIP_LIMITS = KNEE_LIMITS = (-2.61799, 0.0)
ANKLE_LIMITS = (-0.785398, 0.785398)

# name, parent, joint type, axis
LINKS = [
    Link("root_x", -1, PRISMATIC, (1, 0, 0), rotation=Z_UP, armature=1.0),
    Link("root_z", 0, PRISMATIC, (0, 0, 1), offset=(0, 0, 1.25), armature=1.0),
    Link("torso", 1, REVOLUTE, (0, 1, 0), mass=3.665191429, inertia=(0, 0.06924593809, 0), armature=1.0),
    Link(
        *("thigh", 2, REVOLUTE, (0, -1, 0)),
        offset=(0, 0, -0.2),
        mass=4.057890511,
        com=(0, 0, -0.225),
        inertia=(0, 0.09329875683, 0),
        limits=HIP_LIMITS,
        damping=2.0,
        armature=1.0,
    ),
    Link(
        *("shin", 3, REVOLUTE, (0, -1, 0)),
        offset=(0, 0, -0.45),
        mass=2.781356696,
        com=(0, 0, -0.25),
        inertia=(0, 0.07230254017, 0),
        limits=KNEE_LIMITS,
        damping=2.0,
        armature=1.0,
    ),
    Link(
        *("foot", 4, REVOLUTE, (0, -1, 0)),
        offset=(0, 0, -0.5),
        mass=5.315574770,
        com=(0.06, 0, 0),
        inertia=(0.009242314259, 0.1035230806, 0.1035233369),
        limits=ANKLE_LIMITS,
        damping=2.0,
        armature=1.0,
    ),
]

# link, the two ends of its capsule, radius
CAPSULES = [
    (2, (0, 0, -0.2), (0, 0, 0.2), 0.05),
    (3, (0, 0, -0.45), (0, 0, 0), 0.05),
    (4, (0, 0, -0.5), (0, 0, 0), 0.04),
    (5, (-0.135, 0, 0), (0.255, 0, 0), 0.06),
]
GROUND = {"stiffness": 2.0e4, "damping": 2.0e3, "friction_stiffness": 1.0e3, "friction": 0.9}


class Hopper(VectorEnv):
    articulation = Articulation(
        links=LINKS,
        contacts=[ContactPoint(link, end, radius, **GROUND) for link, *ends, radius in CAPSULES for end in ends],
        translates_along_x=True,
    )
    num_obs, num_actions = 11, 3
    dt, substeps, mass_matrix_interval = 1.0 / 60.0, 16, 4
    max_episode_steps = 1000
    motor_torque = 200.0
    termination_height = -0.45
    termination_angle = 0.524

    def actuate(self, action):
        """The motors are the last three joints."""
        return pad(self.motor_torque * action, (3, 0))

    def observe(self, joint_q, joint_qd, action):
        return torch.cat([joint_q[:, 1:], joint_qd], dim=1)

    def reward(self, obs, action):
        h = (obs[:, 0] - (self.termination_height + 0.15)).clamp(-1.0, 0.3)
        height = torch.where(h < 0.0, -200.0 * h**2, h)
        upright = 1.0 - (obs[:, 1] / self.termination_angle) ** 2
        return obs[:, 5] + height + upright - 0.1 * (action**2).sum(dim=1)

    def is_terminal(self, obs):
        return obs[:, 0] < self.termination_height

    def sample_state(self):
        return self.uniform(6, 0.05), self.uniform(6, 0.05)

    def rest_state(self):
        return self.constant([0.0] * 6), self.constant([0.0] * 6)
