"""Shapes of a robot: where it touches the ground, and what it looks like."""

from dataclasses import dataclass

from envs.articulation import ContactPoint


@dataclass
class Capsule:
    """All points within `radius` of the line from `start` to `end` (m, in the frame of `link`); a sphere if equal."""

    link: int
    start: tuple
    end: tuple
    radius: float


@dataclass
class Box:
    """A box with its faces along the axes of the frame of `link`; lengths in m."""

    link: int
    center: tuple
    half_extents: tuple


def end_contacts(shapes, **material):
    """One contact point for a sphere and two for a capsule; boxes have none. material: see ContactPoint."""
    points = []
    for shape in shapes:
        if isinstance(shape, Capsule):
            ends = (shape.start,) if shape.start == shape.end else (shape.start, shape.end)
            points += [ContactPoint(shape.link, end, shape.radius, **material) for end in ends]
    return points
