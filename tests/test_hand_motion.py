"""The cube in the hand: motion and energy, gradients against finite differences, threads, memory."""

import numpy as np
import pytest
import torch
import warp as wp
from hand_states import UP, make, pushing_fingers, start, state
from torch.nn.functional import normalize

import envs
from envs.hand_reorient import HALF, HandReorient
from envs.physics import REVOLUTE, Simulator

HAND = HandReorient.articulation


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
        return np.stack([x.touching.numpy() for x in simulator.batches[0].substeps], axis=1)

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
    assert (touching(around) == edges).all() and edges[0, 0].any(axis=-1).sum() >= (0 if case in FREE_CASES else 2)
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
    touching = env.simulator.batches[0].substeps[0].touching.numpy().any(axis=-1)
    assert (touching.sum(1) >= 3).mean() > 0.5
    assert touching.any(0).mean() > 0.9  # nearly all of the pairs
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
    assert len(env.simulator.batches) == 2 and env.simulator.batches[0].substeps[0].touching.numpy().any()
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_rollout_is_kept_in_a_gibibyte(monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.available_memory", lambda device: 2**32)
    simulator = make(num_envs=64).simulator
    assert simulator.max_kept == 32 and 32 * simulator.batches[0].num_bytes < 2**30
