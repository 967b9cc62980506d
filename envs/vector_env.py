"""The vectorised environment: step, automatic reset, episode statistics, and where gradients flow.

A subclass describes a task: its robot and `actuate`, `observe`, `reward`, `is_terminal`, `sample_state`,
`rest_state`.  All tensors have one row per environment and live on `device`; everything is float32.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.simulator import Simulator


class VectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` copies of a task that are stepped together, with torch tensors in place of numpy arrays.

    seed: of the environment's own generator; torch's global one is not touched.
    max_episode_steps: time limit of an episode in steps (default: the task's).
    stochastic_reset: False starts every episode in the task's rest state.
    num_threads: of the simulator on the CPU (default: torch's number of threads).
    """

    def __init__(self, num_envs, device="cpu", seed=1, max_episode_steps=None, stochastic_reset=True, num_threads=None):
        _check_positive("num_envs", num_envs)
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.max_episode_steps = type(self).max_episode_steps if max_episode_steps is None else max_episode_steps
        _check_positive("max_episode_steps", self.max_episode_steps)
        self.stochastic_reset = stochastic_reset
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": round(1.0 / self.dt)}
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.num_obs,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.simulator = Simulator(
            *(self.articulation, num_envs, self.dt, self.substeps, self.mass_matrix_interval, self.device, num_threads)
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.joint_q = self.joint_qd = self.last_action = None

    def reset(self, *, seed=None, options=None):
        """Start a new episode everywhere. Returns obs (N, num_obs) and an empty dict; `seed` restarts the generator."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.joint_q, self.joint_qd = self._new_state()
        self.last_action = torch.zeros(self.num_envs, self.num_actions, device=self.device)
        self.episode_return = torch.zeros(self.num_envs, device=self.device)
        self.episode_length = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.diverged = torch.zeros((), dtype=torch.int64, device=self.device)
        return self._observe(), {}

    def step(self, action):
        """Advance every environment by one step of `dt`; those whose episode ends start a new one.

        action (N, num_actions) in [-1, 1]; values outside are clamped and get no gradient.
        Returns obs (N, num_obs), reward (N,), terminated (N,), truncated (N,) and infos:
            final_obs (N, num_obs)   the observation before any reset: the true successor of the last one
            episode {"r", "l"}       undiscounted return and length of the episodes that ended, where _episode is True
            diverged                 how many environments have blown up so far.  Such an environment is terminated with
                                     reward 0 and without a gradient; its final_obs is that of its new episode.
        obs, reward and final_obs are differentiable with respect to the actions and states since the last detach().
        """
        action = self._check_action(action).clamp(-1.0, 1.0)
        joint_q, joint_qd, diverged = self.simulator.step(self.joint_q, self.joint_qd, self.actuate(action))
        new_q, new_qd = self._new_state()
        self.joint_q = torch.where(diverged[:, None], new_q, joint_q)
        self.joint_qd = torch.where(diverged[:, None], new_qd, joint_qd)
        self.last_action = action
        final_obs = self._observe()
        reward = torch.where(diverged, 0.0, self.reward(final_obs, action))
        self.diverged = self.diverged + diverged.sum()

        # no gradient: the end of an episode is a comparison, and its statistics are only reported
        with torch.no_grad():
            episode_return = self.episode_return + reward
            episode_length = self.episode_length + 1
            terminated = self.is_terminal(final_obs) | diverged
            truncated = (episode_length >= self.max_episode_steps) & ~terminated
            done = terminated | truncated
            self.episode_return = episode_return.masked_fill(done, 0.0)
            self.episode_length = episode_length.masked_fill(done, 0)

        # the rows that start anew enter as constants; where() leaves the gradient of the other rows as it is
        self.joint_q = torch.where(done[:, None], new_q, self.joint_q)
        self.joint_qd = torch.where(done[:, None], new_qd, self.joint_qd)
        self.last_action = torch.where(done[:, None], 0.0, self.last_action)
        infos = {
            "final_obs": final_obs,
            "_final_obs": done,
            "episode": {"r": episode_return, "l": episode_length},
            "_episode": done,
            "diverged": self.diverged,
        }
        return self._observe(), reward, terminated, truncated, infos

    def detach(self):
        """Cut the autograd graph at the current state, which does not change. Returns the observation."""
        self._check_started()
        # the next rollout differentiates from here: what led to this state is a constant for it
        self.joint_q, self.joint_qd = self.joint_q.detach(), self.joint_qd.detach()
        self.last_action = self.last_action.detach()
        return self._observe()

    def set_state(self, joint_q, joint_qd):
        """Put every environment into the given state (N, nq), (N, nv), keeping the gradients of these tensors.

        Episode lengths and returns go on. Layout: articulation.py; the quaternion of a free joint has unit length.
        """
        self._check_started()
        self._check_tensor("joint_q", joint_q, self.articulation.num_coords)
        self._check_tensor("joint_qd", joint_qd, self.articulation.num_dofs)
        self.joint_q, self.joint_qd = joint_q, joint_qd

    def state_dict(self):
        """Everything that a bit-exact continuation needs: tensors without gradients."""
        self._check_started()
        return {name: getattr(self, name).detach().clone() for name in self._STATE} | {
            "generator": self.generator.get_state()
        }

    def load_state_dict(self, state):
        if set(state) != {*self._STATE, "generator"}:
            raise ValueError(f"state: expected the keys {[*self._STATE, 'generator']}, got {sorted(state)}")
        if len(state["joint_q"]) != self.num_envs:
            raise ValueError(f"state: expected {self.num_envs} environments, got {len(state['joint_q'])}")
        for name in self._STATE:
            setattr(self, name, state[name].to(self.device).clone())
        self.generator.set_state(state["generator"].cpu())

    _STATE = ("joint_q", "joint_qd", "last_action", "episode_return", "episode_length", "diverged")

    def render(self, index=0):
        """A picture of environment `index` as uint8 (H, W, 3)."""
        raise NotImplementedError("render: pictures are not available yet for this environment")

    def close_extras(self, **kwargs):
        self.simulator.close()

    def uniform(self, width, bound):
        """(N, width) uniform in [-bound, bound], from the environment's own generator."""
        return bound * (2.0 * torch.rand(self.num_envs, width, generator=self.generator, device=self.device) - 1.0)

    def constant(self, row):
        return torch.tensor(row, device=self.device).expand(self.num_envs, -1)

    def _new_state(self):
        """One fresh state per environment, used only where an episode begins: the generator advances the same way
        whichever environments need one, so no environment's future depends on another's fall."""
        return self.sample_state() if self.stochastic_reset else self.rest_state()

    def _observe(self):
        return self.observe(self.joint_q, self.joint_qd, self.last_action)

    def _check_started(self):
        if self.joint_q is None:
            raise RuntimeError("the environment has no state yet: call reset() first")

    def _check_action(self, action):
        self._check_started()
        self._check_tensor("action", action, self.num_actions)
        if action.isnan().any():
            rows = action.isnan().any(dim=1).nonzero().flatten().tolist()
            raise ValueError(f"action: expected numbers, got NaN in environment(s) {str(rows[:8])[1:-1]}")
        return action

    def _check_tensor(self, name, x, width):
        shape = (self.num_envs, width)
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: expected a torch tensor of shape {shape}, got {type(x).__name__}")
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
        if x.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32, got {x.dtype}")
        if x.device.type != self.device.type:
            raise ValueError(f"{name}: expected a tensor on {self.device}, got one on {x.device}")


def _check_positive(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
