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


@pytest.mark.parametrize("env_id", ["ant", "go1"])
def test_an_environment_whose_action_is_nan_has_diverged_until_it_is_told(env_id, monkeypatch):
    """As on CUDA, where a step does not wait: also where a motor's clamp makes a number of NaN."""
    env = envs.make(env_id, num_envs=3)
    env.reset()
    monkeypatch.setattr(env, "_refuse_nan_actions", lambda: None)
    action = torch.zeros(3, env.num_actions)
    action[1, 0] = torch.nan
    obs, reward, terminated, _, infos = env.step(action)
    assert terminated.tolist() == [False, True, False] and infos["diverged"] == 1 and reward[1] == 0.0
    assert all(x.isfinite().all() for x in (obs, reward, infos["final_obs"], infos["episode"]["r"]))


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


@pytest.mark.parametrize("factor", [0.0, 2.0, -1.0])
def test_an_orientation_has_length_one(factor):
    env = envs.make("ant", num_envs=2)
    env.reset()
    wrong = env.joint_q.clone()
    wrong[1, 3:7] *= factor
    state = env.state_dict() | {"joint_q": wrong}
    expected = "expected quaternions of length 1 in coordinates 3 to 6, got others in environment\\(s\\) 1"
    if factor == -1.0:  # the same orientation
        env.set_state(wrong, env.joint_qd)
        env.load_state_dict(state)
        return
    with pytest.raises(ValueError, match=f"^joint_q: {expected}"):
        env.set_state(wrong, env.joint_qd)
    with pytest.raises(ValueError, match=f"^state\\['joint_q'\\]: {expected}"):
        env.load_state_dict(state)


def test_a_drawn_factor_is_not_one_to_differentiate():
    env = envs.make("hopper", num_envs=2, randomize={"friction": (0.5, 1.0)})
    env.reset()
    with pytest.raises(ValueError, match="friction: expected a factor without a gradient, as randomize draws it"):
        env.set_parameters(friction=torch.ones(2, requires_grad=True))
    env.set_parameters(friction=torch.ones(2), mass_scale=torch.ones(2, requires_grad=True))


LINK = {"name": "x", "parent": -1, "joint": PRISMATIC, "axis": (1.0, 0.0, 0.0), "mass": 1.0}


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"mass": -1.0}, "mass must be at least 0, got -1.0"),
        ({"mass": float("nan")}, "mass must be at least 0, got nan"),
        ({"armature": float("inf")}, "armature must be at least 0, got inf"),
        ({"limits": (1.0, -1.0)}, "limits must be \\(lower, upper\\), got \\(1.0, -1.0\\)"),
        ({"inertia": (1.0, -1.0, 1.0)}, "inertia must have a diagonal of at least 0"),
        ({"inertia": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, "inertia must have a diagonal of at least 0"),
        ({"inertia": (1.0, float("nan"), 1.0)}, "inertia must have a diagonal of at least 0"),
    ],
)
def test_a_link_that_cannot_be(wrong, words):
    with pytest.raises(ValueError, match=f"^link 0 \\(x\\): {words}"):
        Simulator(Articulation([Link(**LINK | wrong)]), 1, 0.01, 1, 1)


@pytest.mark.parametrize("dt", [0.0, -0.01, float("nan"), "0.01"])
def test_a_step_takes_time(dt):
    with pytest.raises(ValueError, match="^dt: expected a number above 0 "):
        Simulator(Articulation([Link(**LINK)]), 1, dt, 1, 1)


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
        (lambda env: env.render(2), ValueError, ["index", "<= 1", "2"]),
        (lambda env: envs.make(["hopper"]), ValueError, ["env_id", "hopper"]),
        (lambda env: envs.make("hopper", seed=2**64), ValueError, ["seed", str(2**64 - 1), str(2**64)]),
        (lambda env: env.reset(seed=2**64), ValueError, ["seed", str(2**64 - 1), str(2**64)]),
        (lambda env: env.reset(seed=[1, 2]), ValueError, ["seed", "whole number", "[1, 2]"]),
        (lambda env: envs.evaluate(env, None, 2**64 - 1), ValueError, ["seed", "whole number", str(2**64 - 1)]),
        (lambda env: envs.evaluate(env, None, 1, video=""), ValueError, ["video", "a path", "''"]),
        (lambda env: envs.make("hopper", max_episode_steps=2**70), ValueError, ["max_episode_steps", str(2**70)]),
        (lambda env: envs.make("hopper", stochastic_reset="no"), TypeError, ["stochastic_reset", "True or", "'no'"]),
        (lambda env: envs.make("hopper", render_mode="human"), ValueError, ["render_mode", "'rgb_array'", "'human'"]),
        (lambda env: envs.make("hopper", device="cpu:3"), ValueError, ["device", "'cpu'", "'cpu:3'"]),
        (lambda env: envs.make("hopper", device=None), ValueError, ["device", "'cpu'", "None"]),
        (lambda env: envs.make("hopper", num_envs=2**31), ValueError, ["num_envs", str(2**31 - 1), str(2**31)]),
        (lambda env: envs.make("hopper", num_envs=10**9), ValueError, ["num_envs", "room for", "memory", str(10**9)]),
        (lambda env: env.load_state_dict(None), ValueError, ["state", "a dict", "'joint_q'", "NoneType"]),
        (lambda env: env.set_state(torch.full((2, 6), np.nan), torch.zeros(2, 6)), ValueError, ["joint_q", "finite"]),
        (lambda env: env.set_state(torch.zeros(2, 6), torch.full((2, 6), np.inf)), ValueError, ["joint_qd", "finite"]),
        (lambda env: env.reset(options={"low": 0}), ValueError, ["options", "reset_mask", "low"]),
        (lambda env: env.reset(options=3), ValueError, ["options", "a dict", "int"]),
        (lambda env: env.reset(options={"reset_mask": [True, False]}), TypeError, ["reset_mask", "tensor", "list"]),
        (lambda env: env.reset(options={"reset_mask": np.ones(3, bool)}), ValueError, ["reset_mask", "(2,)", "(3,)"]),
        (lambda env: env.reset(options={"reset_mask": torch.ones(2)}), TypeError, ["reset_mask", "bool", "float32"]),
        (lambda env: env.reset(options={"reset_mask": np.zeros(2, bool)}), ValueError, ["reset_mask", "at least one"]),
    ],
)
def test_bad_input_gets_a_clear_error(call, error, words):
    env = make(2)
    before = env.state_dict()
    with pytest.raises(error) as caught:
        call(env)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in env.state_dict().items())


@pytest.mark.parametrize("value", [None, torch.zeros(2), torch.full((2, 6), np.nan), torch.zeros(2, 6).double(), "x"])
@pytest.mark.parametrize("name", ["joint_q", "episode_length", "goal", "generator"])
def test_a_state_with_one_wrong_value_is_refused_and_changes_nothing(name, value):
    env = envs.make("hand_reorient", num_envs=2)
    state = envs.make("hand_reorient", num_envs=2, seed=9)
    state.reset()
    before = env.generator.get_state()
    with pytest.raises(ValueError, match=rf"state\['{name}'\].*: expected .*, got "):
        env.load_state_dict(state.state_dict() | {name: value})
    assert env.joint_q is None and torch.equal(env.generator.get_state(), before)


def test_a_count_of_all_environments_is_shown():
    env = make(2)
    state = env.state_dict()
    state["diverged"] = torch.full_like(state["diverged"], -1)
    with pytest.raises(ValueError, match="state\\['diverged'\\]: expected numbers >= 0, got -1$"):
        env.load_state_dict(state)


def test_counts_in_a_state_are_not_negative():
    env = make(2)
    with pytest.raises(ValueError, match=r"state\['episode_length'\]: expected numbers >= 0, got others in .* 1"):
        env.load_state_dict(env.state_dict() | {"episode_length": torch.tensor([3, -1])})


def test_the_memory_of_one_environment_is_not_that_of_a_whole_register():
    """On the CPU arrays of lanes are rounded up to 16 environments."""
    simulators = [envs.make("hopper", num_envs=n, num_threads=1).simulator for n in (1, 16, 160)]
    one, sixteen, many = (s.batches[0].num_bytes for s in simulators)
    assert one > sixteen / 16 and many == 10 * sixteen


def test_more_environments_than_memory_has_room_for_are_refused_before_it_is_used(monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.available_memory", lambda device: 2**30)
    with pytest.raises(ValueError, match=r"num_envs: expected room for at most \d+ environments .*, got 100000$"):
        envs.make("hopper", num_envs=100_000)


def test_an_allocation_that_fails_is_one_sentence(monkeypatch):
    def zeros(*args, **options):
        raise RuntimeError("Failed to allocate 12 bytes on device 'cpu'")

    monkeypatch.setattr("warp.zeros", zeros)
    with pytest.raises(ValueError, match="num_envs: expected as many environments as fit into memory, got 3"):
        envs.make("hopper", num_envs=3)


@pytest.mark.parametrize("k, name", [(0, "joint_q"), (1, "joint_qd"), (2, "joint_act")])
def test_a_simulator_converts_nothing(k, name):
    inputs = [torch.zeros(2, 1, dtype=torch.float64 if i == k else torch.float32) for i in range(3)]
    with pytest.raises(TypeError, match=f"{name}: expected torch.float32, got torch.float64"):
        simulator().step(*inputs)


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


def test_loading_a_state_keeps_what_is_still_to_be_told():
    env = make(4, num_threads=1)
    env.nan_actions[2] = True
    env.load_state_dict(env.state_dict())
    with pytest.raises(ValueError, match="action: expected numbers, got NaN in environment\\(s\\) 2"):
        env.detach()


def test_states_that_are_to_be_moved_are_checked():
    env = envs.make("ant", num_envs=2)
    joint_q, joint_qd = env.rest_state()
    with pytest.raises(ValueError, match=r"^joint_q: expected shape \(2, 15\), got \(2, 14\)$"):
        env.at_origin(joint_q[:, 1:], joint_qd)
    with pytest.raises(TypeError, match="^joint_qd: expected torch.float32, got torch.float64$"):
        env.at_origin(joint_q, joint_qd.double())
