"""Relative Entropy Pathwise Policy Optimization (REPPO), arXiv 2507.11019. Docs: docs/reppo.md

Pathwise policy gradients without a derivative of the simulator: they come from a learned Q(s, a).  All data is on
policy and thrown away after one iteration: no replay buffer, no target network.  But Q must be accurate where the
policy is: TD(lambda) targets of the soft return, a categorical critic (HL-Gauss), normalised layers and a
self-prediction task see to that.  A KL bound keeps the policy where Q was learned: a state inside the bound follows Q,
a state outside is pulled back to the policy that collected the data.  Two multipliers price entropy and KL, and adapt.

    paper            code             meaning
    x, a, r          obs, action      normalised observation, action = tanh(u) with u ~ N(mean, std^2), scaled reward
    Q_phi            critic           expectation of a histogram over bins (HL-Gauss)
    G^lambda         targets          TD(lambda) target of the soft return, once per rollout
    f_phi, L_aux     features         inner features of the critic; those of the next state are predicted
    pi_theta'        mean, log_std    of the policy that collected the data (stored, not recomputed)
    e^alpha, eps_H   alpha            price of entropy; target: target_entropy_scale per action dimension
    e^beta, eps_KL   beta, kl_bound   price of KL(pi_old || pi_theta) outside the bound, and the bound

Try:      python reppo_continuous.py --env-id ant --total-timesteps 1000000 --capture-video
Train:    python reppo_continuous.py --env-id ant --total-timesteps 3000000
          80 minutes beside other runs on two CPU cores; return 4,200, and 4,610 with the deterministic policy
          (one seed)
Resume:   python reppo_continuous.py --checkpoint runs/<run>/checkpoint.pt
Share:    torchrun --nproc-per-node 2 reppo_continuous.py ... divides the environments among two processes, or GPUs
Faithful: python reppo_continuous.py --kl-estimator mc --norm rms --num-value-samples 1 --min-std 0 --weight-decay 0.01
          --actor-hidden-dims 512 512 --critic-hidden-dims 512 512 512
          (what the authors' PyTorch code does where our default differs, as far as there are flags; see the docs)
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
    """length of a rollout"""
    learning_rate: float = 3e-4
    """of the actor and the critic"""
    dual_learning_rate: float = 3e-4
    """of log alpha and log beta, which a step of Adam moves by at most about this much"""
    weight_decay: float = 0.0
    """of the actor and the critic"""
    gamma: float = 0.99
    """discount factor"""
    td_lambda: float = 0.95
    """lambda of the TD(lambda) targets"""
    num_value_samples: int = 4
    """actions per next state that its value and its entropy are averaged over"""
    update_epochs: int = 4
    """passes over the rollout"""
    num_minibatches: int | None = None
    """minibatches per pass, each with a step of the critic and one of the actor; default: the task's"""
    actor_gradient: Literal["pathwise", "score"] = "pathwise"
    """gradient of Q through the action, or (ablation) the score function weighted by Q"""
    kl_bound: float = 0.1
    """eps_KL, per state"""
    kl_mode: Literal["clipped", "full", "value"] = "clipped"
    """outside the bound only the KL term (clipped), both terms everywhere (full), or no KL term (value)"""
    kl_estimator: Literal["exact", "mc"] = "exact"
    """KL of the two Gaussians in closed form, or an average over num_kl_samples actions of the old policy"""
    num_kl_samples: int = 16
    """actions per state of the estimator mc"""
    alpha_init: float = 0.01
    """price of entropy at the start of a run"""
    beta_init: float = 0.01
    """price of KL at the start of a run"""
    target_entropy_scale: float = -0.5
    """target of the policy's entropy per action dimension"""
    min_std: float = 0.1
    """added to the standard deviation of u"""
    reward_scale: float | None = None
    """the learner sees reward_scale * reward, which the support must fit; default: the task's"""
    v_min: float = -50.0
    """lower end of the critic's support, in scaled reward"""
    v_max: float = 200.0
    """upper end of the critic's support, in scaled reward"""
    num_bins: int = 251
    """bins of the critic's histogram"""
    hl_gauss: bool = True
    """learn a histogram by cross-entropy; --no-hl-gauss learns a number by squared error"""
    aux_coef: float = 1.0
    """weight of the self-prediction loss"""
    norm: Literal["layer", "rms", "none"] = "layer"
    """normalisation of the hidden layers"""
    actor_hidden_dims: tuple[int, ...] = (400, 200, 100)
    """widths of the actor's hidden layers"""
    critic_hidden_dims: tuple[int, int, int] = (400, 200, 100)
    """widths of the critic's encoder, of its features, and of the heads behind them"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# ours: the paper has other tasks; 512 to 1,024 steps per minibatch, and rewards of the order of 1
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024, "num_minibatches": 32, "reward_scale": 0.1},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64, "num_minibatches": 4, "reward_scale": 0.1},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.02},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64, "num_minibatches": 4, "reward_scale": 0.1},
}


# ALGO LOGIC: networks
def hidden_layer(n_in, n_out, norm):
    normalization = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": nn.Identity}[norm]
    return nn.Sequential(nn.Linear(n_in, n_out), normalization(n_out), nn.SiLU())


class Actor(nn.Module):
    """Gaussian over the pre-tanh action u with a standard deviation that depends on the state; action = tanh(u)."""

    def __init__(self, num_obs, num_actions, args):
        super().__init__()
        sizes = [num_obs, *args.actor_hidden_dims]
        self.trunk = nn.Sequential(*(hidden_layer(a, b, args.norm) for a, b in zip(sizes, sizes[1:])))
        self.head = nn.Linear(sizes[-1], 2 * num_actions)
        self.min_std = args.min_std

    def forward(self, obs):
        mean, log_std = self.head(self.trunk(obs)).chunk(2, dim=-1)
        return mean, torch.log(log_std.exp() + self.min_std)


class HLGauss(nn.Module):
    """Numbers as histograms: a Gaussian around the number, integrated over each bin (arXiv 2403.03950)."""

    def __init__(self, v_min, v_max, num_bins):
        super().__init__()
        width = (v_max - v_min) / (num_bins - 1)
        self.sigma = 0.75 * width
        self.register_buffer("centres", torch.linspace(v_min, v_max, num_bins))
        self.register_buffer("edges", torch.linspace(v_min - 0.5 * width, v_max + 0.5 * width, num_bins + 1))

    def encode(self, values):
        """(...) -> (..., num_bins). What lies outside the support counts as its end."""
        values = values.clamp(self.centres[0], self.centres[-1])
        # c_i = erf((e_i - y) / (sqrt(2) sigma)),   p_i = (c_{i+1} - c_i) / (c_n - c_0)
        c = torch.erf((self.edges - values[..., None]) / (math.sqrt(2.0) * self.sigma))
        return (c[..., 1:] - c[..., :-1]) / (c[..., -1:] - c[..., :1])

    def decode(self, logits):
        """Q = sum_i softmax(logits)_i b_i, with the bins' centres b_i."""
        return torch.softmax(logits, dim=-1) @ self.centres


class Critic(nn.Module):
    """Q(s, a), with inner features and a guess at those of the next state."""

    def __init__(self, num_obs, num_actions, args):
        super().__init__()
        hidden, features, head = args.critic_hidden_dims
        self.hl_gauss = HLGauss(args.v_min, args.v_max, args.num_bins) if args.hl_gauss else None
        num_outputs = args.num_bins if args.hl_gauss else 1
        self.encoder = nn.Sequential(
            hidden_layer(num_obs + num_actions, hidden, args.norm), nn.Linear(hidden, features)
        )
        self.value_head = nn.Sequential(
            nn.SiLU(), hidden_layer(features, head, args.norm), nn.Linear(head, num_outputs)
        )
        self.predictor = nn.Sequential(nn.SiLU(), hidden_layer(features, head, args.norm), nn.Linear(head, features))
        if args.hl_gauss:  # at the start every Q is 0: 40 times the histogram of 0 outweighs what the network says
            self.zero = nn.Parameter(self.hl_gauss.encode(torch.zeros(())))

    def features(self, obs, action):
        return self.encoder(torch.cat([obs, action], dim=-1))

    def outputs(self, features):
        """The logits of the histogram (..., num_bins); without HL-Gauss the value (..., 1)."""
        logits = self.value_head(features)
        return logits + 40.0 * self.zero if self.hl_gauss else logits

    def value(self, features):
        """Q (...)."""
        outputs = self.outputs(features)
        return self.hl_gauss.decode(outputs) if self.hl_gauss else outputs.squeeze(-1)


class Multipliers(nn.Module):
    """The prices alpha of entropy and beta of KL, positive whatever the steps."""

    def __init__(self, alpha, beta):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))

    def forward(self):
        return self.log_alpha.exp(), self.log_beta.exp()


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


# ALGO LOGIC: the parts of REPPO
def gaussian_log_prob(u, mean, log_std):
    """log N(u; mean, std^2), summed over action dimensions."""
    return (-0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def squashed_log_prob(u, mean, log_std):
    """log pi(a|s) of a = tanh(u), from u: atanh(a) is infinite in float32 from |u| = 9 on."""
    # log pi = log N(u) - sum_d log(1 - tanh(u)^2),   log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))
    return gaussian_log_prob(u, mean, log_std) - 2.0 * (math.log(2.0) - u - softplus(-2.0 * u)).sum(-1)


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def sampled_kl(old_mean, old_log_std, mean, log_std, num_samples):
    """The same, estimated: the mean of log pi_old(a) - log pi_theta(a) over actions of the old policy."""
    u = old_mean + old_log_std.exp() * torch.randn(num_samples, *old_mean.shape, device=old_mean.device)
    return (gaussian_log_prob(u, old_mean, old_log_std) - gaussian_log_prob(u, mean, log_std)).mean(0)


@torch.no_grad()  # values for the targets and baselines: numbers, not paths
def sample_values(critic, obs, mean, log_std, num_samples):
    """Q and the entropy -log pi of a state, averaged over actions, and the critic's features of the first action."""
    values, entropies, first = 0.0, 0.0, None
    for _ in range(num_samples):
        u = mean + log_std.exp() * torch.randn_like(mean)
        features = critic.features(obs, torch.tanh(u))
        values = values + critic.value(features) / num_samples
        entropies = entropies - squashed_log_prob(u, mean, log_std) / num_samples
        first = features if first is None else first
    return values, entropies, first


@torch.no_grad()  # the rollout is data: REPPO needs no derivative of the simulator
def rollout(env, actor, critic, normalizer, alpha, args):
    """T steps of every environment: data (T, N, ...), and the return and length of every episode that ended."""
    frozen = copy.deepcopy(normalizer)  # one fixed normalisation per rollout, or the KL would not be 0 at first
    raw_obs = env.detach()
    normalizer.update(gather(raw_obs))
    steps, episodes = [], []
    for t in range(args.num_steps):
        obs = frozen(raw_obs)
        mean, log_std = actor(obs)
        action = torch.tanh(mean + log_std.exp() * torch.randn_like(mean))
        raw_obs, reward, terminated, truncated, infos = env.step(action)
        normalizer.update(gather(raw_obs))
        end = terminated | truncated | (t == args.num_steps - 1)
        next_obs = frozen(infos["final_obs"])  # the true successor, also after a time-out
        steps.append((obs, action, mean, log_std, args.reward_scale * reward, next_obs, terminated, end))
        episodes.append(torch.stack([infos["_episode"], infos["episode"]["r"], infos["episode"]["l"]], dim=1))

    names = ("obs", "action", "mean", "log_std", "rewards", "next_obs", "terminated", "ends")
    data = {name: torch.stack(column) for name, column in zip(names, zip(*steps))}
    next_obs = data.pop("next_obs")
    values, entropies, data["next_features"] = sample_values(critic, next_obs, *actor(next_obs), args.num_value_samples)
    # after a fall there is neither value nor entropy
    data["next_values"] = torch.where(data["terminated"], 0.0, values)
    data["next_bonuses"] = torch.where(data["terminated"], 0.0, alpha * entropies)
    episodes = torch.cat(episodes)  # of which some have ended; asked once, because the host waits for a GPU's answer
    return data, episodes[episodes[:, 0] == 1.0, 1:].tolist()


def td_lambda_targets(rewards, next_values, next_bonuses, ends, gamma, lam):
    """Targets of Q (T, N), backwards in time, from the critic and the policy that saw the rollout."""
    # G_t = r_t + gamma (alpha H_{t+1} + V(s_{t+1}))                                     where the trajectory ends
    # G_t = r_t + gamma (alpha H_{t+1} + (1 - lambda) V(s_{t+1}) + lambda G_{t+1})       elsewhere
    targets, target = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        mixed = (1.0 - lam) * next_values[t] + lam * target
        target = rewards[t] + gamma * (next_bonuses[t] + torch.where(ends[t], next_values[t], mixed))
        targets[t] = target
    return targets


def critic_loss(critic, data, args):
    """L_Q = E[ HL(Q(s, a), G) ] + aux_coef L_aux, and the two apart."""
    features = critic.features(data["obs"], data["action"])
    outputs = critic.outputs(features)
    if args.hl_gauss:
        # - sum_i p_i log softmax(logits)_i; about 1.2 where the prediction is perfect, the entropy of the histogram
        log_probs = torch.log_softmax(outputs, dim=-1)
        value_loss = -(critic.hl_gauss.encode(data["targets"]) * log_probs).sum(-1).mean()
    else:
        value_loss = ((outputs.squeeze(-1) - data["targets"]) ** 2).mean()
    # L_aux: the features of the next state and action, where there is a next state, as they were in the rollout
    errors = ((critic.predictor(features) - data["next_features"]) ** 2).mean(-1)
    alive = ~data["terminated"]
    num_alive = alive.sum().float()
    average([num_alive])  # processes with more of them count more
    aux_loss = torch.where(alive, errors, 0.0).sum() / num_alive.clamp(min=1.0 / WORLD_SIZE)
    # apart they are measurements
    return value_loss + args.aux_coef * aux_loss, value_loss.detach(), aux_loss.detach()


def policy_loss(actor, critic, multipliers, data, args):
    """The loss of the policy and the multipliers on a minibatch, and its diagnostics."""
    mean, log_std = actor(data["obs"])
    u = mean + log_std.exp() * torch.randn_like(mean)
    log_prob = squashed_log_prob(u, mean, log_std)
    alpha, beta = multipliers()
    # the prices are constants for the policy, and what is priced is one for the prices: each has its own descent
    price_of_entropy, price_of_kl = alpha.detach(), beta.detach()
    if args.actor_gradient == "pathwise":
        # J = - Q(s, tanh(u)) + alpha log pi(a|s): the gradient of Q runs through the action into the policy
        objective = -critic.value(critic.features(data["obs"], torch.tanh(u))) + price_of_entropy * log_prob
    else:
        # the sampled action is data here: only its log-probability has a gradient
        objective = score_objective(critic, data["obs"], u.detach(), mean, log_std, price_of_entropy, args)

    if args.kl_estimator == "exact":
        kl = gaussian_kl(data["mean"], data["log_std"], mean, log_std)
    else:
        kl = sampled_kl(data["mean"], data["log_std"], mean, log_std, args.num_kl_samples)
    inside = kl < args.kl_bound
    if args.kl_mode == "clipped":
        # L_i = J_i where KL_i < eps_KL, else beta KL_i
        loss = torch.where(inside, objective, price_of_kl * kl).mean()
    elif args.kl_mode == "full":
        loss = (objective + price_of_kl * kl).mean()
    else:
        loss = objective.mean()

    # L_alpha = alpha (H - eps_H): alpha falls where the entropy is above its target
    # L_beta  = - beta (KL - eps_KL): beta rises where the KL is above its bound
    entropy, divergence = -log_prob.detach().mean(), kl.detach().mean()
    target_entropy = args.target_entropy_scale * mean.shape[-1]
    dual_loss = alpha * (entropy - target_entropy) - beta * (divergence - args.kl_bound)
    return loss + dual_loss, {"entropy": entropy, "inside": inside.float().mean()}


def score_objective(critic, obs, u, mean, log_std, alpha, args):
    """- A log pi(a|s): the same gradient in expectation, from values of Q alone (REINFORCE with a baseline)."""
    log_prob = squashed_log_prob(u, mean, log_std)
    baseline, entropy, _ = sample_values(critic, obs, mean, log_std, args.num_value_samples)
    with torch.no_grad():  # A weights the sample; the gradient is only that of its log-probability
        advantage = critic.value(critic.features(obs, torch.tanh(u))) - alpha * log_prob - (baseline + alpha * entropy)
    return -advantage * log_prob


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
    at_least = "num_envs num_steps num_minibatches update_epochs num_eval_envs num_value_samples num_kl_samples"
    at_least = dict.fromkeys(at_least.split(), 1)
    at_least |= dict.fromkeys("seed gamma td_lambda eval_freq kl_bound min_std aux_coef weight_decay".split(), 0)
    at_least |= dict.fromkeys("learning_rate dual_learning_rate alpha_init beta_init".split(), 1e-12)
    at_least |= dict.fromkeys("max_grad_norm reward_scale".split(), 1e-12)
    at_least |= {
        "checkpoint_freq": 1,
        "total_timesteps": args.batch_size,
        "num_bins": 3,
        "v_max": 0,
        "v_min": -(10**12),
    }
    at_least["target_entropy_scale"] = -(10**12)
    at_most = {
        "seed": 2**32 - 1,
        "gamma": 1,
        "td_lambda": 1,
        "num_minibatches": args.batch_size // WORLD_SIZE,
        "v_min": 0,
    }
    for name, low in at_least.items():
        high = at_most.get(name, 10**12)
        if not low <= getattr(args, name) <= high:  # NaN and infinity fail too
            usage_error(f"--{name.replace('_', '-')}: expected {low} to {high}, got {getattr(args, name)}")
    if args.v_min == args.v_max:
        usage_error(f"--v-max: expected more than --v-min, got {args.v_max} for both")
    for name in ("actor_hidden_dims", "critic_hidden_dims"):
        if not getattr(args, name) or min(getattr(args, name)) < 1:
            usage_error(f"--{name.replace('_', '-')}: expected widths of at least 1, got {getattr(args, name)}")
    for name in ("v_min", "v_max", "num_bins", "hl_gauss"):
        if state is not None and getattr(args, name) != state["args"][name]:
            expected = f"{state['args'][name]}, as in --checkpoint, whose critic has learned it"
            usage_error(f"--{name.replace('_', '-')}: expected {expected}, got {getattr(args, name)}")
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


COLUMNS = """global_step wall_s episodic_return episodic_length SPS learning_rate diverged value_loss aux_loss
    explained_variance entropy alpha beta approx_kl clipfrac target_min target_max target_clip_frac
    actor_grad_norm critic_grad_norm nonfinite_targets skipped_updates time_rollout time_actor time_critic
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


def check_support(args, share_outside, already_told):
    """Say once that the histogram cannot hold the targets: beyond its ends Q saturates, and its gradient with it."""
    if share_outside > 0.01 and not already_told:
        text = f"{100 * share_outside:.0f} % of the targets are outside --v-min {args.v_min} .. --v-max {args.v_max}"
        print(f"\nwarning: {text}: widen the support or lower --reward-scale in a new run", file=sys.stderr)
    return already_told or share_outside > 0.01


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
    actor, critic = Actor(num_obs, num_actions, args).to(device), Critic(num_obs, num_actions, args).to(device)
    normalizer = ObsNormalizer(num_obs).to(device)
    multipliers = Multipliers(args.alpha_init, args.beta_init).to(device)
    adam = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": True}  # with decay 0 AdamW is Adam
    actor_optimizer = torch.optim.AdamW(actor.parameters(), **adam)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), **adam)
    dual_optimizer = torch.optim.Adam(multipliers.parameters(), lr=args.dual_learning_rate, fused=True)
    modules = {"actor": actor, "critic": critic, "normalizer": normalizer, "multipliers": multipliers}
    modules |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    modules |= {"dual_optimizer": dual_optimizer}
    if RANK > 0:
        # all have drawn the same networks; from here on each draws noise of its own, and not the numbers of its resets
        torch.manual_seed(2**32 + seed)
    iteration, global_step, wall_before, finished_episodes = 0, 0, 0.0, deque(maxlen=100)
    quantities = ("the target of the critic", "the gradient of the actor", "the gradient of the critic")
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
        failures = state["failures"]
        # a flag beside --checkpoint wins over the settings that came with the optimisers
        for optimizer in (actor_optimizer, critic_optimizer):
            optimizer.param_groups[0] |= adam
        dual_optimizer.param_groups[0]["lr"] = args.dual_learning_rate
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

    losses = (policy_loss, critic_loss)
    if args.compile or args.cudagraphs:
        losses = [torch.compile(loss, mode="reduce-overhead" if args.cudagraphs else "default") for loss in losses]
    policy_loss_fn, critic_loss_fn = losses

    # TRY NOT TO MODIFY: start the game
    minibatch = ("obs", "action", "mean", "log_std", "targets", "next_features", "terminated")
    told_of_support = False
    num_threads = torch.get_num_threads()
    start_time, start_step = time.time(), global_step
    try:
        while global_step + args.batch_size <= args.total_timesteps and not first_signal(received, device):
            iteration += 1
            # ALGO LOGIC: collect a rollout and the targets of the critic
            time_0 = time.time()
            torch.set_num_threads(1)  # the batches are small: more threads would spin on the simulator's cores
            alpha, beta = (x.item() for x in multipliers())
            try:
                data, episodes = rollout(env, actor, critic, normalizer, alpha, args)
            except ValueError as error:  # the environment refuses an action that is not a number
                raise TrainingFailed(error) from error
            finished_episodes.extend(episodes)
            data["targets"] = td_lambda_targets(
                data["rewards"], data["next_values"], data["next_bonuses"], data["ends"], args.gamma, args.td_lambda
            )
            finite = data["targets"].isfinite()
            count_failures(failures, quantities[0], [gather(finite.any()[None]).any().item()])
            outside = (data["targets"] < args.v_min) | (data["targets"] > args.v_max)
            share_outside = outside.float().mean().item() if args.hl_gauss else 0.0
            told_of_support = check_support(args, share_outside, told_of_support)

            # flatten the batch
            b_data = {name: x.flatten(0, 1) for name, x in data.items()}

            # ALGO LOGIC: passes over the rollout, a step of the critic and one of the actor per minibatch
            time_1, time_actor, time_critic = time.time(), 0.0, 0.0
            torch.set_num_threads(num_threads)
            actor_steps, policy_stats, critic_steps, v_losses = [], [], [], []
            with torch.no_grad():  # only a measurement: what the critic knew
                errors = b_data["targets"] - critic.value(critic.features(b_data["obs"], b_data["action"]))
            for _ in range(args.update_epochs):
                for mb_inds in torch.randperm(len(b_data["obs"]), device=device).chunk(args.num_minibatches):
                    time_2 = time.time()
                    mb_data = {name: b_data[name][mb_inds] for name in minibatch}
                    q_loss, *v_loss = critic_loss_fn(critic, mb_data, args)
                    critic_optimizer.zero_grad()
                    q_loss.backward()
                    critic_steps.append(clipped_step(critic_optimizer, args.max_grad_norm))
                    v_losses.append([x.item() for x in v_loss])
                    time_3 = time.time()

                    loss, stats = policy_loss_fn(actor, critic, multipliers, mb_data, args)
                    actor_optimizer.zero_grad()
                    dual_optimizer.zero_grad()
                    # the critic's weights are constants here: it is Q's gradient with respect to the action that counts
                    loss.backward(inputs=[*actor.parameters(), *multipliers.parameters()])
                    actor_steps.append(clipped_step(actor_optimizer, args.max_grad_norm))
                    failures["skipped"] += not clipped_step(dual_optimizer, math.inf)[1]
                    policy_stats.append({name: value.item() for name, value in stats.items()})
                    time_critic, time_actor = time_critic + time_3 - time_2, time_actor + time.time() - time_3
            with torch.no_grad():  # only a measurement: how far the policy has moved
                approx_kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean().item()

            # TRY NOT TO MODIFY: execute the game and log data
            global_step += args.batch_size
            (actor_norms, actor_usable), (critic_norms, critic_usable) = zip(*actor_steps), zip(*critic_steps)
            count_failures(failures, quantities[1], actor_usable)
            count_failures(failures, quantities[2], critic_usable)
            mean_return, mean_length = np.mean(finished_episodes, axis=0) if finished_episodes else (math.nan, math.nan)
            value_loss, aux_loss = np.mean(v_losses, axis=0)
            metrics = {
                "charts/episodic_return": mean_return,
                "charts/episodic_length": mean_length,
                "charts/SPS": (global_step - start_step) / (time.time() - start_time),
                "charts/learning_rate": args.learning_rate,
                "charts/diverged": env.diverged.item(),
                "losses/value_loss": value_loss,
                "losses/aux_loss": aux_loss,
                "losses/explained_variance": 1.0 - (errors.var() / b_data["targets"].var()).item(),
                "losses/entropy": np.mean([stats["entropy"] for stats in policy_stats]),
                "losses/alpha": alpha,
                "losses/beta": beta,
                "losses/approx_kl": approx_kl,
                "losses/clipfrac": 1.0 - np.mean([stats["inside"] for stats in policy_stats]),
                "losses/target_min": data["targets"].min().item(),
                "losses/target_max": data["targets"].max().item(),
                "losses/target_clip_frac": share_outside,
                "losses/actor_grad_norm": np.mean(actor_norms),
                "losses/critic_grad_norm": np.mean(critic_norms),
                "losses/nonfinite_targets": (~finite).sum().item(),
                "losses/skipped_updates": failures["skipped"],
                "time/rollout": time_1 - time_0,
                "time/actor": time_actor,
                "time/critic": time_critic,
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
