"""ANYmal: a four-legged robot that is to run along +x, as in DFlex (AHAC fork, imgeorgiev/DiffRL @bb59db5).

Robot (asset anymal_c/urdf/anymal_minimal.urdf): a base and four legs of three hinges each, in the order left front,
right front, left hind, right hind. Only collision shapes have mass, at 1000 kg/m^3: 37.25 kg in all, with massless
hips, and shanks that weigh what their feet do. The frames of all links are parallel to the base's when all angles are
zero.

    action      motor (torque = 200 N m * action)          observation: see floating_base.py, n = 12, 49 numbers
    0 3 6 9     HAA, hip abduction, about x
    1 4 7 10    HFE, hip flexion, about y
    2 5 8 11    KFE, knee flexion, about y

Reward, from the observation o after the step and the clamped action a:

    o5  +  0.1 o35  +  o36  +  (o0 - 0.25)  -  0.005 |a|^2          forward velocity, upright, heading, height, effort

Termination: o0 < 0.25.  Time limit: 1000 steps of 1/60 s (16 substeps, mass matrix rebuilt once per step).
Reset: height 0.55 m, joints at START_ANGLES; noise as in floating_base.py.

Where DFlex's robot is not the real one: the masses; no joint limits, but their damping of 10, which acts always; a
spring of 85 N m/rad that pulls every joint towards *zero*, the straight leg, not towards the start; and soft ground,
into which it sinks by about 4.6 cm. DFlex loads 76 links, 63 of them fixed; here these are merged into the 13 that
move, with the same dynamics.
"""

from envs.floating_base import FloatingBase
from envs.physics import FREE, REVOLUTE, Articulation, Capsule, Link, end_contacts

BASE = Link("base", parent=-1, joint=FREE, mass=27.75073511, inertia=(0.1345648853, 1.886984537, 1.886984537))
BODY = Capsule(link=0, start=(-0.375, 0, 0), end=(0.375, 0, 0), radius=0.1)
JOINT = {"joint": REVOLUTE, "armature": 0.006, "stiffness": 85.0, "damping": 2.0}
THIGH = {"mass": 2.261946711, "inertia": (0.00985303987, 0.003745783753, 0.00985303987)}
SHANK = {"mass": 0.1130973355, "inertia": (4.071504079e-05, 4.071504079e-05, 4.071504079e-05)}
GROUND = {"stiffness": 2.0e3, "damping": 5.0e2, "friction_stiffness": 1.0e2, "friction": 0.75}


def leg(name, front, side, first):
    """Links and shapes of one leg; front is 1 or -1 (hind), side 1 (left) or -1 (right), first the hip's index."""
    thigh, shank = first + 1, first + 2
    knee = (0, side * 0.1003, -0.285)
    actuator = (0, side * 0.0503, -0.285)  # the knee's motor, the only part of a thigh that has mass
    foot = (front * 0.08795, side * 0.01305, -0.31547)
    hip_offset, thigh_offset = (front * 0.2999, side * 0.104, 0), (front * 0.0599, side * 0.08381, 0)
    links = [
        Link(f"{name}_HAA", 0, axis=(1, 0, 0), offset=hip_offset, **JOINT),
        Link(f"{name}_HFE", first, axis=(0, 1, 0), offset=thigh_offset, com=actuator, **THIGH, **JOINT),
        Link(f"{name}_KFE", thigh, axis=(0, 1, 0), offset=knee, com=foot, **SHANK, **JOINT),
    ]
    touching = [
        Capsule(thigh, (0, side * -0.0097, -0.285), (0, side * 0.1103, -0.285), radius=0.06),
        Capsule(shank, foot, foot, radius=0.03),
    ]
    drawn = [Capsule(thigh, (0, 0, 0), actuator, radius=0.05), Capsule(shank, (0, 0, 0), foot, radius=0.025)]
    return links, touching, drawn


LEGS = [
    leg("LF", front=1, side=1, first=1),
    leg("RF", front=1, side=-1, first=4),
    leg("LH", front=-1, side=1, first=7),
    leg("RH", front=-1, side=-1, first=10),
]
# rad: HAA, HFE, KFE
START_ANGLES = (0.03, 0.4, -0.8, -0.03, 0.4, -0.8, 0.03, -0.4, 0.8, -0.03, -0.4, 0.8)
TOUCHING = [BODY] + [shape for _, touching, _ in LEGS for shape in touching]
DRAWN = [shape for _, _, drawn in LEGS for shape in drawn]


class Anymal(FloatingBase):
    """The task of this file; the methods are described in vector_env.py."""

    articulation = Articulation(
        links=[BASE] + [link for links, _, _ in LEGS for link in links],
        contacts=end_contacts(TOUCHING, **GROUND),
        shapes=TOUCHING + DRAWN,
    )
    num_obs, num_actions = 49, 12
    dt, substeps, mass_matrix_interval = 1.0 / 60.0, 16, 16
    max_episode_steps = 1000
    motor_torque = 200.0
    start_height, start_angles = 0.55, START_ANGLES
    termination_height = 0.25

    def reward(self, obs, action):
        effort = (action**2).sum(dim=1)
        return obs[:, 5] + 0.1 * obs[:, 35] + obs[:, 36] + (obs[:, 0] - self.termination_height) - 0.005 * effort
