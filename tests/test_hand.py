"""The hand and its cube: table, observation and motion against Rewarped's numbers; contact between bodies; gradients.

What cannot be compared: Rewarped's contact, which sets in at full strength and pushes palm and thumb, which overlap,
apart. So its motion is comparable where nothing but the thumb touches: for the fingers and the falling cube.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import warp as wp
from torch.nn.functional import normalize

import envs
from envs.hand_reorient import CONTACT, CUBE_LINK, HALF, HandReorient
from envs.physics import FIXED, FREE, REVOLUTE, Articulation, Box, Capsule, Link, Simulator, contact_pair
from envs.physics.mass_matrix import composite_inertias, mass_matrix
from envs.physics.model import build_model
from envs.physics.substeps import Substeps

HAND = HandReorient.articulation
UP = torch.tensor([0.0, 0.0, 0.0, 1.0])


@cache
def golden():
    return {
        key: torch.tensor(value) for key, value in np.load(Path(__file__).parent / "data/hand_reorient.npz").items()
    }


def make(num_envs=4, seed=1, **options):
    """Environments whose episodes do not end when the cube falls."""
    env = envs.make("hand_reorient", num_envs=num_envs, seed=seed, num_threads=1, **options)
    env.is_terminal = lambda obs: torch.zeros(num_envs, dtype=torch.bool)
    env.reset()
    return env


def start(env, q, qd, goal=UP):
    env.set_state(q, qd)
    env.goal = goal.expand(env.num_envs, 4)


def turned(vectors, quaternions):
    u, w = quaternions[..., :3], quaternions[..., 3:]
    return vectors + 2.0 * np.cross(u, np.cross(u, vectors) + w * vectors)


def test_the_table_is_the_hand_of_the_source():
    links, gold = HAND.links, {key: value.double().numpy() for key, value in golden().items()}
    assert np.allclose([link.mass for link in links[1:]], gold["mass"], rtol=1e-6)
    assert np.allclose([link.com for link in links[1:]], gold["com"], atol=1e-8)
    inertia = [np.diag(x) if len(x) == 3 else np.reshape(x, (3, 3)) for x in (link.inertia for link in links[1:])]
    assert np.allclose(inertia, gold["inertia"], rtol=1e-6, atol=1e-12)
    assert np.allclose([link.limits for link in links[1:-1]], gold["limits"], atol=1e-6)
    assert all(link.armature == 0.001 and link.limit_stiffness == 100.0 for link in links[1:-1])
    assert links[-1].armature == 0.0 and HAND.gravity == (0.0, 0.0, -9.81)
    # the palm's box lies in the frame of the world there, in that of the palm here
    assert np.allclose([*links[0].offset, *links[0].rotation], gold["palm"], atol=1e-6)
    center = links[0].offset + turned(np.array(HAND.shapes[0].center), gold["palm"][3:])
    assert np.allclose(center, gold["palm_box"][:3], atol=1e-6)
    ours = []
    for shape in HAND.shapes:
        ball = isinstance(shape, Capsule)
        center, extents = (shape.start, (0, 0, 0)) if ball else (shape.center, shape.half_extents)
        ours.append([shape.link - 1, *center, *extents, shape.radius if ball else 0.0])
    expected = gold["shapes"][:, :8]
    expected[expected[:, 0] == -1, 1:4] = HAND.shapes[0].center
    assert sorted(map(tuple, np.round(ours, 6) + 0.0)) == sorted(map(tuple, np.round(expected, 6) + 0.0))
    materials = [[p.stiffness, p.damping, p.friction_stiffness, p.friction] for p in HAND.contact_pairs]
    assert (gold["shapes"][:, 8:] == materials[0]).all() and all(m == materials[0] for m in materials)


def test_links_are_where_they_are_in_the_source():
    """The source's numbers come from its own tree of bodies, which has no palm."""
    env = make()
    for step, expected in zip(golden()["steps"], golden()["link_pose"].numpy()):
        env.simulator.step(golden()["q"][step], torch.zeros(4, 22), torch.zeros(4, 22))
        ours = env.simulator.batches[0].steps[0].link_pose.numpy()[:, 1:]
        assert np.allclose(ours[..., :3], expected[..., :3], atol=1e-6)
        same_sign = np.sign((ours[..., 3:] * expected[..., 3:]).sum(-1, keepdims=True))
        assert np.allclose(ours[..., 3:] * same_sign, expected[..., 3:], atol=2e-6)


def test_observation_and_reward_are_those_of_the_source():
    gold, env = golden(), make()
    env.goal = gold["goal0"][:, 3:]
    assert torch.allclose(env.observe(gold["q0"], gold["qd0"], torch.zeros(4, 16)), gold["obs0"], atol=1e-6)
    for q, qd, action, obs, reward in zip(*(gold[key] for key in ("q", "qd", "actions", "obs", "reward"))):
        # velocities there are up to 30 rad/s, with a rounding error of 2e-6
        assert torch.allclose(env.observe(q, qd, action), obs, atol=5e-6)
        assert torch.allclose(env.reward(obs, action), reward, atol=5e-6)
        assert not HandReorient.is_terminal(env, obs).any() and not env.is_goal_reached(obs).any()


def with_inertias_mixed_up():
    """A stand-in for Substeps._mass_matrix that makes the mistake of the source's mass matrix.

    Bodies are numbered there as the fingers are named and joints in the order of the actions, and the mass matrix takes
    the body with the number of the joint, where that body is, for the one that the joint moves.
    """
    body_of_joint = golden()["joint_body"].tolist()
    other = [0, *(1 + body_of_joint.index(joint) for joint in range(17))]  # by link
    links = [
        replace(HAND.links[k], parent=link.parent, joint=link.joint, axis=link.axis, armature=link.armature)
        for link, k in zip(HAND.links, other)
    ]
    model = build_model(replace(HAND, links=links, contact_pairs=[], shapes=[]), "cpu")
    order, arrays = wp.array(other, dtype=int, device="cpu"), []

    def stages(self, s):
        x, pose = self.steps[s], wp.zeros_like(self.steps[s].link_pose)
        arrays.append(pose)
        inertia = (composite_inertias, (), [model, pose], [x.tree_moment, x.tree_inertia])
        return [
            (take_poses, (len(other),), [order, x.link_pose], [pose]),
            inertia,
            (mass_matrix, (22,), [model, x.motion_subspace, x.tree_moment, x.tree_inertia], [x.H]),
        ]

    return stages


@wp.kernel
def take_poses(order: wp.array[int], pose: wp.array2d[wp.transform], pose_out: wp.array2d[wp.transform]):
    i, env = wp.tid()
    pose_out[env, i] = pose[env, order[i]]


def test_fingers_and_falling_cube_move_as_in_the_source(monkeypatch):
    """One step from golden states, with the source's mass matrix and limit damping, which it has at full strength."""
    monkeypatch.setattr(Substeps, "_mass_matrix", with_inertias_mixed_up())
    monkeypatch.setattr(Substeps, "_backward_step", lambda self: None)
    links = [replace(link, limit_damping_depth=1e-9) if link.joint == REVOLUTE else link for link in HAND.links]
    simulator = Simulator(replace(HAND, links=links), 4, HandReorient.dt, 64, 64, num_threads=1)
    gold = golden()
    for q, qd, action, new_q, new_qd in (
        (gold["q0"], gold["qd0"], gold["actions"][0], gold["q"][0], gold["qd"][0]),
        (gold["q"][0], gold["qd"][0], gold["actions"][1], gold["q"][1], gold["qd"][1]),
    ):
        ours_q, ours_qd, _ = simulator.step(q, qd, torch.nn.functional.pad(2.0 * action, (0, 6)))
        # all but the thumb's four; measured: 3e-7 and 8e-5, at rates up to 27 rad/s
        assert torch.allclose(ours_q[:, 4:], new_q[:, 4:], rtol=0.0, atol=2e-6)
        assert torch.allclose(ours_qd[:, 4:], new_qd[:, 4:], rtol=0.0, atol=5e-4)
        assert (new_q - q)[:, 4:16].abs().max() > 0.05 and (ours_q - new_q)[:, :4].abs().max() < 0.01
        assert not simulator.batches[0].steps[63].touching.numpy().any()


# Contact of two bodies.  A pair of free bodies in empty space, one row of states for each environment


def free_pair(first, second, num_envs, substeps=1, h=1e-4, mass=0.5, inertia=3.5e-4):
    links = [Link(name, -1, FREE, mass=mass, inertia=(inertia,) * 3) for name in ("first", "second")]
    pair = contact_pair(first, second, **CONTACT)
    robot = Articulation(links, contact_pairs=[pair], gravity=(0.0, 0.0, 0.0))
    return Simulator(robot, num_envs, substeps * h, substeps, substeps, num_threads=1)


def run(simulator, q, qd):
    """New state, and the bits of the edges that touched at the start (N,)."""
    new_q, new_qd, diverged = simulator.step(q, qd, torch.zeros_like(qd))
    assert not diverged.any()
    return new_q, new_qd, simulator.batches[0].steps[0].touching.numpy()[:, 0]


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


def test_boxes_touch_exactly_where_they_overlap():
    """Also where only two edges cross, or one box is inside the other."""
    n, a, b = 4000, np.array([0.0098, 0.01375, 0.027]), np.array([HALF] * 3)
    q = random_poses(n, torch.Generator().manual_seed(0), spread=0.08)
    q[0, :3] = 0.0
    simulator = free_pair(Box(0, (0, 0, 0), tuple(a)), Box(1, (0, 0, 0), tuple(b)), n)
    _, _, touching = run(simulator, q, torch.zeros(n, 12))
    x = q.double().numpy()
    gap = gap_of_boxes(x[:, :3], rotation_matrices(x[:, 3:7]), a, rotation_matrices(x[:, 10:]), b)
    clear = np.abs(gap) > 1e-6  # m; nearer than that, rounding decides
    assert ((touching != 0) == (gap < 0.0))[clear].all() and 1000 < (gap < 0.0).sum() < 3000
    assert touching[0] == 0b111111111111  # the small box is inside: all of its edges are


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
        touched |= touching != 0
        # what acts on one acts on the other, with the opposite sign and about the same point
        x = simulator.batches[0].steps[0]
        contact = x.net_wrench.numpy() - x.link_wrench.numpy()
        assert np.allclose(contact[:, 0], -contact[:, 1], atol=1e-5 * max(1.0, np.abs(contact).max()))
        assert (np.abs(contact[touching != 0, 0]).max(axis=1) > 0.0).all() and not contact[touching == 0].any()
    after, apart = energy(q, qd), touching == 0
    assert touched.mean() > 0.7 and apart.mean() > 0.7
    assert (after <= before)[apart].all() and (after < 0.9 * before)[touched].float().mean() > 0.8


def wrench_on(simulator, q, qd):
    """Force on the first body and its moment about the origin, at the start."""
    run(simulator, q[None], qd[None])
    moment, force = np.split(simulator.batches[0].steps[0].pair_wrench.numpy()[0, 0], 2)
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
    forces = simulator.batches[0].steps[0].pair_wrench.numpy()[:, 0, 4]
    assert torch.autograd.grad(new_q.sum() + new_qd.sum(), q)[0].isfinite().all()
    assert np.allclose(forces, -forces[::-1], atol=1e-2) and abs(forces[n // 2]) < 1e-2
    # out of the box on either side; within 0.2 mm it changes by no more than (measured) 5 % of its largest value
    assert (forces[: n // 2] <= 1e-3).all() and forces.max() > 5.0
    assert np.abs(np.diff(forces)).max() < 0.07 * forces.max()


# The cube in the hand


def state(joints, position, quaternion, rates=0.0, velocity=(0.0, 0.0, 0.0)):
    """Joints and rates (16,) or one for all; the cube does not spin."""
    q = torch.cat([torch.as_tensor(joints).expand(16), torch.tensor([*position]), torch.tensor([*quaternion])])
    return q[None], torch.cat([torch.full((16,), rates), torch.zeros(3), torch.tensor([*velocity]).float()])[None]


def cube_in_the_palm(depth, speed=0.0, tilt=0.0, y=0.0, slip=(0.0, 0.0, 0.0)):
    """Sunk by `depth` (m) into the palm of a flat hand, moving towards or away from it (m/s)."""
    palm = HAND.links[0]
    X, box = wp.transform(wp.vec3(*palm.offset), wp.quat(*palm.rotation)), HAND.shapes[0]
    normal = np.array(wp.transform_vector(X, wp.vec3(1.0, 0.0, 0.0)))
    top = box.center[0] + box.half_extents[0]
    position = wp.transform_point(X, wp.vec3(top + HALF - depth, y, -0.05))
    quaternion = wp.quat(*palm.rotation) * wp.quat_from_axis_angle(wp.normalize(wp.vec3(0.3, 1.0, 0.2)), tilt)
    flat = torch.tensor([0.4, 0.1, 0.05, 0.05] + 3 * [0.0, 0.05, 0.05, 0.05])
    return state(flat, position, quaternion, 0.1, speed * normal + slip)


def test_a_cube_dropped_on_the_palm_loses_its_energy_and_stays_there():
    env = make(num_envs=8)
    q, qd = (x.repeat(8, 1) for x in cube_in_the_palm(depth=-0.03))
    q[4:, 19:] = normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), dim=1)  # on edges and corners
    start(env, q, 0.0 * qd)

    def energy():
        p, w = env.joint_q[:, 16:19], env.joint_qd[:, 16:19]
        v = env.joint_qd[:, 19:] + torch.linalg.cross(w, p)
        return 0.25 * (v**2).sum(1) + 0.5 * 3.52e-4 * (w**2).sum(1) + 0.5 * 9.81 * p[:, 2]

    energies, positions = [energy()], []
    with torch.no_grad():
        for _ in range(599):
            env.step(torch.zeros(8, 16))
            energies.append(energy())
            positions.append(env.joint_q[:, 16:])
    energies, positions = torch.stack(energies), torch.stack(positions)
    # what falls by 3 cm brings 0.15 J, and none of it comes back: what springs gave back would lift it again
    assert (energies - energies[0]).max() < 1e-4
    assert (energies.cummin(0).values - energies).min() > -0.02
    # a flat cube settles within a second; then it creeps down the palm, which leans by 5.4 degrees, since friction at
    # rest is viscous: 0.46 N / (8 edges * 100 N s/m) = 0.6 mm/s.  Measured: 0.4 mm/s
    settled, end = positions[120, 0], positions[-1, 0]
    assert (end[:3] - settled[:3]).norm() < 4 * 0.6e-3 and (end[3:] - settled[3:]).abs().max() < 0.01
    # 4.9 N on four edges, and on four half as deep: 1.6 mm.  On whichever face, none is less than 29 mm above the palm
    assert (positions[-1, :, 2] - end[2]).abs().max() < 0.01


def pushing_fingers(rate):
    """Curled fingers with their tips and middle links in the cube, opening (rate < 0, rad/s) or closing."""
    joints = torch.tensor([1.2, 0.6, 0.6, 0.6] + 3 * [0.0, 0.4, 1.2, 1.2])
    return state(joints, (0.0, -0.1, 0.55), normalize(torch.tensor([0.1, 0.05, 0.1, 1.0]), dim=0), rate)


def falling_cube():
    generator = torch.Generator().manual_seed(0)
    middle = torch.tensor([sum(link.limits) / 2 for link in HAND.links if link.joint == REVOLUTE])
    q, qd = state(middle, (0.01, -0.1, 0.62), normalize(torch.randn(4, generator=generator), dim=0))
    return q, 2.0 * torch.rand(1, 22, generator=generator) - 1.0


def beyond_limits():
    """Fingers 0.005 rad beyond their limits, where damping is half of what it is from 0.01 rad on, and moving."""
    q, qd = falling_cube()
    upper = torch.tensor([link.limits[1] for link in HAND.links if link.joint == REVOLUTE])
    q[0, 4:16] = upper[4:] + 0.005
    return q, 0.3 * qd


# In the cases of one control step (64 substeps) contacts open; the damping of closing ones acts in the shorter ones,
# because it stops them within a millisecond, and the kink where it ends has no derivative
FREE_CASES = ("falling", "beyond limits")
CASES = {
    "falling": (falling_cube, 64),
    "beyond limits": (beyond_limits, 4),
    "leaving the palm": (lambda: cube_in_the_palm(0.004, 0.1, 0.02, -0.01, (0.02, 0.01, 0.0)), 64),
    "sinking into the palm": (lambda: cube_in_the_palm(0.004, -0.3, 0.02, -0.01, (0.02, 0.01, 0.0)), 6),
    "opening fingers": (lambda: pushing_fingers(-2.0), 64),
    "closing fingers": (lambda: pushing_fingers(2.0), 6),
}


@pytest.mark.parametrize("case", CASES)
def test_jacobian_of_one_step_matches_central_differences(case):
    make_state, substeps = CASES[case]

    def step(simulator, x):
        q, qd, action = x.split([23, 22, 16], dim=1)
        q = torch.cat([q[:, :19], normalize(q[:, 19:], dim=1)], dim=1)
        return torch.cat(simulator.step(q, qd, torch.nn.functional.pad(2.0 * action, (0, 6)))[:2], dim=1)

    def touching(simulator):
        return np.stack([x.touching.numpy() for x in simulator.batches[0].steps], axis=1)

    simulator, around = (Simulator(HAND, n, substeps / 7680, substeps, substeps, num_threads=1) for n in (1, 4 * 61))
    x = torch.cat([*make_state(), torch.full((1, 16), 0.1)], dim=1).requires_grad_()
    y = step(simulator, x)
    jacobian = torch.stack([torch.autograd.grad(y[0, k], x, retain_graph=True)[0][0] for k in range(45)])
    # fourth-order stencil: f' = (8 (f(+e) - f(-e)) - (f(+2e) - f(-2e))) / 12e, for angles, the cube's position [m] and
    # quaternion, rates, twist and action
    e = torch.tensor([4e-4] * 16 + [1e-4] * 3 + [1e-3] * 4 + [2e-2] * 16 + [1e-2] * 3 + [4e-3] * 3 + [2e-2] * 16)
    offsets = torch.cat([k * torch.diag(e) for k in (-2, -1, 1, 2)])
    values = step(around, x.detach() + offsets).double().reshape(4, 61, -1)
    differences = ((8.0 * (values[2] - values[1]) - (values[3] - values[0])) / (12.0 * e[:, None])).T
    # no edge begins or ends to touch within the stencil
    edges = touching(simulator)
    assert (touching(around) == edges).all() and (edges[0, 0] != 0).sum() >= (0 if case in FREE_CASES else 2)
    error, noise = jacobian - differences, 2e-6 * y.detach().norm()
    for rows in (
        slice(0, 23),
        slice(23, 45),
    ):  # q', qd'; measured: 3e-3 for opening fingers, 1e-3 and less for the rest
        assert error[rows].norm() <= 1e-2 * differences[rows].norm()
    # a result is off by some 1e-7 of its scale, in the differences 1e-7 / e; measured: half of what is allowed
    for column in range(61):
        assert error[:, column].norm() <= 2e-2 * differences[:, column].norm() + noise / e[column], column


def test_gradients_are_finite_in_random_states():
    """Anything a rollout could meet: the cube anywhere in the hand, everything at rest, joints at their limits."""
    n, generator = 2048, torch.Generator().manual_seed(0)
    env = make(n)
    lower, upper = env.limits
    q = torch.cat([lower - 0.1 + (upper - lower + 0.2) * torch.rand(n, 16, generator=generator), torch.zeros(n, 7)], 1)
    q[: n // 4, :16] = torch.where(torch.rand(n // 4, 16, generator=generator) < 0.5, lower, upper)
    q[:, 16:19] = torch.tensor([0.0, -0.05, 0.53]) + 0.08 * (2.0 * torch.rand(n, 3, generator=generator) - 1.0)
    q[:, 19:] = normalize(torch.randn(n, 4, generator=generator), dim=1)
    q[::4, 19:] = UP  # parallel to the goal
    qd = 10.0 * (2.0 * torch.rand(n, 22, generator=generator) - 1.0)
    qd[n // 8 : n // 2] = 0.0
    actions = [(2.0 * torch.rand(n, 16, generator=generator) - 1.0).requires_grad_() for _ in range(2)]
    start(env, q.requires_grad_(), qd.requires_grad_())
    total = 0.0
    for action in actions:
        obs, reward, *_ = env.step(action)
        total = total + reward.sum() + obs.sum()
    assert env.diverged == 0 and total.isfinite()
    touching = env.simulator.batches[0].steps[0].touching.numpy()
    assert ((touching != 0).sum(1) >= 3).mean() > 0.5
    assert (touching != 0).any(0).mean() > 0.9  # nearly all of the pairs
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total, [q, qd, *actions]))


def test_backward_twice_and_steps_that_are_run_again_give_the_same(monkeypatch):
    grads = []
    for kept in (32, 1):
        monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", kept)
        env = make(seed=2)
        start(env, *(x.repeat(4, 1) for x in pushing_fingers(1.0)))
        actions = torch.full((4, 4, 16), 0.1, requires_grad=True)
        total = sum(env.step(action)[1].sum() for action in actions)
        grads += [torch.autograd.grad(total, actions, retain_graph=True)[0] for _ in range(2)]
    assert grads[0].abs().sum() > 0.0 and all(torch.equal(grad, grads[0]) for grad in grads[1:])


def test_threads_do_not_change_a_single_bit():
    results = []
    for num_threads in (1, 2):
        env = envs.make("hand_reorient", num_envs=33, num_threads=num_threads)
        env.reset()
        generator = torch.Generator().manual_seed(0)
        actions = torch.zeros(33, 16, requires_grad=True)
        start(env, *(x + 0.01 * torch.rand(33, x.shape[1], generator=generator) for x in pushing_fingers(1.0)))
        total = sum(env.step(actions + 0.1 * k)[1].sum() for k in range(3))
        results.append((env.joint_q.detach(), torch.autograd.grad(total, actions)[0]))
    assert len(env.simulator.batches) == 2 and env.simulator.batches[0].steps[0].touching.numpy().any()
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_rollout_is_kept_in_a_gibibyte():
    simulator = make(num_envs=64).simulator
    assert simulator.max_kept == 32 and 32 * simulator.batches[0].num_bytes < 2**30


# The task


def test_success_brings_the_bonus_and_a_new_goal():
    env = make(num_envs=3)
    q, qd = env.rest_state()
    start(env, q, qd, goal=torch.tensor([0.0, 0.0, 1.0, 0.0]))
    env.goal = env.goal.clone()
    env.goal[1] = UP  # reached: the cube falls without turning
    old_goal, action = env.goal.clone(), torch.full((3, 16), 0.5, requires_grad=True)
    obs, reward, terminated, truncated, infos = env.step(action)
    assert infos["successes"].tolist() == [0, 1, 0] and not (terminated | truncated).any()
    assert torch.equal(infos["final_obs"][:, 48:52], old_goal)
    assert torch.equal(env.goal[[0, 2]], old_goal[[0, 2]]) and (env.goal[1] - old_goal[1]).abs().max() > 1e-3
    assert torch.equal(obs[:, 48:52], env.goal)
    assert torch.equal(obs[:, :48], infos["final_obs"][:, :48]) and torch.equal(obs[:, 56:], action)
    distance = torch.linalg.vector_norm(obs[:, 32:35] - obs[:, 45:48], dim=1)
    # 1 / 0.1, and half of 250; the others are half a turn away, of which the arc sine shows 3.05 rad
    expected = torch.tensor([1.0 / 3.152, 10.0 + 125.0, 1.0 / 3.152])
    assert torch.allclose(reward, -10.0 * distance - 2e-4 * 16 * 0.25 + expected, atol=1e-3)
    assert torch.autograd.grad(reward.sum() + obs.sum(), action)[0].isfinite().all()
    # the count is the episode's
    env.max_episode_steps = 2
    infos = env.step(action)[4]
    assert infos["successes"].tolist() == [0, 1, 0] and infos["_episode"].all() and not env.successes.any()


def test_reward_has_a_gradient_at_and_around_success():
    env = make(num_envs=5)
    for angle in (0.0, 1e-4, 0.05, 0.093, 0.0946, 0.1, 3.0, 3.13, np.pi):
        obs = torch.zeros(5, 72)
        obs[:, 32:35] = obs[:, 45:48]  # no distance
        obs[:, 52], obs[:, 55] = np.sin(angle / 2), np.cos(angle / 2)
        obs.requires_grad_()
        reward = env.reward(obs, torch.zeros(5, 16))
        grad = torch.autograd.grad(reward.sum(), obs)[0]
        assert reward.isfinite().all() and grad.isfinite().all()
        assert (grad[:, 52] < 0.0).all() == (0.0 < angle <= 3.0)  # turning further away costs, where the angle is seen
        assert env.is_goal_reached(obs).all() == (angle <= 0.1)


def test_the_bonus_sets_in_later_than_the_new_goal():
    env = make(num_envs=4)
    obs = torch.zeros(4, 72)
    obs[:, 32:35] = obs[:, 45:48]  # no distance
    angle = torch.tensor([0.15, 0.0999, 0.0951, 0.09])
    obs[:, 52], obs[:, 55] = torch.sin(angle / 2), torch.cos(angle / 2)
    bonus = env.reward(obs, torch.zeros(4, 16)) - 1.0 / (angle + 0.1)
    assert env.is_goal_reached(obs).tolist() == [False, True, True, True]
    assert (bonus[:3].abs() < 0.3).all() and 120.0 < bonus[3] < 125.0


def test_a_dropped_cube_ends_the_episode():
    env = envs.make("hand_reorient", num_envs=2)
    env.reset()
    q, qd = env.rest_state()
    q[:, 18] = torch.tensor([0.56 - 0.2395, 0.56 - 0.2398])  # below everything; it falls by 0.34 mm in a step
    env.set_state(q, qd)
    _, _, terminated, truncated, infos = env.step(torch.zeros(2, 16))
    assert terminated.tolist() == [False, True] and not truncated.any() and env.max_episode_steps == 600
    assert infos["final_obs"][1, 34] < 0.33 and env.joint_q[1, 18] > 0.58  # its new episode has begun


def test_reset_is_the_documented_one():
    env = make(num_envs=2048)
    lower, upper = env.limits
    share = env.joint_q[:, :16] / 0.2
    assert (share >= lower - 1e-5).all() and (share <= upper + 1e-5).all()
    assert (share.amin(0) < lower + 0.01 * (upper - lower)).all()
    assert (share.amax(0) > upper - 0.01 * (upper - lower)).all()
    shift = env.joint_q[:, 16:19] - torch.tensor([0.0, -0.1, 0.6])
    assert shift.abs().max() <= 0.01 + 1e-6 and (shift.abs().amax(0) > 0.0099).all() and not env.joint_qd.any()
    for q in (env.joint_q[:, 19:], env.goal):
        assert torch.allclose(q.norm(dim=1), torch.ones(2048), atol=1e-6)
        # R_x(a) R_y(b): (sin a/2 cos b/2, cos a/2 sin b/2, sin a/2 sin b/2, cos a/2 cos b/2), so x y = z w
        assert torch.allclose(q[:, 0] * q[:, 1], q[:, 2] * q[:, 3], atol=1e-6)
        # |a| and |b| are uniform in [0, pi]: cos a/2 is positive, and its square has the mean 1/2, to 3 standard errors
        for square in (q[:, 1] ** 2 + q[:, 3] ** 2, q[:, 0] ** 2 + q[:, 3] ** 2):
            assert square.mean().item() == pytest.approx(0.5, abs=3 * (0.125 / 2048) ** 0.5)
    # the two are drawn independently
    assert ((env.goal * env.joint_q[:, 19:]).sum(1).abs() < 0.5).float().mean() > 0.3


def test_a_resumed_episode_goes_on_with_its_goal():
    env, other = make(seed=4), make(seed=5)
    start(env, *(x.repeat(4, 1) for x in pushing_fingers(1.0)))
    actions = 0.2 * torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(0))
    env.successes += 2
    other.load_state_dict(env.state_dict())
    for action in actions:
        (obs, reward, *_, infos), (obs_2, reward_2, *_, infos_2) = env.step(action), other.step(action)
        env.goal[0] = other.goal[0] = env.joint_q[0, 19:].detach()  # so that this one gets new ones
    assert torch.equal(obs, obs_2) and torch.equal(reward, reward_2) and torch.equal(env.goal, other.goal)
    assert infos["successes"].tolist() == infos_2["successes"].tolist() and infos["successes"][0] >= 6


def test_a_picture_shows_the_goal():
    env = make(num_envs=1, stochastic_reset=False)
    env.goal = UP[None]
    before = env.render()
    env.goal = torch.tensor([[0.5**0.5, 0.0, 0.0, 0.5**0.5]])
    changed = (env.render() != before).any(axis=2).nonzero()
    assert len(changed[0]) > 500 and changed[1].max() < 160  # pixels, in the left half


def test_two_roots_keep_the_world_origin():
    robot = Articulation([Link("a", -1, FREE, mass=1.0, inertia=(1, 1, 1)), Link("b", -1, FREE, mass=1.0)])
    assert build_model(robot, "cpu").num_positions == 0
    assert build_model(replace(robot, links=robot.links[:1]), "cpu").num_positions == 3
    hand = [link for link in HAND.links if link.joint == FIXED]
    assert build_model(HAND, "cpu").num_positions == 0 and len(hand) == 1


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


def test_what_touches_what():
    """21 parts of the hand with the cube, and the pairs that the docstring names; nobody is paired with a neighbour."""
    names = [frozenset(HAND.links[link].name for link in pair.links) for pair in HAND.contact_pairs]
    assert sum("cube" in pair for pair in names) == 21 and len(names) == 79
    assert all(len(pair) == 2 for pair in names) and CUBE_LINK == len(HAND.links) - 1
    for pair in names:
        a, b = sorted(pair, key=lambda name: name != "cube")
        if a != "cube":
            assert a.split("_")[0] != b.split("_")[0] and "knuckle" not in a + b
            assert {a.split("_")[0], b.split("_")[0]} != {"index", "ring"}
