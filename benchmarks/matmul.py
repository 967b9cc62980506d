"""A step of RPO's critics with float32 products by torch's default and by oneDNN, in turn: envs/matmul.py.

    python -m benchmarks.matmul --output benchmarks/results/matmul_cpu.csv

Every row is one batch on one number of threads: medians in milliseconds, and the median of the ratios of neighbours,
which does not care how fast the machine is at the moment.  It needs a processor on which envs.use_onednn() is on.
"""

import sys
import time
from dataclasses import dataclass
from statistics import median

import torch

import envs
import rpo_continuous as rpo
from benchmarks.provenance import read_flags, write_rows

BATCHES = (("anymal", 49, 1024), ("hopper, 256 environments", 11, 2048), ("hopper, 1,024 environments", 11, 8192))


@dataclass
class Args:
    threads: tuple[int, ...] = (1, 2)
    """numbers of threads"""
    steps: int = 40
    """pairs of steps per row"""
    output: str | None = None
    """write the table to this CSV file as well"""


def measure(num_obs, batch_size, steps):
    """Seconds of `steps` steps with torch's default, and of as many with oneDNN."""
    critic, obs, targets = rpo.Critic(num_obs), torch.randn(batch_size, num_obs), torch.randn(batch_size)
    optimizer, seconds = torch.optim.AdamW(critic.parameters(), lr=1e-4, fused=True), ([], [])
    for step in range(2 * steps + 4):  # the first four warm up
        torch.backends.mkldnn.matmul.fp32_precision = ("none", "bf16")[step % 2]
        since = time.perf_counter()
        loss = rpo.critic_loss(critic, obs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 4:
            seconds[step % 2].append(time.perf_counter() - since)
    return seconds


def main():
    args, rows = read_flags(Args), []
    if envs.use_onednn() == "torch's default":
        sys.exit("expected a processor on which envs.use_onednn() is on, see envs/matmul.py")
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name, num_obs, batch_size in BATCHES:
            default, onednn = measure(num_obs, batch_size, args.steps)
            rows.append({"critics_of": name, "batch_size": batch_size, "threads": threads})
            rows[-1] |= {"default_ms": f"{1e3 * median(default):.2f}", "onednn_ms": f"{1e3 * median(onednn):.2f}"}
            rows[-1]["ratio"] = f"{median(b / a for a, b in zip(default, onednn)):.3f}"
            print(rows[-1])
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
