"""Humanoid: a two-legged robot with arms that is to run along +x, as in DFlex (AHAC fork, imgeorgiev/DiffRL @bb59db5).

Robot (asset humanoid.xml): torso, waist, pelvis, two legs of six hinges and two arms of three; 40.84 kg.  A body moved
by several hinges is a chain of links, all but the last of them massless.

    action      motor                    torque at action 1 [N m]     observation: see floating_base.py, n = 21,
    0 1 2       waist z, y, x            70 70 70                     76 numbers
    3 4 5       right hip x, z, y        70 70 210
    6 7 8       right knee, ankle y, x   140 35 35
    9 .. 14     left leg, as the right   as the right
    15 16 17    right shoulder, elbow    35 35 70
    18 19 20    left shoulder, elbow     35 35 70

Reward, from the observation o after the step and the clamped action a:

    o5  +  0.1 o53  +  o54  +  height  -  0.002 |a|^2               forward velocity, upright, heading, height, effort
    height = 10 h if h >= 0 else -200 h^2,   h = clip(o0 - 0.84, -1, 0.1)

Termination: o0 < 0.74.  Time limit: 1000 steps of 1/60 s (48 substeps, mass matrix rebuilt once per step).
Reset: height 1.35 m, all joints at 0; noise as in floating_base.py.  The heading's target is 200 m ahead, out of
reach within the time limit below 12 m/s.

Where DFlex's robot is not the one of the asset: every shape has 1000 kg/m^3; the damping of 10 of the joint limits
acts always, on top of the joint's own; and of the inertia of a shape that is turned in its link only R_ii^2 I_ii is
kept, so waist, pelvis, thighs and shins have one axis with inertia each.
"""

from math import radians

import torch

from envs.floating_base import FloatingBase
from envs.physics import FREE, REVOLUTE, Articulation, Capsule, Link, end_contacts

GROUND = {"stiffness": 2.0e4, "damping": 2.0e3, "friction_stiffness": 1.0e3, "friction": 0.75}


# springs: N m/rad, N m s/rad, kg m^2
WAIST_Z = {"stiffness": 20.0, "damping": 5.0, "armature": 0.02}
WAIST_Y = HIP_Y = {"stiffness": 20.0, "damping": 5.0, "armature": 0.01}
WAIST_X = HIP = SHOULDER = {"stiffness": 10.0, "damping": 5.0, "armature": 0.01}
KNEE = {"stiffness": 5.0, "damping": 0.1, "armature": 0.007}
ANKLE = ELBOW = {"stiffness": 2.0, "damping": 1.0, "armature": 0.006}

# bodies: kg, m, kg m^2
WAIST = {"mass": 2.261946711, "com": (0, 0, -0.065), "inertia": (0, 0, 0.009853039871)}
PELVIS = {"mass": 6.616194128, "com": (-0.02, 0, -0.1), "inertia": (0, 0, 0.05231797919)}
THIGH = {"mass": 4.751750929, "inertia": (0, 0.07482214779, 5.599052019e-08)}
SHIN = {"mass": 2.755696167, "com": (0, 0, -0.17), "inertia": (0, 0.03260801546, 0)}
FOOT = {"mass": 1.131141232, "inertia": (0.0008491385369, 0.005940126353, 0.006446461544)}
UPPER_ARM = {"mass": 1.661080485, "inertia": (0.0004286570587, 0.009893382047, 0.009893382047)}
HERE = (0, 0, 0)  # a further hinge at the same place


def hinge(name, parent, axis, offset, degrees, **springs_and_body):
    """A revolute joint with its limits in degrees, and the body that it moves."""
    limits = (radians(degrees[0]), radians(degrees[1]))
    return Link(name, parent, REVOLUTE, axis, offset, limits=limits, **springs_and_body)


TRUNK = [
    Link(
        name="torso",
        parent=-1,
        joint=FREE,
        mass=8.90746237,
        com=(-0.002539383964, 0, 0.03466259111),
        inertia=(0.141999487, 0, -0.001832880444, 0, 0.1421682422, 0, -0.001832880444, 0, 0.04121185153),
    ),
    hinge("waist_z", 0, (0, 0, 1), (-0.01, 0, -0.195), (-45, 45), **WAIST_Z),
    hinge("waist_y", 1, (0, 1, 0), HERE, (-75, 30), **WAIST_Y, **WAIST),
    hinge("waist_x", 2, (1, 0, 0), (0, 0, -0.13), (-35, 35), **WAIST_X, **PELVIS),
]
TRUNK_SHAPES = [
    Capsule(0, (0, -0.07, 0), (0, 0.07, 0), 0.07),
    Capsule(0, (-0.01, -0.06, -0.12), (-0.01, 0.06, -0.12), 0.06),
    Capsule(0, (0, 0, 0.19), (0, 0, 0.19), 0.09),
    Capsule(2, (0, -0.06, -0.065), (0, 0.06, -0.065), 0.06),
    Capsule(3, (-0.02, -0.07, -0.1), (-0.02, 0.07, -0.1), 0.09),
]


def leg(name, side, first):
    """Links and shapes of a leg; side is 1 (left) or -1 (right), first the index of its first link."""
    thigh, shin, foot = first + 2, first + 3, first + 5
    roll = (2 / 5**0.5, 0, 1 / 5**0.5)
    thigh_com, foot_com = (0, side * -0.005, -0.17), (0.035, side * 0.01, -0.08)
    links = [
        hinge(f"{name}_hip_x", 3, (-side, 0, 0), (0, side * 0.1, -0.14), (-25, 5), **HIP),
        hinge(f"{name}_hip_z", first, (0, 0, -side), HERE, (-60, 35), **HIP),
        hinge(f"{name}_hip_y", first + 1, (0, 1, 0), HERE, (-80, 20), **HIP_Y, **THIGH, com=thigh_com),
        hinge(f"{name}_knee", thigh, (0, -1, 0), (0, side * -0.01, -0.383), (-160, 2), **KNEE, **SHIN),
        hinge(f"{name}_ankle_y", shin, (0, 1, 0), (0, 0, -0.33), (-50, 50), **ANKLE),
        hinge(f"{name}_ankle_x", first + 4, roll, HERE, (-50, 50), **ANKLE, **FOOT, com=foot_com),
    ]
    shapes = [
        Capsule(thigh, (0, 0, 0), (0, side * -0.01, -0.34), 0.06),
        Capsule(shin, (0, 0, -0.02), (0, 0, -0.32), 0.049),
        Capsule(foot, (-0.07, side * 0.02, -0.08), (0.14, side * 0.04, -0.08), 0.027),
        Capsule(foot, (-0.07, 0, -0.08), (0.14, side * -0.02, -0.08), 0.027),
    ]
    return links, shapes


def arm(name, side, first):
    """Links and shapes of an arm, as for a leg."""
    upper, lower = first + 1, first + 2
    along, across = (-side * 2 / 6**0.5, 1 / 6**0.5, -side / 6**0.5), (0, -(0.5**0.5), -side * 0.5**0.5)
    upper_com, m = (0.08, side * 0.08, -0.08), 0.1096231337
    hand = (0.18, -side * 0.18, 0.18)
    a, b, o = 0.003717594979, 0.008793475449, 0.001698013027
    lower_arm = {"mass": 1.229540193, "com": (m, -side * m, m)}
    lower_arm["inertia"] = (a, side * o, -o, side * o, b, side * o, -o, side * o, b)
    links = [
        hinge(f"{name}_shoulder1", 0, along, (0, side * 0.17, 0.06), (-60, 60), **SHOULDER),
        hinge(f"{name}_shoulder2", first, across, HERE, (-60, 60), **SHOULDER, **UPPER_ARM, com=upper_com),
        hinge(f"{name}_elbow", upper, across, (0.18, side * 0.18, -0.18), (-90, 50), **ELBOW, **lower_arm),
    ]
    shapes = [
        Capsule(upper, (0, 0, 0), (0.16, side * 0.16, -0.16), 0.04),
        Capsule(lower, (0.01, -side * 0.01, 0.01), (0.17, -side * 0.17, 0.17), 0.031),
        Capsule(lower, hand, hand, 0.04),
    ]
    return links, shapes


LIMBS = [
    leg("right", side=-1, first=4),
    leg("left", side=1, first=10),
    arm("right", side=-1, first=16),
    arm("left", side=1, first=19),
]
SHAPES = TRUNK_SHAPES + [shape for _, shapes in LIMBS for shape in shapes]
WAIST_TORQUE, LEG_TORQUE, ARM_TORQUE = (70.0, 70.0, 70.0), (70.0, 70.0, 210.0, 140.0, 35.0, 35.0), (35.0, 35.0, 70.0)


class Humanoid(FloatingBase):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(
        links=TRUNK + [link for links, _ in LIMBS for link in links],
        contacts=end_contacts(SHAPES, **GROUND),
        shapes=SHAPES,
    )
    num_obs, num_actions = 76, 21
    dt, substeps, mass_matrix_interval = 1.0 / 60.0, 48, 48
    max_episode_steps = 1000
    motor_torque = WAIST_TORQUE + 2 * LEG_TORQUE + 2 * ARM_TORQUE
    start_height, start_angles = 1.35, (0.0,) * 21
    target_x = 200.0
    termination_height = 0.74

    def reward(self, obs, action):
        h = (obs[:, 0] - (self.termination_height + 0.1)).clamp(-1.0, 0.1)
        height = torch.where(h < 0.0, -200.0 * h**2, 10.0 * h)
        effort = (action**2).sum(dim=1)
        return obs[:, 5] + 0.1 * obs[:, 53] + obs[:, 54] + height - 0.002 * effort
