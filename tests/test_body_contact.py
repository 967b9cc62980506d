"""Contact between two bodies: where boxes and balls touch, the law of the force, and what becomes of energy.

A pair of free bodies in empty space, one row of states for each environment.
"""

import numpy as np
import pytest
import torch
from hand_states import UP
from torch.nn.functional import normalize

from envs.hand_reorient import CONTACT, HALF
from envs.physics import FREE, Articulation, Box, Capsule, Link, Simulator, contact_pair


def turned(vectors, quaternions):
    u, w = quaternions[..., :3], quaternions[..., 3:]
    return vectors + 2.0 * np.cross(u, np.cross(u, vectors) + w * vectors)


def free_pair(first, second, num_envs, substeps=1, h=1e-4, mass=0.5, inertia=3.5e-4):
    links = [Link(name, -1, FREE, mass=mass, inertia=(inertia,) * 3) for name in ("first", "second")]
    pair = contact_pair(first, second, **CONTACT)
    robot = Articulation(links, contact_pairs=[pair], gravity=(0.0, 0.0, 0.0))
    return Simulator(robot, num_envs, substeps * h, substeps, substeps, num_threads=1)


def run(simulator, q, qd):
    """New state, and the bits of the edges that touched at the start (N, 2): the first shape's, the second's."""
    new_q, new_qd, diverged = simulator.step(q, qd, torch.zeros_like(qd))
    assert not diverged.any()
    return new_q, new_qd, simulator.batches[0].substeps[0].touching.numpy()[:, 0]


def rotation_matrices(quaternions):
    return np.stack([turned(np.broadcast_to(axis, quaternions[:, :3].shape), quaternions) for axis in np.eye(3)], -1)


def gap_of_boxes(c, A, a, B, b):
    """The largest gap along any of the 15 axes that can separate two boxes (N,); they overlap where it is negative."""
    axes = [*A.transpose(2, 0, 1), *B.transpose(2, 0, 1)]
    axes += [np.cross(x, y) for x in A.transpose(2, 0, 1) for y in B.transpose(2, 0, 1)]
    gaps = []
    for axis in axes:
        axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        extent = np.abs(np.einsum("nij,ni->nj", A, axis)) @ a + np.abs(np.einsum("nij,ni->nj", B, axis)) @ b
        gaps.append(np.abs((c * axis).sum(1)) - extent)
    return np.max(gaps, axis=0)


def random_poses(n, generator, spread):
    """Both bodies' coordinates (n, 14), the first's centre within +-spread of the second's."""
    c = spread * (2.0 * torch.rand(n, 3, generator=generator) - 1.0)
    r = [normalize(torch.randn(n, 4, generator=generator), dim=1) for _ in range(2)]
    return torch.cat([c, r[0], torch.zeros(n, 3), r[1]], dim=1)


@pytest.mark.parametrize("off", (0.0, 0.1))  # m, from the origins of the links to the centres of the boxes
def test_boxes_touch_exactly_where_they_overlap(off):
    """Also where only two edges cross, or one box is inside the other."""
    n, a, b = 4000, np.array([0.0098, 0.01375, 0.027]), np.array([HALF] * 3)
    q = random_poses(n, torch.Generator().manual_seed(0), spread=0.08)
    q[0, :3] = 0.0
    x, center = q.double().numpy(), np.array([off, 0.0, 0.0])
    shifts = [turned(np.broadcast_to(center, (n, 3)), x[:, rows]) for rows in (slice(3, 7), slice(10, 14))]
    q[:, :3] -= torch.tensor(shifts[0] - shifts[1], dtype=torch.float32)
    simulator = free_pair(Box(0, tuple(center), tuple(a)), Box(1, tuple(center), tuple(b)), n)
    _, _, touching = run(simulator, q, torch.zeros(n, 12))
    gap = gap_of_boxes(x[:, :3], rotation_matrices(x[:, 3:7]), a, rotation_matrices(x[:, 10:]), b)
    clear = np.abs(gap) > 1e-6  # m; nearer than that, rounding decides
    assert (touching.any(axis=1) == (gap < 0.0))[clear].all() and 1000 < (gap < 0.0).sum() < 3000
    assert touching[0].tolist() == [0b111111111111, 0]  # the small box is inside: all of its edges are


@pytest.mark.parametrize("kind", ("boxes", "ball and box", "balls"))
def test_contact_acts_on_both_and_gives_no_energy(kind):
    n, m, inertia = 256, 0.5, 3.5e-4
    box, ball = Box(0, (0.005, 0, 0), (0.01, 0.014, 0.027)), Capsule(0, (0, 0, 0.02), (0, 0, 0.02), 0.012)
    cube, other = Box(1, (0, 0, 0), (HALF,) * 3), Capsule(1, (0, 0, 0.01), (0, 0, 0.01), 0.02)
    first, second = {"boxes": (box, cube), "ball and box": (ball, cube), "balls": (ball, other)}[kind]
    simulator, generator = free_pair(first, second, n, substeps=64), torch.Generator().manual_seed(1)
    q = random_poses(n, generator, spread=0.0)
    direction = normalize(torch.randn(n, 3, generator=generator), dim=1)
    q[:, :3], w = 0.09 * direction, 5.0 * torch.randn(n, 6, generator=generator)
    v = -0.5 * direction  # of the first body's origin, towards the second, which stays where it is
    qd = torch.cat([w[:, :3], v - torch.linalg.cross(w[:, :3], q[:, :3]), w[:, 3:], torch.zeros(n, 3)], dim=1)

    def energy(q, qd):
        total = torch.zeros(n)
        for p, w, v in ((q[:, :3], qd[:, :3], qd[:, 3:6]), (q[:, 7:10], qd[:, 6:9], qd[:, 9:])):
            total += 0.5 * (m * (v + torch.linalg.cross(w, p)) ** 2 + inertia * w**2).sum(1)
        return total

    before, touched = energy(q, qd), np.zeros(n, dtype=bool)
    for _ in range(50):
        q, qd, touching = run(simulator, q, qd)
        touches = touching.any(axis=1)
        touched |= touches
        # what acts on one acts on the other, with the opposite sign and about the same point
        x = simulator.batches[0].substeps[0]
        contact = x.net_wrench.numpy() - x.link_wrench.numpy()
        assert np.allclose(contact[:, 0], -contact[:, 1], atol=1e-5 * max(1.0, np.abs(contact).max()))
        assert (np.abs(contact[touches, 0]).max(axis=1) > 0.0).all() and not contact[~touches].any()
    after, apart = energy(q, qd), ~touches
    assert touched.mean() > 0.7 and apart.mean() > 0.7
    assert (after <= before)[apart].all() and (after < 0.9 * before)[touched].float().mean() > 0.8


def wrench_on(simulator, q, qd):
    """Force on the first body and its moment about the origin, at the start."""
    run(simulator, q[None], qd[None])
    moment, force = np.split(simulator.batches[0].substeps[0].pair_wrench.numpy()[0, 0], 2)
    return force, moment


def test_the_contact_law_of_a_ball_on_a_box():
    """f_n = ke d + kd min(d / 1 mm, 1) max(-u_n, 0) and f_t = -u_t / |u_t| min(kf |u_t|, mu f_n) at its lowest point"""
    radius, (ke, kd, kf, mu) = 0.012, CONTACT.values()
    simulator = free_pair(Capsule(0, (0, 0, 0), (0, 0, 0), radius), Box(1, (0, 0, 0), (0.05, 0.03, 0.02)), 1)
    w, w_box = np.array([2.0, 1.0, -3.0]), np.array([0.5, 0.2, 0.1])
    for depth, v in (
        (0.004, (0.01, -0.02, -0.05)),  # sinking and sticking
        (0.0005, (0.01, -0.02, -0.05)),  # before damping is full
        (0.004, (0.4, -0.3, 0.05)),  # rising and sliding
        (0.020, (0.0, 0.0, 0.0)),  # its centre is inside
    ):
        p = np.array([0.02, 0.01, 0.02 + radius - depth])
        q = torch.tensor([*p, *UP, 0, 0, 0, *UP], dtype=torch.float32)
        qd = torch.tensor(np.concatenate([w, v - np.cross(w, p), w_box, np.zeros(3)]), dtype=torch.float32)
        lowest = p - [0.0, 0.0, radius]
        u = v + np.cross(w, [0.0, 0.0, -radius]) - np.cross(w_box, lowest)
        slip = np.linalg.norm(u[:2])
        if depth > radius:  # the smoothed distance to the box's faces
            inside = sum((half - x) ** -2 + (half + x) ** -2 for half, x in zip((0.05, 0.03, 0.02), p)) ** -0.5
            assert inside == pytest.approx(depth - radius, rel=0.15)
            depth = radius + inside
        f_n = ke * depth + kd * min(depth / 1e-3, 1.0) * max(-u[2], 0.0)
        f_t = -u[:2] / slip * min(kf * slip, mu * f_n)
        force, moment = wrench_on(simulator, q, qd)
        # inside, the normal leans a little towards the nearest side
        leans = p[2] < 0.02
        assert np.allclose(force, [*f_t, f_n], atol=(0.1 if leans else 1e-4) * f_n)
        assert np.allclose(moment, np.cross(lowest, force), atol=0.01 if leans else 1e-5)


@pytest.mark.parametrize("turn", ((0.0, 0.0, 0.0, 1.0), (0.38268343, 0.0, 0.0, 0.92387953)), ids=("face", "edge"))
def test_the_force_of_boxes_grows_from_zero(turn):
    """With the speed of a hand's fast finger. A face has eight edges in contact, four of them half as deep."""
    box = Box(1, (0, 0, 0), (0.05, 0.05, 0.02))
    simulator = free_pair(Box(0, (0, 0, 0), (0.01, 0.01, 0.01)), box, 1)
    height = 0.02 + (0.01 if turn[0] == 0.0 else 0.01 * 2**0.5)
    forces = []
    for depth in (1e-6, 1e-5, 1e-4, 5e-4, 9e-4):
        q = torch.tensor([0.0, 0.0, height - depth, *turn, 0.0, 0.0, 0.0, *UP])
        force, _ = wrench_on(simulator, q, torch.tensor([0.0] * 5 + [-1.0] + [0.0] * 6))
        forces.append(force[2] / depth)
        assert np.abs(force[:2]).max() < 1e-3 * force[2]
    # no jump: proportional to the depth over three decades; float32 knows the depth to 4e-9 m
    assert np.allclose(forces, forces[-1], rtol=0.03)
    if turn[0] == 0.0:
        assert forces[-1] == pytest.approx((4 + 4 / 2) * (500.0 + 100.0 / 1e-3), rel=0.03)


@pytest.mark.parametrize("first", (Capsule(0, (0, 0, 0), (0, 0, 0), 0.012), Box(0, (0, 0, 0), (0.03, 0.0098, 0.0098))))
def test_a_path_through_a_box_meets_no_jump_and_no_singularity(first):
    """A ball, and a box whose long edges cross the other, on their way through it, past its very middle."""
    n = 601
    simulator = free_pair(first, Box(1, (0, 0, 0), (0.02, HALF, HALF)), n, substeps=1)
    q = torch.tensor([0.0] * 3 + [*UP] + [0.0] * 3 + [*UP]).repeat(n, 1)
    q[:, 1] = torch.linspace(-0.06, 0.06, n)  # 0.2 mm apart
    q.requires_grad_()
    new_q, new_qd, _ = simulator.step(q, torch.zeros(n, 12), torch.zeros(n, 12))
    forces = simulator.batches[0].substeps[0].pair_wrench.numpy()[:, 0, 4]
    assert torch.autograd.grad(new_q.sum() + new_qd.sum(), q)[0].isfinite().all()
    assert np.allclose(forces, -forces[::-1], atol=1e-2) and abs(forces[n // 2]) < 1e-2
    # out of the box on either side; within 0.2 mm it changes by no more than (measured) 5 % of its largest value
    assert (forces[: n // 2] <= 1e-3).all() and forces.max() > 5.0
    assert np.abs(np.diff(forces)).max() < 0.07 * forces.max()


@pytest.mark.parametrize(
    "links, words",
    (((0, 0), "two different links, got \\(0, 0\\)"), ((0, 7), "got \\(0, 7\\)"), ((-1, 0), "got \\(-1, 0\\)")),
)
def test_a_wrong_pair_is_refused(links, words):
    pair = contact_pair(*(Box(link, (0, 0, 0), (1, 1, 1)) for link in links), **CONTACT)
    with pytest.raises(ValueError, match=words):
        Simulator(Articulation([Link("a", -1, FREE), Link("b", -1, FREE)], contact_pairs=[pair]), 1, 0.01, 1, 1)


def test_only_boxes_and_spheres_make_a_pair():
    with pytest.raises(ValueError, match="expected boxes and spheres"):
        contact_pair(Box(0, (0, 0, 0), (1, 1, 1)), Capsule(1, (0, 0, 0), (0, 0, 1), 0.1), **CONTACT)
