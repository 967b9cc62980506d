"""The vectorised environment: step, automatic reset, episode statistics, and where gradients flow.

All tensors have one row per environment and live on the environment's device; numbers are float32.
"""

import math
from functools import wraps

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.physics import (
    FREE,
    Simulator,
    check_numbers,
    check_tensor,
    number_range,
    resolve_device,
    shown,
    truth,
    whole_number,
)
from envs.physics.articulation import NUM_COORDS
from envs.render import Renderer

LARGEST_SEED = 2**64 - 1
RENDER_MODES = ("rgb_array",)


def _of_an_open_environment(method):
    """What holds for every method that reads or changes the state.

    None works after close().  In torch's inference mode they do what they do under no_grad(): tensors that are made in
    it cannot be part of a graph later, and the state has to be.
    """

    @wraps(method)
    def wrapped(self, *args, **options):
        if self.closed:
            raise RuntimeError("the environment is closed: make another")
        grad_mode = torch.is_grad_enabled()  # off in inference mode; inference_mode(False) switches it on
        with torch.inference_mode(False), torch.set_grad_enabled(grad_mode):
            return method(self, *args, **options)

    return wrapped


class VectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` copies of a task that are stepped together, with torch tensors in place of numpy arrays.

    device: "cpu", "cuda" or "cuda:1".
    seed: of the environment's own generator; the global ones of torch, numpy and random are not touched.
    max_episode_steps: time limit of an episode in steps (default: the task's).
    stochastic_reset: False starts every episode in the task's rest state; goals are random all the same.
    randomize: {name: (low, high)}, factors of the robot's own parameters, such as {"friction": (0.5, 1.25)}.  They are
        drawn uniformly, one per environment, where an episode begins; the names are those of set_parameters().
    num_threads: of the simulator, at most one per 16 environments or more (default: torch's number); on the CPU only.
    render_mode: with "rgb_array" render() returns a picture of every environment, as gymnasium's wrappers expect.

    joint_q (N, nq) and joint_qd (N, nv) are the current state, in the layout of physics/articulation.py.
    Wrong arguments raise ValueError or TypeError with the name of the argument, what was expected and what came.
    torch's default dtype and default device do not matter.

    Different environments may be used in different threads at once, one of them in one thread at a time.  In a child
    process after a fork an environment on the CPU goes on from its state at that time.  After close() every method
    below that reads or changes the state raises RuntimeError; a backward pass through earlier steps still works.
    Environments cannot be copied or pickled: state_dict() can, and load_state_dict() continues from it in another one.

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

    def __init__(
        self,
        num_envs,
        device="cpu",
        seed=1,
        max_episode_steps=None,
        stochastic_reset=True,
        randomize=None,
        num_threads=None,
        render_mode=None,
    ):
        self.num_envs = whole_number("num_envs", num_envs)
        self.device = resolve_device(device)
        if max_episode_steps is not None:
            self.max_episode_steps = whole_number("max_episode_steps", max_episode_steps)
        self.stochastic_reset = truth("stochastic_reset", stochastic_reset)
        if render_mode is not None and not (isinstance(render_mode, str) and render_mode in RENDER_MODES):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {shown(render_mode)}")
        self.render_mode = render_mode
        self.generator = torch.Generator(self.device).manual_seed(_seed(seed))
        timing = {"dt": self.dt, "substeps": self.substeps, "mass_matrix_interval": self.mass_matrix_interval}
        self.simulator = Simulator(self.articulation, num_envs, **timing, device=self.device, num_threads=num_threads)
        self.randomize = self._ranges(randomize)
        self._describe_for_gymnasium()
        self.joint_q = self.joint_qd = self.renderer = None
        self.nan_actions = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)  # not yet told of
        # of this step: (N, reset_noise_size), uniform in [-1, 1], and factors {name: (N,)}, see _draw_noise
        self.noise, self.drawn_factors = None, {}
        self.drawn_articulation = self.drawn_articulation or self.articulation

    def _describe_for_gymnasium(self):
        """Spaces of one environment and of all, and metadata."""
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": list(RENDER_MODES)}
        self.metadata["render_fps"] = round(1.0 / self.dt)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.num_obs,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

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

    @_of_an_open_environment
    def reset(self, *, seed=None, options=None):
        """Start a new episode. Returns obs (N, num_obs), without a gradient, and an empty dict.

        seed: restarts the generator.
        options: {"reset_mask": rows (N,) bool, a tensor or an array} leaves the other environments as they are, and
        their observations with their gradients.  Without it the count of diverged environments begins again at 0.
        """
        rows = self._rows_to_reset(options)
        if seed is not None:
            self.generator.manual_seed(_seed(seed))
        self._draw_noise()
        if rows is None:
            for name, value in self._blank_state().items():
                setattr(self, name, value)
            self.nan_actions = torch.zeros_like(self.nan_actions)
            rows = ~self.nan_actions
        return self._begin_episodes(rows), {}

    @_of_an_open_environment
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
        There are no second derivatives: a backward pass with create_graph=True raises RuntimeError.
        Raises RuntimeError before the first reset and after close, ValueError or TypeError for a wrong action.  On CUDA
        the error for NaN in an action comes with the next detach(): until then its environment has diverged.
        """
        has_nan = self._check_step(action)
        self._draw_noise()
        action = action.clamp(-1.0, 1.0).contiguous()  # torch's sums depend on the layout in the last bits
        self.joint_q, self.joint_qd, diverged = self.simulator.step(self.joint_q, self.joint_qd, self.actuate(action))
        self.last_action, diverged = action, diverged | has_nan  # a motor's clamp would turn NaN into its limit
        self._restart(diverged)  # at once: nothing below could be computed from a state that has blown up
        final_obs = self._observe()
        reward = torch.where(diverged, 0.0, self.reward(final_obs, action))
        terminated, truncated, infos = self._end_of_episodes(final_obs, reward, diverged)
        if self.num_goal > 0:
            infos |= self._renew_goals(final_obs, diverged)
        obs = self._obs_after_resets(final_obs, terminated | truncated)
        return obs, reward, terminated, truncated, infos | {"final_obs": final_obs}

    def _obs_after_resets(self, final_obs, done):
        """What the policy sees next (N, num_obs): final_obs, but where an episode ended the first of a new one."""
        if self.num_goal > 0 or self._possibly_any(done):
            return self._begin_episodes(done)
        return final_obs

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

    def _begin_episodes(self, rows):
        self._restart(rows)
        self.episode_return = self.episode_return.masked_fill(rows, 0.0)
        self.episode_length = self.episode_length.masked_fill(rows, 0)
        if self.num_goal > 0:
            self.successes = self.successes.masked_fill(rows, 0)
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
        if self.randomize:
            known = {name: self.parameters.get(name, drawn) for name, drawn in self.drawn_factors.items()}
            new = {name: torch.where(rows[:, None], drawn, known[name]) for name, drawn in self.drawn_factors.items()}
            self.simulator.set_parameters(new)

    def _possibly_any(self, rows):
        """Whether some row is True. On CUDA the answer is always yes: asking would make the host wait for the GPU."""
        return rows.is_cuda or bool(rows.any())

    @_of_an_open_environment
    def detach(self):
        """Cut the autograd graph at the current state, which does not change. Returns the observation."""
        self._check_has_state()
        self._refuse_nan_actions()
        # the next rollout differentiates from here: what led to this state is a constant for it
        self.joint_q, self.joint_qd = self.joint_q.detach(), self.joint_qd.detach()
        self.last_action = self.last_action.detach()
        return self._observe()

    @_of_an_open_environment
    def set_state(self, joint_q, joint_qd):
        """Put the environments into copies of the given state (N, nq), (N, nv), keeping the gradients of these tensors.

        Episode lengths and returns go on, and last_action stays that of the step before.  The layout is that of
        physics/articulation.py; the quaternion of a free joint has unit length.
        """
        self._check_has_state()
        for name, value in (("joint_q", joint_q), ("joint_qd", joint_qd)):
            check_tensor(name, value, self.simulator.shapes[name], device=self.device)
            check_numbers(name, value)
        self._check_orientations("joint_q", joint_q)
        self.joint_q, self.joint_qd = (x.clone(memory_format=torch.contiguous_format) for x in (joint_q, joint_qd))

    @_of_an_open_environment
    def set_parameters(self, *, friction=None, mass_scale=None, motor_strength=None, stiffness=None, damping=None):
        """Multiply the robot's own parameters by these factors, >= 0, from the next step on: 1 leaves them as they are.

        Each is one number per environment, (N,), or for mass_scale one per link (N, num_links), for the last three one
        per degree of freedom (N, nv); what they act on is in physics/parameters.py.  None changes nothing.
        They hold until they are set again or, if they are in `randomize`, until the next episode; such a factor may not
        require a gradient.

        Copies are made, which keep the gradients of the given tensors: what follows is differentiable with respect to
        them.  A backward pass frees the graph before them, so set factors that are computed from others once per pass.
        """
        given = {"friction": friction, "mass_scale": mass_scale, "motor_strength": motor_strength}
        given |= {"stiffness": stiffness, "damping": damping}
        for name, factor in given.items():
            if name in self.randomize and isinstance(factor, torch.Tensor) and factor.requires_grad:
                expected = "a factor without a gradient, as randomize draws it anew for every episode"
                raise ValueError(f"{name}: expected {expected}, got one that requires a gradient")
        check = self.simulator.parameters.check
        self.simulator.set_parameters({name: check(name, x) for name, x in given.items() if x is not None})

    @property
    def parameters(self):
        """The factors that have been set or drawn, {name: (N, k)}: see set_parameters()."""
        return self.simulator.parameters.factors

    def at_origin(self, joint_q, joint_qd):
        """The states (N, nq), (N, nv) with a floating robot moved along the ground to x = z = 0; others as they are.

        It moves there as it does anywhere.  But its twist is taken about the world origin, so that a derivative with
        respect to the coordinates grows with the distance from there: compare derivatives of states at the origin.
        """
        for name, value in (("joint_q", joint_q), ("joint_qd", joint_qd)):
            check_tensor(name, value, self.simulator.shapes[name], device=self.device)
        if not self.articulation.floats:
            return joint_q, joint_qd
        # about the point c on the ground below the root:  p' = p - c,  v' = v + w x c
        position, rest = joint_q.split([3, joint_q.shape[1] - 3], dim=1)
        angular, linear, rates = joint_qd.split([3, 3, joint_qd.shape[1] - 6], dim=1)
        x, height, z = position.unbind(dim=1)
        place = torch.stack([x, torch.zeros_like(height), z], dim=1)
        moved = [angular, linear + torch.linalg.cross(angular, place), rates]
        return torch.cat([position - place, rest], dim=1), torch.cat(moved, dim=1)

    @_of_an_open_environment
    def state_dict(self):
        """Everything that a bit-exact continuation needs, as tensors without gradients."""
        self._check_has_state()
        state = {name: getattr(self, name).detach().clone() for name in self._blank_state()}
        state |= {name: factor.detach().clone() for name, factor in self.parameters.items()}
        return state | {"generator": self.generator.get_state()}

    @_of_an_open_environment
    def load_state_dict(self, state):
        """Continue from a state_dict() of the same task, number of environments and kind of device."""
        expected, factors = self._blank_state(), self._own_parameters(state)
        self._check_state_dict(state, expected | factors)
        self.generator.set_state(state["generator"].cpu())
        copies = {
            name: state[name].detach().to(self.device).clone(memory_format=torch.contiguous_format)
            for name in expected | factors
        }
        for name in expected:
            setattr(self, name, copies[name])
        if factors or self.parameters:
            own = {name: torch.ones_like(factor) for name, factor in self.parameters.items()}
            self.simulator.set_parameters(own | {name: copies[name] for name in factors})

    @_of_an_open_environment
    def render(self, index=None):
        """A picture of environment `index` in its current state, uint8 (240, 320, 3) numpy, without a display.

        Without an index: of environment 0 or, with render_mode "rgb_array", of every environment, as a tuple.
        """
        self._check_has_state()
        if index is None and self.render_mode is not None:
            return tuple(self._draw(k) for k in range(self.num_envs))
        return self._draw(0 if index is None else whole_number("index", index, at_least=0, at_most=self.num_envs - 1))

    def close_extras(self):
        self.simulator.close()

    @property
    def np_random(self):
        raise AttributeError("np_random: expected env.generator, a generator of torch and not of numpy")

    @property
    def np_random_seed(self):
        """The last seed of the environment's own generator."""
        return self.generator.initial_seed()

    def __reduce_ex__(self, protocol):
        raise TypeError("an environment cannot be copied or pickled: make another and give it this one's state_dict()")

    def zeros(self, *shape):
        """Of environments: float32 (N, *shape) on their device."""
        return torch.zeros(self.num_envs, *shape, dtype=torch.float32, device=self.device)

    def constant(self, values):
        """Numbers as a float32 tensor on the environments' device; for __init__, because the host waits for a GPU."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _blank_state(self):
        """What state_dict() holds beside the generator, all 0."""
        state = {
            "joint_q": self.zeros(self.articulation.num_coords),
            "joint_qd": self.zeros(self.articulation.num_dofs),
            "last_action": self.zeros(self.num_actions),
            "episode_return": self.zeros(),
            "episode_length": torch.zeros(self.num_envs, dtype=torch.int64, device=self.device),
            "diverged": torch.zeros((), dtype=torch.int64, device=self.device),
        }
        if self.num_goal > 0:
            state |= {"goal": self.zeros(self.num_goal), "successes": torch.zeros_like(state["episode_length"])}
        return state

    def _own_parameters(self, state):
        """Of the factors that a state has or, in an environment like this one, must have: all 1."""
        sizes = self.simulator.parameters.sizes
        names = [name for name in sizes if name in self.randomize or isinstance(state, dict) and name in state]
        return {name: self.zeros(sizes[name]) + 1.0 for name in names}

    def _draw(self, index):
        if self.renderer is None:
            view = {"look_at_height": self.camera_height, "distance": self.camera_distance}
            self.renderer = Renderer(self.drawn_articulation, self.device, **view)
        return self.renderer.draw(self.drawn_joint_q(index))

    def _draw_noise(self):
        """What every environment would start from if an episode, or a goal, began in this step."""
        # drawn for all of them at every step: no environment's future may depend on which others fell
        shape = (self.num_envs, self.reset_noise_size)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float32, device=self.device)
        self.noise = 2.0 * uniform - 1.0
        for name, (low, high) in self.randomize.items():
            uniform = torch.rand((self.num_envs, 1), generator=self.generator, dtype=torch.float32, device=self.device)
            drawn = low + (high - low) * uniform
            self.drawn_factors[name] = drawn.repeat(1, self.simulator.parameters.sizes[name])

    def _initial_state(self):
        return self.sample_state(self.noise) if self.stochastic_reset else self.rest_state()

    def _observe(self):
        return self.observe(self.joint_q, self.joint_qd, self.last_action)

    def _check_has_state(self):
        if self.joint_q is None:
            raise RuntimeError("the environment has no state yet: call reset() first")

    def _ranges(self, randomize):
        """The argument `randomize` as {name: (low, high)}."""
        if randomize is not None and not isinstance(randomize, dict):
            expected = "randomize: expected None or a dict like {'friction': (0.5, 1.25)}"
            raise ValueError(f"{expected}, got {shown(randomize)}")
        names, ranges = self.simulator.parameters.sizes, {}
        for name, bounds in (randomize or {}).items():
            if not isinstance(name, str) or name not in names:
                expected = f"randomize: expected names among {', '.join(names)} for this robot"
                raise ValueError(f"{expected}, got {shown(name)}")
            ranges[name] = number_range(f"randomize[{name!r}]", bounds)
        return ranges

    def _rows_to_reset(self, options):
        """The mask (N,) in the options of reset(), or None for all environments."""
        if options is None:
            return None
        if not isinstance(options, dict) or not set(options) <= {"reset_mask"}:
            got = list(options) if isinstance(options, dict) else type(options).__name__
            raise ValueError(f"options: expected a dict with nothing but reset_mask, got {shown(got)}")
        if not options:
            return None
        self._check_has_state()
        rows = options["reset_mask"]
        if isinstance(rows, np.ndarray) and rows.dtype == np.bool_:
            rows = torch.from_numpy(rows.copy()).to(self.device)
        check_tensor("reset_mask", rows, (self.num_envs,), torch.bool, self.device)
        if not rows.any():
            raise ValueError("reset_mask: expected True for at least one environment, got False for all")
        return rows

    def _check_state_dict(self, state, expected):
        keys = [*expected, "generator"]
        if not isinstance(state, dict) or set(state) != set(keys):
            got = list(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"state: expected a dict with the keys {keys}, got {shown(got)}")
        for name, like in expected.items():
            try:  # it may come from another device
                check_tensor(f"state[{name!r}] of {self.num_envs} environments", state[name], like.shape, like.dtype)
            except TypeError as error:  # of the content of an argument that has the right type
                raise ValueError(*error.args) from error
            any_sign = like.is_floating_point() and name not in self.simulator.parameters.sizes
            check_numbers(f"state[{name!r}]", state[name], at_least=-math.inf if any_sign else 0)
        self._check_orientations("state['joint_q']", state["joint_q"])
        try:
            torch.Generator(self.device).set_state(state["generator"].cpu())
        except (AttributeError, RuntimeError, TypeError) as error:
            expected = f"that of a generator on {self.device.type}"
            raise ValueError(f"state['generator']: expected {expected}, got another kind of device") from error

    def _check_orientations(self, name, joint_q):
        """Refuse quaternions of free joints that are no orientations; small steps of a finite difference may pass."""
        links = self.articulation.links
        ends = np.cumsum([NUM_COORDS[link.joint] for link in links])
        for end in (end for end, link in zip(ends, links) if link.joint == FREE):
            bad = (joint_q[:, end - 4 : end].norm(dim=1) - 1.0).abs() > 0.1
            if bad.any():
                expected = f"quaternions of length 1 in coordinates {end - 4} to {end - 1}"
                rows = str(bad.nonzero().flatten().tolist()[:8])[1:-1]
                raise ValueError(f"{name}: expected {expected}, got others in environment(s) {rows}")

    def _check_step(self, action):
        """Before a step: that there is a state, and what is wrong with the action. Returns the rows with NaN (N,)."""
        self._check_has_state()
        check_tensor("action", action, (self.num_envs, self.num_actions), device=self.device)
        has_nan = action.isnan().any(dim=1)
        self.nan_actions = self.nan_actions | has_nan
        if not action.is_cuda:  # there the host would wait for the GPU at every step
            self._refuse_nan_actions()
        return has_nan

    def _refuse_nan_actions(self):
        if self.nan_actions.any():
            rows = self.nan_actions.nonzero().flatten().tolist()
            self.nan_actions = torch.zeros_like(self.nan_actions)
            raise ValueError(f"action: expected numbers, got NaN in environment(s) {str(rows[:8])[1:-1]}")


def _seed(value):
    return whole_number("seed", value, at_least=0, at_most=LARGEST_SEED)
