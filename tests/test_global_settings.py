"""What a program sets for all of torch does not change an environment; nor is one shared by copying it."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from robot_files import find

import envs


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def everything(env_id, steps=3):
    """All that an environment hands out in a life that crosses the end of an episode, and the gradient of it."""
    cpu = {"dtype": torch.float32, "device": "cpu"}
    env, found = envs.make(env_id, num_envs=2, seed=3, max_episode_steps=2), []
    action = torch.full((2, env.num_actions), 0.3, **cpu, requires_grad=True)
    for env.stochastic_reset in (True, False):
        found += [env.reset()[0], env.rest_state(), env.sample_state(env.noise)]
        results = [env.step(action) for _ in range(steps)]
        total = sum(reward.sum() + obs.sum() + infos["final_obs"].sum() for obs, reward, *_, infos in results)
        found += [results, total, torch.autograd.grad(total, action)[0], env.detach()]
        mask = torch.tensor([True, False], dtype=torch.bool, device="cpu")
        found += [env.reset(options={"reset_mask": mask})[0], env.joint_q, torch.tensor(env.render(), device="cpu")]
        state = env.state_dict()
        env.set_state(env.joint_q + 0.0, env.joint_qd)
        env.load_state_dict(state)
        found += [state, env.state_dict(), env.step(action.detach())]
        found += list(envs.evaluate(env, lambda obs: action.detach(), seed=1))
    return list(leaves(found))


def leaves(value):
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("env_id", [*envs.ENV_IDS, "gymnasium/hopper.xml"])
def test_torchs_default_dtype_and_device_do_not_matter(env_id, monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", 1)
    if env_id not in envs.ENV_IDS:
        pytest.importorskip("mujoco")
        env_id = str(find(env_id))
    expected = everything(env_id)
    with default_dtype(torch.float64), torch.device("meta"):
        found = everything(env_id)
    assert len(found) == len(expected) > 60
    for ours, theirs in zip(found, expected):
        assert ours.dtype == theirs.dtype and ours.device == theirs.device and ours.dtype != torch.float64
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("env_id", ("hopper", "ant", "hand_reorient"))
def test_what_inference_mode_has_touched_can_be_differentiated_later(env_id, monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", 1)

    def gradient(mode):
        env = envs.make(env_id, num_envs=2, seed=3, max_episode_steps=4)
        with mode():
            env.reset()
            action = torch.zeros(2, env.num_actions)
            env.step(action)
            env.set_state(env.joint_q + 0.01, env.joint_qd + 0.01)
            env.load_state_dict(env.state_dict())
            env.reset(options={"reset_mask": torch.tensor([True, False])})
            env.step(action)
            env.detach()
        action = (action + 0.1).clone().requires_grad_()
        total = sum(obs.sum() + reward.sum() for obs, reward, *_ in (env.step(action) for _ in range(4)))
        return total.detach(), torch.autograd.grad(total, action)[0]

    for ours, theirs in zip(gradient(torch.inference_mode), gradient(torch.no_grad)):
        assert torch.equal(ours, theirs)


def test_nothing_is_recorded_in_inference_mode():
    env = envs.make("hopper", num_envs=2)
    env.reset()
    action = torch.zeros(2, 3, requires_grad=True)
    with torch.inference_mode():
        obs, reward, *_ = env.step(action)
    assert not obs.requires_grad and not reward.requires_grad and not env.joint_q.requires_grad
    assert env.step(action)[0].requires_grad


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_environment_is_not_copied(copies):
    env = envs.make("hopper", num_envs=2)
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: .* state_dict\(\)"):
        copies(env)
    with pytest.raises(TypeError, match="a Simulator cannot be copied or pickled"):
        copies(env.simulator)
