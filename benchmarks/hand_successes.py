"""What the hand does with the cube, which the return does not say: most of it is paid for being near the goal.

    python benchmarks/hand_successes.py runs/<run>/checkpoint.pt ... --output benchmarks/results/hand_successes.csv

First episodes of every environment, with the policy's noise and without.  `run` is the checkpoint's folder;
`first_angle`, `angle` and `last_angle` are the angle that is left to the goal after the first step, on average over
time, and after the last step, in rad; `near` is the share of time with less than 0.5 rad; `at_goal` the share of
episodes that reached a goal, `goals` their mean number, `goal_reward` the mean reward of the steps that did, or empty.
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

COLUMNS = """run script seed global_step policy episodes
    return length first_angle angle last_angle near at_goal goals goal_reward""".split()


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
    """The columns from `return` on, of the first episode of every environment."""
    env = envs.make("hand_reorient", num_envs=args.episodes, seed=args.seed)
    torch.manual_seed(args.seed)
    obs, _ = env.reset()
    running = torch.ones(args.episodes, dtype=torch.bool)
    total, length, angles, near, last_angle, goals, goal_rewards = torch.zeros(7, args.episodes)
    first_angle = None
    while running.any():
        mean, log_std = actor(normalizer(obs))
        u = mean if deterministic else mean + log_std.exp() * torch.randn_like(mean)
        obs, reward, terminated, truncated, infos = env.step(torch.tanh(u))
        total += reward * running
        length += running
        angle = env._angle_left(infos["final_obs"])  # to the goal of this step
        first_angle = angle if first_angle is None else first_angle
        last_angle = torch.where(running, angle, last_angle)
        angles += angle * running
        near += (angle < 0.5) * running
        goal_rewards += reward * env.is_goal_reached(infos["final_obs"]) * running
        goals = torch.where(running, infos["successes"].float(), goals)
        running &= ~(terminated | truncated)
    env.close()
    means = [x.mean().item() for x in (total, length, first_angle, angles / length, last_angle)]
    means += [(near.sum() / length.sum()).item(), (goals > 0).float().mean().item(), goals.mean().item()]
    return means, (goal_rewards.sum() / goals.sum()).item() if goals.any() else None


def measure(path, args):
    state = torch.load(path, weights_only=True)
    if state["args"]["env_id"] != "hand_reorient":
        sys.exit(f"checkpoints: expected runs on hand_reorient, got {path} of {state['args']['env_id']}")
    script = importlib.import_module(state["script"].removesuffix(".py"))
    actor, normalizer = script.Actor(72, 16), script.ObsNormalizer(72)
    actor.load_state_dict(state["actor"])
    normalizer.load_state_dict(state["normalizer"])
    for policy in ("stochastic", "deterministic"):
        means, goal_reward = play(actor, normalizer, args, policy == "deterministic")
        known = (path.parent.name, state["script"], state["args"]["seed"], state["global_step"], policy, args.episodes)
        goal_reward = "" if goal_reward is None else f"{goal_reward:.4g}"
        yield dict(zip(COLUMNS, (*known, *(f"{mean:.4g}" for mean in means), goal_reward), strict=True))


def main():
    args = tyro.cli(Args)
    rows = [row for path in args.checkpoints for row in measure(path, args)]
    for row in rows:
        print(row)
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
