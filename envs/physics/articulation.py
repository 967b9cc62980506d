"""A robot as data, as its author writes it: links with their joints, shapes, and what touches what.

One link carries one joint, the joint that connects it to its parent (a body moved by several hinges is a chain of
massless links with the mass on the last one).  Links are listed parents first.  Coordinates follow DFlex:

    joint       joint_q                         joint_qd
    fixed       -                               -
    prismatic   displacement [m]                velocity [m/s]
    revolute    angle [rad]                     rate [rad/s]
    free        position (3), quaternion xyzw   spatial twist (angular; linear), world axes, about the world origin

The linear half of a free joint's twist is the velocity of the body-fixed point that passes through the world origin,
so the velocity of the body's own origin p is v + w x p.

A tree may have several roots (parent -1), such as a hand with a fixed base and the object in it.
"""

from dataclasses import dataclass, field

import numpy as np
import warp as wp

FIXED, PRISMATIC, REVOLUTE, FREE = 0, 1, 2, 3  # kinds of joints, for the kernels as well
NUM_COORDS = {FIXED: 0, PRISMATIC: 1, REVOLUTE: 1, FREE: 7}
NUM_DOFS = {FIXED: 0, PRISMATIC: 1, REVOLUTE: 1, FREE: 6}
IDENTITY = (0.0, 0.0, 0.0, 1.0)
Z_UP = (-(0.5**0.5), 0.0, 0.0, 0.5**0.5)  # the orientation of a frame that is z up in the world, which is y up


@dataclass
class Link:
    """A rigid body and the joint that holds it. Lengths in m, masses in kg, angles in rad, vectors in its frame."""

    name: str
    parent: int
    joint: int
    axis: tuple = (0.0, 0.0, 0.0)
    """direction of a prismatic or revolute joint, unit length"""
    offset: tuple = (0.0, 0.0, 0.0)
    """position of the joint in the parent's frame; (0, 0, 0) for a free joint, whose joint_q is the link's pose"""
    rotation: tuple = IDENTITY
    """orientation of the joint in the parent's frame, quaternion xyzw; that of the world for a free joint"""
    mass: float = 0.0
    com: tuple = (0.0, 0.0, 0.0)
    inertia: tuple = (0.0, 0.0, 0.0)
    """about the centre of mass, kg m^2: the diagonal, or all nine numbers"""
    armature: float = 0.0
    """added to the diagonal of the mass matrix, kg or kg m^2"""
    stiffness: float = 0.0
    """of the joint spring, N/m or N m/rad; damping: N s/m or N m s/rad"""
    damping: float = 0.0
    target: float = 0.0
    """rest position of the joint spring"""
    motor_damping: float = 0.0
    servo: bool = False
    """the spring is that of a position servo: actuation is its stiffness times the wanted position"""
    effort_limit: float = np.inf
    """largest force or torque of actuation, spring and motor_damping together; damping and limits act beyond it"""
    limits: tuple = (-1.0e6, 1.0e6)
    limit_stiffness: float = 1.0e3
    limit_damping: float = 10.0
    limit_damping_depth: float = 0.0
    """0: limit_damping acts always, not only at the limit (as in DFlex), and adds to damping.  Otherwise it grows in
    proportion to how far the limit is violated, from 0 at the limit to its full value at this depth"""


@dataclass
class ContactPoint:
    """A sphere fixed to a link that can touch the ground plane y = 0; radius 0 for a box's corner: see forces.py."""

    link: int
    point: tuple
    """centre of the sphere in the link's frame, m"""
    radius: float
    stiffness: float
    """N/m"""
    damping: float
    """N s/m^2: the damper grows with the depth"""
    friction_stiffness: float
    """N s/m, of a foot that creeps"""
    friction: float


@dataclass
class ContactPair:
    """Two shapes fixed to links, which push each other away where they overlap: see body_contact.py.

    Each is a box along the axes of its link or, with half extents 0 and a radius, a sphere; a sphere comes first.
    """

    links: tuple
    centers: tuple
    """in the frames of the links, m"""
    half_extents: tuple
    radii: tuple
    stiffness: float
    """N/m"""
    damping: float
    """N s/m, at full strength from a depth of 1 mm on"""
    friction_stiffness: float
    """N s/m"""
    friction: float


@dataclass
class Capsule:
    """All points within `radius` of the line from `start` to `end` (m, in the frame of `link`); a sphere if equal."""

    link: int
    start: tuple
    end: tuple
    radius: float
    color: int | None = None
    """index into the palette of render.py; default: the link's"""


@dataclass
class Box:
    """A box with its faces along the axes of the frame of `link`; lengths in m."""

    link: int
    center: tuple
    half_extents: tuple
    color: int | None = None


@dataclass
class Articulation:
    """A tree of links with its contacts; every environment holds one copy of it."""

    links: list[Link]
    contacts: list[ContactPoint] = field(default_factory=list)
    contact_pairs: list[ContactPair] = field(default_factory=list)
    shapes: list = field(default_factory=list)
    """what it looks like; the dynamics do not read them"""
    gravity: tuple = (0.0, -9.81, 0.0)
    translates_along_x: bool = False
    """the first joint slides along world x, without spring and limits: its coordinate may be counted from anywhere"""

    @property
    def num_coords(self) -> int:
        return sum(NUM_COORDS[link.joint] for link in self.links)

    @property
    def num_dofs(self) -> int:
        return sum(NUM_DOFS[link.joint] for link in self.links)

    @property
    def roots(self) -> list[Link]:
        return [link for link in self.links if link.parent < 0]

    @property
    def floats(self) -> bool:
        """Whether it is one robot with a free root, which may be anywhere; beside a second root its place matters."""
        return self.links[0].joint == FREE and len(self.roots) == 1


def end_contacts(shapes, **material):
    """One contact point for a sphere and two for a capsule; boxes have none. material: see ContactPoint."""
    points = []
    for shape in shapes:
        if isinstance(shape, Capsule):
            ends = (shape.start,) if shape.start == shape.end else (shape.start, shape.end)
            points += [ContactPoint(shape.link, end, shape.radius, **material) for end in ends]
    return points


def contact_pair(first, second, **material):
    """Two boxes or spheres that push each other away; material: see ContactPair."""
    # a sphere is a point with a radius, and comes first
    shapes = sorted((first, second), key=lambda shape: isinstance(shape, Box))
    if any(not isinstance(shape, Box) and shape.start != shape.end for shape in shapes):
        raise ValueError(f"contact_pair: expected boxes and spheres, got {first} and {second}")
    parts = [
        (shape.link, shape.center, shape.half_extents, 0.0)
        if isinstance(shape, Box)
        else (shape.link, shape.start, (0, 0, 0), shape.radius)
        for shape in shapes
    ]
    return ContactPair(*zip(*parts), **material)


def check(articulation):
    """Raise ValueError for what cannot be simulated."""
    num_links = len(articulation.links)
    for i, link in enumerate(articulation.links):
        _check_link(i, link)
    if articulation.translates_along_x:
        _check_slides_along_x(articulation)
    for i, pair in enumerate(articulation.contact_pairs):
        if pair.links[0] == pair.links[1] or not all(0 <= link < num_links for link in pair.links):
            raise ValueError(f"contact pair {i}: expected two different links, got {pair.links}")
    for kind, parts in (("contact", articulation.contacts), ("shape", articulation.shapes)):
        for i, part in enumerate(parts):
            if not 0 <= part.link < num_links:
                raise ValueError(f"{kind} {i}: link must be 0 .. {num_links - 1}, got {part.link}")


def check_free_joints(articulation):
    """Raise ValueError for a free joint with a frame of its own: pictures may turn it, but it would move wrongly."""
    for i, link in enumerate(articulation.links):
        frame = (*link.offset, *link.rotation)
        if link.joint == FREE and frame != (0.0, 0.0, 0.0, *IDENTITY):
            expected = f"link {i} ({link.name}): a free joint has no offset and no rotation, joint_q is the link's pose"
            raise ValueError(f"{expected}; got {link.offset}, {link.rotation}")


def _check_link(i, link):
    if not -1 <= link.parent < i:
        raise ValueError(f"link {i} ({link.name}): parent must be -1 or an earlier link, got {link.parent}")
    if link.joint not in NUM_DOFS:
        raise ValueError(f"link {i} ({link.name}): joint must be one of {sorted(NUM_DOFS)}, got {link.joint}")
    if link.joint == FREE and link.parent != -1:
        raise ValueError(f"link {i} ({link.name}): a free joint needs parent -1, got {link.parent}")
    if link.joint in (PRISMATIC, REVOLUTE) and abs(np.linalg.norm(link.axis) - 1.0) > 1e-6:
        raise ValueError(f"link {i} ({link.name}): axis must have unit length, got {link.axis}")
    if abs(np.linalg.norm(link.rotation) - 1.0) > 1e-6:
        raise ValueError(f"link {i} ({link.name}): rotation must be a unit quaternion, got {link.rotation}")
    for what in ("mass", "armature"):
        if not 0.0 <= getattr(link, what) < np.inf:
            raise ValueError(f"link {i} ({link.name}): {what} must be at least 0, got {getattr(link, what)}")
    if not link.limits[0] <= link.limits[1]:
        raise ValueError(f"link {i} ({link.name}): limits must be (lower, upper), got {link.limits}")
    if np.size(link.inertia) not in (3, 9):
        raise ValueError(f"link {i} ({link.name}): inertia must have 3 or 9 numbers, got {np.size(link.inertia)}")
    inertia = np.asarray(link.inertia, float).flatten()
    if not np.isfinite(inertia).all() or (inertia[:: 4 if inertia.size == 9 else 1] < 0.0).any():
        raise ValueError(f"link {i} ({link.name}): inertia must have a diagonal of at least 0, got {link.inertia}")


def _check_slides_along_x(articulation):
    root = articulation.links[0]
    axis = wp.quat_rotate(wp.quat(*root.rotation), wp.vec3(*root.axis))
    if root.joint != PRISMATIC or not np.allclose(axis, (1.0, 0.0, 0.0), atol=1e-6):
        raise ValueError(f"link 0 ({root.name}): translates_along_x needs a prismatic joint along world x")
    if root.stiffness != 0.0 or tuple(root.limits) != Link.limits:
        got = f"stiffness {root.stiffness} and limits {root.limits}"
        raise ValueError(f"link 0 ({root.name}): translates_along_x needs a joint without spring and limits, got {got}")
    if len(articulation.roots) > 1:
        raise ValueError(f"link 0 ({root.name}): translates_along_x needs a single root")
