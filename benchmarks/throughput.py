"""How many environment steps per second: forward, and forward plus backward through 32 steps (env-steps counted once).

    python -m benchmarks.throughput --env-ids hopper --num-envs 16 256 4096
    python -m benchmarks.throughput --output benchmarks/results/throughput_cpu.csv
    python -m benchmarks.throughput --train --output benchmarks/results/training_cpu.csv
    python -m benchmarks.throughput --train --train-up-to 1024 --iterations 7 --repeats 3 --threads 2 \
        --env-ids hopper ant --num-envs 16 64 256 1024 4096 --output benchmarks/results/scaling_cpu.csv

Random actions, float32, medians over `--repeats` rollouts after a warm-up; per task and number of environments one
row for each number of threads.  With --train, rpo_continuous.py is run as well, with its own defaults: `training` has
its environment steps per second, learning and logging included, `start_s` the seconds from its start to the end of its
first iteration, and the other columns what an iteration of it spends its time on, in milliseconds.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import warp as wp

import envs
from benchmarks.events import read_rows
from benchmarks.provenance import available_cores, read_flags, write_rows
from benchmarks.records import ROOT

# parallel environments, as in the RPO paper, which has no cheetah, no cartpole and no go1
NUM_ENVS = {
    "hopper": 1024,
    "ant": 128,
    "anymal": 128,
    "humanoid": 64,
    "cheetah": 128,
    "cartpole": 128,
    "hand_reorient": 64,
    "go1": 64,
}


@dataclass
class Args:
    env_ids: tuple[Literal[envs.ENV_IDS], ...] = envs.ENV_IDS
    """the tasks"""
    num_envs: tuple[int, ...] = ()
    """numbers of parallel environments; default: the one of NUM_ENVS"""
    device: str = "cpu"
    """cpu or cuda"""
    threads: tuple[int, ...] = ()
    """numbers of threads on the CPU; default: one, and as many as torch uses"""
    horizon: int = 32
    """steps of a rollout, all of which are differentiated"""
    repeats: int = 7
    """rollouts per figure"""
    train: bool = False
    """measure the training as well"""
    train_up_to: int = 10**9
    """the largest number of environments whose training is measured"""
    iterations: int = 10
    """of the training, together with a warm-up of about 128 steps"""
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


def measure(args, env_id, num_envs, num_threads):
    env = envs.make(env_id, num_envs=num_envs, device=args.device, num_threads=num_threads)
    row = {"env_id": env_id, "num_envs": num_envs, "device": args.device}
    row["threads"] = num_threads if env.device.type == "cpu" else ""  # the simulator may make use of fewer
    for name, backward in (("forward", False), ("forward_backward", True)):
        for _ in range(warm_up(args)):
            rollout_seconds(env, args.horizon, backward)
        seconds = median(rollout_seconds(env, args.horizon, backward) for _ in range(args.repeats))
        row[name] = round(num_envs * args.horizon / seconds)
    env.close()
    return row | (measure_training(args, row) if args.train and num_envs <= args.train_up_to else {})


def warm_up(args):
    """Rollouts after which the simulator has made all its buffers."""
    return 1 + 128 // args.horizon


def measure_training(args, row):
    """What an iteration of RPO on the same task, number of environments and threads takes."""
    batch_size = row["num_envs"] * args.horizon
    flags = {"env-id": row["env_id"], "num-envs": row["num_envs"], "num-steps": args.horizon, "num-eval-envs": 1}
    flags["total-timesteps"] = args.iterations * batch_size
    command = [sys.executable, str(ROOT / "rpo_continuous.py"), *(f"--{name}={value}" for name, value in flags.items())]
    device, environment = torch.device(args.device), {"OMP_NUM_THREADS": str(row["threads"])}
    command.append("--cuda" if device.type == "cuda" else "--no-cuda")
    if device.type == "cuda":
        environment = {"LOCAL_RANK": str(device.index)} if device.index is not None else {}
    rows, start = timed_run(command, environment)
    walls, rows = [line["wall_s"] for line in rows[warm_up(args) - 1 :]], rows[warm_up(args) :]
    wall = median(after - before for before, after in zip(walls, walls[1:]))
    times = {name: median(line[f"time/{name}"] for line in rows) for name in ("rollout", "backward", "actor", "critic")}
    # the rollout is the simulator's forward pass, as measured alone, and the policy and the critics in between
    simulator = batch_size / row["forward"]
    parts = {"simulator_forward": simulator, "networks_in_rollout": times.pop("rollout") - simulator, **times}
    parts["rest"] = wall - sum(parts.values())
    milliseconds = {f"{name}_ms": round(1000 * seconds, 1) for name, seconds in parts.items()}
    return {"training": round(batch_size / wall), "start_s": round(start, 1)} | milliseconds


def timed_run(command, environment):
    """The log of a run of RPO, and the seconds from the start of its process to the end of its first iteration."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"cwd": folder, "env": os.environ | environment, "stdout": subprocess.PIPE, "text": True}
        start = time.time()
        with subprocess.Popen(command, **options) as process:
            ends = [time.time() for line in process.stdout if line.startswith("step ")]
        if process.returncode:
            sys.exit(f"{' '.join(command)}: failed with exit code {process.returncode}")
        (run_dir,) = Path(folder).glob("runs/*")
        return read_rows(run_dir), ends[0] - start


def main():
    args = read_flags(Args)
    if args.train and args.iterations < warm_up(args) + 2:
        expected = f"at least {warm_up(args) + 2}, of which {warm_up(args)} are a warm-up"
        envs.refuse("iterations", f"expected {expected}, got {args.iterations}")
    args.device = str(envs.physics.resolve_device(args.device))
    wp.config.log_level = wp.LOG_WARNING
    threads = sorted(set(args.threads) or {1, min(available_cores(), torch.get_num_threads())})
    if args.device != "cpu":
        if args.threads:
            envs.refuse("threads", f"expected none beside --device {args.device}, got {args.threads[0]}")
        threads = [None]
    rows = [
        measure(args, env_id, num_envs, num_threads)
        for env_id in args.env_ids
        for num_envs in args.num_envs or (NUM_ENVS[env_id],)
        for num_threads in threads
    ]
    columns = max(rows, key=len)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{x:,}" if isinstance(x, int | float) else x for x in row.values()) + " |")
    if args.output:
        write_rows(args.output, rows, args.device)


if __name__ == "__main__":
    main()
