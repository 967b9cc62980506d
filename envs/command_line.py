"""The command line of the training scripts: flags, those of a resumed run, the task's defaults, and what is refused.

    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__)

Whatever is wrong with a flag is said here, in one sentence that names it, before anything is created; exit code 2.
What is printed is what happens: a flag that would have no effect is refused.
"""

import difflib
import errno
import importlib
import math
import os
import re
import sys
import typing
from dataclasses import fields

import torch
import tyro
from tyro.constructors import PrimitiveConstructorSpec

import envs  # which imports this file: its tasks are there only when a function is called
from envs.checkpoint import RunLock, load_checkpoint
from envs.robot_file import is_robot_file

# smallest and largest values by a flag's name; other whole numbers are 1 to 10^5, other numbers 0 to 10^6.  The largest
# are far beyond any use; they catch typing errors
LIMITS = {
    "seed": (0, 2**32 - 1),
    "eval_freq": (0, 10**9),  # 0: only at the end
    "checkpoint_freq": (1, 10**9),
    "num_eval_envs": (1, 10**5),
    "num_envs": (1, 10**6),
    "total_timesteps": (1, 10**12),
    "buffer_size": (1, 10**9),
    "learning_starts": (0, 10**9),
    "minibatch_size": (1, 10**9),
    # 0 until the script computes them
    "batch_size": (0, 10**9),
    "num_iterations": (0, 10**9),
    "gamma": (0.0, 1.0),
    "td_lambda": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "tau": (0.0, 1.0),
    "alpha": (1e-12, 1e6),
    "clip_low": (0.0, math.inf),
    "clip_high": (0.0, math.inf),
    "max_grad_norm": (1e-12, math.inf),
    "max_action_grad_norm": (1e-12, math.inf),
}
LEARNING_RATE = (1e-12, 1.0)  # of every flag whose name ends with learning_rate
# flags that shape the state of a run: beside --checkpoint they have to be those of the run
FLAGS_OF_THE_RUN = ("env_id", "exp_name", "num_envs", "num_steps")
# flags with an effect beside --eval-only
FLAGS_OF_AN_EVALUATION = ("checkpoint", "eval_only", "seed", "cuda", "num_eval_envs", "capture_video")
# flags that are read only where another one has a certain value
NEEDS = {
    "target_kl": ("adaptive_lr", True),
    "alpha_learning_rate": ("autotune", True),
    "num_kl_samples": ("kl_estimator", "mc"),
    "v_min": ("hl_gauss", True),
    "v_max": ("hl_gauss", True),
    "num_bins": ("hl_gauss", True),
}
NAME = re.compile(r"(?!.*__)[A-Za-z0-9]([\w.+=-]{0,98}[A-Za-z0-9])?", re.ASCII)  # '__' separates parts of folder names


def parse_args(Args, task_defaults, script, fixed=(), **limits):
    """The flags as an `Args`, and the checkpoint to continue from or None.

    Args: the script's dataclass of flags.  A flag that is not given takes its value from the checkpoint or, without
    one, from task_defaults[env_id]; else the default in the dataclass.
    task_defaults: {env_id: {name of a flag: value}}, for every task, and "file" for any robot's file.
    script: the script's __file__; only its own checkpoints are accepted.
    fixed: names of flags that have to be those of the checkpoint, beside FLAGS_OF_THE_RUN.
    limits: (smallest, largest) by the name of a flag of this script, where LIMITS does not fit.
    A wrong flag ends the script, with exit code 2 and a sentence on stderr; so does --help, with exit code 0.
    The folder of a run that is to go on is held from here on, until `args` is gone.
    """
    args, checkpoint, lock, script = read_flags(Args), None, None, os.path.basename(script)
    limits = LIMITS | limits
    if args.checkpoint is None:
        default = _defaults_of_task(Args, task_defaults, args.env_id, script)
    else:
        default, checkpoint, lock = _run_of_checkpoint(Args, args, script, limits)
    args = read_flags(Args, default)
    args.lock = lock
    if checkpoint:
        _check_beside_checkpoint(args, default, checkpoint, fixed)
    for field in fields(args):
        if reason := _number_out_of_limits(field.name, getattr(args, field.name), limits):
            refuse(field.name, reason)
    _check_run(args, default)
    _check_sizes(args, default)
    _check_memory(args)
    sys.excepthook = explain_failure
    return args, checkpoint


def env_id_flag(env_ids):
    """The type of the flag --env-id: one of env_ids, or the path of a robot's file, which becomes an absolute one."""

    def read(words):
        (word,) = words
        if word in env_ids:
            return word
        if is_robot_file(word):
            return os.path.abspath(word)
        near = difflib.get_close_matches(word, env_ids, n=1, cutoff=0.0)[0]
        expected = f"expected one of {', '.join(env_ids)}, or the path of a robot's .xml or .urdf file"
        raise ValueError(f"{expected}, got {word!r}; did you mean {near!r}?")

    rule = PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(env_ids)},ROBOT.xml}}",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )
    return typing.Annotated[str, rule]


def read_flags(Args, default=None):
    """The command line as an `Args`, a dataclass; --help begins with the first line of its module.

    Beside what tyro refuses: an empty value, which an unset variable of a shell leaves, and a value of a switch.
    """
    switches, name = {field.name for field in fields(Args) if field.type is bool}, ""
    for word in sys.argv[1:]:
        is_flag = word.startswith("--") or word == "-h"
        flag, equals, value = word.partition("=") if is_flag else ("", "", word)
        name = flag.strip("-").replace("-", "_") if is_flag else name  # else the word belongs to the flag before it
        if name and not is_text(word):
            refuse(name, f"expected characters of UTF-8, got {ascii(value)}")
        if name and (equals or not is_flag):
            if value == "":
                refuse(name, "expected a value, got ''")
            if (switch := name.removeprefix("no_")) in switches:
                refuse(switch, f"expected --{_dashed(switch)} or --no-{_dashed(switch)} without a value, got {value!r}")
    description = (sys.modules[Args.__module__].__doc__ or "").strip().partition("\n")[0]
    return tyro.cli(Args, default=default, description=description)


def is_text(word):
    """Whether it can be printed; the bytes of an argument need not be UTF-8."""
    try:
        return bool(word.encode()) or word == ""
    except UnicodeEncodeError:
        return False


def refuse(name, reason):
    """End the script with exit code 2 and a sentence on stderr about the flag `name`, as in the dataclass."""
    print(f"error: --{_dashed(name)}: {reason}", file=sys.stderr)
    sys.exit(2)


def _dashed(name):
    return name.replace("_", "-")


def _defaults_of_task(Args, task_defaults, env_id, script):
    """The flags of a new run that are not given."""
    try:
        envs.task(env_id)
    except (ValueError, ImportError) as error:  # of a robot's file
        refuse("env_id", error)
    row = env_id if env_id in envs.TASKS else "file"
    if row not in task_defaults:
        refuse("env_id", f"expected a task with a line in TASK_DEFAULTS of {script}, got {env_id}")
    return Args(**{"env_id": env_id} | task_defaults[row])


def _run_of_checkpoint(Args, args, script, limits):
    """The flags of the run that --checkpoint names, the file's content, and the lock of a run that goes on."""
    lock = None
    try:
        if os.path.isfile(args.checkpoint) and not args.eval_only and int(os.environ.get("RANK", 0)) == 0:
            lock = RunLock(os.path.dirname(os.path.abspath(args.checkpoint)))
        checkpoint = load_checkpoint(args.checkpoint, script)
        return _flags_of_run(Args, checkpoint["args"], script, limits), checkpoint, lock
    except ValueError as error:
        refuse("checkpoint", error)


def _flags_of_run(Args, flags, script, limits):
    """The flags in a checkpoint, as an Args. Raises ValueError for those that the script could not have written."""
    kinds = {field.name: field.type for field in fields(Args)}
    if set(flags) != set(kinds):
        wrong = set(flags) ^ set(kinds)
        more = [str(name) for name in flags if name in wrong] or ["no more"]
        missing = [name for name in kinds if name in wrong] or ["none"]
        raise ValueError(f"expected flags of {script}, got {', '.join(more)} as well, and without {', '.join(missing)}")
    for name, value in flags.items():
        if not _fits(value, kinds[name]) or value is None and name != "checkpoint":
            raise ValueError(f"expected flags of {script}, got {name} of {type(value).__name__}")
        if reason := _number_out_of_limits(name, value, limits):
            raise ValueError(f"expected flags of {script}, got {name}: {reason}")
    return Args(**flags)


def _fits(value, kind):
    """Whether a value is of the type of a flag; a whole number may stand for another one."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    kinds = typing.get_args(kind) or (kind,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _number_out_of_limits(name, value, limits):
    """What is wrong with the value of a flag, None where nothing is."""
    if type(value) not in (int, float):
        return None
    low, high = limits.get(name, (1, 10**5) if type(value) is int else (0.0, 1e6))
    if name.endswith("learning_rate"):
        low, high = LEARNING_RATE
    return None if low <= value <= high else f"expected {low} to {high}, got {value}"  # NaN is outside


def _check_beside_checkpoint(args, default, checkpoint, fixed):
    """Refuse what would contradict the state of a run, or have no effect on it."""
    script = checkpoint["script"]
    for field in fields(args):
        name, given = field.name, getattr(args, field.name)
        if given == getattr(default, name):
            continue
        if name in (*FLAGS_OF_THE_RUN, *fixed):
            refuse(name, f"expected {getattr(default, name)}, as in --checkpoint, got {given}")
        if args.eval_only and name not in FLAGS_OF_AN_EVALUATION:
            refuse(name, f"expected none beside --eval-only, where it has no effect, got {given}")
    if "horizon" in checkpoint:  # the iterations of AHAC have different lengths; it looks at its steps itself
        return
    steps = checkpoint["iteration"] * args.num_envs * args.num_steps
    if args.total_timesteps != default.total_timesteps and args.total_timesteps < steps:
        refuse("total_timesteps", f"expected the {steps} steps of --checkpoint or more, got {args.total_timesteps}")
    if args.num_envs * args.num_steps * checkpoint["iteration"] > LIMITS["total_timesteps"][1]:
        refuse("checkpoint", f"expected a run of {script} of at most {LIMITS['total_timesteps'][1]} steps, got {steps}")


def _check_run(args, default):
    """What is wrong whatever the numbers are."""
    for field in fields(args):
        if getattr(args, field.name) is None and field.name != "checkpoint":
            refuse(field.name, "expected a value, here or in TASK_DEFAULTS of the script, got none")
    if args.checkpoint is None and (reason := wrong_name(args.exp_name)):
        refuse("exp_name", reason)
    if args.eval_only and args.checkpoint is None:
        refuse("eval_only", "expected --checkpoint beside it, the run to evaluate, got none")
    if args.track and not args.eval_only:
        try:
            importlib.import_module("wandb")
        except ImportError:
            refuse("track", "expected the package wandb, which is not installed: pip install wandb")
    for name, (other, value) in NEEDS.items():
        if getattr(args, name, None) != getattr(default, name, None) and getattr(args, other, value) != value:
            flag = f"--{_dashed(other)}" + ("" if value is True else f" {value}")
            refuse(name, f"expected {flag} beside it, without which it has no effect, got {getattr(args, name)} alone")


def wrong_name(name):
    """Why a part of the name of a run folder is none, else None."""
    rule = "at most 100 letters, digits and . _ + = -, without '__', a letter or digit at both ends"
    return None if NAME.fullmatch(name) else f"expected {rule}, got {name!r}"


def _blame(args, default, *names):
    """Of flags that do not go together, the first that was given."""
    return next((name for name in names if getattr(args, name) != getattr(default, name)), names[0])


def _check_sizes(args, default):
    """Numbers that do not go together; the flag that was given is the one that is named."""
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    rollout = f"--num-envs {args.num_envs} x --num-steps {args.num_steps}"
    if args.total_timesteps < args.num_envs * args.num_steps:
        name = _blame(args, default, "total_timesteps", "num_envs", "num_steps")
        expected = f"one rollout, {rollout}, or more"
        if name != "total_timesteps":
            expected = f"a rollout, {rollout}, within --total-timesteps {args.total_timesteps}"
        refuse(name, f"expected {expected}, got {getattr(args, name)}")
    if args.num_envs % num_processes:
        refuse("num_envs", f"expected a multiple of the {num_processes} processes, got {args.num_envs}")
    rows, minibatches = args.num_envs * args.num_steps // num_processes, getattr(args, "num_minibatches", 1)
    if minibatches > rows:
        expected = f"at most {rows}, the steps of a rollout ({rollout})"
        refuse("num_minibatches", f"expected {expected}, got {minibatches}")
    for names in (("horizon_min", "num_steps", "horizon_max"), ("noise_min", "noise_max")):  # AHAC, FastTD3
        values = [getattr(args, name, 0) for name in names if hasattr(args, names[0])]
        if values != sorted(values):
            name = _blame(args, default, names[0], names[-1], *names)
            needed = " <= ".join(f"--{_dashed(name)} {value}" for name, value in zip(names, values))
            refuse(name, f"expected {needed}, got {getattr(args, name)}")
    if hasattr(args, "buffer_size"):  # SAC, FastTD3
        _check_buffer(args, default, num_processes)


def _check_buffer(args, default, num_processes):
    """The same of the scripts with a replay buffer."""
    if args.buffer_size < args.num_envs * args.num_nsteps:
        name = _blame(args, default, "buffer_size", "num_nsteps", "num_envs")
        needed = f"--num-envs {args.num_envs} x --num-nsteps {args.num_nsteps}"
        refuse(name, f"expected {needed} within --buffer-size {args.buffer_size}, got {getattr(args, name)}")
    if args.batch_size % num_processes:
        refuse("batch_size", f"expected a multiple of the {num_processes} processes, got {args.batch_size}")
    if args.learning_starts > args.total_timesteps:
        name = _blame(args, default, "learning_starts", "total_timesteps")
        refuse(name, f"expected --learning-starts within --total-timesteps, got {getattr(args, name)}")


def _check_memory(args):
    """Refuse what cannot fit: a row of observations and actions, before and after a step, is the least that is kept."""
    task, num_processes = envs.task(args.env_id), int(os.environ.get("WORLD_SIZE", 1))
    row = 4 * (2 * task.num_obs + task.num_actions)  # bytes
    rows = {"num_envs": args.num_envs * args.num_steps / num_processes, "num_eval_envs": args.num_eval_envs}
    rows |= {"buffer_size": getattr(args, "buffer_size", 0) / num_processes}
    rows |= {"batch_size": getattr(args, "batch_size", 0) / num_processes}
    memory = _memory(args)
    for name, count in rows.items():
        if count * row > memory:
            needed = f"{count * row / 2**30:,.0f} GiB or more, this machine has {memory / 2**30:,.0f}"
            refuse(name, f"expected fewer, for it needs {needed}, got {getattr(args, name)}")


def _memory(args):
    """Bytes of the device; infinite where the system does not say."""
    if args.cuda and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def explain_failure(kind, error, traceback):
    """In place of sys.excepthook: a full disk and too little memory in one sentence, all else as Python shows it."""
    text = str(error).partition("\n")[0]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f", {error.filename}" if error.filename else ""
        print(f"error: the disk is full ({error.strerror}{where}); the last checkpoint is good", file=sys.stderr)
    elif isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search("allocate .*memory|to allocate", text):
        smaller = "fewer environments (--num-envs, --num-eval-envs) and steps (--num-steps) need less"
        print(f"error: there is not enough memory; {smaller} ({text})", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
