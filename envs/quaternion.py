"""Rotations as unit quaternions xyzw, torch tensors (N, 4)."""

import torch
from torch.nn.functional import pad


def product(a, b):
    """a * b: first turn by b, then by a."""
    av, aw, bv, bw = a[:, :3], a[:, 3:], b[:, :3], b[:, 3:]
    vector = aw * bv + bw * av + torch.linalg.cross(av, bv)
    return torch.cat([vector, aw * bw - (av * bv).sum(1, keepdim=True)], dim=1)


def inverse(q):
    return torch.cat([-q[:, :3], q[:, 3:]], dim=1)


def rotate(q, v):
    """The vectors v (N, 3), turned."""
    t = 2.0 * torch.linalg.cross(q[:, :3], v)
    return v + q[:, 3:] * t + torch.linalg.cross(q[:, :3], t)


def about_axis(axis, angle):
    """The turn by an angle (N, 1) about coordinate axis 0, 1 or 2."""
    vector = pad((0.5 * angle).sin(), (axis, 2 - axis))
    return torch.cat([vector, (0.5 * angle).cos()], dim=1)
