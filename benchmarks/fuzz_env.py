"""Throw odd values at every method of the environments and at every option of envs.make; docs/robustness.md.

    python -m benchmarks.fuzz_env --output benchmarks/results/robustness_env.csv

A value is refused with an error of one line that names the argument, what was expected and what came, or it is
accepted and does what the same numbers do as a plain tensor.  Anything else fails: another exception, a hang of 20 s, a
value that is accepted and ignored.  The table has a line for each task and method; the exit code is 1 if any failed.
"""

import inspect
import re
import signal
import sys
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np
import torch

import envs
from benchmarks.provenance import read_flags, write_rows
from envs.physics import shown

TIMEOUT = 20.0  # s
N = 3  # environments
ROBOT_FILE = str(Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "hopper.xml")
TASKS = envs.ENV_IDS + (ROBOT_FILE,)


class Subclass(torch.Tensor):
    pass


# Values, each with a name
def odd_things():
    """Of no use as a tensor, and hardly as a number."""
    things = [None, True, 1.5, 2.0, -1, float("nan"), float("inf"), 1j, Fraction(2), Decimal(2)]
    things += ["", "x", "3", "a/b", "\0", "é" * 200, b"1", [], [1], (), {}, {1: 2}, {"a": None}, slice(2), range(2)]
    things += [object(), print, int, Ellipsis, torch.device("meta"), torch.float32]
    things += [np.float64(2.0), np.bool_(True), np.array(2), np.array([1, 2]), np.zeros((9, 9)), np.array(["x", None])]
    things += [torch.tensor(2), torch.tensor([1.0]), torch.zeros(9, 9)]
    return named(things)


def odd_numbers():
    """Whole numbers and what looks like them; between 3 and a hundred million there is none, for memory's sake."""
    numbers = [0, 1, 2, -(2**63), 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**8, 10**30]
    numbers += [10**5000, np.int8(2), np.uint8(3), np.int64(2), np.uint64(2**64 - 1), np.int32(-1)]
    return named(numbers) + odd_things()


def named(things):
    return [(f"{type(thing).__name__} {shown(thing)}", thing) for thing in things]


def odd_tensors(good):
    """Variations of a good tensor (n, ...), most of them wrong."""
    return [*(_numbers(good) | _shapes(good) | _memory(good) | _kinds(good)).items(), *odd_things()]


def _numbers(good):
    nan = good.clone()
    nan.view(-1)[-1] = torch.nan
    values = {"inf": good + torch.inf, "-inf": good - torch.inf, "huge": good + 3e38, "tiny": 0.0 * good + 1e-45}
    other = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    return {"NaN": nan, "plain": good} | values | {str(dtype): good.to(dtype) for dtype in other}


def _shapes(good):
    found = {
        "no rows": good[:0],
        "one row": good[:1],
        "a row less": good[:-1],
        "a row more": torch.cat([good, good[:1]]),
    }
    found |= {"no columns": good[:, :0], "a column more": torch.cat([good, good[:, :1]], 1), "transposed": good.T}
    found |= {
        "empty": good.new_empty(0),
        "a scalar": good.sum(),
        "flat": good.flatten(),
        "three dimensions": good[None],
    }
    return found


def _memory(good):
    spread = torch.zeros(2 * len(good), *good.shape[1:])
    spread[::2] = good
    with torch.inference_mode():
        found = {"inference": good.clone()}
    negative = torch.complex(good, -good).conj().imag  # a view whose numbers torch negates when it reads them
    found |= {"not contiguous": spread[::2], "column major": good.T.contiguous().T, "negative view": negative}
    found |= {"expanded": good[:1].expand(len(good), -1), "meta": good.to("meta")}
    found["sparse"] = good.as_subclass(torch.Tensor).to_sparse()
    return found | {"nested": torch.nested.nested_tensor(list(good), layout=torch.jagged)}


def _kinds(good):
    found = {"leaf": good.clone().requires_grad_(), "not a leaf": good.clone().requires_grad_() * 1.0}
    found |= {"parameter": torch.nn.Parameter(good.clone()), "subclass": good.clone().as_subclass(Subclass)}
    found |= {"array": good.numpy(), "array of float64": good.double().numpy()}
    return found | {"list": good.tolist(), "tuple": (good,)}


def random_tensors(good, count, generator):
    """Of random shapes and types; every fourth one is right."""
    found = []
    for k in range(count):
        dims = torch.randint(0, 4, (1,), generator=generator).item()
        shape = torch.randint(0, 5, (dims,), generator=generator).tolist() if k % 2 else good.shape
        dtype = (torch.float32, torch.float32, torch.float64, torch.float32)[k % 4]
        scale = 10.0 ** torch.randint(-3, 4, (1,), generator=generator).item()
        found.append((f"random {k}", (scale * torch.randn(shape, generator=generator)).to(dtype)))
    return found


# What a call comes to
class Ignored(Exception):
    """A value was accepted, but without the effect that it should have."""


def expect(condition, effect):
    if not condition:
        raise Ignored(f"expected {effect}")


def outcome(argument, call):
    """Of a call: refused, accepted or FAILED: ..."""
    expected, unknown = rf"{argument}\b.*: expected .*, got .", f"unexpected keyword argument '{argument}'"
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    try:
        call()
    except Exception as error:  # whatever it is, it belongs into the table
        message = str(error)
        ours = isinstance(error, ValueError | TypeError) and len(message.splitlines()) == 1
        if ours and (re.match(expected, message) or unknown in message):
            return "refused"
        return f"FAILED: {type(error).__name__}: {message}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    return "accepted"


def hang(*_):
    raise TimeoutError(f"no end after {TIMEOUT:.0f} s")


def plain(value):
    """The same numbers in a new tensor."""
    return torch.tensor(value.tolist(), dtype=torch.float32)


def same(a, b):
    return torch.equal(torch.nan_to_num(a.detach()), torch.nan_to_num(b.detach()))


# The methods.  Each function yields (argument, [(name of a value, value)], call with a value) for an environment;
# random_ones(good) are more values for an argument that is a tensor
def step(env, random_ones):
    state, action = env.state_dict(), torch.linspace(-1.5, 1.5, N * env.num_actions).view(N, -1)

    def call(value):
        results = []
        for make in (lambda: value, lambda: plain(value)):
            env.load_state_dict(state)
            results.append(env.step(make())[:2])
        (obs, reward), expected = results
        expect(same(obs, expected[0]) and same(reward, expected[1]), "the step of these numbers")
        expect(obs.requires_grad == value.requires_grad, "a gradient where there was one")

    yield "action", odd_tensors(action) + random_ones(action), call


def set_state(env, random_ones):
    state = env.state_dict()
    names = ("joint_q", "joint_qd")
    for name in names:

        def call(value, name=name):
            env.set_state(**{other: state[other] for other in names} | {name: value})
            found = getattr(env, name)
            env.load_state_dict(state)
            expect(same(found, plain(value)), "this state")
            expect(found.requires_grad == value.requires_grad, "a gradient where there was one")
            expect(not found.is_inference(), "a state that gradients can pass")

        yield name, odd_tensors(state[name]) + random_ones(state[name]), call


def set_parameters(env, random_ones):
    state, sizes = env.state_dict(), env.simulator.parameters.sizes
    names = inspect.signature(env.set_parameters).parameters
    for name in names:
        good = torch.linspace(0.5, 2.0, N * sizes.get(name, 1)).view(N, -1)

        def call(value, name=name):
            before = env.parameters.get(name)
            env.set_parameters(**{name: value})
            found = env.parameters.get(name)
            if value is None:
                return expect(found is before, "the factor of before")
            env.load_state_dict(state)
            expect(same(found, plain(value).view(N, -1).expand(found.shape)), "these factors")
            expect(found.requires_grad == value.requires_grad, "a gradient where there was one")
            expect(not found.is_inference(), "factors that gradients can pass")

        yield name, odd_tensors(good) + random_ones(good), call


def load_state_dict(env, random_ones):
    state = env.state_dict()

    def whole(value):
        env.load_state_dict(value)
        raise Ignored("expected the keys of a state")

    yield "state", [*odd_things(), ("no values", dict.fromkeys(state)), ("one more", state | {"x": 1})], whole
    for name, good in state.items():

        def call(value, name=name):
            env.load_state_dict(state | {name: value})
            found = env.state_dict()[name]
            env.load_state_dict(state)
            expect(torch.equal(found, value) and not found.requires_grad, "this state, without a gradient")

        values = odd_tensors(good) if good.dim() == 2 else odd_things()
        yield "state", [(f"{name}: {label}", value) for label, value in values + random_ones(good)], call


def reset(env, random_ones):
    def seed(value):
        env.reset(seed=value)
        expect(value is None or env.np_random_seed == value, "this seed")

    def options(value):
        env.reset(options=value)
        expect(value is None or value == {}, "options")

    def mask(value):
        before = env.step(torch.zeros(N, env.num_actions))[0]
        obs, _ = env.reset(options={"reset_mask": value})
        expect((obs != before).any(1).tolist() == value.tolist(), "new episodes in these rows")

    rows = torch.tensor([True, False, True])
    masks = {"tensor": rows, "array": rows.numpy(), "all": rows | ~rows, "strided": rows.repeat(2)[::2]}
    masks |= {"none": rows & ~rows, "list": rows.tolist(), "numbers": rows.int(), "indices": torch.tensor([0, 2])}
    masks |= {"two dimensions": rows[None], "short": rows[:2], "meta": rows.to("meta"), "backwards": rows.numpy()[::-1]}
    yield "seed", odd_numbers(), seed
    yield "options", [*odd_things(), ("another", {"low": 0}), ("two", {"reset_mask": rows, "low": 0})], options
    yield "reset_mask", [*odd_things(), *masks.items(), *random_ones(rows)], mask


def render(env, random_ones):
    def call(value):
        picture = env.render(value)
        expect(
            np.array_equal(picture, env.render(0 if value is None else int(value))), "the picture of this environment"
        )

    yield "index", odd_numbers(), call


def close(env, random_ones):
    def call(value):
        env.close(timeout=value)
        raise Ignored("expected an option")

    yield "timeout", odd_things(), call


def simulator_step(env, random_ones):
    state = env.state_dict()
    tensors = {"joint_q": state["joint_q"], "joint_qd": state["joint_qd"], "joint_act": 0.1 * state["joint_qd"]}
    for name in tensors:

        def call(value, name=name):
            found = env.simulator.step(**tensors | {name: value})
            expected = env.simulator.step(**tensors | {name: plain(value)})
            expect(all(same(a, b) for a, b in zip(found, expected)), "the step of these numbers")
            expect(found[0].requires_grad == value.requires_grad, "a gradient where there was one")

        yield name, odd_tensors(tensors[name]) + random_ones(tensors[name]), call


def evaluate(env, random_ones):
    def returns(**options):
        return envs.evaluate(env, lambda obs: 2.0 * torch.rand(N, env.num_actions) - 1.0, **options)[0]

    def seed(value):
        found = returns(seed=value)
        expect(same(found, returns(seed=int(value))), "this seed")

    def video(value):
        returns(seed=1, video=value)
        expect(value is None, "a film")

    folders = [("in no folder", "no/such/film"), ("no name", Path("/")), ("nothing", "")]
    yield "seed", odd_numbers(), seed
    yield "video", [(label, value) for label, value in odd_things() if not isinstance(value, str)] + folders, video


METHODS = {
    "step": step,
    "set_state": set_state,
    "set_parameters": set_parameters,
    "load_state_dict": load_state_dict,
    "reset": reset,
    "render": render,
    "close": close,
    "simulator.step": simulator_step,
    "envs.evaluate": evaluate,
}
WITHOUT_ARGUMENTS = {"detach", "state_dict"}
# what an option of envs.make does to the environment
EFFECTS = {
    "num_envs": lambda env, value: env.num_envs == len(env.zeros()) == value,
    "device": lambda env, value: env.device.type == torch.device(value).type,
    "seed": lambda env, value: env.np_random_seed == value,
    "max_episode_steps": lambda env, value: (
        env.max_episode_steps == (type(env).max_episode_steps if value is None else value)
    ),
    "stochastic_reset": lambda env, value: env.stochastic_reset == value,
    "randomize": lambda env, value: env.randomize == (value or {}),
    "num_threads": lambda env, value: len(env.simulator.slices) == 1,  # of a single environment
    "render_mode": lambda env, value: env.render_mode == value,
    "wanted_speed": lambda env, value: env.wanted_speed == float(value or type(env).wanted_speed),
}


def options_of_make(env_id):
    """As for the methods."""
    more = {"device": ["cpu", "cuda:99", "CPU", "cpu:0", torch.device("cpu")], "render_mode": ["rgb_array", "human"]}
    more["randomize"] = [{"mass_scale": (0.5, 2.0)}, {"mass_scale": (2, 1)}, {"mass_scale": 1.0}, {"mass": (1, 2)}]
    for option in options_of(envs.task(env_id)):

        def call(value, option=option, effect=EFFECTS[option]):
            env = envs.make(env_id, **{option: value})
            expect(effect(env, value), option)
            env.close()

        yield option, odd_numbers() + named(more.get(option, ())), call

    def other(value):
        expect(type(envs.make(value)) is envs.TASKS[value], "this task")

    yield "env_id", odd_things(), other
    yield "horizon", odd_things(), lambda value: envs.make(env_id, horizon=value)


def options_of(task):
    """The names of a task's options."""
    parameters = {name for cls in task.__mro__ for name in inspect.signature(cls.__init__).parameters}
    return sorted(parameters - {"self", "args", "kwargs", "options"})


# All of it
def fuzz(env_id, methods=tuple(METHODS), num_random=0, seed=1):
    """How the calls ended: {method: Counter of "refused", "accepted" and failures}; "envs.make" is one of them."""
    env = envs.make(env_id, N, max_episode_steps=2, num_threads=1)
    env.reset()
    generator, found = torch.Generator().manual_seed(seed), defaultdict(Counter)

    def random_ones(good):
        return random_tensors(good, num_random, generator)

    before = signal.signal(signal.SIGALRM, hang)
    for name in methods:
        arguments = options_of_make(env_id) if name == "envs.make" else METHODS[name](env, random_ones)
        for argument, values, call in arguments:
            for label, value in values:
                result = outcome(argument, lambda call=call, value=value: call(value))
                where = f"{Path(env_id).name}, {name}({argument}={label})"
                found[name][f"{where} {result}" if result.startswith("FAILED") else result] += 1
    signal.signal(signal.SIGALRM, before)
    return found


def forgotten():
    """Methods of the environment and options of envs.make at which nothing is thrown."""
    methods = {name for name, value in vars(envs.VectorEnv).items() if hasattr(value, "__wrapped__") and name[0] != "_"}
    options = {option for env_id in TASKS for option in options_of(envs.task(env_id))}
    return (methods - set(METHODS) - WITHOUT_ARGUMENTS) | (options ^ set(EFFECTS))


@dataclass
class Args:
    env_ids: tuple[Literal[TASKS], ...] = TASKS
    """the tasks"""
    num_random: int = 100
    """random tensors for every argument that is a tensor"""
    seed: int = 1
    """of these"""
    output: str | None = None
    """write the table to this CSV file as well"""


def main():
    args, rows, failures = read_flags(Args), [], []
    warnings.filterwarnings("ignore", message=".*left out")  # of the robot's file
    for env_id in args.env_ids:
        for name, counts in fuzz(env_id, (*METHODS, "envs.make"), args.num_random, args.seed).items():
            failed = [result for result in counts if "FAILED" in result]
            ends = {end: counts[end] for end in ("refused", "accepted")} | {"failed": len(failed)}
            rows.append({"env_id": Path(env_id).name, "method": name} | ends)
            failures += failed
            print(*rows[-1].values(), *failed, sep=", ", flush=True)
    if args.output:
        write_rows(args.output, rows)
    failures += [f"nothing is thrown at {name}" for name in sorted(forgotten())]
    print(*failures, sep="\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
