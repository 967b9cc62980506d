"""Throw random and mutated input at every script: each flag, and each part of a checkpoint. docs/robustness.md.

    python -m benchmarks.fuzz --scripts rpo sac --seed 0
    python -m benchmarks.fuzz --output benchmarks/results/robustness_fuzz.csv

Flags get values of wrong types, limits and what is beyond them, and random strings.  Checkpoints are cut, some of their
bytes are changed, and their fields are removed, nested, renamed or replaced by others of wrong shapes and types; then a
run is to go on from them.  Each case is a tiny run of the script on cartpole.  It ends in one of four ways:

    refused     exit code 2 and a sentence that names the flag, with nothing created
    accepted    exit code 0; the value is in the printed table, and the training or what is printed has changed
    stopped     exit code 1, because a gradient or an action was not a finite number: the last checkpoint is good
    failed      a traceback, a crash of the process, no end within 20 s of the processor or 120 s in all, a refusal
                that does not name the flag, or an accepted value that changes nothing

Failed cases are printed with what repeats them, and the exit code is 1.
"""

import contextlib
import copy
import dataclasses
import io
import math
import multiprocessing
import os
import random
import re
import runpy
import shutil
import sys
import tempfile
import time
import traceback
import typing
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

import envs
from benchmarks.provenance import read_flags, write_rows
from benchmarks.records import ROOT, SCRIPTS
from benchmarks.tiny import FLAGS, OWN_FLAGS, STEPS, assert_same, load

LONGEST, PATIENCE = 20.0, 120.0  # s, of a case: of the processor, and in all
STRINGS = ("", " ", "x", "None", "True", "-", "--", "0x10", "1e3", "1_0", "½", "٣", "../../x", "/x", "a/b", "a__b")
STRINGS += ("\udcff", "a\nb", "[1]", "{}", "nan()", "~", "*", "%s%n", "x" * 300, "9" * 5000, "1,5", "ant ", "HOPPER")
INTEGERS = (-1, 0, 1, 2, 3, 5, 2**31, 2**63, 2**64, 10**13, -(10**13), 10**100)
FLOATS = (-1.0, -0.0, 0.0, 1e-300, 1e-9, 0.3, 0.99, 1.0, 1.5, 3.0, 1e6, 1e30, 1e308, math.inf, -math.inf, math.nan)
# bounds that nothing reaches in two tiny iterations, and flags that say where and how a run is made
WITHOUT_TRACE = {"clip_low", "clip_high", "clip_coef", "max_grad_norm", "max_action_grad_norm", "max_oorr", "kl_bound"}
WITHOUT_TRACE |= {"alpha_interval", "target_kl", "v_min", "v_max", "target_entropy_scale", "kl_coef", "minibatch_size"}
WITHOUT_TRACE |= {"cuda", "checkpoint_freq", "eval_freq", "buffer_size", "eval_only", "final_learning_rate"}
WITHOUT_TRACE |= {"exp_name"}  # it is in the name of the folder
# the horizon of AHAC moves after ten iterations, and two passes never converge: their tests are in test_flags.py
WITHOUT_TRACE |= {"horizon_lr", "horizon_dual_lr", "horizon_min", "horizon_max", "stiffness_limit", "critic_tolerance"}
LENGTHENING = {"total_timesteps", "update_epochs", "critic_epochs", "alpha_epochs", "num_updates", "num_value_samples"}
NOT_FINITE = re.compile(r"non-finite|action: expected numbers, got NaN")


@dataclass
class Args:
    scripts: tuple[Literal[tuple(SCRIPTS)], ...] = tuple(SCRIPTS)
    """the scripts"""
    values: int = 12
    """values per flag, chosen at random"""
    checkpoints: int = 120
    """mutated checkpoints per script"""
    seed: int = 0
    """of the choice"""
    output: str | None = None
    """write the counts to this CSV file as well"""


@dataclass
class Case:
    """A run of a script: its flags, what is wrong with them, and the checkpoint that it is to go on from."""

    script: str
    flags: list
    name: str
    value: object = None
    checkpoint: str | None = None
    tags: dict = field(default_factory=dict)


@dataclass
class End:
    """How a run has ended: its exit code, what it printed, the files that it has made."""

    code: int
    output: str
    created: bool


def path(script):
    return ROOT / f"{script}_continuous.py"


def run_case(case):
    """The run, in this process and in a folder of its own. Returns an End and its checkpoint, None if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*case.flags]
        if case.checkpoint:
            shutil.copy(case.checkpoint, f"{folder}/checkpoint.pt")
            flags += ["--checkpoint", f"{folder}/checkpoint.pt"]
        before = {file: file.stat().st_mtime_ns for file in Path(folder).rglob("*")}
        output, argv, sys.argv = io.StringIO(), sys.argv, [str(path(case.script)), *flags]
        try:
            with contextlib.chdir(folder), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = exit_code_of(path(case.script))
        finally:
            sys.argv = argv
        after = {file: file.stat().st_mtime_ns for file in Path(folder).rglob("*")}
        saved = [file for file in after if file.name == "checkpoint.pt"]
        state = load(saved[0]) if code == 0 and saved else None
        return End(code, output.getvalue(), before != after), state


def exit_code_of(script):
    """Run a script as Python would: what it prints at its end, too."""
    hook, threads = sys.excepthook, torch.get_num_threads()
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        if sys.excepthook is hook:
            traceback.print_exc()
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        return 1
    finally:
        sys.excepthook = hook
        torch.set_num_threads(threads)
    return 0


# the cases
def base_flags(script):
    flags = f"--env-id cartpole {FLAGS} {OWN_FLAGS[script]} --total-timesteps {2 * STEPS}"
    return flags.split()


def flag_cases(script, Args, count, rng):
    """Values for every flag of a script."""
    for flag in dataclasses.fields(Args):
        if typing.get_origin(flag.type) is typing.Annotated or flag.name == "checkpoint":
            continue
        kinds = typing.get_args(flag.type) or (flag.type,)
        choices = [*STRINGS, *(random_string(rng) for _ in range(6))]
        if int in kinds:
            choices += 2 * [str(number) for number in INTEGERS]
        if float in kinds:
            choices += 2 * [str(number) for number in FLOATS]
        if typing.get_origin(flag.type) is typing.Literal:
            choices += 4 * kinds
        for value in rng.sample(choices, min(count, len(choices))):
            dashed = flag.name.replace("_", "-")
            yield Case(script, [*base_flags(script), f"--{dashed}", value], flag.name, value)
        if flag.type is bool:
            for word in (f"--{dashed}", f"--no-{dashed}", f"--{dashed}=1", f"--no-{dashed}=maybe"):
                yield Case(script, [*base_flags(script), word], flag.name, word)


def random_string(rng):
    letters = (rng.choice((rng.randrange(32, 127), rng.randrange(160, 0x2000))) for _ in range(rng.randrange(1, 9)))
    return "".join(map(chr, letters))


def checkpoint_cases(script, saved, folder, count, rng):
    """Copies of a checkpoint, each with something wrong."""
    content, state = Path(saved).read_bytes(), load(saved)
    for number in range(count):
        file = Path(folder) / f"{script}-{number}.pt"
        if number % 4 == 0:
            what = mutate_bytes(content, file, rng)
        else:
            what = mutate_state(copy.deepcopy(state), file, rng)
        yield Case(script, ["--total-timesteps", str(3 * STEPS)], "checkpoint", what, str(file))


def mutate_bytes(content, file, rng):
    at, data = rng.randrange(len(content)), bytearray(content)
    kind = rng.choice(("cut", "changed", "inserted", "zeros", "other"))
    if kind == "cut":
        data = data[:at]
    elif kind == "changed":
        for _ in range(rng.choice((1, 10, 1000))):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    elif kind == "inserted":
        data[at:at] = rng.randbytes(7)
    elif kind == "zeros":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    else:
        data = rng.choice((b"", b"not a checkpoint", rng.randbytes(999), b"PK\x03\x04" + rng.randbytes(99)))
    file.write_bytes(data)
    return f"{kind} at {at} of {len(content)}"


def mutate_state(state, file, rng):
    """Change one thing somewhere in a nested state, and write it."""
    if rng.random() < 0.05:
        others = (None, 3, [], {}, torch.zeros(3), "x", [[]] * 9, nested(200))
        other = rng.choice(others)
        torch.save(other, file)
        return f"it is {type(other).__name__}"
    found, part = places(state), f"/{rng.choice([*state])}"  # each part as often as the others, however large it is
    container, key, where = rng.choice([place for place in found if f"{place[2]}/".startswith(f"{part}/")])
    value = container[key]
    change = rng.choice(("remove", "replace", "replace", "replace", "nest", "rename", "reshape", "reshape", "reshape"))
    if change == "remove":
        del container[key]
    elif change == "rename" and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif change == "nest":
        container[key] = rng.choice(({"x": value}, [value], {key: {key: value}}))
    elif change == "reshape" and isinstance(value, torch.Tensor):
        container[key] = reshaped(value, rng)
    else:
        change = "replace"
        container[key] = rng.choice(
            (None, 0, -1, 2**70, 1.5, math.nan, math.inf, "x", "", [], {}, True, torch.zeros(()), torch.zeros(0))
        )
    torch.save(state, file)
    return f"{change} {where}"


def reshaped(x, rng):
    """The tensor in another shape, type or layout."""
    changes = [
        lambda: x[None],
        lambda: x.flatten()[:1],
        lambda: x.flatten()[:0],
        lambda: torch.cat([x.flatten(), x.flatten()]),
        lambda: x.double() if x.dtype == torch.float32 else x.float(),
        lambda: x.to(torch.int8),
        lambda: x.to(torch.complex64),
        lambda: x.to(torch.bfloat16),
        lambda: x.float().to_sparse() if x.dim() else x,
        lambda: torch.zeros(()).to(x.dtype).expand(x.shape) if x.dim() else x[None],
        lambda: x.t() if x.dim() == 2 else x[None],
        lambda: x.new_zeros(7, 5),
        lambda: x.to("meta"),
        lambda: torch.full_like(x, math.nan) if x.is_floating_point() else x + 1,
    ]
    return rng.choice(changes)()


def nested(depth):
    inner = []
    for _ in range(depth):
        inner = [inner]
    return inner


def places(state, where=""):
    """Every place in nested dictionaries and lists: (container, key, its name)."""
    found = []
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in [*items]:
        name = f"{where}/{key}"
        found.append((state, key, name))
        if isinstance(value, dict | list) and value:
            found += places(value, name)
    return found


# the judgement
def judge(case, end, state, plain):
    """The end of a case in a word, and what is wrong with it if it has failed. plain: the End and state without it."""
    if "Traceback" in end.output and not NOT_FINITE.search(end.output.strip().splitlines()[-1]):
        return "failed", "a traceback: " + end.output.strip().splitlines()[-1]
    if end.code == 2:
        named = "--" + case.name.replace("_", "-")
        opposite = named.replace("--", "--no-", 1)
        if named not in end.output and opposite not in end.output and not unknown_word(case, end):
            return "failed", f"a refusal that does not name {named}: {end.output.strip()[-200:]}"
        return ("failed", "a refusal after something was created") if end.created else ("refused", "")
    if end.code == 1 and NOT_FINITE.search(end.output):
        return "stopped", ""
    if end.code != 0:
        return "failed", f"exit code {end.code}: {end.output.strip()[-200:]}"
    if case.checkpoint is None and (reason := without_effect(case, end, state, plain)):
        return "failed", reason
    return "accepted", ""


def unknown_word(case, end):
    """A value that begins like a flag is one of its own, which tyro names."""
    return str(case.value).startswith("-") and "Unrecognized options" in end.output


def without_effect(case, end, state, plain):
    if "usage: " in end.output or state is None and "--eval-only" in case.flags:
        return None  # --help
    if state is None:
        return "accepted, but there is no checkpoint"
    plain_end, plain_state = plain
    saved, before = state["args"][case.name], plain_state["args"][case.name]
    if f"    {case.name}: {saved}\n" not in end.output:
        return "accepted, but not in the printed table"
    if saved == before or case.name in WITHOUT_TRACE:
        return None
    training = ({k: x for k, x in s.items() if k not in ("args", "process")} for s in (state, plain_state))
    with contextlib.suppress(AssertionError):
        assert_same(*training, "")
        if without_clocks(end.output, case.name) == without_clocks(plain_end.output, case.name):
            return f"accepted {case.name} {saved}, but nothing has changed"
    return None


def without_clocks(output, name):
    """What a run prints, but for its speed, the time in the name of its folder, and the flag itself."""
    output = re.sub(rf"SPS .*|__\d{{9,}}|run folder.*|{re.escape(tempfile.gettempdir())}\S*", "", output)
    return "\n".join(line for line in output.splitlines() if not line.startswith(f"    {name}: "))


# a process that may crash or hang
class Worker:
    """A process in which cases are run one after the other; it is replaced when it crashes or hangs."""

    def __init__(self):
        self.process = None

    def run(self, case):
        """run_case() there. Raises RuntimeError if it does not come back."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
            self.connection.recv()  # it has imported everything
        try:
            self.connection.send(case)
            since, until = self.seconds(), time.time() + PATIENCE
            while not self.connection.poll(1.0):
                if self.seconds() - since > LONGEST or time.time() > until:
                    raise RuntimeError(f"no end within {LONGEST:.0f} s of the processor")
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            code, self.process = self.process.exitcode, None
            raise RuntimeError(f"the process has crashed, exit code {code}") from error
        except RuntimeError:
            self.process.kill()
            self.process = None
            raise

    def seconds(self):
        """Of the processor, used so far; 0 where the system does not say."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        user, system = stat.read_text().rpartition(")")[2].split()[11:13] if stat.exists() else (0, 0)
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self):
        if self.process is not None:
            self.process.kill()


def serve(connection):
    """In the worker: run what comes, and send how it ended."""
    torch.set_num_threads(1)
    shorten_evaluations()
    envs.make("cartpole", 8).reset()
    connection.send("ready")
    while True:
        connection.send(run_case(connection.recv()))


def shorten_evaluations():
    """A few steps are enough: what is evaluated is not the point."""
    for task in envs.TASKS.values():
        task.max_episode_steps = 6


def fuzz_script(script, args, run=None, rng=None):
    """All cases of a script: rows of counts, and the failed ones with what was wrong. run: what runs a case."""
    rng = rng or random.Random(f"{script} {args.seed}")
    worker = Worker()
    run, counts, failures = run or worker.run, {}, []
    with tempfile.TemporaryDirectory() as folder:
        plain = run(Case(script, base_flags(script), "seed"))
        saved = f"{folder}/plain.pt"
        torch.save(plain[1], saved)
        sys.path.insert(0, str(ROOT))
        Args = __import__(f"{script}_continuous").Args
        kinds = {"flags": flag_cases(script, Args, args.values, rng)}
        kinds |= {"checkpoints": checkpoint_cases(script, saved, folder, args.checkpoints, rng)}
        for kind, cases in kinds.items():
            counts[kind] = Counter()
            for case in cases:
                if case.name in LENGTHENING and is_long(case.value):
                    continue
                try:
                    end, reason = judge(case, *run(case), plain)
                except RuntimeError as error:
                    end, reason = "failed", str(error)
                counts[kind][end] += 1
                if end == "failed":
                    failures.append(f"{script} --{case.name} {case.value!a}: {reason}")
                    print(failures[-1].encode("ascii", "backslashreplace").decode(), flush=True)
    worker.close()
    ends = ("refused", "accepted", "stopped", "failed")
    rows = [{"script": script, "input": kind} | {end: counts[kind][end] for end in ends} for kind in counts]
    return rows, failures


def is_long(value):
    """Whether an accepted number would make a run longer than a case may be."""
    with contextlib.suppress(ValueError, TypeError):
        return 10 < int(value) < 10**12
    return False


def main():
    args, rows, failures = read_flags(Args), [], []
    for script in args.scripts:
        found, failed = fuzz_script(script, args)
        rows, failures = rows + found, failures + failed
        for row in found:
            print(row, flush=True)
    if args.output:
        write_rows(args.output, rows)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
