"""How long the rows of the action gradient are, grad_u R of one action in one environment, and how unequal.

    python benchmarks/action_gradients.py --output benchmarks/results/action_gradients.csv
    python benchmarks/action_gradients.py --checkpoint runs/<run>/checkpoint.pt

Rollouts of rpo_continuous.py with the task's number of environments, by a policy that nothing has trained or by that of
a checkpoint; no networks are updated.  Lengths over all rows of all rollouts, after a warm-up that brings the
environments to different moments of their episodes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs  # noqa: E402
import rpo_continuous as rpo  # noqa: E402
from benchmarks.provenance import write_rows  # noqa: E402

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


def measure(env_id, state, args):
    """A row for each length of the rollouts; state: of a checkpoint, or None."""
    torch.manual_seed(args.seed)
    settings = rpo.Args(env_id=env_id, **rpo.TASK_DEFAULTS[env_id])
    env = envs.make(env_id, num_envs=settings.num_envs, seed=args.seed)
    env.reset()
    num_obs, num_actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    networks = {"actor": rpo.Actor(num_obs, num_actions), "critic": rpo.Critic(num_obs)}
    networks["normalizer"] = rpo.ObsNormalizer(num_obs)
    for name, network in networks.items():
        if state is not None:
            network.load_state_dict(state[name])
    settings.num_steps = args.warm_up
    with torch.no_grad():
        rpo.rollout(env, *networks.values(), settings)
    for settings.num_steps in args.num_steps:
        lengths = []
        for _ in range(args.total_steps // settings.num_steps):
            _, returns, us, _ = rpo.rollout(env, *networks.values(), settings)
            lengths.append(rpo.action_gradients(returns, us).norm(dim=-1).flatten())
        lengths = torch.cat(lengths)
        # kthvalue instead of quantile, which refuses more than 16 million numbers
        values = [lengths.kthvalue(max(1, round(q * len(lengths)))).values.item() for q in QUANTILES.values()]
        known = (env_id, state["global_step"] if state else 0, settings.num_envs, settings.num_steps, len(lengths))
        yield dict(zip(COLUMNS, (*known, *(f"{value:.3g}" for value in values))))
    env.close()


def main():
    args, state = tyro.cli(Args), None
    if args.checkpoint:
        state = torch.load(args.checkpoint, weights_only=True)
        args.env_ids = (state["args"]["env_id"],)
    rows = [row for env_id in args.env_ids for row in measure(env_id, state, args)]
    for row in rows:
        print(row)
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
