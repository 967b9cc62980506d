"""What the hand does with the cube, which the return does not say: most of it is paid for being near the goal.

    python -m benchmarks.hand_successes runs/<run>/checkpoint.pt ... --output benchmarks/results/hand_successes.csv

The evaluation of the scripts, with the policy's noise and without.  `run` is the checkpoint's folder;
`first_angle`, `angle` and `last_angle` are the angle that is left to the goal after the first step, on average over
time, and after the last step, in rad; `near` is the share of time with less than 0.5 rad; `at_goal` the share of
episodes that reached a goal, `goals` their mean number, `goal_reward` the mean reward of the steps that did, or empty.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import envs
from benchmarks.provenance import read_flags, steps_of, write_rows
from envs.checkpoint import load_checkpoint

COLUMNS = """run script seed global_step policy episodes
    return length first_angle angle last_angle near at_goal goals goal_reward""".split()
NEAR = 0.5  # rad


@dataclass
class Args:
    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """checkpoints of runs on hand_reorient"""
    episodes: int = 128
    """episodes, one per environment"""
    seed: int = 1
    """of the evaluation, see envs.evaluate"""
    output: str | None = None
    """write the table to this CSV file as well"""


class Watch:
    """Sums (N,) over the first episodes: what envs.evaluate calls before the first step and after every one."""

    def __init__(self, env):
        self.env, self.first_angle = env, None
        self.angle, self.near, self.last_angle, self.goals, self.goal_reward, self.total = torch.zeros(6, env.num_envs)

    def __call__(self, running, infos):
        if infos:
            self.step(self.running, infos)
        self.running = running  # in the step to come

    def step(self, running, infos):
        angle = self.env._angle_left(infos["final_obs"])  # to the goal of this step
        self.first_angle = angle if self.first_angle is None else self.first_angle
        self.last_angle = torch.where(running, angle, self.last_angle)
        self.angle += angle * running
        self.near += (angle < NEAR) * running
        reward, self.total = infos["episode"]["r"] - self.total, infos["episode"]["r"]
        self.goal_reward += reward * self.env.is_goal_reached(infos["final_obs"]) * running
        self.goals = torch.where(running, infos["successes"].float(), self.goals)


def play(policy, args):
    """The columns from `return` on, of the first episode of every environment."""
    env = envs.make("hand_reorient", num_envs=args.episodes)
    seen = Watch(env)
    returns, lengths = envs.evaluate(env, policy, args.seed, watch=seen)
    env.close()
    means = [x.mean() for x in (returns, lengths, seen.first_angle, seen.angle / lengths, seen.last_angle)]
    means += [seen.near.sum() / lengths.sum(), (seen.goals > 0).float().mean(), seen.goals.mean()]
    reward = seen.goal_reward.sum() / seen.goals.sum()  # 0 / 0 where no goal was reached
    return [f"{value:.4g}" for value in means] + [f"{reward:.4g}" if seen.goals.any() else ""]


def measure(path, args):
    try:
        checkpoint = load_checkpoint(path)
    except ValueError as error:
        envs.refuse("checkpoints", error)
    flags = checkpoint["args"]
    if flags["env_id"] != "hand_reorient":
        raise SystemExit(f"checkpoints: expected runs on hand_reorient, got {path} of {flags['env_id']}")
    for kind in ("stochastic", "deterministic"):
        policy, _ = envs.load_policy(path, deterministic=kind == "deterministic")
        known = (path.parent.name, checkpoint["script"], flags["seed"], steps_of(checkpoint), kind, args.episodes)
        yield dict(zip(COLUMNS, (*known, *play(policy, args)), strict=True))


def main():
    args = read_flags(Args)
    rows = [row for path in args.checkpoints for row in measure(path, args)]
    for row in rows:
        print(row)
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
