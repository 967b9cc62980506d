"""Cut a checkpoint down to its policy, for policies/, and evaluate what is left.

    python -m benchmarks.policy runs/<run>/checkpoint.pt policies/rpo_anymal.pt

What is left, actor, normaliser and flags, can be evaluated and watched like a checkpoint, but not trained further.  A
line in policies/returns.csv says what the policy returns, and which command, commit and steps made it.
"""

import csv
import importlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

import envs
from benchmarks.provenance import current_commit, read_flags, replaced, steps_of
from benchmarks.records import ROOT
from envs.checkpoint import load_checkpoint

POLICIES = ROOT / "policies"
# how far the run is comes along, so that --eval-only can say it; a run that goes on needs more
KEPT = ("actor", "normalizer", "script", "args", "iteration", "process", "rng", "horizon")  # the last of AHAC alone
LEFT_OUT = {"episodes": [], "env": {}, "cuda_rng": []}


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[Path]
    """the checkpoint.pt of a run"""
    output: tyro.conf.Positional[Path]
    """the file to write, a .pt in policies/"""
    commit: str | None = None
    """the commit that the run was made from; default: the one checked out"""


def policy_of(checkpoint):
    """The content of a policy's file, from that of a checkpoint; both are dictionaries."""
    state = {name: checkpoint[name] for name in KEPT if name in checkpoint} | LEFT_OUT
    return state | {"process": [1, "cpu", checkpoint["process"][2]]}


def returns_of(path, num_envs=128):
    """Mean undiscounted returns of the policy in a file, with and without its noise, over one episode each."""
    envs.use_onednn()
    means = []
    for deterministic in (False, True):
        policy, args = envs.load_policy(path, deterministic)
        returns, _ = envs.evaluate(envs.make(args["env_id"], num_envs=num_envs), policy, seed=args["seed"])
        means.append(returns.mean().item())
    return means


def command_of(state):
    """The command that trained it: the task, and the flags that differ from the script's defaults for the task."""
    script, args = importlib.import_module(state["script"].removesuffix(".py")), state["args"]
    of_task = script.TASK_DEFAULTS.get(args["env_id"], script.TASK_DEFAULTS["file"])
    default = asdict(script.Args(**{"env_id": args["env_id"]} | of_task))
    own = ("exp_name", "checkpoint", "env_id", "batch_size", "num_iterations", "capture_video", "eval_freq")
    given = {name: args[name] for name in args if name not in own and args[name] != default[name]}
    words = [f"python {state['script']} --env-id {args['env_id']}"]
    for name, value in given.items():
        flag = name.replace("_", "-")
        words.append(f"--{flag if value else f'no-{flag}'}" if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join(words)


def write_returns(path, state, commit, returns):
    """Replace the policy's line in policies/returns.csv, beside it."""
    table, line = path.parent / "returns.csv", {"file": path.name}
    known = csv.DictReader(table.read_text().splitlines()) if table.exists() else ()
    lines = {row["file"]: row for row in known}
    line |= {"command": command_of(state), "commit": commit, "steps": steps_of(state)}
    line |= {"stochastic": f"{returns[0]:.1f}", "deterministic": f"{returns[1]:.1f}"}
    lines[path.name] = line
    with replaced(table) as file:
        writer = csv.DictWriter(file, line, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[name] for name in sorted(lines))


def main():
    args = read_flags(Args)
    try:
        state = policy_of(load_checkpoint(args.checkpoint))
    except (KeyError, ValueError) as error:
        sys.exit(f"checkpoint: {error}")
    torch.save(state, args.output)
    returns = returns_of(args.output)
    write_returns(args.output, state, args.commit or current_commit(), returns)
    print(f"{args.output}: {args.output.stat().st_size / 1024:.0f} KiB, return {returns[0]:.1f} / {returns[1]:.1f}")


if __name__ == "__main__":
    main()
