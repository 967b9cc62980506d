"""What was tried to make a step of the critics faster, which is where RPO spends most of its time on a CPU.

    python -m benchmarks.critic_step --output benchmarks/results/critic_step_cpu.csv

Milliseconds per step (forward, backward, clipping, AdamW) on a minibatch of ANYmal's, median; `first_s` is the duration
of the first step, which compiles where something is compiled.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn as nn

import envs
import rpo_continuous as rpo
from benchmarks.provenance import available_cores, read_flags, write_rows

NUM_OBS, MINIBATCH = 49, 1024  # 128 environments x 32 steps in 4 minibatches
POOL = ThreadPoolExecutor(2)
ADAMW = {"lr": 5e-4, "betas": (0.7, 0.95), "weight_decay": 0.01}


@dataclass
class Args:
    repeats: int = 100
    """steps per figure"""
    output: str | None = None
    """write the table to this CSV file as well"""


class BatchedCritic(nn.Module):
    """Both critics in one batched product per layer."""

    def __init__(self, num_obs):
        super().__init__()
        sizes = [num_obs, 400, 200, 100, 1]
        pairs = list(zip(sizes, sizes[1:]))
        self.weights = nn.ParameterList(torch.randn(2, a, b) / a**0.5 for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(2, 1, b) for _, b in pairs)
        self.scales = nn.ParameterList(torch.ones(2, 1, b) for _, b in pairs[:-1])
        self.shifts = nn.ParameterList(torch.zeros(2, 1, b) for _, b in pairs[:-1])

    def forward(self, obs):
        x = obs.expand(2, *obs.shape)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if k < len(self.scales):
                x = nn.functional.silu(nn.functional.layer_norm(x, x.shape[-1:]) * self.scales[k] + self.shifts[k])
        return x.squeeze(-1).T


def in_bfloat16(critic, obs, targets):
    with torch.autocast("cpu", torch.bfloat16):
        return rpo.critic_loss(critic, obs, targets)


def all_at_once(loss):
    """Forward and backward of both critics by all of torch's threads."""
    return lambda critic, obs, targets: loss(critic, obs, targets).backward()


def one_thread_each(critic, obs, targets):
    """Forward and backward of each critic by a thread of its own; they share no weights."""

    def gradients(value):
        (0.5 * rpo.critic_loss(value, obs, targets)).backward()

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        list(POOL.map(gradients, critic.values))  # which waits, and raises what they raise
    finally:
        torch.set_num_threads(num_threads)


def seconds_per_step(critic, gradients, fused, repeats):
    """The median over the repeats, and the first step."""
    obs, targets = torch.randn(MINIBATCH, NUM_OBS), torch.randn(MINIBATCH)
    optimizer = torch.optim.AdamW(critic.parameters(), fused=fused, **ADAMW)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        gradients(critic, obs, targets)
        nn.utils.clip_grad_norm_(critic.parameters(), 0.5, error_if_nonfinite=True)
        optimizer.step()
        times.append(time.perf_counter() - start)
    return median(times[1:]), times[0]


def main():
    args = read_flags(Args)
    variants = {
        "as in the scripts": (rpo.Critic, all_at_once(rpo.critic_loss), True),
        "optimiser not fused": (rpo.Critic, all_at_once(rpo.critic_loss), False),
        "torch.compile": (rpo.Critic, all_at_once(torch.compile(rpo.critic_loss)), True),
        "both critics in one batched product": (BatchedCritic, all_at_once(rpo.critic_loss), True),
        "bfloat16 autocast": (rpo.Critic, all_at_once(in_bfloat16), True),
        "one thread for each critic": (rpo.Critic, one_thread_each, True),
    }
    rows = []
    envs.use_onednn()  # as the scripts do
    for threads in sorted({1, available_cores()}):
        torch.set_num_threads(threads)
        for name, (critic, gradients, fused) in variants.items():
            step, first = seconds_per_step(critic(NUM_OBS), gradients, fused, args.repeats)
            rows.append(
                {"variant": name, "threads": threads, "step_ms": f"{1e3 * step:.2f}", "first_s": f"{first:.2f}"}
            )
            print(rows[-1], flush=True)
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
