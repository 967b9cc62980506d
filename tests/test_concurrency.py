"""Environments in several threads, in a child process after a fork, and after close()."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from hoppers import make

import envs
from benchmarks.records import ROOT

TASKS = ("cartpole", "hopper", "cartpole", "cartpole")


def rollout(env, steps, picture=False):
    """Observations (steps, N, num_obs), the gradient of the return, and the last picture, from random actions."""
    env.reset(seed=5)
    generator = torch.Generator().manual_seed(0)
    actions = 2.0 * torch.rand(steps, env.num_envs, env.num_actions, generator=generator) - 1.0
    actions.requires_grad_()
    seen, total = [], 0.0
    for action in actions:
        obs, reward, *_ = env.step(action)
        seen.append(obs.detach())
        total = total + reward.sum()
        shown = torch.from_numpy(env.render()) if picture else torch.zeros(())
    return torch.stack(seen), torch.autograd.grad(total, actions)[0], shown


def in_threads(functions):
    """What the functions return if each has a thread of its own and all begin at once."""
    results, start = [None] * len(functions), threading.Barrier(len(functions))

    def run(k, function):
        start.wait()
        try:
            results[k] = function()
        except BaseException as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=job) for job in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("made_before", [True, False])
def test_environments_in_threads_compute_what_they_do_alone(made_before):
    """Buffers are captured during the first steps as well; the pictures are launched without a graph."""

    def make_one(task):
        return envs.make(task, num_envs=4, num_threads=1)

    expected = {task: rollout(make_one(task), 6, picture=True) for task in set(TASKS)}
    if made_before:
        made = [make_one(task) for task in TASKS]
        found = in_threads([lambda env=env: rollout(env, 6, picture=True) for env in made])
    else:
        found = in_threads([lambda task=task: rollout(make_one(task), 6, picture=True) for task in TASKS])
    for task, result in zip(TASKS, found):
        assert not isinstance(result, BaseException), result
        assert all(torch.equal(a, b) for a, b in zip(expected[task], result))


def in_a_child_process(function):
    """Whether the function, in a forked process, returns True within 20 s."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_environment_goes_on_after_a_fork(num_threads, monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", 2)
    env = make(32, num_threads=num_threads)
    env.step(torch.zeros(32, 3))
    state = env.state_dict()
    action = torch.full((32, 3), 0.3, requires_grad=True)

    def step():
        env.load_state_dict(state)
        total = sum(env.step(action)[1].sum() for _ in range(8))
        return env.state_dict(), torch.autograd.grad(total, action)[0]

    expected, expected_grad = step()

    def same():
        ours, grad = step()
        env.close()
        return torch.equal(grad, expected_grad) and all(torch.equal(ours[name], x) for name, x in expected.items())

    assert in_a_child_process(same)
    assert torch.equal(step()[1], expected_grad)  # and the parent, too


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_builds_leaves_a_child_that_can_build():
    builder = threading.Thread(target=lambda: [make(2, num_threads=1) for _ in range(3)])
    builder.start()
    time.sleep(0.05)
    assert in_a_child_process(lambda: make(2).step(torch.zeros(2, 3)) is not None)
    builder.join()


METHODS = {
    "reset": lambda env: env.reset(),
    "step": lambda env: env.step(torch.zeros(32, 3)),
    "detach": lambda env: env.detach(),
    "set_state": lambda env: env.set_state(torch.zeros(32, 6), torch.zeros(32, 6)),
    "set_parameters": lambda env: env.set_parameters(mass_scale=torch.ones(32)),
    "state_dict": lambda env: env.state_dict(),
    "load_state_dict": lambda env: env.load_state_dict({}),
    "render": lambda env: env.render(),
}


@pytest.mark.parametrize("num_threads", [1, 2])
def test_after_close_every_method_says_so_and_gradients_of_earlier_steps_remain(num_threads, monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", 2)  # most steps are run again
    grads = []
    for closes in (False, True):
        env = make(32, num_threads=num_threads)
        action = torch.full((32, 3), 0.3, requires_grad=True)
        total = sum(env.step(action)[1].sum() for _ in range(8))
        if closes:
            env.close()
            env.close()
        grads.append(torch.autograd.grad(total, action)[0])
    assert torch.equal(*grads) and env.closed
    for call in METHODS.values():
        with pytest.raises(RuntimeError, match="^the environment is closed: make another$"):
            call(env)


def test_the_methods_that_are_closed_are_all_there_are():
    """Those of the environment that read or change the state; a task's own are functions of their arguments."""
    tasks_own = "actuate observe reward is_terminal sample_state rest_state is_goal_reached sample_goal drawn_joint_q"
    others = {"close", "close_extras", "zeros", "constant", "at_origin", "parameters", *tasks_own.split()}
    public = {name for name, value in vars(envs.VectorEnv).items() if callable(value) and name[0] != "_"}
    assert public - others == set(METHODS)


def test_close_has_no_options():
    with pytest.raises(TypeError, match="timeout"):
        make(2).close(timeout=3)


def test_a_system_without_fork_and_file_locks_can_train(tmp_path):
    """Windows has neither; a run there is not held, and says so."""
    without = "import os, sys, torch, warp; del os.register_at_fork; sys.modules['fcntl'] = None; import envs; "
    hold = f"lock = envs.checkpoint.RunLock({str(tmp_path)!r})"
    found = subprocess.run([sys.executable, "-c", without + hold], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"warning: {tmp_path} cannot be locked")
