"""Shapes of a robot: where it touches the ground or itself, and what it looks like."""

from dataclasses import dataclass

from envs.articulation import ContactPair, ContactPoint


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
