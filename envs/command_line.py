"""The command line of the training scripts: flags, those of a resumed run, the task's defaults, and what is refused.

    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__)

Whatever is wrong with a flag is said here, in one sentence that names it, before anything is created; exit code 2.
"""

import math
import os
import sys
from dataclasses import fields

import tyro
import warp as wp

from envs.checkpoint import load_checkpoint

# smallest and largest values by a flag's name; other whole numbers are 1 to 10^9, other numbers 0 or more.  The largest
# are far beyond any use; they catch typing errors
LIMITS = {
    "seed": (0, 2**32 - 1),
    "eval_freq": (0, 10**9),  # 0: only at the end
    "num_eval_envs": (1, 10**6),
    "num_envs": (1, 10**7),
    "total_timesteps": (1, 10**12),
    # 0 until the script computes them
    "batch_size": (0, 10**9),
    "num_iterations": (0, 10**9),
    "gamma": (0.0, 1.0),
    "td_lambda": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "alpha": (1e-12, math.inf),
    "max_grad_norm": (1e-12, math.inf),
    "max_action_grad_norm": (1e-12, math.inf),
}
LEARNING_RATE = (1e-12, 1.0)  # of every flag whose name ends with learning_rate
# flags that shape the state of a run: beside --checkpoint they have to be those of the run
FLAGS_OF_THE_RUN = ("env_id", "exp_name", "num_envs", "num_steps")


def parse_args(Args, task_defaults, script, fixed=(), **limits):
    """The flags as an `Args`, and the checkpoint to continue from or None.

    Args: the script's dataclass of flags.  A flag that is not given takes its value from the checkpoint or, without
    one, from task_defaults[env_id]; else the default in the dataclass.
    task_defaults: {env_id: {name of a flag: value}}, for every task.
    script: the script's __file__; only its own checkpoints are accepted.
    fixed: names of flags that have to be those of the checkpoint, beside FLAGS_OF_THE_RUN.
    limits: (smallest, largest) by the name of a flag of this script, where LIMITS does not fit.
    A wrong flag ends the script, with exit code 2 and a sentence on stderr; so does --help, with exit code 0.
    """
    wp.config.log_level = wp.LOG_WARNING  # no banner, and no line for every kernel module
    args, checkpoint, script = tyro.cli(Args), None, os.path.basename(script)
    default = Args(**{"env_id": args.env_id} | task_defaults[args.env_id])
    if args.checkpoint is not None:
        try:
            checkpoint = load_checkpoint(args.checkpoint, script)
            if unknown := set(checkpoint["args"]) - {field.name for field in fields(Args)}:
                raise ValueError(f"expected flags of {script}, got {', '.join(sorted(unknown))} as well")
            default = Args(**task_defaults[checkpoint["args"]["env_id"]] | checkpoint["args"])
        except ValueError as error:
            refuse("checkpoint", error)
    args = tyro.cli(Args, default=default)
    for name in (*FLAGS_OF_THE_RUN, *fixed) if checkpoint else ():
        if getattr(args, name) != getattr(default, name):
            refuse(name, f"expected {getattr(default, name)}, as in --checkpoint, got {getattr(args, name)}")
    _check_numbers(args, LIMITS | limits)
    _check_run(args)
    return args, checkpoint


def refuse(name, reason):
    """End the script with exit code 2 and a sentence on stderr about the flag `name`, as in the dataclass."""
    print(f"error: --{name.replace('_', '-')}: {reason}", file=sys.stderr)
    sys.exit(2)


def _check_numbers(args, limits):
    for name, value in vars(args).items():
        low, high = limits.get(name, (1, 10**9) if type(value) is int else (0.0, math.inf))
        if name.endswith("learning_rate"):
            low, high = LEARNING_RATE
        if type(value) in (int, float) and not low <= value <= high:  # NaN is outside
            refuse(name, f"expected {low} to {high}, got {value}")


def _check_run(args):
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    if args.total_timesteps < args.num_envs * args.num_steps:
        rollout = f"{args.num_envs} environments x {args.num_steps} steps"
        refuse("total_timesteps", f"expected one rollout ({rollout}) or more, got {args.total_timesteps}")
    if args.num_envs % num_processes:
        refuse("num_envs", f"expected a multiple of the {num_processes} processes, got {args.num_envs}")
    rows = args.num_envs * args.num_steps // num_processes
    if getattr(args, "num_minibatches", 1) > rows:
        refuse("num_minibatches", f"expected at most {rows}, the steps of a rollout, got {args.num_minibatches}")
    if not args.exp_name or "/" in args.exp_name:
        refuse("exp_name", f"expected a name without a slash, got {args.exp_name!r}")
    if args.eval_only and args.checkpoint is None:
        refuse("eval_only", "expected --checkpoint beside it, the run to evaluate, got none")
