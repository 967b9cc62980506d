"""No step of a rollout makes the host wait for a GPU: the operations that would are counted, which needs no GPU."""

import sys

import numpy as np
import pytest
import torch
from robot_files import find
from running import SCRIPTS

import envs
from benchmarks.tiny import OWN_FLAGS
from benchmarks.torch_calls import Calls, count


def as_on_cuda(monkeypatch):
    """What the environments ask at every step on the CPU alone, they leave out."""
    asked = envs.VectorEnv._refuse_nan_actions
    refuse = lambda env: sys._getframe(1).f_code.co_name == "_check_step" or asked(env)  # noqa: E731
    monkeypatch.setattr(envs.VectorEnv, "_possibly_any", lambda env, rows: True)
    monkeypatch.setattr(envs.VectorEnv, "_refuse_nan_actions", refuse)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.index_put_([x > 0], torch.tensor(1.0)),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: [1] if x[0] else [2],
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.as_tensor(1.0, device=x.device),
        lambda x: torch.tensor(data=[1.0], device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[[0, 2]],
        lambda x: x[np.array([0, 2])],
        lambda x: x[None][:, [0, 2]],
        lambda x: x.__setitem__([0, 2], 0.0),
        lambda x: torch.bincount(x.long()),
    ],
)
def test_an_operation_that_waits_is_found(operation):
    with Calls() as calls:
        operation(torch.ones(3))
    ((_, place),) = calls.waits
    assert place.startswith("tests/test_waits.py:")


def test_other_operations_are_not():
    x, mask, rows = torch.ones(3), torch.tensor([True, False, True]), torch.tensor([0, 2])
    with Calls() as calls:
        torch.where(mask, x, 0.0).sum(), x[rows], x.masked_fill(mask, 0.0), x.to(torch.float64), x[1:], x.max()
        torch.tensor(1.0), torch.full((2,), 1.0, device=x.device), torch.zeros_like(x), x.new_zeros(2)
    assert not calls.waits and sum(calls.calls.values()) >= 6


@pytest.mark.parametrize("task", (*envs.ENV_IDS, "gymnasium/hopper.xml", "gymnasium/ant.xml"))
def test_a_step_of_an_environment_waits_for_nothing(task, monkeypatch):
    as_on_cuda(monkeypatch)
    name = str(find(task)) if task.endswith(".xml") else task
    env = envs.make(name, num_envs=2, max_episode_steps=2, randomize={"mass_scale": (0.5, 1.5)})
    env.reset()
    actions = torch.zeros(4, 2, env.num_actions, requires_grad=True)
    with Calls() as calls:
        total = sum(env.step(action)[1].sum() for action in actions)
        torch.autograd.grad(total, actions)
        env.at_origin(env.joint_q, env.joint_qd)
    assert not calls.waits


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_step_of_a_rollout_waits(script, monkeypatch):
    """With twice the steps, an iteration waits as often: where it ends, and in every step of an optimiser."""
    as_on_cuda(monkeypatch)
    sizes = ("--env-id=cartpole", "--num-envs=8", "--total-timesteps=1000", *OWN_FLAGS[script].split())
    counted = [count(script, *sizes, f"--num-steps={num_steps}") for num_steps in (4, 8)]
    few, many = (calls["rollout", False] for calls, _ in counted)
    assert many > few + 4 * 20  # the steps are among what is counted
    first, second = ({key: n for key, n in waits.items() if key[0] != "update"} for _, waits in counted)
    assert first == second and sum(first.values()) <= 5
