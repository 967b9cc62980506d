"""The simulator's buffers: what is kept or run again, threads, memory, its layout, and CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warp as wp
from golden import TASKS, golden_inputs, make, relative

import envs
from envs.physics import Simulator
from envs.physics.lanes import NUM_LANES, in_lanes
from envs.physics.substeps import Substeps


@pytest.mark.parametrize("copies", (1, 16))  # 64 environments run on two threads
@pytest.mark.parametrize("task", TASKS)
def test_backward_twice_and_another_rollout_in_between_change_nothing(task, copies):
    n, cls = 4 * copies, TASKS[task]
    simulator = Simulator(cls.articulation, n, cls.dt, cls.substeps, cls.mass_matrix_interval, num_threads=2)
    q, qd = (x.repeat(copies, 1).requires_grad_() for x in golden_inputs(task)[:2])
    act = torch.zeros_like(qd)
    new_q, new_qd, _ = simulator.step(q, qd, act)
    first = torch.autograd.grad(new_q.sum() + new_qd.sum(), [q, qd], retain_graph=True)
    other_q, *_ = simulator.step(q + 0.3, 2.0 * qd, act + 50.0)
    torch.autograd.grad(1e3 * other_q.sum(), [q, qd])
    second = torch.autograd.grad(new_q.sum() + new_qd.sum(), [q, qd])
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("limits", ({"KEPT_STEPS": 1}, {"KEPT_STEPS": 3}, {"KEPT_BYTES": 1}, {"KEPT_PART": 0}))
@pytest.mark.parametrize("task", ("hopper", "ant"))
def test_gradients_are_the_same_whether_steps_are_kept_or_run_again(task, limits, monkeypatch):
    def rollout(steps_in_between):
        env = make(task, num_envs=16)
        env.reset(seed=3)
        actions = torch.full((8, 16, env.num_actions), 0.1, requires_grad=True)
        total = sum(env.step(action)[1].sum() for action in actions)
        q, qd = env.joint_q.detach(), env.joint_qd.detach()
        for _ in range(steps_in_between):  # without a gradient, in the buffers of the last step
            env.simulator.step(q + 1.0, qd, torch.ones_like(qd))
        return torch.autograd.grad(total, actions)[0], env.simulator

    expected, simulator = rollout(0)
    # after eight steps of the 112 over which the buffers are made
    assert simulator.max_kept == 32 and len(simulator.kept) == 6 and expected.abs().sum() > 0.0
    for name, value in limits.items():
        monkeypatch.setattr(f"envs.physics.simulator.{name}", value)
    grad, simulator = rollout(2)
    assert len(simulator.kept) == min(6, simulator.max_kept) and simulator.max_kept == limits.get("KEPT_STEPS", 1)
    assert torch.equal(grad, expected)


def test_what_is_kept_fits_into_a_quarter_of_the_memory_and_into_4_gib(monkeypatch):
    per_step = 256 * make("hopper", num_envs=16).simulator.batches[0].num_bytes
    for available, room in ((2**31, 2**29), (2**40, 2**32), (float("inf"), 2**32)):
        monkeypatch.setattr("envs.physics.simulator.available_memory", lambda device, found=available: found)
        simulator = make("hopper", num_envs=4096).simulator
        assert simulator.batches[0].num_bytes == per_step  # no lane is idle
        assert simulator.max_kept == min(32, room // per_step)


def test_after_112_steps_all_buffers_have_been_made():
    env = make("cartpole", num_envs=2)
    env.reset()
    for _ in range(112):
        env.step(torch.zeros(2, 1, requires_grad=True))
    assert len(env.simulator.kept) == env.simulator.max_kept == 32


def test_without_gradients_nothing_is_kept():
    env = make("hopper", num_envs=2)
    env.reset()
    env.step(torch.zeros(2, 3, requires_grad=True))
    assert len(env.simulator.kept) == 2 and env.joint_q.requires_grad
    with torch.no_grad():
        env.step(torch.zeros(2, 3, requires_grad=True))
    assert len(env.simulator.kept) == 2


def test_an_interrupted_step_does_not_pass_for_the_one_before(monkeypatch):
    simulator = make("hopper", num_envs=2).simulator
    q, qd, act = (torch.full((2, 6), x, requires_grad=True) for x in (0.1, 0.2, 0.3))
    new_q, *_ = simulator.step(q, qd, act)
    (expected,) = torch.autograd.grad(new_q.sum(), q, retain_graph=True)

    def launch_and_stop(graph, stream, launch=wp.capture_launch):
        launch(graph, stream=stream)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), torch.no_grad():
        patch.setattr(wp, "capture_launch", launch_and_stop)
        simulator.step(q + 1.0, qd, act)  # in the buffers of the step before
    assert torch.equal(torch.autograd.grad(new_q.sum(), q)[0], expected)


@pytest.mark.parametrize("task", TASKS)
def test_threads_do_not_change_a_single_bit(task):
    n, results = 1000 if task == "cartpole" else 100, []
    for num_threads in (1, 2, 3):
        env = envs.make(task, num_envs=n, num_threads=num_threads)
        env.reset()
        actions = torch.zeros(n, env.num_actions, requires_grad=True)
        total = sum(env.step(actions + 0.1 * k)[1].sum() for k in range(4))
        results.append((env.joint_q.detach(), torch.autograd.grad(total, actions)[0]))
    assert len(env.simulator.batches) == 3
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("task, num_envs, threads", (("cartpole", 128, 1), ("cartpole", 512, 2), ("hopper", 32, 2)))
def test_a_thread_has_enough_to_do(task, num_envs, threads):
    assert len(envs.make(task, num_envs=num_envs, num_threads=2).simulator.slices) == threads


MEMORY = """
import os, torch, envs
env = envs.make("hopper", num_envs=256)
env.reset()
for _ in range(61):
    env.detach()
    actions = torch.zeros(256, 3, requires_grad=True)
    torch.autograd.grad(sum(env.step(actions)[1].sum() for _ in range(8)), actions)
    with open("/proc/self/statm") as file:
        print("MiB", int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident memory from Linux's /proc")
def test_memory_is_flat():
    # in a process of its own: where earlier tests have left free memory behind, a leak would not show
    options = {
        "cwd": Path(__file__).parent.parent,
        "stdout": subprocess.PIPE,
        "text": True,
        "timeout": 240,
        "check": True,
    }
    output = subprocess.run([sys.executable, "-c", MEMORY], **options)
    resident = [float(line.split()[1]) for line in output.stdout.splitlines() if line.startswith("MiB ")]
    # a rollout that is kept by mistake adds at least 8 * 256 * 12 * 4 bytes = 0.1 MiB, 1 MiB in every ten.  The
    # allocator, too, takes some now and then, but not in three stretches of four.  The first 20 fill buffers
    growth = sorted(resident[k + 10] - resident[k] for k in (20, 30, 40, 50))
    assert growth[1] < 0.5, resident


def two_steps_and_gradients(task, num_envs, before=lambda batch: None):
    """The states after two steps and the gradients of both; `before` may touch the buffers."""
    env = envs.make(task, num_envs=num_envs, seed=1, num_threads=1)
    env.reset()
    (batch,) = env.simulator.batches
    before(batch)
    noise, results = torch.Generator().manual_seed(2), []
    q, qd = env.joint_q, env.joint_qd
    for step in (1, 2):
        act = torch.randn(qd.shape, generator=noise)
        new_q, new_qd, _ = batch.forward(step, q, qd, act)
        weights = [torch.randn(x.shape, generator=noise) for x in (q, qd)]
        results += [new_q, new_qd, *batch.backward(step, q, qd, act, *weights)]
        q, qd = new_q, new_qd
    assert all(x.isfinite().all() and x.any() for x in results)
    return results


@pytest.mark.parametrize("num_envs", (1, 5, 16, 33))
@pytest.mark.parametrize("task", ("hopper", "anymal", "humanoid", "hand_reorient"))
def test_lanes_compute_what_plain_floats_do(task, num_envs, monkeypatch):
    lanes = two_steps_and_gradients(task, num_envs)
    monkeypatch.setattr("envs.physics.substeps.in_lanes", lambda array: array)
    floats = two_steps_and_gradients(task, num_envs)
    assert all(torch.equal(a, b) for a, b in zip(lanes, floats))


def fill_idle_lanes(batch, value):
    """Put a value into every lane that belongs to no environment."""
    names = ("joint_tau", "joint_qdd", "H", "factor")
    arrays = [getattr(x, name) for x in batch.substeps for name in names if hasattr(x, name)]
    gradients = [array.grad for array in arrays if array.grad is not None]
    for array in map(in_lanes, arrays + gradients):
        numbers = array.numpy()
        numbers[-1, ..., batch.num_envs % NUM_LANES :] = value
        array.assign(numbers)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, 1e30))
@pytest.mark.parametrize("task, num_envs", (("hopper", 1), ("anymal", 21)))
def test_idle_lanes_reach_nobody(task, num_envs, value):
    expected = two_steps_and_gradients(task, num_envs)
    actual = two_steps_and_gradients(task, num_envs, lambda batch: fill_idle_lanes(batch, value))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


@pytest.mark.parametrize("task", ("hopper", "humanoid", "hand_reorient"))
def test_memory_layout_of_cuda_gives_the_same_numbers(task, monkeypatch):
    """Environments last in memory, as on CUDA: the same bits, because kernels reach a number by its indices."""

    def step_and_gradients():
        env = envs.make(task, num_envs=5, seed=1, num_threads=1)
        env.reset()
        env.step(torch.zeros(5, env.num_actions))
        simulator, noise = env.simulator, torch.Generator().manual_seed(2)
        q, qd = (x.detach().requires_grad_() for x in (env.joint_q, env.joint_qd))
        act = torch.randn(qd.shape, generator=noise).requires_grad_()
        new_q, new_qd, _ = simulator.step(q, qd, act)
        weights = [torch.randn(x.shape, generator=noise) for x in (new_q, new_qd)]
        grads = torch.autograd.grad([new_q, new_qd], [q, qd, act], weights)
        return simulator.batches[0].new_q.array, (new_q, new_qd, *grads)

    array, expected = step_and_gradients()
    monkeypatch.setattr(Substeps, "environments_last", True)
    transposed, actual = step_and_gradients()
    assert array.strides == (4 * array.shape[1], 4) and transposed.strides == (4, 4 * 16)
    assert all(x.abs().sum() > 0 for x in expected[2:])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", envs.ENV_IDS)
def test_cuda_computes_the_same_step_and_gradients(task):
    env, noise, results = envs.make(task, num_envs=8, seed=1), torch.Generator().manual_seed(2), []
    env.reset()
    start = env.joint_q, env.joint_qd, torch.randn(env.joint_qd.shape, generator=noise)
    weights = [torch.randn(x.shape, generator=noise) for x in start[:2]]
    for device in ("cpu", "cuda"):
        simulator = envs.make(task, num_envs=8, device=device).simulator
        inputs = [x.detach().to(device).requires_grad_() for x in start]
        outputs = simulator.step(*inputs)[:2]
        grads = torch.autograd.grad(outputs, inputs, [x.to(device) for x in weights])
        results.append([x.detach().cpu() for x in (*outputs, *grads)])
    # float32 sums in another order, through up to 64 substeps of stiff contact
    assert all(relative(cuda, cpu) < 1e-3 for cpu, cuda in zip(*results))
