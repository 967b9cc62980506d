"""Gradient-Informed PPO (GI-PPO), NeurIPS 2023 (arXiv 2312.08710), as tuned by the RPO paper. Docs: docs/gippo.md

PPO that listens to the simulator's gradient as far as the gradient proves useful.  One backward pass through the
rollout gives the gradient of every advantage with respect to its action.  Moving each action a little along it defines
the alpha-policy, to which the actor is drawn by regression; then PPO epochs follow, whose clipping is centred halfway
between the old policy and the alpha-policy.  alpha grows while the gradient is trustworthy and shrinks where the
alpha-policy deforms the space of actions too much, leaves PPO's trust region too often, or makes things worse.

    paper            code             meaning
    s, a, r          obs, action      normalised observation, action = tanh(u), reward
    u                u                u = mean + std * eps, eps ~ N(0, 1): all densities are those of u
    A_t              advantages       GAE(gamma, lambda), with its graph
    grad_a A         action_grads     of each A_t with respect to its own u_t
    alpha            alpha            step of the alpha-policy along that gradient
    delta, beta      alpha_interval, alpha_factor    where alpha is lowered, and by how much it changes
    max oorr         max_oorr         share of samples that the alpha-policy may take out of PPO's interval
    pi_h             mixture          (pi_old + pi_alpha) / 2, the behaviour policy of the ratio

Try:     python gippo_continuous.py --env-id hopper --total-timesteps 1000000 --capture-video
Train:   python gippo_continuous.py --env-id hopper --total-timesteps 5013504
         two hours on one CPU core, shared at times; return 4,820, and 4,900 with the deterministic policy (one seed;
         RPO paper, at about four times the steps: 5,512 and 5,514)
Resume:  python gippo_continuous.py --checkpoint runs/<run>/checkpoint.pt
Share:   torchrun --nproc-per-node 2 gippo_continuous.py ... divides the environments among two processes, or GPUs
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
    """fuse the operations of the critics' loss with torch.compile; needs a C++ compiler and a longer first iteration"""
    cudagraphs: bool = False
    """--compile with mode reduce-overhead: the fused operations as CUDA graphs; not yet run on a GPU"""
    save_model: bool = False
    """write the actor and the observation normaliser to runs/{run_name}/{exp_name}.cleanrl_model at the end"""
    capture_video: bool = False
    """write a video of one deterministic episode to the run folder at every evaluation, the final one included"""
    checkpoint: str | None = None
    """continue the run of this checkpoint.pt; flags given beside it override the saved ones"""
    checkpoint_freq: int = 20
    """iterations between checkpoints"""
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
    """H, length of the differentiated rollout (16 to 64)"""
    learning_rate: float = 5e-4
    """of the actor, in the regression and in the PPO epochs; lowered where the loss of a phase grew"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimate"""
    alpha: float | None = None
    """step of the alpha-policy at the start; default: the task's"""
    alpha_interval: float = 0.4
    """delta: alpha is lowered where the volume of actions changes by more than this share"""
    alpha_factor: float = 1.02
    """beta: alpha is multiplied or divided by this"""
    alpha_epochs: int = 16
    """steps of the regression to the alpha-policy, each on the full batch"""
    max_oorr: float | None = None
    """alpha is lowered where a larger share of the ratios is out of range; default: the task's"""
    update_epochs: int = 5
    """PPO passes over the rollout"""
    minibatch_size: int = 2048
    """steps per minibatch of the PPO passes"""
    clip_coef: float | None = None
    """epsilon, PPO's interval of ratios is 1 - epsilon .. 1 + epsilon; default: the task's"""
    critic_epochs: int = 16
    """passes of the critics over the rollout"""
    num_minibatches: int = 4
    """minibatches per pass of the critics"""
    target_critic_keep: float = 0.2
    """share of themselves that the target critics keep after an iteration; the rest comes from the critics"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# the RPO paper's settings per task (tables 3 and 5); budgets: it states ANYmal's, the others are estimates
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024, "alpha": 0.5, "max_oorr": 0.7, "clip_coef": 0.2},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128, "alpha": 0.5, "max_oorr": 0.8, "clip_coef": 0.2},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128, "alpha": 1e-3, "max_oorr": 0.5, "clip_coef": 0.2},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64, "alpha": 5e-3, "max_oorr": 0.1, "clip_coef": 0.2},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64, "alpha": 5e-4, "max_oorr": 0.1, "clip_coef": 0.05},
    # not in the paper
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128, "alpha": 1e-2, "max_oorr": 0.5, "clip_coef": 0.2},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128, "alpha": 1e-3, "max_oorr": 0.5, "clip_coef": 0.2},
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
    """Two independent value functions V_1, V_2: (..., num_obs) -> (..., 2)."""

    def __init__(self, num_obs):
        super().__init__()
        self.values = nn.ModuleList([nn.Sequential(*mlp(num_obs), layer_init(nn.Linear(100, 1))) for _ in range(2)])

    def forward(self, obs):
        return torch.cat([value(obs) for value in self.values], dim=-1)


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


# ALGO LOGIC: the parts of GI-PPO
def gaussian_log_prob(u, mean, log_std):
    """log N(u; mean, std^2), summed over action dimensions."""
    return (-0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def rollout(env, actor, critic, normalizer, args):
    """H steps of every environment with a live graph.

    Returns the rollout as data (H, N, ...), the advantages (H, N) and the actions u_t they depend on, with their graph,
    and the return and length of every episode that ended. critic: the target critics.
    """
    frozen = copy.deepcopy(normalizer)  # one fixed normalisation per rollout, or the ratio would not be 1 in epoch 1
    raw_obs = env.detach()  # the graph starts here: earlier rollouts belong to earlier gradients
    normalizer.update(gather(raw_obs))
    us, steps, graph, episodes = [], [], [], []
    for _ in range(args.num_steps):
        obs = frozen(raw_obs)
        mean, log_std = actor(obs)
        eps = torch.randn_like(mean)
        us.append(mean + log_std.exp() * eps)
        raw_obs, reward, terminated, truncated, infos = env.step(torch.tanh(us[-1]))
        normalizer.update(gather(raw_obs))
        # the value of the true successor: 0 after a fall, V(s') everywhere else, also after a time-out
        next_value = torch.where(terminated, 0.0, critic(frozen(infos["final_obs"])).mean(-1))
        graph.append((reward, critic(obs).mean(-1), next_value))
        steps.append((obs, us[-1], eps, mean, log_std, terminated | truncated))
        episodes.append(torch.stack([infos["_episode"], infos["episode"]["r"], infos["episode"]["l"]], dim=1))

    # as data the rollout has no gradient: the phases that follow see the actions and policies as they were
    names = ("obs", "u", "eps", "mean", "log_std", "dones")
    data = {name: torch.stack(column).detach() for name, column in zip(names, zip(*steps))}
    rewards, values, next_values = zip(*graph)
    data["values"] = torch.stack(values).detach()
    advantages = gae(rewards, values, next_values, data["dones"], args.gamma, args.gae_lambda)
    episodes = torch.cat(episodes)  # of which some have ended; asked once, because the host waits for a GPU's answer
    return data, advantages, us, episodes[episodes[:, 0] == 1.0, 1:].tolist()


def gae(rewards, values, next_values, dones, gamma, lam):
    """Generalised advantage estimates (H, N) with their graph; no advantage crosses the end of an episode."""
    # delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    # A_t     = delta_t + gamma lambda A_{t+1}, without the second term where an episode ends
    advantages = [torch.zeros_like(rewards[0])]
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_values[t] - values[t]
        advantages.append(delta + torch.where(dones[t], 0.0, gamma * lam * advantages[-1]))
    return torch.stack(advantages[:0:-1])


def action_gradients(advantages, us, dones, gamma, lam):
    """grad_{u_t} A_t (H, N, A) of every advantage with respect to its own action, in one backward pass.

    In an episode that begins at step b, A_b = sum_k (gamma lambda)^k delta_{b+k}, and u_{b+k} acts on the deltas from
    b + k on only, whose weights in A_b are (gamma lambda)^k times those in A_{b+k}.
    """
    # the steps that begin an episode, or the rollout; no action is in two of their advantages: the sum keeps them apart
    starts = torch.cat([torch.ones_like(dones[:1]), dones[:-1]])
    grads = torch.stack(torch.autograd.grad((advantages * starts).sum(), us))
    # k, the number of steps since the last start: grad_{u_t} A_t = (gamma lambda)^-k grad_{u_t} A_{t-k}
    age, ages = torch.zeros_like(advantages[0]), []
    for start in starts:
        age = torch.where(start, 0.0, age + 1.0)
        ages.append(age)
    return grads * ((gamma * lam) ** -torch.stack(ages))[..., None]


def regression_loss(actor, data):
    """E[ |f_theta(eps; s) - u_alpha|^2 ]: the noise of the rollout is to make u_alpha = u + alpha grad_u A instead."""
    mean, log_std = actor(data["obs"])
    return ((mean + log_std.exp() * data["eps"] - data["alpha_actions"]) ** 2).sum(-1).mean()


@torch.no_grad()  # alpha is steered by measurements
def adapted_alpha(alpha, data, mean, log_std, gains, args):
    """alpha for the next iteration, and the out-of-range ratio.

    mean, log_std: of the alpha-policy. gains: running statistics of what the advantages said of the earlier ones.
    """
    # det(1 + alpha grad^2 A) by the change of sigma: a volume that changes too much means a step too long to trust
    volume = gather((log_std - data["log_std"]).sum(-1).exp())
    calm = volume.min() >= 1.0 - args.alpha_interval and volume.max() <= 1.0 + args.alpha_interval
    new_alpha = min(alpha * args.alpha_factor if calm else alpha / args.alpha_factor, 1.0)
    # w = pi_alpha / pi_old: out of PPO's interval too often, or advantages that speak against the step as rarely before
    w = gather((data["alpha_log_prob"] - data["log_prob"]).clamp(-16.0, 16.0).exp())
    oorr = (w - 1.0).abs().gt(args.clip_coef).float().mean().item()
    gain = (gather(data["raw_advantages"]) * (w - 1.0)).sum().view(1, 1)
    if oorr > args.max_oorr or (gain.item() < 0.0 and gains(gain).item() < -1.0):
        new_alpha = alpha / args.alpha_factor
    if gain.isfinite():
        gains.update(gain)
    return new_alpha, oorr


def policy_loss(actor, data, args):
    """PPO's loss of one minibatch (B, ...), and its diagnostics."""
    mean, log_std = actor(data["obs"])
    # pi_h = (pi_old + pi_alpha) / 2; where the two are far apart, pi_alpha alone
    mixture = torch.logaddexp(data["log_prob"], data["alpha_log_prob"]) - math.log(2.0)
    far = gather((data["alpha_log_prob"] - data["log_prob"]).abs().max()[None]).max() > 4.0
    behaviour = torch.where(far, data["alpha_log_prob"], mixture)
    ratio = (gaussian_log_prob(data["u"], mean, log_std) - behaviour).clamp(-16.0, 16.0).exp()

    # L = - E[ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A) ]
    clipped = ratio.clamp(1.0 - args.clip_coef, 1.0 + args.clip_coef)
    loss = -torch.min(ratio * data["advantages"], clipped * data["advantages"]).mean()
    with torch.no_grad():  # only measurements
        kept, entropy = (ratio == clipped).float().mean(), log_std.sum(-1).mean()
        ratio_max = ratio.max()
    entropy += 0.5 * mean.shape[-1] * (1.0 + math.log(2.0 * math.pi))
    return loss, {"kept": kept, "ratio_max": ratio_max, "entropy": entropy}


def regress(actor, optimizer, data, args):
    """The regression to the alpha-policy: steps on the full batch, the loss before the first and before the last."""
    steps, losses = [], []
    for _ in range(args.alpha_epochs):
        loss = regression_loss(actor, data)
        optimizer.zero_grad()
        loss.backward()
        steps.append(clipped_step(optimizer, args.max_grad_norm))
        losses.append(loss.item())
    return (steps, []), losses[0], losses[-1]


def improve(actor, optimizer, data, args):
    """The PPO passes over the rollout: their steps and diagnostics, the mean loss of the first and of the last pass."""
    steps, stats, losses = [], [], []
    names = ("obs", "u", "log_prob", "alpha_log_prob", "advantages")
    for _ in range(args.update_epochs):
        losses.append([])
        for mb_inds in torch.randperm(len(data["u"]), device=data["u"].device).split(args.minibatch_size // WORLD_SIZE):
            loss, mb_stats = policy_loss(actor, {name: data[name][mb_inds] for name in names}, args)
            optimizer.zero_grad()
            loss.backward()
            steps.append(clipped_step(optimizer, args.max_grad_norm))
            stats.append({name: value.item() for name, value in mb_stats.items()})
            losses[-1].append(loss.item())
    return (steps, stats), np.mean(losses[0]), np.mean(losses[-1])


def descend(phase, actor, optimizer, data, args):
    """Run a phase of the actor's training; where its loss has grown, undo it and try again with smaller steps.

    After eight tries in vain the actor stays what it was, and the learning rate is lowered for good. Returns the last
    try's steps and diagnostics, and whether it was kept.
    """
    backup = copy.deepcopy((actor.state_dict(), optimizer.state_dict()))
    lr = optimizer.param_groups[0]["lr"]
    for attempt in range(8):
        optimizer.param_groups[0]["lr"] = lr / 1.5**attempt
        result, first, last = phase(actor, optimizer, data, args)
        growth = torch.tensor(last - first, device=next(actor.parameters()).device)
        average([growth])  # all processes decide alike
        if growth <= 0.0:  # NaN is not
            optimizer.param_groups[0]["lr"] = lr
            return result, True
        actor.load_state_dict(backup[0])
        optimizer.load_state_dict(copy.deepcopy(backup[1]))  # its steps would change the backup
    optimizer.param_groups[0]["lr"] = max(lr / 1.5, min(lr, 1e-5))
    return result, False


def critic_loss(critic, obs, targets):
    """L_V = 1/2 sum_i E[ (V_i(s) - A - V)^2 ] over the two critics."""
    return ((critic(obs) - targets[:, None]) ** 2).mean()


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
    args.batch_size = args.num_envs * args.num_steps
    if args.num_envs % WORLD_SIZE:
        usage_error(f"--num-envs: expected a multiple of the {WORLD_SIZE} processes, got {args.num_envs}")
    if args.minibatch_size % WORLD_SIZE:
        usage_error(f"--minibatch-size: expected a multiple of the {WORLD_SIZE} processes, got {args.minibatch_size}")
    at_least = (
        "num_envs num_steps num_minibatches minibatch_size update_epochs alpha_epochs critic_epochs num_eval_envs"
    )
    at_least = dict.fromkeys(at_least.split(), 1)
    at_least |= dict.fromkeys("seed alpha_interval max_oorr clip_coef target_critic_keep eval_freq".split(), 0)
    at_least |= dict.fromkeys("learning_rate critic_learning_rate max_grad_norm alpha gamma gae_lambda".split(), 1e-12)
    at_least |= {"checkpoint_freq": 1, "total_timesteps": args.batch_size, "alpha_factor": 1}
    at_most = {"seed": 2**32 - 1, "gamma": 1, "gae_lambda": 1, "num_minibatches": args.batch_size // WORLD_SIZE}
    at_most |= {"alpha": 1, "target_critic_keep": 1}
    for name, low in at_least.items():
        high = at_most.get(name, 10**12)
        if not low <= getattr(args, name) <= high:  # NaN and infinity fail too
            usage_error(f"--{name.replace('_', '-')}: expected {low} to {high}, got {getattr(args, name)}")
    args.num_iterations = args.total_timesteps // args.batch_size
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


COLUMNS = """global_step wall_s episodic_return episodic_length SPS learning_rate diverged value_loss explained_variance
    entropy alpha out_of_range_ratio approx_kl clipfrac effective_sample_ratio ratio_max
    actor_grad_norm critic_grad_norm action_grad_norm
    nonfinite_action_grads skipped_updates time_rollout time_backward time_actor time_critic
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
    total = args.num_iterations * args.batch_size
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
    actor, critic = Actor(num_obs, num_actions).to(device), Critic(num_obs).to(device)
    normalizer = ObsNormalizer(num_obs).to(device)
    target_critic, gains = copy.deepcopy(critic), ObsNormalizer(1).to(device)
    # one optimiser for each of the actor's two phases; PPO's has its usual betas, the others those of SHAC and RPO
    adamw = {"betas": (0.7, 0.95), "weight_decay": 0.01, "fused": True}
    alpha_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, **adamw)
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, fused=True)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, **adamw)
    modules = {"actor": actor, "critic": critic, "target_critic": target_critic, "normalizer": normalizer}
    modules |= {"gains": gains, "alpha_optimizer": alpha_optimizer, "actor_optimizer": actor_optimizer}
    modules |= {"critic_optimizer": critic_optimizer}
    alpha = args.alpha
    if RANK > 0:
        # all have drawn the same networks; from here on each draws noise of its own, and not the numbers of its resets
        torch.manual_seed(2**32 + seed)
    iteration, global_step, wall_before, finished_episodes = 0, 0, 0.0, deque(maxlen=100)
    quantities = ("the gradient of the advantage", "the gradient of the actor", "the gradient of the critic")
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
        failures, alpha = state["failures"], state["alpha"]
        # a flag beside --checkpoint wins; the saved values stay otherwise, for they have been adapted
        if args.alpha != state["args"]["alpha"]:
            alpha = args.alpha
        if args.learning_rate != state["args"]["learning_rate"]:
            for optimizer in (alpha_optimizer, actor_optimizer):
                optimizer.param_groups[0]["lr"] = args.learning_rate
        critic_optimizer.param_groups[0]["lr"] = args.critic_learning_rate
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
        checkpoint |= {"finished_episodes": list(finished_episodes), "failures": failures, "alpha": alpha}
        # what each process has of its own
        share = {"env": env.state_dict(), "rng": torch.get_rng_state()}
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

    critic_loss_fn = critic_loss
    if args.compile or args.cudagraphs:
        critic_loss_fn = torch.compile(critic_loss, mode="reduce-overhead" if args.cudagraphs else "default")

    # TRY NOT TO MODIFY: start the game
    num_threads = torch.get_num_threads()
    start_time, start_step = time.time(), global_step
    try:
        while global_step + args.batch_size <= args.total_timesteps and not first_signal(received, device):
            iteration += 1
            # ALGO LOGIC: collect a rollout, its advantages, and the gradient of each with respect to its action
            time_0 = time.time()
            torch.set_num_threads(1)  # the batches are small: more threads would spin on the simulator's cores
            try:
                data, advantages, us, episodes = rollout(env, actor, target_critic, normalizer, args)
            except ValueError as error:  # the environment refuses an action that is not a number
                raise TrainingFailed(error) from error
            finished_episodes.extend(episodes)
            time_1 = time.time()
            action_grads = action_gradients(advantages, us, data["dones"], args.gamma, args.gae_lambda)
            advantages = advantages.detach()  # the graph has done its work: from here on the advantages are numbers
            del us  # and with them the graph
            time_2 = time.time()
            torch.set_num_threads(num_threads)
            finite = action_grads.isfinite().all(-1) & advantages.isfinite()
            count_failures(failures, quantities[0], [gather(finite.any()[None]).any().item()])
            data["action_grads"] = torch.where(finite[..., None], action_grads, 0.0)  # dropped, and counted in the log
            targets = advantages + data["values"]
            advantages = torch.where(advantages.isfinite(), advantages, 0.0)  # or one would spoil the mean of all
            data["raw_advantages"] = advantages
            everyone = gather(advantages)
            data["advantages"] = (advantages - everyone.mean()) / (everyone.std(correction=0) + 1e-8)
            data["log_prob"] = gaussian_log_prob(data["u"], data["mean"], data["log_std"])

            # flatten the batch
            b_data, b_targets = {name: x.flatten(0, 1) for name, x in data.items()}, targets.flatten()

            # ALGO LOGIC: regression to the alpha-policy
            b_data["alpha_actions"] = b_data["u"] + alpha * b_data["action_grads"]
            (alpha_steps, _), descended = descend(regress, actor, alpha_optimizer, b_data, args)
            alpha_skipped = sum(not usable for _, usable in alpha_steps)
            with torch.no_grad():  # the alpha-policy is a constant for the PPO epochs
                alpha_policy = actor(b_data["obs"])
                b_data["alpha_log_prob"] = gaussian_log_prob(b_data["u"], *alpha_policy)
            alpha_used, oorr = alpha, 0.0
            if descended and alpha_skipped < len(alpha_steps):  # else it is the old policy still
                alpha, oorr = adapted_alpha(alpha, b_data, *alpha_policy, gains, args)

            # ALGO LOGIC: PPO passes over the rollout
            (actor_steps, policy_stats), _ = descend(improve, actor, actor_optimizer, b_data, args)
            with torch.no_grad():  # only measurements: how far the policy has moved, what the critics knew
                approx_kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean().item()
                errors = b_targets - critic(b_data["obs"]).mean(-1)

            # ALGO LOGIC: passes of the critics towards the fixed targets
            time_3 = time.time()
            critic_steps, v_losses = [], []
            for _ in range(args.critic_epochs):
                for mb_inds in torch.randperm(len(b_targets), device=device).chunk(args.num_minibatches):
                    v_loss = critic_loss_fn(critic, b_data["obs"][mb_inds], b_targets[mb_inds])
                    critic_optimizer.zero_grad()
                    v_loss.backward()
                    critic_steps.append(clipped_step(critic_optimizer, args.max_grad_norm))
                    v_losses.append(v_loss.item())

            with torch.no_grad():  # a running average of weights, which is not learned
                for slow, weight in zip(target_critic.parameters(), critic.parameters()):
                    slow.lerp_(weight, 1.0 - args.target_critic_keep)

            # TRY NOT TO MODIFY: execute the game and log data
            time_4 = time.time()
            global_step += args.batch_size
            (actor_norms, actor_usable), (critic_norms, critic_usable) = zip(*actor_steps), zip(*critic_steps)
            failures["skipped"] += alpha_skipped  # without an alpha-policy there is still PPO
            count_failures(failures, quantities[1], actor_usable)
            count_failures(failures, quantities[2], critic_usable)
            mean_return, mean_length = np.mean(finished_episodes, axis=0) if finished_episodes else (math.nan, math.nan)
            ratio_max = np.mean([stats["ratio_max"] for stats in policy_stats])
            kept = np.mean([stats["kept"] for stats in policy_stats])
            metrics = {
                "charts/episodic_return": mean_return,
                "charts/episodic_length": mean_length,
                "charts/SPS": (global_step - start_step) / (time.time() - start_time),
                "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
                "charts/diverged": env.diverged.item(),
                "losses/value_loss": np.mean(v_losses),
                "losses/explained_variance": 1.0 - (errors.var() / b_targets.var()).item(),
                "losses/entropy": policy_stats[0]["entropy"],
                "losses/alpha": alpha_used,
                "losses/out_of_range_ratio": oorr,
                "losses/approx_kl": approx_kl,
                "losses/clipfrac": 1.0 - kept,
                "losses/effective_sample_ratio": kept,
                "losses/ratio_max": ratio_max,
                "losses/actor_grad_norm": np.mean(actor_norms),
                "losses/critic_grad_norm": np.mean(critic_norms),
                "losses/action_grad_norm": data["action_grads"].norm(dim=-1).mean().item(),
                "losses/nonfinite_action_grads": (~finite).sum().item(),
                "losses/skipped_updates": failures["skipped"],
                "time/rollout": time_1 - time_0,
                "time/backward": time_2 - time_1,
                "time/actor": time_3 - time_2,
                "time/critic": time_4 - time_3,
            }
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
