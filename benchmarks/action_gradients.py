"""How long the rows of the action gradient are, grad_u R of one action in one environment, and how unequal.

    python -m benchmarks.action_gradients --output benchmarks/results/action_gradients.csv
    python -m benchmarks.action_gradients --checkpoint runs/<run>/checkpoint.pt

Rollouts of rpo_continuous.py with the task's number of environments, by a policy that nothing has trained or by that of
a checkpoint; no networks are updated.  Lengths over all rows of all rollouts, after a warm-up that brings the
environments to different moments of their episodes.
"""

from dataclasses import dataclass
from typing import Literal

import torch

import envs
import rpo_continuous as rpo
from benchmarks.provenance import read_flags, steps_of, write_rows
from envs.checkpoint import load_checkpoint

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
COLUMNS = ("env_id", "global_step", "num_envs", "num_steps", "rows", *QUANTILES)


@dataclass
class Args:
    env_ids: tuple[Literal[envs.ENV_IDS], ...] = ("hopper", "ant", "anymal", "humanoid", "hand_reorient")
    """the tasks"""
    checkpoint: str | None = None
    """a run of rpo_continuous.py whose networks are taken; its task is the only one"""
    num_steps: tuple[int, ...] = (8, 32)
    """lengths of the rollouts"""
    total_steps: int = 128
    """steps of every environment per length, in rollouts"""
    warm_up: int = 192
    """steps before"""
    seed: int = 1
    """of the networks, the noise and the environments"""
    output: str | None = None
    """write the table to this CSV file as well"""


class Rollouts:
    """RPO's environments and networks, which nothing trains here, on a task."""

    def __init__(self, env_id, checkpoint, seed):
        torch.manual_seed(seed)
        self.settings = rpo.Args(env_id=env_id, **rpo.TASK_DEFAULTS[env_id])
        self.env = envs.make(env_id, num_envs=self.settings.num_envs, seed=seed)
        self.env.reset()
        self.actor, self.critic = rpo.Actor(self.env.num_obs, self.env.num_actions), rpo.Critic(self.env.num_obs)
        self.normalizer = rpo.ObsNormalizer(self.env.num_obs)
        for name in ("actor", "critic", "normalizer") if checkpoint else ():
            getattr(self, name).load_state_dict(checkpoint[name])

    def make(self, num_steps):
        """The returns and actions of one; afterwards the normaliser knows its observations, as in the script."""
        self.settings.num_steps = num_steps
        data, returns, us = rpo.rollout(self.env, self.actor, self.critic, self.normalizer, self.settings)
        self.normalizer.update(data["raw_obs"].flatten(0, -2))
        return returns, us


def measure(env_id, checkpoint, args):
    """A row for each length of the rollouts; checkpoint: its content, or None."""
    rollouts = Rollouts(env_id, checkpoint, args.seed)
    with torch.no_grad():
        rollouts.make(args.warm_up)
    for num_steps in args.num_steps:
        repeats = range(args.total_steps // num_steps)
        rows = torch.cat([rpo.action_gradients(*rollouts.make(num_steps)).flatten(0, 1) for _ in repeats])
        lengths = rows.norm(dim=-1)
        # kthvalue instead of quantile, which refuses more than 16 million numbers
        values = [lengths.kthvalue(max(1, round(q * len(lengths)))).values.item() for q in QUANTILES.values()]
        known = (env_id, steps_of(checkpoint), rollouts.env.num_envs, num_steps, len(lengths))
        yield dict(zip(COLUMNS, (*known, *(f"{value:.3g}" for value in values))))
    rollouts.env.close()


def main():
    args, checkpoint = read_flags(Args), None
    if args.checkpoint is not None:
        if args.env_ids != Args.env_ids:
            envs.refuse("env_ids", "expected none beside --checkpoint, whose task it is, got some")
        try:
            checkpoint = load_checkpoint(args.checkpoint, "rpo_continuous.py")
        except ValueError as error:
            envs.refuse("checkpoint", error)
        args.env_ids = (checkpoint["args"]["env_id"],)
    rows = [row for env_id in args.env_ids for row in measure(env_id, checkpoint, args)]
    for row in rows:
        print(row)
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
