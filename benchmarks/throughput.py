"""How many environment steps per second: forward, and forward plus backward through 32 steps (env-steps counted once).

    python benchmarks/throughput.py --env-ids hopper --num-envs 1024
    python benchmarks/throughput.py --output benchmarks/results/throughput_cpu.csv

Random actions, float32, medians over `--repeats` rollouts after a warm-up; per task one row for each number of
simulator threads.
"""

import csv
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro
import warp as wp

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402

# parallel environments, as in the RPO paper, which has no cheetah and no cartpole
NUM_ENVS = {
    "hopper": 1024,
    "ant": 128,
    "anymal": 128,
    "humanoid": 64,
    "cheetah": 128,
    "cartpole": 128,
    "hand_reorient": 64,
}


@dataclass
class Args:
    env_ids: tuple[Literal[envs.ENV_IDS], ...] = envs.ENV_IDS
    """the tasks"""
    num_envs: int | None = None
    """parallel environments; default: NUM_ENVS"""
    device: str = "cpu"
    """cpu or cuda"""
    horizon: int = 32
    """steps of a rollout, all of which are differentiated"""
    repeats: int = 7
    """rollouts per figure"""
    output: str | None = None
    """write the table to this CSV file as well"""


def rollout_seconds(env, horizon, backward):
    """The duration of one rollout, with the gradient of all its rewards with respect to all its actions."""
    env.reset()
    actions = [
        (2.0 * torch.rand(env.num_envs, env.num_actions, device=env.device) - 1.0).requires_grad_(backward)
        for _ in range(horizon)
    ]
    synchronize(env.device)
    start = time.perf_counter()
    total = sum(env.step(action)[1].sum() for action in actions)
    if backward:
        torch.autograd.grad(total, actions)
    synchronize(env.device)
    return time.perf_counter() - start


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(args, env_id, num_threads):
    num_envs = args.num_envs or NUM_ENVS[env_id]
    env = envs.make(env_id, num_envs=num_envs, device=args.device, num_threads=num_threads)
    row = {"env_id": env_id, "num_envs": num_envs, "device": args.device}
    row["threads"] = len(env.simulator.slices) if args.device == "cpu" else ""
    for name, backward in (("forward", False), ("forward_backward", True)):
        rollout_seconds(env, args.horizon, backward)
        seconds = median(rollout_seconds(env, args.horizon, backward) for _ in range(args.repeats))
        row[name] = round(num_envs * args.horizon / seconds)
    env.close()
    return row


def main():
    args = tyro.cli(Args)
    wp.config.log_level = wp.LOG_WARNING
    threads = sorted({1, min(os.cpu_count() or 1, torch.get_num_threads())}) if args.device == "cpu" else [None]
    rows = [measure(args, env_id, num_threads) for env_id in args.env_ids for num_threads in threads]
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{x:,}" if isinstance(x, int) else x for x in row.values()) + " |")
    if args.output:
        with open(args.output, "w", newline="") as file:
            file.write(provenance("python " + " ".join(sys.argv), args.device))
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
