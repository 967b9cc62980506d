"""Hand reorientation: an Allegro hand, palm up, is to turn a cube until it lies as the goal does, again and again.

As in Rewarped 1.3 (task AllegroHand), with contact and joint limits that have a gradient.

Robot (asset allegro_hand_description_right.urdf): the palm is fixed 0.5 m above the origin; a thumb and three equal
fingers of four hinges each, 0.6 kg, without friction or damping in the joints; a loose cube of 65 mm and 0.5 kg.
Beyond a limit a joint is pulled back with 100 N m/rad and damped with 10 N m s/rad, growing over the first 0.01 rad.
The world is z up.

    action   torque at action 1: 2 N m             observation   meaning                                      unit
    0 .. 3   thumb, from the palm outwards         0 .. 15       joint angles, -1 and 1 at the limits         -
    4 .. 7   ring finger                           16 .. 31      0.2 * joint rates                            rad/s
    8 .. 11  middle finger                         32 33 34      position of the cube                         m
    12 .. 15 index finger                          35 .. 38      its orientation q, quaternion xyzw           -
                                                   39 40 41      velocity of its centre                       m/s
                                                   42 43 44      0.2 * its angular velocity                   rad/s
                                                   45 46 47      position of the goal                         m
                                                   48 .. 51      its orientation g                            -
                                                   52 .. 55      q / g, the turn that is left                 -
                                                   56 .. 71      the clamped action of the step; 0 at first   -

Reward, with the distance d of cube and goal, the angle theta of the turn that is left, and the clamped action a:

    -10 d  +  1 / (theta + 0.1)  -  0.0002 |a|^2  +  250 sigmoid(-|s - 1| / 0.001),   s = sigmoid((0.1 - theta) / 0.001)

The last term is a step from 0 to 125 (sigmoid(0) is 1/2) between theta = 0.095 and 0.09.  theta ends at 3.05 rad.

Success: theta <= 0.1.  The episode goes on with a new goal, which the next observation shows.
Termination: d >= 0.24 m.  Time limit: 600 steps of 1/120 s (64 substeps, mass matrix rebuilt once per step).
Reset: everything at rest; joints at 0.2 times an angle uniform within their limits, which starts the thumb's first one
below them; the cube 0.1 m above the hand, moved by up to 1 cm along each axis and turned by R_x(pi u) R_y(pi u') with
u, u' uniform in +-1, as goals are.

What can touch what (79 pairs of shapes): the cube and every part of the hand; of neighbouring fingers all but the
knuckles; the thumb's last link and the palm, or any finger but its knuckle.  Left out are parts that meet in less than
3 % of all postures within the limits, such as index and ring finger or two links of one finger, and the inner thumb and
the palm, which overlap in most.

Where Rewarped's task is not this one: its mass matrix has the inertias of thumb and fingers mixed up; contact damping
and limit damping set in at full strength; a fingertip whose centre is in the cube is pulled in; and all links of the
hand touch but neighbours, also palm and inner thumb, which push each other apart all the time.
"""

import math

import torch
from torch.nn.functional import pad

from envs.physics import FIXED, FREE, REVOLUTE, Articulation, Box, Capsule, Link, contact_pair
from envs.quaternion import about_axis, inverse, product
from envs.vector_env import VectorEnv

JOINT = {
    "joint": REVOLUTE,
    "armature": 0.001,
    "limit_stiffness": 100.0,
    "limit_damping": 10.0,
    "limit_damping_depth": 0.01,
}
CONTACT = {"stiffness": 500.0, "damping": 100.0, "friction_stiffness": 100.0, "friction": 0.5}
FINGERTIP = 0.012  # m, radius


def inertia(xx, xy, xz, yy, yz, zz):
    """All nine numbers, from 1e-6 kg m^2."""
    return tuple(1e-6 * x for x in (xx, xy, xz, xy, yy, yz, xz, yz, zz))


# of the palm: the fingers point along -y and x out of the palm upwards, but for a lean of 5.4 degrees
PALM_TURN = (0.5229981541633606, -0.5229981541633606, 0.47589173913002014, 0.47589173913002014)
PALM = Link("palm", parent=-1, joint=FIXED, offset=(0, 0, 0.5), rotation=PALM_TURN)
PALM_BOX = Box(0, center=(-0.0093, 0, -0.0475), half_extents=(0.0204, 0.0565, 0.0475))

KNUCKLE = {"mass": 0.0119, "inertia": (1.0166666e-6, 6.4767733e-7, 1.0166666e-6)}
PROXIMAL = {"mass": 0.065, "inertia": inertia(79.56542, 17.199, 8.75875, 24.70888, 24.13125, 79.56542)}
MIDDLE = {"mass": 0.0355, "inertia": inertia(26.39792, 6.67968, 4.783625, 13.49485, 9.372, 26.39792)}
DISTAL = {
    "mass": 0.0432,
    "com": (0, 0, 0.02076666),
    "inertia": inertia(30.59035, 1.255968, 1.2936, 29.53841, 1.7622, 6.637248),
}

THUMB_BASE = {"mass": 0.0176, "inertia": inertia(18.92733, 7.16716, 5.35568, 14.30082, 6.8068, 18.92733)}
THUMB_KNUCKLE = {"mass": 0.0119, "inertia": inertia(4.242509, 1.032087, 1.603525, 4.523627, 1.448081, 4.242509)}
THUMB_PROXIMAL = {"mass": 0.038, "inertia": inertia(43.04399, 9.57068, 5.1205, 14.44519, 13.42825, 43.04399)}
THUMB_DISTAL = {
    "mass": 0.0724,
    "com": (0, 0, 0.01963094),
    "inertia": inertia(94.97847, 8.042076, 5.2283, 76.80545, 11.28353, 34.85832),
}
THUMB_TURN = (-0.521333800, -0.521333800, -0.477714405, 0.477714405)


def link_box(link, half_length):
    """The boxes of the fingers have one cross-section and stand on their joint."""
    return Box(link, (0, 0, half_length), (0.0098, 0.01375, half_length))


def fingertip(link, height):
    return Capsule(link, (0, 0, height), (0, 0, height), FINGERTIP)


def finger(name, first, offset, tilt):
    """Links of a finger, from the palm outwards, and its shapes; first: the index of its first link."""
    y, z = (0, 1, 0), (0, 0, 1)
    turn = (math.sin(tilt / 2), 0, 0, math.cos(tilt / 2))  # about x, away from the middle finger
    links = [
        Link(f"{name}_knuckle", 0, axis=z, offset=offset, rotation=turn, limits=(-0.47, 0.47), **KNUCKLE, **JOINT),
        Link(f"{name}_proximal", first, axis=y, offset=(0, 0, 0.0164), limits=(-0.196, 1.61), **PROXIMAL, **JOINT),
        Link(f"{name}_middle", first + 1, axis=y, offset=(0, 0, 0.054), limits=(-0.174, 1.709), **MIDDLE, **JOINT),
        Link(f"{name}_distal", first + 2, axis=y, offset=(0, 0, 0.0384), limits=(-0.227, 1.618), **DISTAL, **JOINT),
    ]
    shapes = [link_box(first + k, half_length) for k, half_length in enumerate((0.0082, 0.027, 0.0192, 0.01335))]
    return links, shapes + [fingertip(first + 3, 0.0267)]


def thumb():
    """Links and shapes of the thumb, links 1 to 4."""
    y, z = (0, 1, 0), (0, 0, 1)
    base = {"axis": (-1, 0, 0), "offset": (-0.0182, 0.019333, -0.045987), "rotation": THUMB_TURN}
    knuckle = {"axis": z, "offset": (-0.027, 0.005, 0.0399)}
    links = [
        Link("thumb_base", 0, limits=(0.263, 1.396), **base, **THUMB_BASE, **JOINT),
        Link("thumb_knuckle", 1, limits=(-0.105, 1.163), **knuckle, **THUMB_KNUCKLE, **JOINT),
        Link("thumb_proximal", 2, axis=y, offset=(0, 0, 0.0177), limits=(-0.189, 1.644), **THUMB_PROXIMAL, **JOINT),
        Link("thumb_distal", 3, axis=y, offset=(0, 0, 0.0514), limits=(-0.162, 1.719), **THUMB_DISTAL, **JOINT),
    ]
    shapes = [
        Box(1, (-0.0179, 0.009, 0.0145), (0.0179, 0.017, 0.02275)),
        *(link_box(2 + k, half_length) for k, half_length in enumerate((0.00885, 0.0257, 0.02115))),
        fingertip(4, 0.0423),
    ]
    return links, shapes


THUMB = thumb()
FINGERS = [
    finger("ring", 5, offset=(0, -0.0435, -0.001542), tilt=math.radians(5)),
    finger("middle", 9, offset=(0, 0, 0.0007), tilt=0.0),
    finger("index", 13, offset=(0, 0.0435, -0.001542), tilt=math.radians(-5)),
]
CUBE_LINK, GOAL_LINK = 17, 18
HALF = 0.0325  # m, half the length of the cube's edges
CUBE = Link("cube", parent=-1, joint=FREE, mass=0.5, inertia=(3.5208333e-4,) * 3)
CUBE_BOX = Box(CUBE_LINK, (0, 0, 0), (HALF, HALF, HALF))
CUBE_START, GOAL_POSITION = (0.0, -0.1, 0.6), (0.0, -0.1, 0.56)
GOAL = Link("goal", parent=-1, joint=FREE)  # in pictures only
GOAL_DRAWN_AT = (-0.155, -0.1, 0.62)  # beside the cube, where it hides nothing

LINKS = [PALM] + THUMB[0] + [link for links, _ in FINGERS for link in links] + [CUBE]
HAND_SHAPES = [PALM_BOX] + THUMB[1] + [shape for _, shapes in FINGERS for shape in shapes]


def contact_pairs():
    pairs = [(CUBE_BOX, shape) for shape in HAND_SHAPES]
    # of a finger: proximal, middle and distal link, and fingertip; of the thumb: distal link and tip
    upper, thumb_end = [shapes[1:] for _, shapes in FINGERS], THUMB[1][3:]
    pairs += [(a, b) for left, right in zip(upper, upper[1:]) for a in left for b in right]
    pairs += [(a, b) for a in thumb_end for b in [PALM_BOX, *(shape for shapes in upper for shape in shapes)]]
    return [contact_pair(a, b, **CONTACT) for a, b in pairs]


def marked_cube(link):
    """The cube as it is drawn: a mark on every face, one colour per axis, large on the positive side."""
    marks = []
    for axis in range(3):
        for side, size in ((1.0, 0.7), (-1.0, 0.35)):
            center, half_extents = [0.0] * 3, [size * HALF] * 3
            center[axis], half_extents[axis] = side * HALF, 0.001
            marks.append(Box(link, tuple(center), tuple(half_extents), color=axis + 1))
    return [Box(link, (0, 0, 0), (HALF, HALF, HALF), color=0), *marks]


class HandReorient(VectorEnv):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(
        links=LINKS,
        contact_pairs=contact_pairs(),
        shapes=[*HAND_SHAPES, CUBE_BOX],
        gravity=(0.0, 0.0, -9.81),
    )
    drawn_articulation = Articulation(
        links=[*LINKS, GOAL],
        shapes=HAND_SHAPES + marked_cube(CUBE_LINK) + marked_cube(GOAL_LINK),
        gravity=(0.0, 0.0, -9.81),
    )
    num_obs, num_actions, num_goal = 72, 16, 4
    dt, substeps, mass_matrix_interval = 1.0 / 120.0, 64, 64
    max_episode_steps = 600
    reset_noise_size = 16 + 3 + 2 + 2
    motor_torque = 2.0  # N m
    termination_distance = 0.24  # m
    success_angle = 0.1  # rad
    camera_distance, camera_height = 0.55, 0.54

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.limits = self.constant([link.limits for link in LINKS if link.joint == REVOLUTE]).T
        self.cube_start, self.goal_drawn_at = self.constant(CUBE_START), self.constant(GOAL_DRAWN_AT)
        self.goal_position = self.constant(GOAL_POSITION).repeat(self.num_envs, 1)

    def actuate(self, action):
        return pad(self.motor_torque * action, (0, 6))  # nothing pushes the cube but the hand

    def observe(self, joint_q, joint_qd, last_action):
        angles, position, quaternion = joint_q.split([16, 3, 4], dim=1)
        rates, angular, linear = joint_qd.split([16, 3, 3], dim=1)
        lower, upper = self.limits
        scaled = (2.0 * angles - upper - lower) / (upper - lower)
        velocity = linear + torch.linalg.cross(angular, position)  # of the cube's centre: v + w x p
        hand = [scaled, 0.2 * rates]
        cube = [position, quaternion, velocity, 0.2 * angular]
        goal = [self.goal_position, self.goal, product(quaternion, inverse(self.goal))]
        return torch.cat([*hand, *cube, *goal, last_action], dim=1)

    def reward(self, obs, action):
        angle = self._angle_left(obs)
        effort = (action**2).sum(dim=1)
        s = 1.0 - torch.sigmoid((angle - self.success_angle) / 1e-3)
        success = torch.sigmoid(-(s - 1.0).abs() / 1e-3)
        return -10.0 * self._distance(obs) + 1.0 / (angle + 0.1) - 2e-4 * effort + 250.0 * success

    def is_terminal(self, obs):
        return self._distance(obs) >= self.termination_distance

    def is_goal_reached(self, obs):
        return self._angle_left(obs) <= self.success_angle

    def sample_state(self, noise):
        angles, shift, turn = noise[:, :16], noise[:, 16:19], noise[:, 19:21]
        lower, upper = self.limits
        angles = 0.2 * (0.5 * (lower + upper) + 0.5 * (upper - lower) * angles)
        position = self.cube_start + 0.01 * shift
        joint_q = torch.cat([angles, position, _orientation(turn)], dim=1)
        return joint_q, self.zeros(22)

    def rest_state(self):
        return self.sample_state(self.zeros(self.reset_noise_size))

    def sample_goal(self, noise):
        return _orientation(noise[:, 21:23])

    def drawn_joint_q(self, index):
        return torch.cat([self.joint_q[index], self.goal_drawn_at, self.goal[index]])

    def _distance(self, obs):
        return torch.linalg.vector_norm(obs[:, 32:35] - obs[:, 45:48], dim=1)

    def _angle_left(self, obs):
        # no gradient beyond 0.999, where that of the arc sine grows without bound, and none at 0
        sine = torch.linalg.vector_norm(obs[:, 52:55], dim=1).clamp(max=0.999)
        return 2.0 * torch.asin(sine)


def _orientation(turns):
    """R_x(pi u) R_y(pi u') of turns (N, 2)."""
    return product(about_axis(0, math.pi * turns[:, :1]), about_axis(1, math.pi * turns[:, 1:]))
