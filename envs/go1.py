"""Go1: Unitree's four-legged robot, which is to walk along +x at 1 m/s.

Robot: a trunk and four legs of three hinges each: front right, front left, rear right, rear left; 12.74 kg.  Every
joint follows a position target, as on the real robot, at 50 Hz:

    target = START_ANGLES + 0.5 rad * action        torque = kp (target - q) - kd q', at most the motor's

    action      joint                          limits [rad]      kp    kd    torque [N m]    observation: see
    0 3 6 9     hip, abduction, about x        -0.863  0.863     16    1.0   23.7            floating_base.py, n = 12,
    1 4 7 10    thigh, about y                 -0.686  4.501     16    1.0   23.7            49 numbers
    2 5 8 11    calf, about y                  -2.818 -0.888     36    2.3   35.55

Reward, from the observation o after the step, the action a of the step and the one before, b, and the torques tau:

    1 + 1 - (o5 - 1)^2 - o7^2               on its feet; forward velocity 1 m/s, none sideways
    + (o35 - 1) + (o36 - 1)                 upright, heading
    - 20 (o0 - 0.27)^2                      height
    - 2e-4 |tau|^2                          effort, N m
    - 0.02 |a - b|^2                        smoothness

Termination: the trunk's centre below 0.18 m, or o35 < 0.5 (tilted by 60 degrees).
Time limit: 1000 steps of 0.02 s (16 substeps, mass matrix rebuilt every 8).
Reset: height 0.3 m, START_ANGLES; noise +-0.02 m, 7.5 degrees, +-0.1 rad, and a push: all velocities +-0.5.

Numbers: masses, centres of mass, inertias, joints, feet, limits and torques are those of Unitree's go1_description
(unitree_ros), as converted in the go1.xml of MuJoCo Menagerie and mjlab 1.6; tests compare them with mjlab's.
Armature: rotor inertia 1.11842e-4 kg m^2 (same source) times the square of the gear ratio, 6 and for the calf 9.  kp,
kd and START_ANGLES are mjlab's: 10 Hz and a damping ratio of 2 with the armature alone.  Friction 0.8 is Menagerie's
for the feet.  Friction inside the motors is left out.  The ground's stiffness and damping are those of mjcf.py for
12.74 kg, 0.02 m and 0.05 s: a harder ground, and a kd of 0.5, let gradients through 32 steps grow beyond use.
"""

import torch
from torch.nn.functional import pad

from envs.floating_base import FloatingBase
from envs.physics import FREE, REVOLUTE, Articulation, Box, Capsule, Link, end_contacts

ACTION_SCALE = 0.5  # rad
ROTOR_INERTIA = 1.11842e-4  # kg m^2
# kp and kd, N m/rad and N m s/rad, are spring and damper
HIP_MOTOR = {"armature": 6**2 * ROTOR_INERTIA, "stiffness": 16.0, "motor_damping": 1.0, "effort_limit": 23.7}
CALF_MOTOR = {"armature": 9**2 * ROTOR_INERTIA, "stiffness": 36.0, "motor_damping": 2.3, "effort_limit": 35.55}
JOINT = {"joint": REVOLUTE, "servo": True, "limit_stiffness": 400.0, "limit_damping": 3.0, "limit_damping_depth": 0.01}
GROUND = {"stiffness": 6.25e3, "damping": 1.27e4, "friction_stiffness": 255.0, "friction": 0.8}


def symmetric(xx, xy, xz, yy, yz, zz):
    """All nine numbers of an inertia."""
    return (xx, xy, xz, xy, yy, yz, xz, yz, zz)


TRUNK = Link(
    name="trunk",
    parent=-1,
    joint=FREE,
    mass=5.204,
    com=(0.0223, 0.002, -0.0005),
    inertia=symmetric(0.016812826, -2.29676e-4, -2.94553e-4, 0.063009547, -4.1873e-5, 0.071654727),
)
BODY = [Box(0, (0, 0, 0), (0.19, 0.06, 0.05)), Capsule(0, (0.22, 0, 0.01), (0.25, 0, 0.01), 0.055)]
FOOT, FOOT_RADIUS = (0, 0, -0.213), 0.023


def hip(name, front, side):
    """The hip's link; front 1 or -1 (rear), side 1 (left) or -1."""
    return Link(
        name=f"{name}_hip",
        parent=0,
        axis=(1, 0, 0),
        offset=(front * 0.1881, side * 0.04675, 0),
        limits=(-0.863, 0.863),
        mass=0.68,
        com=(front * -0.0049166, side * -0.00762615, -8.865e-5),
        inertia=symmetric(
            3.9938e-4, front * side * -1.459e-5, front * 1.246e-6, 7.33419e-4, side * 1.575e-6, 4.68422e-4
        ),
        **HIP_MOTOR,
        **JOINT,
    )


def thigh(name, side, hip):
    """The thigh's link; hip: the index of that link."""
    return Link(
        name=f"{name}_thigh",
        parent=hip,
        axis=(0, 1, 0),
        offset=(0, side * 0.08, 0),
        limits=(-0.686, 4.501),
        mass=1.009,
        com=(-0.00304722, side * -0.019315, -0.0305004),
        inertia=symmetric(4.598798e-3, side * 6.1374e-5, -2.2753e-4, 4.689223e-3, side * 6.10808e-4, 8.17448e-4),
        **HIP_MOTOR,
        **JOINT,
    )


def calf(name, thigh):
    """The calf's link; thigh: the index of that link."""
    return Link(
        name=f"{name}_calf",
        parent=thigh,
        axis=(0, 1, 0),
        offset=(0, 0, -0.213),
        limits=(-2.818, -0.888),
        mass=0.195862,
        com=(0.00429862, 0.000976676, -0.146197),
        inertia=symmetric(1.484489e-3, -6.19e-7, -1.772e-5, 1.497636e-3, -3.566e-6, 3.6068e-5),
        **CALF_MOTOR,
        **JOINT,
    )


def leg(name, front, side, first):
    """Links, touching and drawn shapes of a leg; front 1 or -1 (rear), side 1 (left) or -1, first the hip's index."""
    links = [hip(name, front, side), thigh(name, side, first), calf(name, first + 1)]
    touching = [Capsule(first + 2, FOOT, FOOT, FOOT_RADIUS), Capsule(first + 2, (0, 0, 0), (0, 0, 0), 0.02)]
    drawn = [
        Capsule(first, (0, side * 0.02, 0), (0, side * 0.04, 0), 0.046),
        Capsule(first + 1, (-0.01, 0, -0.01), (-0.01, 0, -0.19), 0.021),
        Capsule(first + 2, (0.01, 0, -0.02), (0, 0, -0.2), 0.012),
    ]
    return links, touching, drawn


LEGS = [
    leg("FR", front=1, side=-1, first=1),
    leg("FL", front=1, side=1, first=4),
    leg("RR", front=-1, side=-1, first=7),
    leg("RL", front=-1, side=1, first=10),
]
# rad: hip, thigh, calf
START_ANGLES = (0.1, 0.9, -1.8, -0.1, 0.9, -1.8, 0.1, 0.9, -1.8, -0.1, 0.9, -1.8)
TOUCHING = [shape for _, touching, _ in LEGS for shape in touching]
DRAWN = [shape for _, _, drawn in LEGS for shape in drawn]


class Go1(FloatingBase):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(
        links=[TRUNK] + [link for links, _, _ in LEGS for link in links],
        contacts=end_contacts(TOUCHING, **GROUND),
        shapes=BODY + TOUCHING + DRAWN,
    )
    num_obs, num_actions = 49, 12
    dt, substeps, mass_matrix_interval = 0.02, 16, 8
    max_episode_steps = 1000
    start_height, start_angles = 0.3, START_ANGLES
    position_noise, joint_noise, velocity_noise = 0.02, 0.1, 0.5
    termination_height = 0.18
    wanted_velocity, wanted_height = 1.0, 0.27  # m/s, m
    camera_distance, camera_height = 1.8, 0.25

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        motors = [(x.stiffness, x.motor_damping, x.effort_limit) for x in self.articulation.links[1:]]
        self.kp, self.kd, self.strongest = self.constant(motors).unbind(1)
        self.stand = self.constant(self.start_angles)
        self.alike = self.zeros(self.articulation.num_dofs) + 1.0

    def actuate(self, action):
        self.action_before = self.last_action  # for the reward of this step
        return pad(self.kp * self.target(action), (6, 0))  # the rest of the PD law is the joints' spring and damper

    def target(self, action):
        """Wanted joint angles (N, 12), rad."""
        return self.stand + ACTION_SCALE * action

    def torques(self, obs, action):
        """Of the motors in the state that obs shows, (N, 12), N m."""
        angles, rates = obs[:, 11:23], 10.0 * obs[:, 23:35]
        kp, kd, strongest = self.motors()
        torques = kp * (self.target(action) - angles) - kd * rates
        return torch.maximum(torch.minimum(torques, strongest), -strongest)

    def motors(self):
        """kp, kd and the largest torque, (12,), or (N, 12) where environments differ."""
        if not self.parameters:
            return self.kp, self.kd, self.strongest
        names = ("stiffness", "damping", "motor_strength")
        kp, kd, strength = (self.parameters.get(name, self.alike)[:, 6:] for name in names)
        return kp * strength * self.kp, kd * strength * self.kd, strength * self.strongest

    def reward(self, obs, action):
        velocity = 2.0 - (obs[:, 5] - self.wanted_velocity) ** 2 - obs[:, 7] ** 2
        posture = (obs[:, 35] - 1.0) + (obs[:, 36] - 1.0) - 20.0 * (obs[:, 0] - self.wanted_height) ** 2
        effort = (self.torques(obs, action) ** 2).sum(dim=1)
        change = ((action - self.action_before) ** 2).sum(dim=1)
        return velocity + posture - 2e-4 * effort - 0.02 * change

    def is_terminal(self, obs):
        return super().is_terminal(obs) | (obs[:, 35] < 0.5)
