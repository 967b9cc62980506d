"""What may differ from environment to environment: friction, masses, motors, springs and dampers.

It is given as factors of the robot's own values:

    factor              for each          multiplies
    friction            environment       the friction coefficients of all contacts
    mass_scale          link              mass and inertia, as a change of density does
    motor_strength      dof               actuation, motor_damping and effort_limit, and the stiffness of a servo
    stiffness           dof               the spring of the joint; of a servo kp, and with it the actuation
    damping             dof               the damper of the joint, with that of a limit if it acts always; of a servo kd

The kernels read the products.  Without factors all environments read the same row, at no cost.
"""

import numpy as np
import torch

from envs.physics.arguments import check_numbers, check_tensor
from envs.physics.articulation import NUM_DOFS, PRISMATIC, REVOLUTE

ALIKE, DIFFERENT, DIFFERENTIABLE = 0, 1, 2
"""environments: all with the same values, with values of their own, or with gradients of these as well"""
FACTORS = ("friction", "mass_scale", "motor_strength", "stiffness", "damping")
VALUES = ("link_mass", "tree_mass", "link_inertia", "stiffness", "damping", "motor_damping", "effort_limit")
VALUES += ("contact_friction", "pair_friction")
UNLIMITED = 1.0e30
"""stands for an infinite effort_limit, whose factor would have the gradient 0 * inf"""


def dof_links(links):
    """The link of every degree of freedom."""
    return [i for i, link in enumerate(links) for _ in range(NUM_DOFS[link.joint])]


def sorted_contacts(articulation):
    """The contact points, those of one link after another."""
    return sorted(articulation.contacts, key=lambda contact: contact.link)


def own_values(articulation):
    """The robot's own values, float32 (k, ...) for k links, degrees of freedom, contact points or pairs.

    The names are VALUES, which are fields of Model and PairModel.
    """
    links = articulation.links
    motors = [links[i] for i in dof_links(links)]
    return {
        "link_mass": _tensor([link.mass for link in links]),
        "tree_mass": _tensor(_tree_masses(links)),
        "link_inertia": _tensor([_inertia_matrix(link.inertia) for link in links]),
        "stiffness": _tensor([link.stiffness for link in motors]),
        "damping": _tensor([link.damping for link in motors]) + _tensor([_limit_damping(link) for link in motors]),
        "motor_damping": _tensor([link.motor_damping for link in motors]),
        "effort_limit": _tensor([link.effort_limit for link in motors]),
        "contact_friction": _tensor([contact.friction for contact in sorted_contacts(articulation)]),
        "pair_friction": _tensor([pair.friction for pair in articulation.contact_pairs]),
    }


class Parameters:
    """The factors of one robot's environments, and the values that come of them.

    sizes: {name: k} of the factors that this robot has; one that would change nothing is not among them.
    factors: {name: (N, k)} of those that have been set.
    """

    def __init__(self, articulation, num_envs, device):
        self.num_envs, self.device = num_envs, device
        self.own = {name: value.to(device) for name, value in own_values(articulation).items()}
        self.own["effort_limit"] = self.own["effort_limit"].clamp(max=UNLIMITED)
        links, motors = articulation.links, [articulation.links[i] for i in dof_links(articulation.links)]
        self.servo = torch.tensor([link.servo for link in motors], dtype=torch.bool, device=device)
        self.carried = torch.tensor(_carried(links), dtype=torch.float64, device=device)
        self.sizes = _sizes(articulation)
        self.factors, self.known_values = {}, None

    def check(self, name, factor):
        """A copy (N, k) of a factor (N,) or (N, k), which keeps the gradient. Raises ValueError or TypeError."""
        if name not in self.sizes:
            raise ValueError(f"{name}: expected one of {', '.join(self.sizes)} for this robot, got {name}")
        shape = (self.num_envs, self.sizes[name])
        alike = isinstance(factor, torch.Tensor) and factor.dim() == 1
        check_tensor(name, factor, shape[:1] if alike else shape, device=self.device)
        check_numbers(name, factor, at_least=0)
        rows = factor[:, None] if alike else factor
        return rows.expand(shape).clone(memory_format=torch.contiguous_format)

    def update(self, factors):
        """Take these in place of the ones of the same names, (N, k) each."""
        self.factors, self.known_values = self.factors | factors, None

    @property
    def requires_grad(self):
        return any(factor.requires_grad for factor in self.factors.values())

    def values(self):
        """What the kernels read, (N, k, ...) for each of VALUES, and what multiplies the actuation, (N or 1, dofs)."""
        # a backward pass frees the graph from the factors to the values, so every step has its own
        if self.known_values is None or self.requires_grad:
            self.known_values = self._values()
        return self.known_values

    def _values(self):
        own, one = self.own, torch.ones(1, 1, dtype=torch.float32, device=self.device)
        friction, mass, strength, stiffness, damping = (self.factors.get(name, one) for name in FACTORS)
        values = {
            "link_mass": mass * own["link_mass"],
            "tree_mass": ((mass * own["link_mass"]).double() @ self.carried).float(),
            "link_inertia": mass[..., None, None] * own["link_inertia"],
            "stiffness": stiffness * torch.where(self.servo, strength, one) * own["stiffness"],
            "damping": damping * own["damping"],
            "motor_damping": damping * strength * own["motor_damping"],
            "effort_limit": strength * own["effort_limit"],
            "contact_friction": friction * own["contact_friction"],
            "pair_friction": friction * own["pair_friction"],
        }
        rows = [values[name].expand(self.num_envs, *own[name].shape) for name in VALUES]
        return rows, strength * torch.where(self.servo, stiffness, one)


def _sizes(articulation):
    links = articulation.links
    joints = [link for link in links if link.joint in (PRISMATIC, REVOLUTE)]
    surfaces = articulation.contacts + articulation.contact_pairs
    changes_something = {
        "friction": any(surface.friction for surface in surfaces),
        "mass_scale": True,
        "motor_strength": True,
        "stiffness": any(link.stiffness for link in joints),
        "damping": any(link.damping or link.motor_damping or _limit_damping(link) for link in joints),
    }
    sizes = dict.fromkeys(FACTORS, articulation.num_dofs) | {"friction": 1, "mass_scale": len(links)}
    return {name: size for name, size in sizes.items() if changes_something[name]}


def _limit_damping(link):
    """Of a joint limit, where it acts always."""
    return link.limit_damping if link.limit_damping_depth == 0.0 else 0.0


def _carried(links):
    """(L, L): 1 where link i is link j or is carried by it."""
    carried = np.eye(len(links))
    for i in reversed(range(len(links))):
        if links[i].parent >= 0:
            carried[:, links[i].parent] += carried[:, i]
    return carried


def _tree_masses(links):
    masses = [link.mass for link in links]
    for i in reversed(range(len(links))):
        if links[i].parent >= 0:
            masses[links[i].parent] += masses[i]
    return masses


def _inertia_matrix(inertia):
    inertia = np.asarray(inertia, dtype=np.float64)
    return np.diag(inertia) if inertia.size == 3 else inertia.reshape(3, 3)


def _tensor(values):
    return torch.tensor(np.array(values, dtype=np.float32), device="cpu")
