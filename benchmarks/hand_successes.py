"""How often the hand brings the cube to its goal, which the return does not say: most of it is paid for coming near.

    python benchmarks/hand_successes.py runs/<run>/checkpoint.pt ... --output benchmarks/results/hand_successes.csv

First episodes of 128 environments, with the policy's noise and without.  `run` is the checkpoint's folder, `angle` the
mean over time of the angle that is left to the goal, in rad; `at_goal` the share of episodes that reached a goal,
`goals` their mean number.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs  # noqa: E402
from benchmarks.provenance import write_rows  # noqa: E402

COLUMNS = "run script seed global_step policy episodes return length angle at_goal goals".split()


@dataclass
class Args:
    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """checkpoints of runs on hand_reorient, of scripts with a tanh-Gaussian policy"""
    episodes: int = 128
    """episodes, one per environment"""
    seed: int = 1_000_001
    """seed of the environments and of the policy's noise"""
    output: str | None = None
    """write the table to this CSV file as well"""


@torch.no_grad()  # an evaluation
def play(actor, normalizer, args, deterministic):
    """Return, length, mean angle and number of goals (episodes,) of the first episode of every environment."""
    env = envs.make("hand_reorient", num_envs=args.episodes, seed=args.seed)
    torch.manual_seed(args.seed)
    obs, _ = env.reset()
    running = torch.ones(args.episodes, dtype=torch.bool)
    total, length, angles, goals = torch.zeros(4, args.episodes)
    while running.any():
        mean, log_std = actor(normalizer(obs))
        u = mean if deterministic else mean + log_std.exp() * torch.randn_like(mean)
        obs, reward, terminated, truncated, infos = env.step(torch.tanh(u))
        total += reward * running
        length += running
        angles += env._angle_left(infos["final_obs"]) * running
        goals = torch.where(running, infos["successes"].float(), goals)
        running &= ~(terminated | truncated)
    env.close()
    return total, length, angles / length, goals


def measure(path, args):
    state = torch.load(path, weights_only=True)
    if state["args"]["env_id"] != "hand_reorient":
        sys.exit(f"checkpoints: expected runs on hand_reorient, got {path} of {state['args']['env_id']}")
    script = importlib.import_module(state["script"].removesuffix(".py"))
    actor, normalizer = script.Actor(72, 16), script.ObsNormalizer(72)
    actor.load_state_dict(state["actor"])
    normalizer.load_state_dict(state["normalizer"])
    for policy in ("stochastic", "deterministic"):
        total, length, angle, goals = play(actor, normalizer, args, policy == "deterministic")
        means = [total.mean(), length.mean(), angle.mean(), (goals > 0).float().mean(), goals.mean()]
        known = (path.parent.name, state["script"], state["args"]["seed"], state["global_step"], policy, args.episodes)
        yield dict(zip(COLUMNS, (*known, *(f"{mean:.4g}" for mean in means))))


def main():
    args = tyro.cli(Args)
    rows = [row for path in args.checkpoints for row in measure(path, args)]
    for row in rows:
        print(row)
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
