"""Ant: a four-legged robot that is to run along +x, as in DFlex (AHAC fork, imgeorgiev/DiffRL @bb59db5).

Robot (asset ant.xml): a ball with four straight arms, and at each of them a leg of two hinges: the hip swings the leg
about the vertical, the ankle folds the foot down.  Order of the legs: front left, then round the body.

    action      motor (torque = 200 N m * action)          observation: see floating_base.py, n = 8, 37 numbers
    0 2 4 6     hips
    1 3 5 7     ankles

Reward, from the observation o after the step:

    o5  +  0.1 o27  +  o28  +  (o0 - 0.27)          forward velocity, upright, heading, height

Termination: o0 < 0.27.  Time limit: 1000 steps of 1/60 s (16 substeps, mass matrix rebuilt once per step).
Reset: height 0.75 m, hips at 0, ankles bent by 1 rad; noise as in floating_base.py.

Where DFlex's robot is not the one of the asset: the density of the shapes there (5) is ignored, every shape has 1000
kg/m^3, so the ant weighs 182 kg; the damping of 10 of the joint limits acts always, on top of the joint's 1; of the
inertia of a shape that is turned in its link only R_ii^2 I_ii is kept, so the inertias about x and y of legs at 45
degrees differ; and the products of inertia of all shapes of a link but the last are dropped, so the torso has one of
x and y.
"""

from math import radians

from envs.floating_base import FloatingBase
from envs.physics import FREE, REVOLUTE, Articulation, Capsule, Link, end_contacts

TORSO_INERTIA = (1.996884963, 0.08521117696, 0, 0.08521117696, 2.176694637, 0, 0, 0, 2.7171431)
TORSO = Link("torso", parent=-1, joint=FREE, mass=96.77604993, inertia=TORSO_INERTIA)
BALL = Capsule(link=0, start=(0, 0, 0), end=(0, 0, 0), radius=0.25)
JOINT = {"joint": REVOLUTE, "armature": 0.05, "damping": 1.0}
LEG = {"mass": 7.831550746, "inertia": (0.01184418981, 0.05679660832, 0.1135932166)}
FOOT = {"mass": 13.51844091, "inertia": (0.02094321406, 0.267479066, 0.534958132)}
RADIUS = 0.08
DIAGONAL = 0.5**0.5
GROUND = {"stiffness": 4.0e4, "damping": 1.0e4, "friction_stiffness": 3.0e3, "friction": 0.75}


def leg(name, x, y, first):
    """Links, shapes and start angles of the leg in the direction (x, y), each 1 or -1; first: the hip's index."""
    hip, ankle = first, first + 1
    half, whole, twice = ((r * x, r * y, 0) for r in (0.1, 0.2, 0.4))
    swing = (radians(-40), radians(40))
    fold = (radians(30), radians(100)) if x > 0 else (radians(-100), radians(-30))
    across = (-x * y * DIAGONAL, DIAGONAL, 0)
    links = [
        Link(f"{name}_hip", 0, axis=(0, 0, 1), offset=whole, limits=swing, com=half, **LEG, **JOINT),
        Link(f"{name}_ankle", hip, axis=across, offset=whole, limits=fold, com=whole, **FOOT, **JOINT),
    ]
    shapes = [
        Capsule(0, (0, 0, 0), whole, RADIUS),
        Capsule(hip, (0, 0, 0), whole, RADIUS),
        Capsule(ankle, (0, 0, 0), twice, RADIUS),
    ]
    return links, shapes, (0.0, 1.0 * x)


LEGS = [
    leg("front_left", x=1, y=1, first=1),
    leg("back_left", x=-1, y=1, first=3),
    leg("back_right", x=-1, y=-1, first=5),
    leg("front_right", x=1, y=-1, first=7),
]
SHAPES = [BALL] + [shape for _, shapes, _ in LEGS for shape in shapes]


class Ant(FloatingBase):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(
        links=[TORSO] + [link for links, _, _ in LEGS for link in links],
        contacts=end_contacts(SHAPES, **GROUND),
        shapes=SHAPES,
    )
    num_obs, num_actions = 37, 8
    dt, substeps, mass_matrix_interval = 1.0 / 60.0, 16, 16
    max_episode_steps = 1000
    motor_torque = 200.0
    start_height = 0.75
    start_angles = [angle for _, _, angles in LEGS for angle in angles]
    termination_height = 0.27

    def reward(self, obs, action):
        return obs[:, 5] + 0.1 * obs[:, 27] + obs[:, 28] + (obs[:, 0] - self.termination_height)
