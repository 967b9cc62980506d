"""Differentiable physics of robots: a robot as data in, one step of motion and its derivative out.

articulation.py is what the author of a robot writes, model.py the same as the kernels read it, parameters.py what may
differ between environments.  One physical idea each:
kinematics.py, forces.py, body_contact.py, mass_matrix.py, integrate.py, reference_point.py.  substeps.py puts them in
order, one environment step forward and backward; simulator.py makes it one node of autograd's graph.  Nothing here
knows of tasks, rewards or episodes.

Kernels list what they read and write under Model, Parameters, State in and State out.  Outputs are named as what they
hold, with the suffix _out where an input has that name.
"""

from envs.physics.arguments import (
    check_numbers,
    check_tensor,
    number_range,
    positive_number,
    resolve_device,
    shown,
    truth,
    whole_number,
)
from envs.physics.articulation import (
    FIXED,
    FREE,
    PRISMATIC,
    REVOLUTE,
    Z_UP,
    Articulation,
    Box,
    Capsule,
    ContactPair,
    ContactPoint,
    Link,
    contact_pair,
    end_contacts,
)
from envs.physics.simulator import Simulator
from envs.physics.warp_lock import WARP

__all__ = [
    "FIXED",
    "FREE",
    "PRISMATIC",
    "REVOLUTE",
    "Z_UP",
    "Articulation",
    "Box",
    "Capsule",
    "ContactPair",
    "ContactPoint",
    "Link",
    "WARP",
    "Simulator",
    "check_numbers",
    "check_tensor",
    "contact_pair",
    "end_contacts",
    "number_range",
    "positive_number",
    "resolve_device",
    "shown",
    "truth",
    "whole_number",
]
