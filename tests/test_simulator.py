"""The simulator against DFlex's golden numbers, and its gradients against golden ones and central differences."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
from envs.hopper import Hopper
from envs.simulator import Simulator

GOLDEN = np.load(Path(__file__).parent / "data" / "hopper.npz")
INTERVALS = (1, 4)


class HopperRebuildingAlways(Hopper):
    mass_matrix_interval = 1


def make_hopper(interval, num_envs=4, **options):
    """A hopper that never falls, so that rollouts are as long as the golden ones."""
    env = (HopperRebuildingAlways if interval == 1 else Hopper)(num_envs, num_threads=1, **options)
    env.is_terminal = lambda obs: torch.zeros(num_envs, dtype=torch.bool)
    env.reset()
    return env


def golden_tensor(key, requires_grad=False):
    return torch.tensor(GOLDEN[key], dtype=torch.float32, requires_grad=requires_grad)


def relative(x, y):
    return np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(np.asarray(y))


@pytest.mark.parametrize("interval", INTERVALS)
def test_every_substep_matches_dflex(interval):
    env = make_hopper(interval)
    env.set_state(golden_tensor("q0"), golden_tensor("qd0"))
    batch = env.simulator.batches[0]
    for t in range(2):
        origin = env.joint_q[:, :1] * torch.eye(6)[0]  # inside the simulator x counts from where the step began
        env.step(golden_tensor("actions")[t])
        for s in range(16):
            q, qd = (batch.q[s + 1].value + origin).numpy(), batch.qd[s + 1].value.numpy()
            golden_q, golden_qd = (GOLDEN[f"sub_mm{interval}/{name}"][16 * t + s] for name in ("q", "qd"))
            # 1e-5 of the state's scale (about 1 for positions, 10 for velocities): float32 over up to 32 substeps
            assert np.abs(q - golden_q).max() <= 1e-5 * max(1.0, np.abs(golden_q).max())
            assert np.abs(qd - golden_qd).max() <= 1e-5 * np.abs(golden_qd).max()


@pytest.mark.parametrize("interval", INTERVALS)
def test_32_steps_are_as_near_to_float64_as_dflex(interval):
    env = make_hopper(interval)
    env.set_state(golden_tensor("q0"), golden_tensor("qd0"))
    ours = {"q": [], "qd": []}
    for t in range(32):
        obs, reward, *_ = env.step(golden_tensor("actions")[t])
        ours["q"].append(env.joint_q.numpy())
        ours["qd"].append(env.joint_qd.numpy())
        assert np.allclose(obs, GOLDEN[f"mm{interval}/obs"][t], atol=1e-3)
        assert np.allclose(reward, GOLDEN[f"mm{interval}/rew_post"][t], atol=1e-3)
    for name in ("q", "qd"):
        float64 = GOLDEN[f"f64/mm{interval}/{name}"]
        float32_noise = np.abs(GOLDEN[f"mm{interval}/{name}"] - float64).max()
        assert np.abs(np.array(ours[name]) - float64).max() <= 10 * float32_noise


def rollout_gradients(env, horizon, q0, qd0, actions):
    env.set_state(q0, qd0)
    total = 0.0
    for t in range(horizon):
        _, reward, *_ = env.step(actions[t])
        total = total + reward.sum()
    grads = torch.autograd.grad(total, [actions, q0, qd0])
    return {"actions": grads[0][:horizon], "q0": grads[1], "qd0": grads[2]}


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("horizon", (8, 32))
def test_gradient_of_the_return_matches_dflex_in_float64(horizon, interval):
    inputs = [golden_tensor(key, requires_grad=True) for key in ("q0", "qd0", "actions")]
    ours = rollout_gradients(make_hopper(interval), horizon, *inputs)
    for name, grad in ours.items():
        golden = GOLDEN[f"f64/mm{interval}/grad{horizon}_rew_post/{name}"]
        # measured: 1e-6.  1e-4 leaves room for other processors and is far below any wrong term
        assert relative(grad, golden) <= 1e-4, name


def test_gradient_is_the_same_200_m_from_the_origin():
    near, far = [], []
    for x, grads in ((0.0, near), (200.0, far)):
        q0 = golden_tensor("q0")
        q0[:, 0] += x
        inputs = [q0.requires_grad_(), golden_tensor("qd0", True), golden_tensor("actions", True)]
        grads.append(rollout_gradients(make_hopper(4), 32, *inputs))
    for name in near[0]:
        # the position itself is rounded to 1.5e-5 m at 200 m, but the simulation never sees it
        assert relative(far[0][name], near[0][name]) <= 1e-5, name


def one_step(env, inputs):
    """(N, 6 + 6 + 3) state and action -> (N, 6 + 6 + 11 + 1) next state, observation and reward."""
    q, qd, action = inputs.split([6, 6, 3], dim=1)
    env.set_state(q, qd)
    obs, reward, *_ = env.step(action)
    return torch.cat([env.joint_q, env.joint_qd, obs, reward[:, None]], dim=1)


def flying_state():
    q = [0.3, 1.0, 0.2, -0.4, -0.6, 0.1]
    return torch.tensor([q + [1.0, 0.5, -0.4, 0.8, -1.2, 0.7] + [0.2, -0.1, 0.15]])


def standing_state(slip):
    """Both ends of the foot 3 mm deep in the ground, all joints inside their limits, sinking, sliding at `slip` m/s."""
    hip, knee, ankle = -0.4, -0.5, 0.3
    pitch = hip + knee + ankle  # the foot is level
    leg = 0.2 * math.cos(pitch) + 0.45 * math.cos(pitch - hip) + 0.5 * math.cos(pitch - hip - knee)
    q = [0.0, 0.06 - 0.003 + leg - 1.25, pitch, hip, knee, ankle]
    return torch.tensor([q + [slip, -0.1, 0.0, 0.0, 0.0, 0.0] + [0.02, -0.03, 0.01]])


@pytest.mark.parametrize(
    "point", (flying_state(), standing_state(0.005), standing_state(1.0)), ids=("air", "stick", "slide")
)
def test_jacobian_of_one_step_matches_central_differences(point):
    env = make_hopper(4, num_envs=1)
    x = point.clone().requires_grad_()
    y = one_step(env, x)
    jacobian = torch.stack([torch.autograd.grad(y[0, k], x, retain_graph=True)[0][0] for k in range(y.shape[1])])

    # fourth-order stencil: f' = (8 (f(+e) - f(-e)) - (f(+2e) - f(-2e))) / 12e.  In float32 the differences carry noise
    # of about 1e-6 / e; positions must not leave the ground, 3 mm away
    e = torch.tensor([5e-4] * 6 + [1e-2] * 9)
    offsets = torch.cat([k * torch.diag(e) for k in (-2, -1, 1, 2)])
    values = one_step(make_hopper(4, num_envs=60), point + offsets).double().reshape(4, 15, -1)
    differences = ((8.0 * (values[2] - values[1]) - (values[3] - values[0])) / (12.0 * e[:, None])).T
    for rows in (slice(0, 6), slice(6, 12), slice(12, 23), slice(23, 24)):  # q', qd', obs', reward
        assert relative(jacobian[rows], differences[rows]) <= 1e-3
    for column in range(15):
        assert relative(jacobian[:, column], differences[:, column]) <= 1e-3, column


def random_states(n, generator):
    """Anything a rollout could meet and worse: deep penetration, no sliding at all, limits exactly hit."""
    q = 3.0 * torch.rand(n, 6, generator=generator) - 1.5
    qd = 40.0 * torch.rand(n, 6, generator=generator) - 20.0
    q[: n // 4, 1] = -2.5 * torch.rand(n // 4, generator=generator)  # up to 2.5 m below
    qd[n // 4 : n // 2] = 0.0
    q[n // 4 : n // 2, 1] = -1.25 * torch.rand(n // 4, generator=generator)
    lower, upper = torch.tensor([-2.61799, -2.61799, -0.785398]), torch.tensor([0.0, 0.0, 0.785398])
    at_upper = torch.randint(0, 2, (n // 4, 3), generator=generator, dtype=torch.bool)
    q[n // 2 : 3 * n // 4, 3:] = torch.where(at_upper, upper, lower)
    return q, qd


def test_gradients_are_finite_in_random_states():
    n, generator = 4096, torch.Generator().manual_seed(0)
    env = make_hopper(4, num_envs=n)
    q, qd = random_states(n, generator)
    actions = [(2.0 * torch.rand(n, 3, generator=generator) - 1.0).requires_grad_() for _ in range(2)]
    env.set_state(q.requires_grad_(), qd.requires_grad_())
    total = 0.0
    for action in actions:
        obs, reward, *_ = env.step(action)
        total = total + reward.sum() + obs.sum()
    assert env.diverged == 0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total, [q, qd, *actions]))


@pytest.mark.parametrize("copies", (1, 16))  # 64 environments run on two threads
def test_backward_twice_and_another_rollout_in_between_change_nothing(copies):
    n = 4 * copies
    simulator = Simulator(Hopper.articulation, n, 1 / 60, 16, 4, num_threads=2)
    q, qd = (golden_tensor(key).repeat(copies, 1).requires_grad_() for key in ("q0", "qd0"))
    act = torch.zeros(n, 6)
    new_q, new_qd, _ = simulator.step(q, qd, act)
    first = torch.autograd.grad((new_q + new_qd).sum(), [q, qd], retain_graph=True)
    other_q, *_ = simulator.step(q + 0.3, 2.0 * qd, act + 50.0)
    torch.autograd.grad(1e3 * other_q.sum(), [q, qd])
    second = torch.autograd.grad((new_q + new_qd).sum(), [q, qd])
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_threads_do_not_change_a_single_bit():
    results = []
    for num_threads in (1, 2, 3):
        env = envs.make("hopper", num_envs=100, num_threads=num_threads)
        env.reset()
        actions = torch.zeros(100, 3, requires_grad=True)
        total = sum(env.step(actions + 0.1 * k)[1].sum() for k in range(4))
        results.append((env.joint_q.detach(), torch.autograd.grad(total, actions)[0]))
    assert len(env.simulator.batches) == 3
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident memory from Linux's /proc")
def test_memory_is_flat():
    env = envs.make("hopper", num_envs=256)
    env.reset()
    resident = []
    for _ in range(50):
        env.detach()
        actions = torch.zeros(256, 3, requires_grad=True)
        torch.autograd.grad(sum(env.step(actions)[1].sum() for _ in range(8)), actions)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    # MiB; a rollout that is kept by mistake adds 8 * 256 * 12 * 4 bytes = 0.1 MiB each time, 4 MiB in all
    assert resident[-1] - resident[10] < 2.0
