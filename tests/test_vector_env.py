"""The environment interface: spaces, gradients and where they are cut, state, seeds, devices."""

import gc
import random
import weakref

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hoppers import fallen_state, make

import envs


def test_is_a_gymnasium_vector_env():
    env = envs.make("hopper", num_envs=3)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.single_observation_space.shape == (11,) and env.observation_space.shape == (3, 11)
    assert env.single_action_space.shape == (3,) and env.action_space.shape == (3, 3)
    assert (env.max_episode_steps, env.dt, env.num_envs) == (1000, 1 / 60, 3)
    obs, infos = env.reset()
    assert obs.shape == (3, 11) and obs.dtype == torch.float32 and infos == {}
    assert env.observation_space.contains(obs.numpy())
    env.close()


def test_observation_and_reward_are_the_documented_ones():
    env = make(1)
    q = torch.tensor([[7.0, -0.4, 0.3, -0.5, -0.6, 0.2]])
    qd = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    env.set_state(q, qd)
    assert torch.equal(env.detach(), torch.tensor([[-0.4, 0.3, -0.5, -0.6, 0.2, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    obs, action = torch.zeros(1, 11), torch.tensor([[0.5, -1.0, 0.0]])
    obs[0, 0], obs[0, 1], obs[0, 5] = -0.4, 0.262, 2.0
    # velocity 2, height -200 * 0.1^2, angle 1 - 0.5^2, action -0.1 * 1.25
    assert env.reward(obs, action).item() == pytest.approx(2.0 - 2.0 + 0.75 - 0.125, abs=1e-5)
    obs[0, 0] = 0.9  # the height term ends at 0.3
    assert env.reward(obs, action).item() == pytest.approx(2.0 + 0.3 + 0.75 - 0.125, abs=1e-5)


def test_detach_cuts_the_graph_and_keeps_the_state():
    env = make(2)
    first = torch.zeros(2, 3, requires_grad=True)
    obs, *_ = env.step(first)
    assert obs.requires_grad
    assert torch.equal(env.detach(), obs) and not env.detach().requires_grad
    second = torch.zeros(2, 3, requires_grad=True)
    _, reward, *_ = env.step(second)
    assert torch.autograd.grad(reward.sum(), [first, second], allow_unused=True)[0] is None


def test_reset_cuts_the_graph():
    env = make(2)
    env.step(torch.zeros(2, 3, requires_grad=True))
    assert env.joint_q.requires_grad
    obs, _ = env.reset()
    assert not obs.requires_grad and not env.joint_q.requires_grad and not env.episode_length.any()


def test_no_grad_records_nothing():
    env = make(2)
    with torch.no_grad():
        obs, reward, *_, infos = env.step(torch.zeros(2, 3, requires_grad=True))
    assert not any(x.requires_grad for x in (obs, reward, infos["final_obs"], env.joint_q))


def test_a_deleted_environment_gives_its_buffers_back():
    env = make(2)
    buffer = weakref.ref(env.simulator.batches[0].q[0])
    del env
    gc.collect()
    assert buffer() is None


def test_actions_outside_are_clamped_without_a_gradient():
    results = []
    for scale in (1.0, 3.0):
        env = make(1)
        action = torch.tensor([[scale, -scale, 0.5]], requires_grad=True)
        obs, reward, *_ = env.step(action)
        results.append(obs.detach())
    assert torch.equal(*results)
    grad = torch.autograd.grad(reward.sum(), action)[0][0]
    assert grad[0] == 0 and grad[1] == 0 and grad[2] != 0


def test_set_state_keeps_gradients_and_the_episode():
    env = make(2)
    env.step(torch.zeros(2, 3))
    q, qd = (x.requires_grad_() for x in fallen_state(2))
    env.set_state(q, qd)
    _, reward, *_ = env.step(torch.zeros(2, 3))
    assert all((grad != 0).any() for grad in torch.autograd.grad(reward.sum(), [q, qd]))
    assert (env.episode_length == 2).all()


def trajectory(env, steps=60):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([env.step(2 * torch.rand(env.num_envs, 3, generator=generator) - 1)[0] for _ in range(steps)])


def test_seeds():
    global_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    a, b, c = (trajectory(make(8, seed=seed, max_episode_steps=20)) for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(global_state[0], torch.get_rng_state())
    assert (global_state[1] == np.random.get_state()[1]).all() and global_state[2] == random.getstate()
    made, _ = envs.make("hopper", num_envs=8, seed=3).reset()
    reset, _ = make(8, seed=4).reset(seed=3)
    assert torch.equal(made, reset)


def test_state_dict_resumes_bit_exactly(tmp_path):
    env = make(8, max_episode_steps=20)
    trajectory(env, 30)
    torch.save(env.state_dict(), tmp_path / "env.pt")
    expected = trajectory(env)
    other = make(8, seed=99, max_episode_steps=20)
    other.load_state_dict(torch.load(tmp_path / "env.pt", weights_only=True))
    assert torch.equal(trajectory(other), expected)
    assert torch.equal(other.episode_return, env.episode_return)


def test_state_dict_of_another_task_or_machine_is_refused_whole():
    env = make(2)
    before = env.state_dict()
    for name, value in (("joint_q", torch.zeros(2, 9)), ("joint_qd", torch.zeros(2, 6).double())):
        with pytest.raises(ValueError, match=name):
            env.load_state_dict(before | {name: value})
    with pytest.raises(ValueError, match="another kind of device"):
        env.load_state_dict(before | {"generator": torch.zeros(16, dtype=torch.uint8), "joint_q": torch.ones(2, 6)})
    assert all(torch.equal(before[name], value) for name, value in env.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    results = []
    for device in ("cpu", "cuda"):
        env = make(64, device=device)
        q, qd = fallen_state(64)
        env.set_state(q.to(env.device), qd.to(env.device))
        actions = torch.linspace(-1, 1, 64 * 3).reshape(64, 3).to(env.device).requires_grad_()
        total = sum(env.step(actions)[1].sum() for _ in range(4))
        results.append([env.joint_q.detach().cpu(), torch.autograd.grad(total, actions)[0].cpu()])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*results))


@pytest.mark.parametrize("env_id", envs.ENV_IDS)
def test_second_derivatives_are_refused(env_id):
    """They would lack the simulator's part: the first gradient is right, its derivative would not be."""
    env = envs.make(env_id, num_envs=2)
    env.reset()
    action = torch.full((2, env.num_actions), 0.1, requires_grad=True)
    total = sum(env.step(action)[1].sum() for _ in range(2))
    with pytest.raises(RuntimeError, match=r"create_graph: expected False .*, got True"):
        torch.autograd.grad(total, action, create_graph=True)
    with pytest.raises(RuntimeError, match=r"create_graph: expected False .*, got True"):
        torch.autograd.backward(env.joint_qd.sum(), create_graph=True)


def test_one_environment_alone_warns_of_nothing(recwarn):
    for env_id in envs.ENV_IDS:
        env = envs.make(env_id, num_envs=1, max_episode_steps=2, render_mode="rgb_array")
        env.reset()
        action = torch.zeros(1, env.num_actions, requires_grad=True)
        total = sum(env.step(action)[1].sum() for _ in range(3))
        total.backward()
        env.detach()
        (picture,) = env.render()
        assert picture.shape == (240, 320, 3)
        env.load_state_dict(env.state_dict())
        envs.evaluate(env, lambda obs, action=action: action.detach(), seed=1)
        env.close()
    assert not recwarn.list, [str(warning.message) for warning in recwarn.list]


def test_the_seed_can_be_asked_for_and_the_numbers_are_not_numpys():
    env = envs.make("hopper", num_envs=2, seed=np.int64(7))
    assert env.np_random_seed == 7
    first, _ = env.reset(seed=np.uint8(9))
    assert env.np_random_seed == 9 and torch.equal(first, env.reset(seed=9)[0])
    assert torch.equal(env.reset(seed=2**64 - 1)[0], env.reset(seed=2**64 - 1)[0])
    other = envs.make("hopper", num_envs=2)
    other.load_state_dict(env.state_dict())
    assert other.np_random_seed == 2**64 - 1
    with pytest.raises(AttributeError, match=r"np_random: expected env.generator, .* not of numpy"):
        env.np_random  # noqa: B018


def test_the_layout_in_memory_does_not_matter():
    """torch's sums differ in their last bits between row-major and column-major tensors, from so many columns on."""
    results = []
    for turn in (lambda x: x, lambda x: x.T.contiguous().T):
        env = envs.make("go1", num_envs=3)
        env.reset()
        env.set_state(turn(env.joint_q), turn(env.joint_qd))
        env.load_state_dict({name: turn(x) if x.dim() == 2 else x for name, x in env.state_dict().items()})
        results.append(env.step(turn(torch.linspace(-1.5, 1.5, 36).view(3, 12))))
        assert env.joint_q.is_contiguous() and env.joint_qd.is_contiguous() and env.last_action.is_contiguous()
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
