"""Soft Actor-Critic (SAC) with n-step returns, arXiv 1801.01290, as run by the RPO paper. Docs: docs/sac.md

The off-policy baseline: it needs no derivative of the simulator and uses a step many times.  Every step goes into a
replay buffer; a learned Q(s, a) of the soft return is drawn towards rewards of n steps from there plus the value of a
slowly moving copy of itself, and the policy follows the gradient of Q with respect to the action.

    paper            code             meaning
    s, a, r          obs, action      normalised observation, action = tanh(u) with u ~ N(mean, std^2), reward
    D                replay           the last buffer_size steps, with the true successor of each
    Q_theta_i        critic           two of them; the smaller one counts
    Q_theta_i bar    target_critic    the copies: Qbar <- (1 - tau) Qbar + tau Q after every update
    alpha, H bar     alpha            price of entropy, and the target -A/2 that it adapts to
    y                targets          sum of gamma^i r over at most n steps, plus gamma^k times the soft value there

Try:     python sac_continuous.py --env-id hopper --total-timesteps 500000 --capture-video
Train:   python sac_continuous.py --env-id hopper --total-timesteps 1001472
         return 1,730, and 2,520 with the deterministic policy (one seed); it is still changing a lot
Resume:  python sac_continuous.py --checkpoint runs/<run>/checkpoint.pt
Share:   torchrun --nproc-per-node 2 sac_continuous.py ... divides the environments among two processes, or GPUs
"""

import contextlib
import copy
import csv
import math
import os
import random
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import tyro
import warp as wp
from PIL import Image
from torch.nn.functional import softplus
from torch.utils.tensorboard import SummaryWriter

import envs


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the networks, the noise and the environments"""
    torch_deterministic: bool = True
    """ask cuDNN for deterministic algorithms"""
    cuda: bool = True
    """use a GPU if there is one"""
    track: bool = False
    """log to Weights and Biases as well (needs the wandb package)"""
    wandb_project_name: str = "cleanRL"
    """the wandb project"""
    wandb_entity: str | None = None
    """the wandb team"""
    compile: bool = False
    """fuse the operations of the losses with torch.compile; needs a C++ compiler and a longer first iteration"""
    cudagraphs: bool = False
    """--compile with mode reduce-overhead: the fused operations as CUDA graphs; not yet run on a GPU"""
    save_model: bool = False
    """write the actor and the observation normaliser to runs/{run_name}/{exp_name}.cleanrl_model at the end"""
    capture_video: bool = False
    """write a video of one deterministic episode to the run folder at every evaluation, the final one included"""
    checkpoint: str | None = None
    """continue the run of this checkpoint.pt; flags given beside it override the saved ones"""
    checkpoint_freq: int = 200
    """iterations between checkpoints, which hold the replay buffer"""
    eval_only: bool = False
    """evaluate the policy of --checkpoint and stop"""
    eval_freq: int = 0
    """iterations between evaluations; 0 evaluates at the end only"""
    num_eval_envs: int = 128
    """episodes per evaluation, one per environment"""

    # Algorithm specific arguments
    env_id: Literal[envs.ENV_IDS] = "hopper"
    """the task"""
    total_timesteps: int | None = None
    """environment steps over all environments, rounded down to whole rollouts; default: the task's"""
    num_envs: int | None = None
    """N, parallel environments; default: the task's"""
    num_steps: int = 32
    """steps of every environment between updates"""
    learning_starts: int = 4096
    """environment steps with uniformly random actions before the first update"""
    buffer_size: int = 1_000_000
    """steps in the replay buffer, over all environments"""
    num_updates: int | None = None
    """updates after every num_steps steps; default: the task's"""
    batch_size: int | None = None
    """steps drawn from the buffer for one update; default: the task's"""
    num_nsteps: int | None = None
    """n, longest sum of rewards in a target; default: the task's"""
    learning_rate: float | None = None
    """of the actor; default: the task's"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    gamma: float = 0.99
    """discount factor"""
    tau: float | None = None
    """share of the critics that the target critics take over at every update; default: the task's"""
    autotune: bool = True
    """adapt alpha to keep the entropy near -A/2; --no-autotune keeps it fixed"""
    alpha: float = 1.0
    """temperature at the start"""
    alpha_learning_rate: float = 5e-3
    """of log alpha"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""

    # to be filled in runtime
    rollout_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# the RPO paper's settings (appendix G.1) for the two tasks it ran
PAPER = {"total_timesteps": 10_000_000, "num_updates": 8, "batch_size": 2048}
OURS = {"num_envs": 64, "num_updates": 32, "batch_size": 512, "num_nsteps": 3, "learning_rate": 5e-4, "tau": 0.05}
TASK_DEFAULTS = {
    "anymal": PAPER | {"num_envs": 128, "num_nsteps": 10, "learning_rate": 2e-3, "tau": 0.6},
    "humanoid": PAPER | {"num_envs": 64, "num_nsteps": 3, "learning_rate": 5e-4, "tau": 0.2},
    # not in the paper: four times as many updates for the same steps, on smaller batches
    "hopper": OURS | {"total_timesteps": 5_000_000},
    "ant": OURS | {"total_timesteps": 5_000_000},
    "cheetah": OURS | {"total_timesteps": 5_000_000},
    "cartpole": OURS | {"total_timesteps": 500_000},
    "hand_reorient": OURS | {"total_timesteps": 4_096_000},
}


# ALGO LOGIC: networks
def layer_init(layer):
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(num_inputs):
    layers, sizes = [], [num_inputs, 400, 200, 100]
    for n_in, n_out in zip(sizes, sizes[1:]):
        layers += [layer_init(nn.Linear(n_in, n_out)), nn.LayerNorm(n_out), nn.SiLU()]
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """Gaussian over the pre-tanh action u with a standard deviation that depends on the state; action = tanh(u)."""

    def __init__(self, num_obs, num_actions):
        super().__init__()
        self.trunk = mlp(num_obs)
        self.mean = layer_init(nn.Linear(100, num_actions))
        self.log_std = layer_init(nn.Linear(100, num_actions))

    def forward(self, obs):
        features = self.trunk(obs)
        return self.mean(features), self.log_std(features).clamp(-5.0, 2.0)


class Critic(nn.Module):
    """Two independent functions Q_1, Q_2: (..., num_obs), (..., num_actions) -> (..., 2)."""

    def __init__(self, num_obs, num_actions):
        super().__init__()
        size = num_obs + num_actions
        self.values = nn.ModuleList([nn.Sequential(*mlp(size), layer_init(nn.Linear(100, 1))) for _ in range(2)])

    def forward(self, obs, action):
        inputs = torch.cat([obs, action], dim=-1)
        return torch.cat([value(inputs) for value in self.values], dim=-1)


class Temperature(nn.Module):
    """alpha = exp(log_alpha), positive whatever the steps."""

    def __init__(self, alpha):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))

    def forward(self):
        return self.log_alpha.exp()


class ObsNormalizer(nn.Module):
    """Running mean m and variance v of the observations, x -> (x - m) / sqrt(v + 1e-5). Saved with the model."""

    def __init__(self, num_obs):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_obs, dtype=torch.float64))
        self.register_buffer("var", torch.ones(num_obs, dtype=torch.float64))
        self.register_buffer("count", torch.ones((), dtype=torch.float64))

    def forward(self, obs):
        return (obs - self.mean.float()) / torch.sqrt(self.var + 1e-5).float()

    @torch.no_grad()  # statistics of the data, constants for every gradient
    def update(self, obs):
        # join two sets: M = M_a + M_b + delta^2 n_a n_b / (n_a + n_b), where M = n v (Chan et al. 1979)
        obs, n = obs.double(), len(obs)
        delta, total = obs.mean(0) - self.mean, self.count + n
        squares = self.var * self.count + obs.var(0, correction=min(1, n - 1)) * n + delta**2 * self.count * n / total
        self.mean, self.var, self.count = self.mean + delta * n / total, squares / total, total


# ALGO LOGIC: the parts of SAC
class Replay:
    """The last steps of every environment, in order: a ring of `rows` steps, each (N, ...), on the device."""

    def __init__(self, rows, num_envs, num_obs, num_actions, device):
        widths = {"obs": (num_obs,), "action": (num_actions,), "reward": (), "next_obs": (num_obs,)}
        self.data = {name: torch.zeros(rows, num_envs, *width, device=device) for name, width in widths.items()}
        flags = torch.zeros(rows, num_envs, dtype=torch.bool, device=device)
        self.data |= {"terminated": flags, "truncated": flags.clone()}
        self.rows, self.num_envs, self.count = rows, num_envs, 0  # count: of all steps so far, also forgotten ones

    def __len__(self):
        return min(self.count, self.rows)

    def add(self, **step):
        for name, column in step.items():
            self.data[name][self.count % self.rows] = column
        self.count += 1

    def sample(self, batch_size, n, gamma):
        """Windows of at most n steps from random places, as a batch (B, ...).

        A window stops after a step that ended its episode, and at the newest step: it never mixes two episodes.
        Returns obs and action of its first step, the discounted sum of its rewards, the true successor of its last
        step, whether that step was a fall, and gamma^k for its k steps.
        """
        device = self.data["reward"].device
        env = torch.randint(self.num_envs, (batch_size,), device=device)
        age = torch.randint(len(self), (batch_size,), device=device)  # of the first step; 0 is the newest one
        first = (self.count - 1 - age) % self.rows
        rewards, discount = torch.zeros(batch_size, device=device), torch.ones(batch_size, device=device)
        last, inside = first, torch.ones(batch_size, dtype=torch.bool, device=device)
        for i in range(n):
            row = (first + i) % self.rows
            inside = inside & (i <= age)
            # sum_{i<k} gamma^i r_{t+i}
            rewards = rewards + torch.where(inside, discount * self.data["reward"][row, env], 0.0)
            discount = torch.where(inside, gamma * discount, discount)
            last = torch.where(inside, row, last)
            inside = inside & ~(self.data["terminated"][row, env] | self.data["truncated"][row, env])
        start = {name: self.data[name][first, env] for name in ("obs", "action")}
        end = {name: self.data[name][last, env] for name in ("next_obs", "terminated")}
        return start | end | {"rewards": rewards, "discount": discount}

    def state_dict(self):
        # clones: torch.save() would write the whole ring behind a slice
        return {"count": self.count} | {name: column[: len(self)].clone() for name, column in self.data.items()}

    def load_state_dict(self, state):
        length = min(state["count"], self.rows)
        for name, column in self.data.items():
            if state[name].shape != (length, *column.shape[1:]):
                shapes = f"{(length, *column.shape[1:])}, got {tuple(state[name].shape)}"
                raise ValueError(f"replay: expected {name} of shape {shapes}")
        self.count = state["count"]
        for name, column in self.data.items():
            column[:length] = state[name]


def squashed_log_prob(u, mean, log_std):
    """log pi(a|s) of a = tanh(u), from u: atanh(a) is infinite in float32 from |u| = 9 on."""
    # log pi = sum_d [ log N(u) - log(1 - tanh(u)^2) ],   log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))
    gaussian = -0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)
    return (gaussian - 2.0 * (math.log(2.0) - u - softplus(-2.0 * u))).sum(-1)


def sample_action(actor, obs):
    """A fresh action of the current policy and its log-probability, with the path through both."""
    mean, log_std = actor(obs)
    u = mean + log_std.exp() * torch.randn_like(mean)
    return torch.tanh(u), squashed_log_prob(u, mean, log_std)


@torch.no_grad()  # the steps are data: SAC needs no derivative of the simulator
def collect(env, actor, normalizer, replay, args):
    """num_steps steps of every environment into the buffer; the return and length of every episode that ended."""
    raw_obs, episodes = env.detach(), []
    for _ in range(args.num_steps):
        if replay.count * args.num_envs < args.learning_starts:
            action = 2.0 * torch.rand(len(raw_obs), env.num_actions, device=raw_obs.device) - 1.0
        else:
            action, _ = sample_action(actor, normalizer(raw_obs))
        next_raw_obs, reward, terminated, truncated, infos = env.step(action)
        step = {"obs": raw_obs, "action": action, "reward": reward, "next_obs": infos["final_obs"]}
        replay.add(**step, terminated=terminated, truncated=truncated)  # the observations as they are, not normalised
        normalizer.update(gather(raw_obs))
        raw_obs = next_raw_obs
        episodes.append(torch.stack([infos["_episode"], infos["episode"]["r"], infos["episode"]["l"]], dim=1))
    episodes = torch.cat(episodes)  # of which some have ended; asked once, because the host waits for a GPU's answer
    return episodes[episodes[:, 0] == 1.0, 1:].tolist()


@torch.no_grad()  # a target is a number: Q is drawn towards it, not it towards Q
def nstep_targets(actor, target_critic, batch, alpha):
    """y (B,): rewards of the window, plus the soft value of what comes after it, unless that is a fall."""
    # y = sum_{i<k} gamma^i r_{t+i} + (1 - fall) gamma^k (min_i Qbar_i(s', a') - alpha log pi(a'|s'))
    action, log_prob = sample_action(actor, batch["next_obs"])
    value = target_critic(batch["next_obs"], action).amin(-1) - alpha * log_prob
    return batch["rewards"] + torch.where(batch["terminated"], 0.0, batch["discount"] * value)


def critic_loss(critic, batch, targets):
    """L_Q = sum_i E[ (Q_i(s, a) - y)^2 ]"""
    return ((critic(batch["obs"], batch["action"]) - targets[:, None]) ** 2).mean(0).sum()


def policy_loss(actor, critic, obs, alpha):
    """L_pi = E[ alpha log pi(a|s) - min_i Q_i(s, a) ] with a fresh action, and the entropy -E[log pi]."""
    action, log_prob = sample_action(actor, obs)
    return (alpha * log_prob - critic(obs, action).amin(-1)).mean(), -log_prob.detach().mean()


def temperature_loss(alpha, entropy, num_actions):
    """L_alpha = alpha (H - H bar) with H bar = -A/2: alpha falls where the entropy is above its target."""
    return alpha * (entropy + 0.5 * num_actions)


# Numbers that are not finite
class TrainingFailed(Exception):
    pass


def clipped_step(optimizer, max_grad_norm):
    """One step, the gradient scaled down to max_grad_norm. Returns the norm before, and whether the step was made."""
    parameters = optimizer.param_groups[0]["params"]
    average([p.grad for p in parameters])  # of equal shares of the batch: the gradient of the whole batch
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    usable = norm <= 1e6  # NaN is not
    if usable:
        optimizer.step()
    return norm, usable


def count_failures(failures, quantity, usable):
    """usable: whether `quantity` was finite, each time in this iteration. Ten hopeless iterations end the run."""
    failures["skipped"] += len(usable) - sum(usable)
    failures[quantity] = 0 if any(usable) else failures[quantity] + 1
    if failures[quantity] == 10:
        raise TrainingFailed(f"{quantity} was not finite (or above 1e6) in ten iterations in a row")


# Data-parallel: `torchrun --nproc-per-node K` starts K processes, each with its share of the environments
RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LAUNCHER = "python" if WORLD_SIZE == 1 else f"torchrun --nproc-per-node {WORLD_SIZE}"


def communicate(collective, *args):
    """Call an operation of torch.distributed in which every process takes part."""
    try:
        collective(*args)
    except RuntimeError as error:  # gloo raises it at once when a connection breaks; with nccl torchrun ends the others
        raise TrainingFailed(f"another process of this run has ended or cannot be reached ({error})") from error


def average(tensors):
    """Replace every tensor by its mean over the processes, in place."""
    if WORLD_SIZE > 1:
        flat = torch.cat([x.flatten() for x in tensors])
        communicate(dist.all_reduce, flat)
        for x, mean in zip(tensors, (flat / WORLD_SIZE).split([x.numel() for x in tensors])):
            x.copy_(mean.view_as(x))


def gather(rows):
    """The rows (n, ...) of all K processes, (K n, ...): the same tensor in each of them."""
    if WORLD_SIZE == 1:
        return rows
    everyone = rows.new_empty(WORLD_SIZE * len(rows), *rows.shape[1:])
    communicate(dist.all_gather, list(everyone.chunk(WORLD_SIZE)), rows.contiguous())
    return everyone


def gather_shares(share):
    """What each process has to save, in a list; None everywhere but in process 0, which saves it."""
    shares = [share] * WORLD_SIZE if RANK == 0 else None
    if WORLD_SIZE > 1:
        communicate(dist.gather_object, share, shares)
    return shares


def first_signal(received, device):
    """The number of a signal that reached one of the processes, or 0: they all stop after the same iteration."""
    return gather(torch.tensor([received[0] if received else 0], device=device)).max().item()


# Evaluation
@torch.no_grad()  # an evaluation learns nothing
def evaluate(actor, normalizer, args, deterministic, frames=None):
    """The first whole episode of every evaluation environment: undiscounted returns and lengths (num_eval_envs,).

    frames: a list that takes a picture of the first environment at every second step of that episode.
    """
    device = normalizer.mean.device
    env = envs.make(args.env_id, num_envs=args.num_eval_envs, device=device, seed=args.seed + 1_000_000)
    noise = torch.Generator(device).manual_seed(args.seed)  # of its own: training must not notice an evaluation
    obs, _ = env.reset()
    results = torch.zeros(args.num_eval_envs, 2, device=device)
    finished = torch.zeros(args.num_eval_envs, dtype=torch.bool, device=device)
    for t in range(env.max_episode_steps):
        if frames is not None and t % 2 == 0 and not finished[0]:
            frames.append(env.render())  # before the step, which may reset the environment; 30 a second
        mean, log_std = actor(normalizer(obs))
        eps = torch.randn(mean.shape, generator=noise, device=device)
        try:
            _, _, _, _, infos = env.step(torch.tanh(mean if deterministic else mean + log_std.exp() * eps))
            obs = env.detach()  # the same observation; on CUDA it is here that the environment refuses
        except ValueError as error:  # the environment refuses an action that is not a number
            raise TrainingFailed(error) from error
        first = infos["_episode"] & ~finished
        results[first] = torch.stack([infos["episode"]["r"], infos["episode"]["l"]], dim=1)[first]
        finished |= first
        if finished.all():
            break
    env.close()
    return results.unbind(1)


def report_evaluation(actor, normalizer, args, video_path):
    """Evaluate both policies and print; video_path is without its suffix."""
    metrics, frames = {}, [] if args.capture_video else None
    for kind, prefix in (("stochastic", "eval/"), ("deterministic", "eval/deterministic_")):
        filmed = frames if kind == "deterministic" else None
        returns, lengths = evaluate(actor, normalizer, args, kind == "deterministic", filmed)
        mean, std, length = returns.mean().item(), returns.std(correction=0).item(), lengths.mean().item()
        metrics |= {prefix + "episodic_return": mean, prefix + "return_std": std, prefix + "episodic_length": length}
        extremes = f"min {returns.min():.1f}, max {returns.max():.1f}"
        tell(f"eval {kind}: return {mean:.1f} +- {std:.1f} ({extremes}), length {length:.1f}, {len(returns)} episodes")
    if frames:
        tell(f"video of one deterministic episode: {write_video(frames, video_path)}")
    return metrics


def write_video(frames, path, fps=30):
    """An mp4 where imageio-ffmpeg is installed, else an animated WebP."""
    try:
        import imageio_ffmpeg
    except ImportError:
        first, *others = (Image.fromarray(frame) for frame in frames)
        duration = round(1000 / fps)  # ms per frame
        first.save(path + ".webp", save_all=True, append_images=others, duration=duration, loop=0, quality=50)
        return path + ".webp"
    height, width, _ = frames[0].shape
    writer = imageio_ffmpeg.write_frames(path + ".mp4", (width, height), fps=fps)
    writer.send(None)  # starts the generator
    for frame in frames:
        writer.send(frame)
    writer.close()
    return path + ".mp4"


# Arguments, checkpoints and logs
def usage_error(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse_args():
    """The command line, on top of the arguments in the checkpoint if one is given, on top of the task's defaults."""
    args, state = tyro.cli(Args), None
    if args.checkpoint:
        try:
            state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
            if state["script"] != os.path.basename(__file__):
                raise ValueError(f"it was written by {state['script']}")
            saved = Args(**state["args"])
        except Exception as error:  # whatever torch.load makes of a file that is not a checkpoint
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            usage_error(f"--checkpoint: expected a checkpoint.pt of this script, got {args.checkpoint!r} ({reason})")
        args = tyro.cli(Args, default=saved)
    elif args.eval_only:
        usage_error("--eval-only: expected --checkpoint with the run to evaluate, got none")
    for name, value in TASK_DEFAULTS[args.env_id].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.rollout_size = args.num_envs * args.num_steps
    if args.num_envs % WORLD_SIZE:
        usage_error(f"--num-envs: expected a multiple of the {WORLD_SIZE} processes, got {args.num_envs}")
    if args.batch_size % WORLD_SIZE:
        usage_error(f"--batch-size: expected a multiple of the {WORLD_SIZE} processes, got {args.batch_size}")
    at_least = dict.fromkeys("num_envs num_steps num_updates batch_size num_nsteps num_eval_envs".split(), 1)
    at_least |= dict.fromkeys("seed gamma tau eval_freq learning_starts".split(), 0)
    at_least |= dict.fromkeys("learning_rate critic_learning_rate alpha alpha_learning_rate".split(), 1e-12)
    at_least |= {"checkpoint_freq": 1, "max_grad_norm": 1e-12, "total_timesteps": args.rollout_size}
    at_least["buffer_size"] = args.num_envs * args.num_nsteps
    at_most = {"seed": 2**32 - 1, "gamma": 1, "tau": 1}
    for name, low in at_least.items():
        high = at_most.get(name, 10**12)
        if not low <= getattr(args, name) <= high:  # NaN and infinity fail too
            usage_error(f"--{name.replace('_', '-')}: expected {low} to {high}, got {getattr(args, name)}")
    args.num_iterations = args.total_timesteps // args.rollout_size
    return args, state


def create_run_dir(args):
    stamp = int(time.time())
    while True:
        run_dir = f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{stamp}"
        try:
            os.makedirs(run_dir)
            return run_dir
        except FileExistsError:  # another run has started in the same second
            stamp += 1


def save_atomically(state, path):
    """Write beside the file and rename: whenever the process is killed, `path` holds one whole checkpoint."""
    try:
        with open(path + ".tmp", "wb") as file:
            torch.save(state, file)
        os.replace(path + ".tmp", path)
    except (OSError, RuntimeError) as error:  # torch.save reports some failed writes as the latter
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")
        raise TrainingFailed(f"cannot write {path}, which is left as it was ({error})") from error


COLUMNS = """global_step wall_s episodic_return episodic_length SPS learning_rate diverged value_loss
    entropy alpha q_value actor_grad_norm critic_grad_norm skipped_updates time_rollout time_actor time_critic
    eval_episodic_return eval_return_std eval_episodic_length
    eval_deterministic_episodic_return eval_deterministic_return_std eval_deterministic_episodic_length""".split()


class Logger:
    """TensorBoard events, and metrics.csv with a line per iteration and a last one for the final evaluation."""

    def __init__(self, run_dir, args, global_step):
        self.writer = SummaryWriter(run_dir, purge_step=global_step + 1)
        table = "\n".join(f"|{key}|{value}|" for key, value in asdict(args).items())
        self.writer.add_text("hyperparameters", "|param|value|\n|-|-|\n" + table)
        self.path, rows = os.path.join(run_dir, "metrics.csv"), []
        if os.path.exists(self.path):  # a resumed run does again what came after its checkpoint
            with open(self.path, newline="") as file:
                rows = [
                    row for row in csv.DictReader(file) if row.get("SPS") and int(row["global_step"]) <= global_step
                ]
        with open(self.path + ".tmp", "w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        self._append(self.path + ".tmp", rows)
        os.replace(self.path + ".tmp", self.path)

    def write(self, global_step, wall, metrics):
        row = {"global_step": str(global_step), "wall_s": f"{wall:.2f}"}
        for tag, value in metrics.items():
            self.writer.add_scalar(tag, value, global_step)
            row[tag.replace("charts/", "").replace("losses/", "").replace("/", "_")] = f"{value:.7g}"
        self._append(self.path, [row])

    def _append(self, path, rows):
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS, restval="").writerows(rows)


def tell(text, end="\n"):
    """Print, even after Ctrl-C has ended the `tee` that was reading: the checkpoint is still to be written."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_progress(args, global_step, metrics):
    total = args.num_iterations * args.rollout_size
    seconds = int((total - global_step) / metrics["charts/SPS"])
    line = (
        f"step {global_step:,}/{total:,} ({100 * global_step / total:.0f} %)  SPS {metrics['charts/SPS']:,.0f}  "
        f"ETA {seconds // 60}:{seconds % 60:02d}  return {metrics['charts/episodic_return']:.1f}  "
        f"length {metrics['charts/episodic_length']:.0f}"
    )
    tell("\r\033[K" + line if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n")


def main():
    args, state = parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available() and args.cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            usage_error(
                f"--nproc-per-node: expected at most one process per GPU, {torch.cuda.device_count()}, got more"
            )
        torch.cuda.set_device(device)
    if WORLD_SIZE > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if args.cudagraphs and not args.eval_only and device.type != "cuda":
        usage_error("--cudagraphs: expected a CUDA device, got the CPU")
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")  # process 0 reports, evaluates and writes files
    wp.config.log_level = wp.LOG_WARNING  # no banner

    # TRY NOT TO MODIFY: seeding
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic

    # env setup
    print(f"{args.env_id} on {device}; the first start compiles the simulator (a few seconds)", flush=True)
    seed = args.seed * WORLD_SIZE + RANK
    env = envs.make(args.env_id, num_envs=args.num_envs // WORLD_SIZE, device=device, seed=seed)
    env.reset()

    # agent setup
    num_obs, num_actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    actor, critic = Actor(num_obs, num_actions).to(device), Critic(num_obs, num_actions).to(device)
    target_critic, normalizer = copy.deepcopy(critic), ObsNormalizer(num_obs).to(device)
    temperature = Temperature(args.alpha).to(device)
    replay = Replay(args.buffer_size // args.num_envs, env.num_envs, num_obs, num_actions, device)
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, fused=True)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, fused=True)
    alpha_optimizer = torch.optim.AdamW(temperature.parameters(), lr=args.alpha_learning_rate, fused=True)
    modules = {"actor": actor, "critic": critic, "target_critic": target_critic, "normalizer": normalizer}
    modules |= {"temperature": temperature, "actor_optimizer": actor_optimizer}
    modules |= {"critic_optimizer": critic_optimizer, "alpha_optimizer": alpha_optimizer}
    if RANK > 0:
        # all have drawn the same networks; from here on each draws noise of its own, and not the numbers of its resets
        torch.manual_seed(2**32 + seed)
    iteration, global_step, wall_before, finished_episodes = 0, 0, 0.0, deque(maxlen=100)
    quantities = ("the gradient of the actor", "the gradient of the critic")
    failures = {"skipped": 0} | dict.fromkeys(quantities, 0)

    if state is not None:
        try:
            for name in ("actor", "normalizer") if args.eval_only else modules:
                modules[name].load_state_dict(state[name])
            if not args.eval_only:
                if len(state["shares"]) != WORLD_SIZE:
                    raise ValueError(f"it was written by {len(state['shares'])} process(es), not {WORLD_SIZE}")
                share = state["shares"][RANK]
                env.load_state_dict(share["env"])
                replay.load_state_dict(share["replay"])
        except (KeyError, RuntimeError, ValueError) as error:
            expected = f"one of {args.env_id} with {args.num_envs} environments on {device.type}"
            usage_error(f"--checkpoint: expected {expected}, got {args.checkpoint!r} ({error})")
        if args.eval_only:
            folder = os.path.dirname(args.checkpoint)
            if RANK == 0:
                report_evaluation(actor, normalizer, args, os.path.join(folder, f"video-{state['global_step']}"))
            return 0
        torch.set_rng_state(share["rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(share["cuda_rng"])
        iteration, global_step, wall_before = state["iteration"], state["global_step"], state["wall_s"]
        finished_episodes.extend(state["finished_episodes"])
        failures = state["failures"]
        # a flag beside --checkpoint wins over the settings that came with the optimisers
        actor_optimizer.param_groups[0]["lr"] = args.learning_rate
        critic_optimizer.param_groups[0]["lr"] = args.critic_learning_rate
        alpha_optimizer.param_groups[0]["lr"] = args.alpha_learning_rate
        state = share = None  # with them goes the second copy of the replay buffer
    run_dir = os.path.dirname(args.checkpoint or "") or "."
    if RANK == 0 and not args.checkpoint:
        run_dir = create_run_dir(args)
    checkpoint_path = os.path.join(run_dir, "checkpoint.pt")
    if args.track and RANK == 0:
        import wandb

        options = {"sync_tensorboard": True, "config": asdict(args), "save_code": True}
        wandb.init(project=args.wandb_project_name, entity=args.wandb_entity, name=os.path.basename(run_dir), **options)
    logger = Logger(run_dir, args, global_step) if RANK == 0 else None
    print("\n".join(f"  {key}: {value}" for key, value in asdict(args).items()))
    print(f"run folder {run_dir}", flush=True)

    def save_checkpoint():
        checkpoint = {name: module.state_dict() for name, module in modules.items()}
        checkpoint |= {"script": os.path.basename(__file__), "args": asdict(args)}
        checkpoint |= {"iteration": iteration, "global_step": global_step, "wall_s": wall()}
        checkpoint |= {"finished_episodes": list(finished_episodes), "failures": failures}
        # what each process has of its own
        share = {"env": env.state_dict(), "replay": replay.state_dict(), "rng": torch.get_rng_state()}
        share["cuda_rng"] = torch.cuda.get_rng_state() if device.type == "cuda" else None
        checkpoint["shares"] = gather_shares(share)
        if RANK == 0:
            save_atomically(checkpoint, checkpoint_path)

    def wall():
        return wall_before + time.time() - start_time

    # the first Ctrl-C or SIGTERM lets the iteration finish, the second ends the process at once
    received = []

    def on_signal(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # not print(), which may just have been interrupted itself
            os.write(2, b"\nstopping after this iteration; again to stop at once\n")

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)

    losses = (policy_loss, critic_loss)
    if args.compile or args.cudagraphs:
        losses = [torch.compile(loss, mode="reduce-overhead" if args.cudagraphs else "default") for loss in losses]
    policy_loss_fn, critic_loss_fn = losses

    # TRY NOT TO MODIFY: start the game
    num_threads = torch.get_num_threads()
    start_time, start_step = time.time(), global_step
    try:
        while global_step + args.rollout_size <= args.total_timesteps and not first_signal(received, device):
            iteration += 1
            # ALGO LOGIC: steps of every environment into the replay buffer
            time_0 = time.time()
            torch.set_num_threads(1)  # the batches are small: more threads would spin on the simulator's cores
            try:
                finished_episodes.extend(collect(env, actor, normalizer, replay, args))
            except ValueError as error:  # the environment refuses an action that is not a number
                raise TrainingFailed(error) from error

            # ALGO LOGIC: updates of the critics, the policy, the temperature and the target critics
            time_1, time_actor, time_critic = time.time(), 0.0, 0.0
            torch.set_num_threads(num_threads)
            actor_steps, critic_steps, v_losses, entropies, q_values = [], [], [], [], []
            for _ in range(args.num_updates if replay.count * args.num_envs >= args.learning_starts else 0):
                time_2 = time.time()
                batch = replay.sample(args.batch_size // WORLD_SIZE, args.num_nsteps, args.gamma)
                batch["obs"], batch["next_obs"] = normalizer(batch["obs"]), normalizer(batch["next_obs"])
                alpha = temperature().detach()  # a constant price for the policy and the critics
                targets = nstep_targets(actor, target_critic, batch, alpha)
                v_loss = critic_loss_fn(critic, batch, targets)
                critic_optimizer.zero_grad()
                v_loss.backward()
                v_losses.append(v_loss.item())
                critic_steps.append(clipped_step(critic_optimizer, args.max_grad_norm))
                time_3 = time.time()

                loss, entropy = policy_loss_fn(actor, critic, batch["obs"], alpha)
                actor_optimizer.zero_grad()
                loss.backward(inputs=list(actor.parameters()))  # the critics' weights are constants here
                actor_steps.append(clipped_step(actor_optimizer, args.max_grad_norm))
                if args.autotune:
                    alpha_loss = temperature_loss(temperature(), entropy, num_actions)
                    alpha_optimizer.zero_grad()
                    alpha_loss.backward()
                    failures["skipped"] += not clipped_step(alpha_optimizer, args.max_grad_norm)[1]
                with torch.no_grad():  # a running average of weights, which is not learned
                    for slow, weight in zip(target_critic.parameters(), critic.parameters()):
                        slow.lerp_(weight, args.tau)  # Qbar <- (1 - tau) Qbar + tau Q
                entropies.append(entropy.item())
                q_values.append(targets.mean().item())
                time_critic, time_actor = time_critic + time_3 - time_2, time_actor + time.time() - time_3

            # TRY NOT TO MODIFY: execute the game and log data
            global_step += args.rollout_size
            if critic_steps:
                (actor_norms, actor_usable), (critic_norms, critic_usable) = zip(*actor_steps), zip(*critic_steps)
                count_failures(failures, quantities[0], actor_usable)
                count_failures(failures, quantities[1], critic_usable)
                learned = {
                    "losses/value_loss": np.mean(v_losses),
                    "losses/entropy": np.mean(entropies),
                    "losses/q_value": np.mean(q_values),
                    "losses/actor_grad_norm": np.mean(actor_norms),
                    "losses/critic_grad_norm": np.mean(critic_norms),
                }
            else:
                learned = {}  # random actions only, so far
            mean_return, mean_length = np.mean(finished_episodes, axis=0) if finished_episodes else (math.nan, math.nan)
            metrics = {
                "charts/episodic_return": mean_return,
                "charts/episodic_length": mean_length,
                "charts/SPS": (global_step - start_step) / (time.time() - start_time),
                "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
                "charts/diverged": env.diverged.item(),
                "losses/alpha": temperature().item(),
                "losses/skipped_updates": failures["skipped"],
                "time/rollout": time_1 - time_0,
                "time/actor": time_actor,
                "time/critic": time_critic,
            }
            metrics |= learned
            print_progress(args, global_step, metrics)
            if RANK == 0 and args.eval_freq and iteration % args.eval_freq == 0 and not received:
                tell("")
                metrics |= report_evaluation(actor, normalizer, args, f"{run_dir}/video-{global_step}")
            if RANK == 0:
                logger.write(global_step, wall(), metrics)
            if iteration % args.checkpoint_freq == 0:
                save_checkpoint()
        save_checkpoint()
        if number := first_signal(received, device):
            tell(f"\nresume with: {LAUNCHER} {os.path.basename(__file__)} --checkpoint {checkpoint_path}")
            return 128 + number
        if RANK > 0:
            return 0
        signal.signal(signal.SIGINT, signal.default_int_handler)  # everything is saved: from here on stop at once
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        tell("")
        metrics = report_evaluation(actor, normalizer, args, f"{run_dir}/video-{global_step}")
        logger.write(global_step, wall(), metrics)
        if args.save_model:
            model = {"actor": actor.state_dict(), "normalizer": normalizer.state_dict()}
            save_atomically(model, os.path.join(run_dir, f"{args.exp_name}.cleanrl_model"))
        logger.writer.flush()
        tell(f"done: {global_step:,} steps in {wall():.0f} s, run folder {run_dir}")
        return 0
    except TrainingFailed as error:
        print(f"\ntraining failed: {args.env_id}, iteration {iteration}: {error}", file=sys.stderr)
        return 1
    finally:
        if RANK == 0:
            with contextlib.suppress(OSError):  # told by the flush, or by what ended the run
                logger.writer.close()
        env.close()
        if WORLD_SIZE > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # a file of the run cannot be written
        sys.exit(f"stopped: {error}")
