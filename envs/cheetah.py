"""Cheetah: a two-legged planar robot that is to run along +x, as in DFlex (AHAC fork, imgeorgiev/DiffRL @bb59db5).

Robot (asset half_cheetah.xml): a torso with a head, and a back and a front leg of thigh, shin and foot; 21.18 kg.  The
three root joints keep it in the x-y plane (y is up).  Springs pull the legs towards their zero pose.

    action   motor (torque = 200 N m * action)      observation   meaning                              unit
    0 1 2    back thigh, shin, foot                 0             height of the torso - 1              m
    3 4 5    front thigh, shin, foot                1             pitch                                rad
                                                    2 3 4         back thigh, shin, foot angle         rad
                                                    5 6 7         front thigh, shin, foot angle        rad
                                                    8             forward velocity                     m/s
                                                    9             vertical velocity                    m/s
                                                    10            pitch rate                           rad/s
                                                    11 .. 16      rates of the joints                  rad/s

Reward, from the observation o after the step and the clamped action a:

    o8  -  0.1 |a|^2

It never ends early.  Time limit: 1000 steps of 1/60 s (16 substeps, mass matrix rebuilt once per step).
Reset: torso at 0.8 m; every coordinate +-0.1, every velocity +-0.25.

Where DFlex's robot is not what one expects: the front foot's zero pose lies 0.3 rad beyond its limit; the damping of 10
of the joint limits acts always, also on the three root joints, which slows the running down (10 N s/m); all nine joints
carry an armature of 0.1; and of the inertia of a shape that is turned in its link only R_ii^2 I_ii is kept.
"""

import torch
from torch.nn.functional import pad

from envs.physics import PRISMATIC, REVOLUTE, Z_UP, Articulation, Capsule, Link, end_contacts
from envs.vector_env import VectorEnv

ROOT = {"armature": 0.1}
LINKS = [
    Link("root_x", parent=-1, joint=PRISMATIC, axis=(1, 0, 0), offset=(0, 1, 0), rotation=Z_UP, **ROOT),
    Link("root_z", parent=0, joint=PRISMATIC, axis=(0, 0, 1), **ROOT),
    Link(
        name="torso",
        parent=1,
        joint=REVOLUTE,
        axis=(0, 1, 0),
        mass=9.457333238,
        com=(0.1523898782, 0, 0.02539831303),
        inertia=(0.02673184862, 0, -0.10751609, 0, 1.357449111, 0, -0.10751609, 0, 1.328036664),
        **ROOT,
    ),
]


def segment(name, parent, offset, limits, stiffness, mass, com, inertia):
    """One part of a leg; the damping of its spring is a fortieth of the stiffness."""
    body = {"mass": mass, "com": com, "inertia": inertia}
    spring = {"stiffness": stiffness, "damping": stiffness / 40.0, "armature": 0.1}
    return Link(name, parent, REVOLUTE, axis=(0, 1, 0), offset=offset, limits=limits, **spring, **body)


LINKS += [
    segment(
        name="back_thigh",
        parent=2,
        offset=(-0.5, 0, 0),
        limits=(-0.52, 1.05),
        stiffness=240.0,
        mass=2.335526999,
        com=(0.1, 0, -0.13),
        inertia=(0.0008927655662, 0.02548755208, 0.009541776877),
    ),
    segment(
        name="back_shin",
        parent=3,
        offset=(0.16, 0, -0.25),
        limits=(-0.785, 0.785),
        stiffness=180.0,
        mass=2.4020031,
        com=(-0.14, 0, -0.07),
        inertia=(0.001972735416, 0.02764084593, 0.02221061524),
    ),
    segment(
        name="back_foot",
        parent=4,
        offset=(-0.28, 0, -0.14),
        limits=(-0.4, 0.785),
        stiffness=120.0,
        mass=1.657470774,
        com=(0.03, 0, -0.097),
        inertia=(0.0001186233284, 0.009611995647, 0.0006838517677),
    ),
    segment(
        name="front_thigh",
        parent=2,
        offset=(0.5, 0, 0),
        limits=(-1.5, 0.8),
        stiffness=180.0,
        mass=2.175984358,
        com=(-0.07, 0, -0.12),
        inertia=(0.0005470876807, 0.02078976582, 0.00513278261),
    ),
    segment(
        name="front_shin",
        parent=6,
        offset=(-0.14, 0, -0.24),
        limits=(-1.2, 1.1),
        stiffness=120.0,
        mass=1.817013415,
        com=(0.065, 0, -0.09),
        inertia=(0.0005853959516, 0.01244105894, 0.003966472381),
    ),
    segment(
        name="front_foot",
        parent=7,
        offset=(0.13, 0, -0.18),
        limits=(-3.1, -0.3),
        stiffness=60.0,
        mass=1.338385491,
        com=(0.045, 0, -0.07),
        inertia=(0.0004239486514, 0.005339975522, 0.001702496991),
    ),
]

# link, and the two ends of its capsule
CAPSULES = [
    (2, (-0.5, 0, 0), (0.5, 0, 0)),
    (2, (0.4853506594, 0, 0.003276018), (0.7146493406, 0, 0.1967239821)),
    (3, (0.01128060581, 0, -0.01530968177), (0.1887193942, 0, -0.2446903182)),
    (4, (-0.005539138827, 0, -0.00351483765), (-0.2744608612, 0, -0.1364851623)),
    (5, (0.05507275505, 0, -0.1875944643), (0.004927244951, 0, -0.006405535742)),
    (6, (-0.1360850583, 0, -0.2354197509), (-0.003914941667, 0, -0.0045800491)),
    (7, (0.1248521024, 0, -0.1774855752), (0.00514789782, 0, -0.002514424820)),
    (8, (0.08452497314, 0, -0.1277734930), (0.005475026863, 0, -0.01222650696)),
]
SHAPES = [Capsule(link, start, end, radius=0.046) for link, start, end in CAPSULES]
GROUND = {"stiffness": 2.0e4, "damping": 2.0e3, "friction_stiffness": 1.0e3, "friction": 1.0}


class Cheetah(VectorEnv):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(
        links=LINKS,
        contacts=end_contacts(SHAPES, **GROUND),
        shapes=SHAPES,
        translates_along_x=True,
    )
    num_obs, num_actions = 17, 6
    dt, substeps, mass_matrix_interval = 1.0 / 60.0, 16, 16
    max_episode_steps = 1000
    reset_noise_size = 18
    motor_torque = 200.0  # N m
    start_z = -0.2  # m, height of the torso - 1

    def actuate(self, action):
        return pad(self.motor_torque * action, (3, 0))  # the motors are the last six joints

    def observe(self, joint_q, joint_qd, last_action):
        return torch.cat([joint_q[:, 1:], joint_qd], dim=1)

    def reward(self, obs, action):
        return obs[:, 8] - 0.1 * (action**2).sum(dim=1)

    def is_terminal(self, obs):
        return torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def sample_state(self, noise):
        return self.rest_state()[0] + 0.1 * noise[:, :9], 0.25 * noise[:, 9:]

    def rest_state(self):
        joint_q = self.zeros(9)
        joint_q[:, 1] = self.start_z
        return joint_q, torch.zeros_like(joint_q)
