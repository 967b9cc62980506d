"""Hoppers that the tests of the environment's interface step."""

import torch

import envs
from envs.hopper import Hopper


def make(num_envs=4, **options):
    env = envs.make("hopper", num_envs=num_envs, **options)
    env.reset()
    return env


def fallen_state(num_envs, *fallen):
    """Upright in the air, except for the environments listed, which lie flat, below the termination height."""
    q, qd = torch.zeros(num_envs, 6), torch.zeros(num_envs, 6)
    q[:, 1] = 0.5
    q[list(fallen), 1], q[list(fallen), 2] = -0.9, 1.5
    return q, qd


class ActionInObservation(Hopper):
    """Hopper with the last action in place of the first three entries of the observation."""

    def observe(self, joint_q, joint_qd, last_action):
        return torch.cat([last_action, joint_q[:, :2], joint_qd], dim=1)

    def is_terminal(self, obs):
        return obs[:, 4] < self.termination_height
