"""Wrong arguments of an environment get an error that names them, and change nothing."""

import numpy as np
import pytest
import torch
from hoppers import make

import envs
from envs.physics import FREE, PRISMATIC, Z_UP, Articulation, Link, Simulator, resolve_device


def test_detach_tells_of_nan_actions_that_a_step_did_not_wait_for():
    """On CUDA a step only notes them."""
    env = make(4, num_threads=1)
    env.nan_actions[2] = True
    with pytest.raises(ValueError, match="action: expected numbers, got NaN in environment\\(s\\) 2"):
        env.detach()
    env.detach()  # told once


def closed(env):
    env.close()
    return env


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="device: expected 'cpu', because torch finds no CUDA device, got 'cuda'"):
        envs.make("hopper", device="cuda")


def test_cuda_gets_its_index(monkeypatch):
    """Warp needs to know which of several GPUs is meant."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device: expected an index below 2, got 'cuda:2'"):
        resolve_device("cuda:2")
    assert resolve_device("cuda") == torch.device("cuda:1") and resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda env: envs.make("hoper"), ValueError, ["env_id", "hopper", "'hoper'"]),
        (lambda env: envs.make("hopper", num_envs=0), ValueError, ["num_envs", ">= 1", "0"]),
        (lambda env: envs.make("hopper", num_envs=2.0), ValueError, ["num_envs", "whole number", "2.0"]),
        (lambda env: envs.make("hopper", max_episode_steps=0), ValueError, ["max_episode_steps", ">= 1", "0"]),
        (lambda env: envs.make("hopper", num_threads=0), ValueError, ["num_threads", ">= 1", "0"]),
        (lambda env: envs.make("hopper", seed=1.5), ValueError, ["seed", "whole number", "1.5"]),
        (lambda env: envs.make("hopper", device="tpu9"), ValueError, ["device", "'cpu'", "tpu9"]),
        (lambda env: envs.make("hopper", device="meta"), ValueError, ["device", "'cpu'", "meta"]),
        (lambda env: envs.make("hopper", horizon=3), TypeError, ["horizon"]),
        (lambda env: env.reset(seed=-1), ValueError, ["seed", ">= 0", "-1"]),
        (lambda env: closed(make(2)).step(torch.zeros(2, 3)), RuntimeError, ["closed"]),
        (lambda env: envs.make("hopper").step(torch.zeros(1, 3)), RuntimeError, ["reset()"]),
        (lambda env: env.step(np.zeros((2, 3))), TypeError, ["action", "torch tensor", "ndarray"]),
        (lambda env: env.step(torch.zeros(3)), ValueError, ["action", "(2, 3)", "(3,)"]),
        (lambda env: env.step(torch.zeros(2, 3).double()), TypeError, ["action", "float32", "float64"]),
        (lambda env: env.step(torch.zeros(2, 3, device="meta")), ValueError, ["action", "cpu", "meta"]),
        (lambda env: env.step(torch.tensor([[0.0] * 3, [0, np.nan, 0]])), ValueError, ["action", "NaN", "1"]),
        (lambda env: env.set_state(torch.zeros(2, 5), torch.zeros(2, 6)), ValueError, ["joint_q", "(2, 6)", "(2, 5)"]),
        (lambda env: env.set_state(torch.zeros(2, 6), torch.zeros(2, 6).double()), TypeError, ["joint_qd", "float64"]),
        (lambda env: env.load_state_dict({}), ValueError, ["state", "joint_q"]),
        (lambda env: env.load_state_dict(make(3).state_dict()), ValueError, ["2 environments", "3"]),
        (lambda env: env.render(2), ValueError, ["index", "below 2", "2"]),
    ],
)
def test_bad_input_gets_a_clear_error(call, error, words):
    env = make(2)
    before = env.state_dict()
    with pytest.raises(error) as caught:
        call(env)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in env.state_dict().items())


CART = Link("cart", -1, PRISMATIC, axis=(1, 0, 0), mass=1.0)


def simulator(link=CART, num_envs=2, substeps=2, mass_matrix_interval=1, translates_along_x=False, **options):
    robot = Articulation([link], translates_along_x=translates_along_x)
    return Simulator(robot, num_envs, 0.01, substeps, mass_matrix_interval, **options)


@pytest.mark.parametrize("name", ["num_envs", "substeps", "mass_matrix_interval", "num_threads"])
@pytest.mark.parametrize("value", [0, 1.5])
def test_a_simulator_refuses_wrong_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a whole number >= 1, got {value}"):
        simulator(**{name: value})


def test_threads_are_the_cpus(monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.resolve_device", lambda device: torch.device("cuda:0"))
    with pytest.raises(ValueError, match="num_threads: expected None on cuda:0, .*, got 2"):
        simulator(device="cuda", num_threads=2)


@pytest.mark.parametrize("k, name", [(0, "joint_q"), (1, "joint_qd"), (2, "joint_act")])
@pytest.mark.parametrize("shape", [(1, 1), (2,), (2, 2), (3, 1)])
def test_a_simulator_does_not_broadcast(k, name, shape):
    inputs = [torch.zeros(shape if i == k else (2, 1)) for i in range(3)]
    with pytest.raises(ValueError) as caught:
        simulator().step(*inputs)
    assert str(caught.value) == f"{name}: expected shape (2, 1), got {shape}"


def test_one_motor_does_not_drive_all_joints():
    env = make(2)
    env.actuate = lambda action: action[:, :1]
    with pytest.raises(ValueError, match=r"joint_act: expected shape \(2, 6\), got \(2, 1\)"):
        env.step(torch.ones(2, 3))


@pytest.mark.parametrize("frame", [{"offset": (0, 1, 0)}, {"rotation": Z_UP}])
def test_a_free_joint_has_no_frame_of_its_own(frame):
    with pytest.raises(ValueError, match=r"link 0 \(ball\): a free joint has no offset and no rotation, .* got"):
        simulator(Link("ball", -1, FREE, mass=1.0, inertia=(1, 1, 1), **frame))


@pytest.mark.parametrize("spring", [{"stiffness": 1.0}, {"limits": (-4.0, 4.0)}])
def test_a_joint_that_translates_along_x_has_no_place_of_its_own(spring):
    cart = Link("cart", -1, PRISMATIC, axis=(1, 0, 0), mass=1.0, **spring)
    with pytest.raises(ValueError, match=r"link 0 \(cart\): translates_along_x needs a joint without .*, got"):
        simulator(cart, translates_along_x=True)
    simulator(cart)
