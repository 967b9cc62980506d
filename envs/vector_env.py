"""The vectorised environment: step, automatic reset, episode statistics, and where gradients flow.

All tensors have one row per environment and live on the environment's device; numbers are float32.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.physics import Simulator, resolve_device, whole_number
from envs.render import Renderer


class VectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` copies of a task that are stepped together, with torch tensors in place of numpy arrays.

    device: "cpu", "cuda" or "cuda:1".
    seed: of the environment's own generator; the global ones of torch, numpy and random are not touched.
    max_episode_steps: time limit of an episode in steps (default: the task's).
    stochastic_reset: False starts every episode in the task's rest state; goals are random all the same.
    num_threads: of the simulator, at most one per 16 environments (default: torch's number of them); on the CPU only.

    joint_q (N, nq) and joint_qd (N, nv) are the current state, in the layout of physics/articulation.py.
    Wrong arguments raise ValueError or TypeError with the name of the argument, what was expected and what came.

    A task is a subclass with the class attributes below and the six methods that follow __init__.  One with a goal that
    changes during an episode sets num_goal and defines two more, is_goal_reached and sample_goal.  Its observe finds
    the current goal in self.goal (N, num_goal); for gradients that is a constant.
    """

    articulation = None
    drawn_articulation = None  # what pictures show (default: the articulation)
    num_obs = num_actions = None
    dt = substeps = mass_matrix_interval = None  # s; substeps per step; substeps between rebuilds of the mass matrix
    max_episode_steps = None
    reset_noise_size = None  # random numbers that make one initial state, and one goal
    num_goal = 0  # numbers that describe a goal; 0 for a task without one
    camera_distance, camera_height = 3.5, 0.6  # m; the height is that of the point in the middle of the picture

    _STATE = ("joint_q", "joint_qd", "last_action", "episode_return", "episode_length", "diverged")

    def __init__(self, num_envs, device="cpu", seed=1, max_episode_steps=None, stochastic_reset=True, num_threads=None):
        self.num_envs = whole_number("num_envs", num_envs)
        self.device = resolve_device(device)
        if max_episode_steps is not None:
            self.max_episode_steps = whole_number("max_episode_steps", max_episode_steps)
        self.stochastic_reset = stochastic_reset
        fps = round(1.0 / self.dt)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"], "render_fps": fps}
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.num_obs,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generator = torch.Generator(self.device).manual_seed(whole_number("seed", seed, at_least=0))
        timing = {"dt": self.dt, "substeps": self.substeps, "mass_matrix_interval": self.mass_matrix_interval}
        self.simulator = Simulator(self.articulation, num_envs, **timing, device=self.device, num_threads=num_threads)
        self.joint_q = self.joint_qd = self.renderer = None
        self.noise = None  # of this step: (N, reset_noise_size), uniform in [-1, 1], see _draw_noise
        self.drawn_articulation = self.drawn_articulation or self.articulation
        self.state_names = self._STATE + (("goal", "successes") if self.num_goal > 0 else ())

    def actuate(self, action):
        """Joint forces and torques (N, nv) of an action (N, num_actions) in [-1, 1]."""
        raise NotImplementedError

    def observe(self, joint_q, joint_qd, last_action):
        """Observation (N, num_obs) of a state; last_action (N, num_actions) is 0 at the start of an episode."""
        raise NotImplementedError

    def reward(self, obs, action):
        """Reward (N,) of the observation after a step and the clamped action of that step."""
        raise NotImplementedError

    def is_terminal(self, obs):
        """Whether the task has ended (N,) bool."""
        raise NotImplementedError

    def sample_state(self, noise):
        """A random initial state, (N, nq) and (N, nv), from noise (N, reset_noise_size) uniform in [-1, 1]."""
        raise NotImplementedError

    def rest_state(self):
        """The initial state without noise, (N, nq) and (N, nv)."""
        raise NotImplementedError

    def is_goal_reached(self, obs):
        """Whether the observation after a step shows success (N,) bool."""
        raise NotImplementedError

    def sample_goal(self, noise):
        """A random goal (N, num_goal), from the noise of sample_state."""
        raise NotImplementedError

    def drawn_joint_q(self, index):
        """Coordinates (nq,) of the drawn articulation in environment `index`."""
        return self.joint_q[index]

    def reset(self, *, seed=None, options=None):
        """Start a new episode everywhere. Returns obs (N, num_obs), without a gradient, and an empty dict.

        seed restarts the generator; there are no options. The count of diverged environments begins again at 0.
        """
        if seed is not None:
            self.generator.manual_seed(whole_number("seed", seed, at_least=0))
        self._draw_noise()
        self.joint_q, self.joint_qd = self._initial_state()
        if self.num_goal > 0:
            self.goal = self.sample_goal(self.noise)
            self.successes = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.last_action = torch.zeros(self.num_envs, self.num_actions, device=self.device)
        self.episode_return = torch.zeros(self.num_envs, device=self.device)
        self.episode_length = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.diverged = torch.zeros((), dtype=torch.int64, device=self.device)
        self.nan_actions = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self._observe(), {}

    def step(self, action):
        """Advance every environment by one step of `dt`; those whose episode ends start a new one.

        action (N, num_actions) in [-1, 1]; values outside, also infinite ones, are clamped and get no gradient.
        Returns obs (N, num_obs), reward (N,), terminated (N,), truncated (N,) and infos:
            final_obs (N, num_obs)   the observation before any reset: the true successor of the last one
            episode {"r", "l"}       undiscounted return and length of the episode so far; final where _episode is True
            _episode, _final_obs     (N,) where an episode ended
            successes                (N,) goals reached so far, if a task has goals; final_obs shows that of this step
            diverged                 how many have blown up since reset(), not finite or beyond 1e6: terminated, with
                                     reward 0, without a gradient, and with the final_obs of the new episode
        These tensors may be the environment's own: do not modify them in place.
        obs, reward and final_obs are differentiable with respect to the actions and states since the last detach().
        Raises RuntimeError before the first reset and after close, ValueError or TypeError for a wrong action.  On CUDA
        the error for NaN in an action comes with the next detach(): until then its environment has diverged.
        """
        self._check_usable()
        self._check_action(action)
        self._draw_noise()
        action = action.clamp(-1.0, 1.0)
        self.joint_q, self.joint_qd, diverged = self.simulator.step(self.joint_q, self.joint_qd, self.actuate(action))
        self.last_action = action
        self._restart(diverged)  # at once: nothing below could be computed from a state that has blown up
        final_obs = self._observe()
        reward = torch.where(diverged, 0.0, self.reward(final_obs, action))
        terminated, truncated, infos = self._end_of_episodes(final_obs, reward, diverged)
        if self.num_goal > 0:
            infos |= self._renew_goals(final_obs, diverged)
        obs = self._begin_episodes(terminated | truncated, final_obs)
        return obs, reward, terminated, truncated, infos | {"final_obs": final_obs}

    @torch.no_grad()  # the end of an episode is a comparison, and its statistics are only reported
    def _end_of_episodes(self, final_obs, reward, diverged):
        self.episode_return = self.episode_return + reward
        self.episode_length = self.episode_length + 1
        self.diverged = self.diverged + diverged.sum()
        terminated = self.is_terminal(final_obs) | diverged
        truncated = (self.episode_length >= self.max_episode_steps) & ~terminated
        done = terminated | truncated
        episode = {"r": self.episode_return, "l": self.episode_length}
        infos = {"episode": episode, "_episode": done, "_final_obs": done, "diverged": self.diverged}
        return terminated, truncated, infos

    @torch.no_grad()
    def _renew_goals(self, final_obs, diverged):
        reached = self.is_goal_reached(final_obs) & ~diverged
        self.successes = self.successes + reached
        self.goal = torch.where(reached[:, None], self.sample_goal(self.noise), self.goal)
        return {"successes": self.successes}

    def _begin_episodes(self, done, final_obs):
        if self.num_goal == 0 and not self._possibly_any(done):
            return final_obs
        self._restart(done)
        self.episode_return = self.episode_return.masked_fill(done, 0.0)
        self.episode_length = self.episode_length.masked_fill(done, 0)
        if self.num_goal > 0:
            self.successes = self.successes.masked_fill(done, 0)
        return self._observe()

    def _restart(self, rows):
        """Put the environments of these rows into new states; the same ones again if it is called twice in a step."""
        if not self._possibly_any(rows):
            return
        joint_q, joint_qd = self._initial_state()
        # the rows that start anew enter as constants; where() leaves the gradient of the other rows as it is
        self.joint_q = torch.where(rows[:, None], joint_q, self.joint_q)
        self.joint_qd = torch.where(rows[:, None], joint_qd, self.joint_qd)
        self.last_action = torch.where(rows[:, None], 0.0, self.last_action)
        if self.num_goal > 0:
            self.goal = torch.where(rows[:, None], self.sample_goal(self.noise), self.goal)

    def _possibly_any(self, rows):
        """Whether some row is True. On CUDA the answer is always yes: asking would make the host wait for the GPU."""
        return rows.is_cuda or bool(rows.any())

    def detach(self):
        """Cut the autograd graph at the current state, which does not change. Returns the observation."""
        self._check_usable()
        self._refuse_nan_actions()
        # the next rollout differentiates from here: what led to this state is a constant for it
        self.joint_q, self.joint_qd = self.joint_q.detach(), self.joint_qd.detach()
        self.last_action = self.last_action.detach()
        return self._observe()

    def set_state(self, joint_q, joint_qd):
        """Put the environments into copies of the given state (N, nq), (N, nv), keeping the gradients of these tensors.

        Episode lengths and returns go on, and last_action stays that of the step before.  The layout is that of
        physics/articulation.py; the quaternion of a free joint has unit length.
        """
        self._check_usable()
        self._check_tensor("joint_q", joint_q, self.articulation.num_coords)
        self._check_tensor("joint_qd", joint_qd, self.articulation.num_dofs)
        self.joint_q, self.joint_qd = joint_q.clone(), joint_qd.clone()

    def state_dict(self):
        """Everything that a bit-exact continuation needs, as tensors without gradients."""
        self._check_usable()
        state = {name: getattr(self, name).detach().clone() for name in self.state_names}
        return state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        """Continue from a state_dict() of the same task, number of environments and kind of device."""
        if self.joint_q is None:
            self.reset()
        if set(state) != {*self.state_names, "generator"}:
            raise ValueError(f"state: expected the keys {[*self.state_names, 'generator']}, got {sorted(state)}")
        for name in self.state_names:
            ours, theirs = getattr(self, name), state[name]
            if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
                expected, got = (f"{tuple(x.shape)} {x.dtype}" for x in (ours, theirs))
                raise ValueError(f"state: expected {name} of {self.num_envs} environments, {expected}, got {got}")
        if state["generator"].shape != self.generator.get_state().shape:
            raise ValueError(f"state: expected a generator on {self.device.type}, got that of another kind of device")
        self.generator.set_state(state["generator"].cpu())
        for name in self.state_names:
            setattr(self, name, state[name].to(self.device, copy=True))

    def render(self, index=0):
        """A picture of environment `index` in its current state, uint8 (240, 320, 3) numpy, without a display."""
        self._check_usable()
        if whole_number("index", index, at_least=0) >= self.num_envs:
            raise ValueError(f"index: expected a whole number below {self.num_envs}, got {index}")
        if self.renderer is None:
            view = {"look_at_height": self.camera_height, "distance": self.camera_distance}
            self.renderer = Renderer(self.drawn_articulation, self.device, **view)
        return self.renderer.draw(self.drawn_joint_q(index))

    def close_extras(self, **kwargs):
        self.simulator.close()

    def _draw_noise(self):
        """What every environment would start from if an episode, or a goal, began in this step."""
        # drawn for all of them at every step: no environment's future may depend on which others fell
        shape = (self.num_envs, self.reset_noise_size)
        self.noise = 2.0 * torch.rand(shape, generator=self.generator, device=self.device) - 1.0

    def _initial_state(self):
        return self.sample_state(self.noise) if self.stochastic_reset else self.rest_state()

    def _observe(self):
        return self.observe(self.joint_q, self.joint_qd, self.last_action)

    def _check_usable(self):
        if self.closed:
            raise RuntimeError("the environment is closed")
        if self.joint_q is None:
            raise RuntimeError("the environment has no state yet: call reset() first")

    def _check_action(self, action):
        self._check_tensor("action", action, self.num_actions)
        self.nan_actions = self.nan_actions | action.isnan().any(dim=1)
        if not action.is_cuda:  # there the host would wait for the GPU at every step
            self._refuse_nan_actions()

    def _refuse_nan_actions(self):
        if self.nan_actions.any():
            rows = self.nan_actions.nonzero().flatten().tolist()
            self.nan_actions = torch.zeros_like(self.nan_actions)
            raise ValueError(f"action: expected numbers, got NaN in environment(s) {str(rows[:8])[1:-1]}")

    def _check_tensor(self, name, x, width):
        shape = (self.num_envs, width)
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: expected a torch tensor of shape {shape}, got {type(x).__name__}")
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
        if x.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"{name}: expected a tensor on {self.device}, got one on {x.device}")
