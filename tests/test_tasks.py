"""What the tasks' docstrings promise: observations, rewards, termination and reset noise."""

import math

import numpy as np
import pytest
import torch

import envs
from envs.floating_base import FloatingBase
from envs.physics import Z_UP

FLOATING = ("ant", "anymal", "humanoid", "go1")


def quaternion_about(axis, angle):
    return torch.tensor([*(math.sin(angle / 2) * np.array(axis)), math.cos(angle / 2)], dtype=torch.float32)


def multiply(a, b):
    """The rotation b followed by a, as quaternions xyzw."""
    v = a[3] * b[:3] + b[3] * a[:3] + torch.linalg.cross(a[:3], b[:3])
    return torch.cat([v, (a[3] * b[3] - a[:3] @ b[:3])[None]])


@pytest.mark.parametrize("env_id", FLOATING)
def test_observation_of_a_floating_base(env_id):
    env = envs.make(env_id)
    n = env.num_actions
    position = torch.tensor([3.0, 0.9, -2.0])
    # turned to its left by 0.4 rad about the vertical, then leaning forward by 0.3 rad
    yaw, lean = quaternion_about((0, 1, 0), 0.4), quaternion_about((0, 1, 0), 0.3)
    quaternion = multiply(yaw, multiply(torch.tensor(Z_UP), lean))  # body axes: y points to the left
    angular, velocity = torch.tensor([0.3, -0.5, 0.7]), torch.tensor([2.0, 0.1, -0.4])
    angles, rates, action = torch.linspace(-1, 1, n), torch.linspace(3, 5, n), torch.linspace(0.1, 0.9, n)
    joint_q = torch.cat([position, quaternion, angles])[None]
    # the twist's linear part is the velocity of the body-fixed point at the world origin
    joint_qd = torch.cat([angular, velocity - torch.linalg.cross(angular, position), rates])[None]
    obs = env.observe(joint_q, joint_qd, action[None])[0]
    assert len(obs) == env.num_obs == 13 + 3 * n
    assert obs[0] == position[1] and torch.equal(obs[1:5], quaternion)
    assert torch.allclose(obs[5:8], velocity, atol=1e-5) and torch.equal(obs[8:11], angular)
    assert torch.equal(obs[11 : 11 + n], angles) and torch.allclose(obs[11 + n : 11 + 2 * n], 0.1 * rates)
    assert obs[11 + 2 * n].item() == pytest.approx(math.cos(0.3), abs=1e-6)
    # forward is cos(lean) long in the horizontal plane, 0.4 rad to the left of x; the target lies to the right of x
    target = math.atan2(2.0, {"humanoid": 200.0}.get(env_id, 10_000.0) - 3.0)
    assert obs[12 + 2 * n].item() == pytest.approx(math.cos(0.3) * math.cos(0.4 + target), abs=1e-6)
    assert torch.equal(obs[13 + 2 * n :], action)


def reward(env_id, action, **elements):
    """The reward of an observation of zeros, except for the given elements, e.g. o5=2."""
    env = envs.make(env_id)
    obs = torch.zeros(1, env.num_obs)
    for name, value in elements.items():
        obs[0, int(name[1:])] = value
    return env.reward(obs, torch.full((1, env.num_actions), action)).item()


def test_rewards_are_the_documented_ones():
    assert reward("ant", 0.5, o0=0.5, o5=2.0, o27=0.9, o28=0.8) == pytest.approx(2.0 + 0.09 + 0.8 + 0.23)
    assert reward("anymal", 0.5, o0=0.5, o5=2.0, o35=0.9, o36=0.8) == pytest.approx(2.89 + 0.25 - 0.005 * 12 * 0.25)
    for height, bonus in ((1.3, 1.0), (0.89, 0.5), (0.79, -200.0 * 0.05**2), (-3.0, -200.0)):
        expected = 2.89 + bonus - 0.002 * 21 * 0.25
        assert reward("humanoid", 0.5, o0=height, o5=2.0, o53=0.9, o54=0.8) == pytest.approx(expected, abs=1e-4)
    assert reward("cheetah", 0.5, o8=2.0) == pytest.approx(2.0 - 0.1 * 6 * 0.25)
    angle = 2.5  # beyond a quarter turn, where the arc tangent has to choose the right half
    elements = {"o0": 2.0, "o1": 3.0, "o2": math.sin(angle), "o3": math.cos(angle), "o4": 4.0}
    assert reward("cartpole", 0.5, **elements) == pytest.approx(-(angle**2) - 1.6 - 0.2 - 0.9, abs=1e-5)


@pytest.mark.parametrize(
    "env_id, height", (("ant", 0.27), ("anymal", 0.25), ("humanoid", 0.74), ("hopper", -0.45), ("go1", 0.18))
)
def test_a_task_ends_below_its_height(env_id, height):
    env = envs.make(env_id)
    obs = torch.full((2, env.num_obs), 5.0)
    obs[:, 0] = torch.tensor([height - 1e-3, height + 1e-3])
    assert env.is_terminal(obs).tolist() == [True, False]


@pytest.mark.parametrize("env_id", ("cheetah", "cartpole"))
def test_other_tasks_end_by_time_alone(env_id):
    env = envs.make(env_id, num_envs=2)
    assert not env.is_terminal(torch.tensor([[-10.0] * env.num_obs, [10.0] * env.num_obs])).any()
    assert env.max_episode_steps == {"cheetah": 1000, "cartpole": 240}[env_id]


def assert_uniform(samples, bound):
    """Every column fills [-bound, bound]: all within, both ends reached to 1 %, mean within 4 standard errors."""
    n = len(samples)
    assert samples.abs().max() <= bound * (1 + 1e-5)
    assert (samples.amax(0) > 0.99 * bound).all() and (samples.amin(0) < -0.99 * bound).all()
    assert (samples.mean(0).abs() < 4.0 * bound / math.sqrt(3.0 * n)).all()


@pytest.mark.parametrize("env_id", [env_id for env_id in envs.ENV_IDS if env_id != "hand_reorient"])
def test_reset_noise_is_the_documented_one(env_id):
    env = envs.make(env_id, num_envs=2048)
    env.reset()
    rest, still = env.rest_state()
    assert not still.any()
    noise = {"hopper": 0.05, "cheetah": 0.1, "cartpole": math.pi / 2}
    speed = {"hopper": 0.05, "go1": 0.5}.get(env_id, 0.25)
    assert_uniform(env.joint_qd, speed)
    if env_id in noise:
        assert_uniform(env.joint_q - rest, noise[env_id])
        return
    place, angle = {"go1": (0.02, 0.1)}.get(env_id, (0.1, 0.2))
    assert_uniform(env.joint_q[:, :3] - rest[:, :3], place)
    assert_uniform(env.joint_q[:, 7:] - rest[:, 7:], angle)
    assert rest[0, 1].item() == pytest.approx({"ant": 0.75, "anymal": 0.55, "humanoid": 1.35, "go1": 0.3}[env_id])
    # the turn from rest: its angle, and its axis in the body's frame
    inverse = torch.tensor([-Z_UP[0], -Z_UP[1], -Z_UP[2], Z_UP[3]])
    turn = torch.stack([multiply(inverse, q) for q in env.joint_q[:500, 3:7]])
    assert torch.allclose(turn.norm(dim=1), torch.ones(500), atol=1e-6)
    angle = 2.0 * torch.atan2(turn[:, :3].norm(dim=1), turn[:, 3])
    assert (
        angle.max() <= math.pi / 24 + 1e-5 and angle.max() > 0.95 * math.pi / 24 and angle.min() < 0.05 * math.pi / 24
    )
    assert (turn[:, :3].abs().amax(0) > 0.7 * math.sin(math.pi / 48)).all()  # about all three axes


def test_floating_tasks_share_one_base_class():
    assert {env_id for env_id in envs.ENV_IDS if isinstance(envs.make(env_id), FloatingBase)} == set(FLOATING)
