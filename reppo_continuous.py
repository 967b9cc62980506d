"""Relative Entropy Pathwise Policy Optimization (REPPO), arXiv 2507.11019. Explained in docs/reppo.md.

PPO's loop with SAC's policy gradient.  A learned Q(s, a) says how the return changes with the action, so the simulator
need not be differentiable.  All data is on policy: no replay buffer, no target network.  This works while Q is accurate
where the policy goes, and while the policy stays where Q is accurate.

    1. Roll out T steps in N environments.  Compute TD(lambda) targets of the soft return, once per rollout: an action
       earns its reward and, from the next state on, alpha times the policy's entropy.
    2. Make several passes over the rollout.  On each minibatch, take first a step of the critic: it learns a histogram
       of the target by cross-entropy (HL-Gauss), and to predict its own features of the next state.
    3. Then take a step of the policy.  In states where its KL divergence from the policy that collected the data is
       below a bound, it follows Q through the action; in the others it moves back towards that policy.
    4. With it, take a step of two multipliers: the weight of the entropy rises while the entropy is below its
       target, and the weight of the KL divergence while the divergence is above its bound.

    paper            code            meaning
    x, a, r          obs, action     normalised observation, action = tanh(u) with u ~ N(mean, std^2), scaled reward
    Q_phi            critic          expectation of a histogram over bins (HL-Gauss)
    G^lambda         targets         TD(lambda) target of the soft return
    f_phi, L_aux     features        inner features of the critic; those of the next state are predicted
    pi_theta'        mean, log_std   the policy that collected the data, pi_old below (stored in the rollout)
    e^alpha, eps_H   alpha           weight of the entropy; the target is target_entropy_scale per action dimension
    e^beta, eps_KL   beta, kl_bound  weight of KL(pi_old || pi_theta) outside the bound, and the bound

Try:      python reppo_continuous.py --env-id ant --total-timesteps 1000000 --capture-video
Train:    python reppo_continuous.py --env-id ant --total-timesteps 3000000
          80 minutes beside other runs on two CPU cores, return 4,200 (4,610 without noise; one seed)
Resume:   python reppo_continuous.py --checkpoint runs/<run>/checkpoint.pt
Faithful: python reppo_continuous.py --kl-estimator mc --num-value-samples 1 --weight-decay 0.01
          (and RMSNorm in hidden_layer, MIN_STD = 0, widths of 512: what the authors' PyTorch code does; see the docs)
"""

import math
import os
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn as nn
import tyro
from torch.nn.functional import softplus
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter

import envs


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the networks, the noise and the environments"""
    cuda: bool = True
    """use a GPU if there is one"""
    track: bool = False
    """log to Weights and Biases too; WANDB_PROJECT and WANDB_ENTITY name the project and the team"""
    checkpoint: str | None = None
    """continue the run that wrote this checkpoint.pt, with its flags except those given again"""
    eval_only: bool = False
    """evaluate the policy of --checkpoint and stop"""
    eval_freq: int = 0
    """iterations between evaluations; 0: only one at the end"""
    num_eval_envs: int = 128
    """episodes per evaluation, one in each environment; a short try ends sooner with few"""
    capture_video: bool = False
    """film one deterministic episode at every evaluation"""

    # Algorithm specific arguments
    env_id: envs.EnvId = "hopper"
    """the task, or the path of a robot's MJCF or URDF file"""
    total_timesteps: int | None = None
    """environment steps, summed over all environments; default: the task's"""
    num_envs: int | None = None
    """N, parallel environments; default: the task's"""
    num_steps: int = 32
    """T, length of a rollout"""
    learning_rate: float = 3e-4
    """of the actor and the critic"""
    dual_learning_rate: float = 3e-4
    """of log alpha and log beta; a step of Adam moves them by at most about this much"""
    weight_decay: float = 0.0
    """of the actor and the critic"""
    gamma: float = 0.99
    """discount factor"""
    td_lambda: float = 0.95
    """lambda of the critic's TD(lambda) targets"""
    num_value_samples: int = 4
    """actions per next state over which its value and its entropy are averaged"""
    update_epochs: int = 4
    """passes over the rollout"""
    num_minibatches: int | None = None
    """minibatches per pass, each with a step of the critic and one of the actor; default: the task's"""
    actor_gradient: Literal["pathwise", "score"] = "pathwise"
    """gradient of Q through the action, or (ablation) the score function weighted by Q"""
    kl_bound: float = 0.1
    """eps_KL, per state"""
    kl_mode: Literal["clipped", "full", "value"] = "clipped"
    """outside the bound only the KL term (clipped); ablations: both terms everywhere (full), no KL term (value)"""
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
    reward_scale: float | None = None
    """the learner sees reward_scale * reward, and the support must hold its returns; default: the task's"""
    v_min: float = -50.0
    """lower end of the critic's support, in scaled reward"""
    v_max: float = 200.0
    """upper end of the critic's support, in scaled reward"""
    num_bins: int = 251
    """bins of the critic's histogram"""
    hl_gauss: bool = True
    """learn a histogram by cross-entropy; --no-hl-gauss (ablation) learns a number by squared error"""
    aux_coef: float = 1.0
    """weight of the self-prediction loss; 0: none"""
    max_grad_norm: float = 0.5
    """the gradients of the actor and of the critic are clipped to this norm"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# our choice, the paper has other tasks: 512 to 1,024 steps per minibatch, and scaled rewards of the order of 1.
# The KL bound limits what an iteration can change: on hopper many small iterations learn more than few large ones
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 256, "num_minibatches": 8, "reward_scale": 0.1},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64, "num_minibatches": 4, "reward_scale": 0.1},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64, "num_minibatches": 4, "reward_scale": 0.1},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.02},
    "go1": {"total_timesteps": 1_500_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},
    "file": {"total_timesteps": 5_000_000, "num_envs": 128, "num_minibatches": 8, "reward_scale": 0.1},  # any robot's
}


# ALGO LOGIC: networks
MIN_STD = 0.1  # added to the standard deviation of u


def hidden_layer(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.SiLU())


class Actor(nn.Module):
    """Gaussian over u with a state-dependent standard deviation; the action is tanh(u)."""

    def __init__(self, num_obs, num_actions):
        super().__init__()
        self.trunk = nn.Sequential(hidden_layer(num_obs, 400), hidden_layer(400, 200), hidden_layer(200, 100))
        self.head = nn.Linear(100, 2 * num_actions)

    def forward(self, obs):
        mean, s = self.head(self.trunk(obs)).chunk(2, dim=-1)
        return mean, torch.log(s.exp() + MIN_STD)

    def act(self, obs, deterministic=False):
        mean, log_std = self(obs)
        return torch.tanh(mean if deterministic else mean + log_std.exp() * torch.randn_like(mean))


class HLGauss(nn.Module):
    """Numbers as histograms: a Gaussian around the number, integrated over each bin (arXiv 2403.03950)."""

    def __init__(self, v_min, v_max, num_bins):
        super().__init__()
        width = (v_max - v_min) / (num_bins - 1)
        self.sigma = 0.75 * width
        self.register_buffer("centres", torch.linspace(v_min, v_max, num_bins))
        self.register_buffer("edges", torch.linspace(v_min - 0.5 * width, v_max + 0.5 * width, num_bins + 1))

    def encode(self, values):
        """(...) -> (..., num_bins). A number outside the support counts as its end."""
        values = values.clamp(self.centres[0], self.centres[-1])
        # c_i = erf((e_i - y) / (sqrt(2) sigma)),   p_i = (c_{i+1} - c_i) / (c_n - c_0),   with the bins' edges e_i
        c = torch.erf((self.edges - values[..., None]) / (math.sqrt(2.0) * self.sigma))
        return (c[..., 1:] - c[..., :-1]) / (c[..., -1:] - c[..., :1])

    def decode(self, logits):
        """Q = sum_i softmax(logits)_i b_i, with the bins' centres b_i: (..., num_bins) -> (...)."""
        return torch.softmax(logits, dim=-1) @ self.centres


class Critic(nn.Module):
    """Q(s, a) from features of state and action, which also predict the features of the next state and action."""

    def __init__(self, num_obs, num_actions, args):
        super().__init__()
        self.hl_gauss = HLGauss(args.v_min, args.v_max, args.num_bins) if args.hl_gauss else None
        num_outputs = args.num_bins if args.hl_gauss else 1
        self.encoder = nn.Sequential(hidden_layer(num_obs + num_actions, 400), nn.Linear(400, 200))
        self.value_head = nn.Sequential(nn.SiLU(), hidden_layer(200, 100), nn.Linear(100, num_outputs))
        self.predictor = nn.Sequential(nn.SiLU(), hidden_layer(200, 100), nn.Linear(100, 200))
        if args.hl_gauss:  # every Q starts at 0: 40 times the histogram of 0 outweighs the logits of a fresh network
            self.zero = nn.Parameter(self.hl_gauss.encode(torch.zeros(())))

    def features(self, obs, action):
        return self.encoder(torch.cat([obs, action], dim=-1))

    def outputs(self, features):
        """Logits of the histogram (..., num_bins); with --no-hl-gauss Q itself (..., 1)."""
        outputs = self.value_head(features)
        return outputs + 40.0 * self.zero if self.hl_gauss else outputs

    def value(self, features):
        """Q (...)."""
        outputs = self.outputs(features)
        return self.hl_gauss.decode(outputs) if self.hl_gauss else outputs.squeeze(-1)


class Multipliers(nn.Module):
    """The prices alpha of entropy and beta of KL, learned as logarithms so that they stay positive."""

    def __init__(self, alpha, beta):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))

    def forward(self):
        return self.log_alpha.exp(), self.log_beta.exp()


class ObsNormalizer(nn.Module):
    """x -> (x - mean) / sqrt(var + 1e-5), with the mean and variance of all observations so far."""

    def __init__(self, num_obs):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_obs, dtype=torch.float64))
        self.register_buffer("var", torch.ones(num_obs, dtype=torch.float64))
        self.register_buffer("count", torch.ones((), dtype=torch.float64))

    def forward(self, obs):
        return (obs - self.mean.float()) / torch.sqrt(self.var + 1e-5).float()

    @torch.no_grad()  # statistics are constants for every gradient
    def update(self, obs):
        if dist.is_initialized():  # the rows of all processes
            everyone = [torch.empty_like(obs) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, obs.contiguous())
            obs = torch.cat(everyone)
        # merge two sets a, b with S = n var:  S = S_a + S_b + delta^2 n_a n_b / (n_a + n_b)   (Chan et al. 1979)
        obs, n = obs.double(), len(obs)
        delta, total = obs.mean(0) - self.mean, self.count + n
        squares = self.var * self.count + obs.var(0, correction=0) * n + delta**2 * self.count * n / total
        self.mean, self.var, self.count = self.mean + delta * n / total, squares / total, total


# ALGO LOGIC: REPPO
def gaussian_log_prob(u, mean, log_std):
    """log N(u; mean, std^2), summed over action dimensions."""
    return (-0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def squashed_log_prob(u, mean, log_std):
    """log pi(a|s) of a = tanh(u), computed from u: in float32 atanh(a) is infinite from |u| = 9 on."""
    # log pi = log N(u) - sum_d log(1 - tanh(u)^2),   log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))
    return gaussian_log_prob(u, mean, log_std) - 2.0 * (math.log(2.0) - u - softplus(-2.0 * u)).sum(-1)


@torch.no_grad()  # targets and baselines are constants: no loss may change them
def sample_values(critic, obs, mean, log_std, num_samples):
    """V = E[ Q(s, a) ] and H = -E[ log pi(a|s) ] over sampled actions, and the features of the first action."""
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
    """T steps of every environment, tensors (T, N, ...), with the value and the entropy bonus of every next state."""
    raw_obs, steps = env.detach(), []  # the current observation
    for t in range(args.num_steps):
        obs = normalizer(raw_obs)
        mean, log_std = actor(obs)
        action = torch.tanh(mean + log_std.exp() * torch.randn_like(mean))
        next_obs, reward, terminated, truncated, infos = env.step(action)
        done = terminated | truncated
        end = done | (t == args.num_steps - 1)  # a trajectory ends with its episode or with the rollout
        successor = normalizer(infos["final_obs"])  # s_{t+1} before any reset, also after a time-out

        step = {"raw_obs": raw_obs, "obs": obs, "action": action, "mean": mean, "log_std": log_std}
        step |= {"rewards": args.reward_scale * reward, "successors": successor}
        step |= {"terminated": terminated, "dones": done, "ends": end}
        steps.append(step | {"episode_return": infos["episode"]["r"], "episode_length": infos["episode"]["l"]})
        raw_obs = next_obs
    data = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}

    # V(s_{t+1}) and alpha H(s_{t+1}); if the robot has fallen there is no next state, and both are 0
    successors, num_samples = data.pop("successors"), args.num_value_samples
    values, entropies, features = sample_values(critic, successors, *actor(successors), num_samples)
    data["next_features"] = features
    data["next_values"] = torch.where(data["terminated"], 0.0, values)
    data["next_bonuses"] = torch.where(data["terminated"], 0.0, alpha * entropies)
    return data


def td_lambda_targets(rewards, next_values, next_bonuses, ends, gamma, lam):
    """Targets G (T, N) of Q, backwards in time, from the critic and the policy of the rollout."""
    # G_t = r_t + gamma (alpha H(s_{t+1}) + V(s_{t+1}))                                      where a trajectory ends
    # G_t = r_t + gamma (alpha H(s_{t+1}) + (1 - lambda) V(s_{t+1}) + lambda G_{t+1})        elsewhere
    targets, target = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        mixed = (1.0 - lam) * next_values[t] + lam * target
        target = rewards[t] + gamma * (next_bonuses[t] + torch.where(ends[t], next_values[t], mixed))
        targets[t] = target
    return targets


def critic_loss(critic, data, args):
    """The loss of the critic on a minibatch (B, ...), and its two terms for the log."""
    features = critic.features(data["obs"], data["action"])
    outputs = critic.outputs(features)
    if args.hl_gauss:
        # HL(Q, G) = - sum_i p_i(G) log softmax(logits)_i: at best the entropy of p, about 1.2
        log_probs = torch.log_softmax(outputs, dim=-1)
        value_loss = -(critic.hl_gauss.encode(data["targets"]) * log_probs).sum(-1).mean()
    else:
        value_loss = ((outputs.squeeze(-1) - data["targets"]) ** 2).mean()  # (Q - G)^2

    # L_aux = E[ |z_hat(s, a) - z'|^2 / dim z ] over the steps that have a next state
    # z' is stored in the rollout: with a gradient through it, features that say nothing would be the easiest to predict
    errors = ((critic.predictor(features) - data["next_features"]) ** 2).mean(-1)
    alive = ~data["terminated"]
    num_alive = alive.sum().float()
    if dist.is_initialized():  # the processes' mean: then their mean gradient is that of the whole minibatch
        dist.all_reduce(num_alive.div_(dist.get_world_size()))
    aux_loss = torch.where(alive, errors, 0.0).sum() / num_alive.clamp(min=1e-6)

    # L_Q = E[ HL(Q(s, a), G) ] + aux_coef L_aux
    return value_loss + args.aux_coef * aux_loss, value_loss.detach(), aux_loss.detach()


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d [ log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2 ]
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def sampled_kl(old_mean, old_log_std, mean, log_std, num_samples):
    """The same, estimated: the mean of log pi_old(a|s) - log pi_theta(a|s) over actions of the old policy."""
    u = old_mean + old_log_std.exp() * torch.randn(num_samples, *old_mean.shape, device=old_mean.device)
    return (gaussian_log_prob(u, old_mean, old_log_std) - gaussian_log_prob(u, mean, log_std)).mean(0)


def policy_loss(actor, critic, multipliers, data, args):
    """The loss of the policy and the multipliers on a minibatch (B, ...), and two diagnostics."""
    mean, log_std = actor(data["obs"])
    u = mean + log_std.exp() * torch.randn_like(mean)
    log_prob = squashed_log_prob(u, mean, log_std)
    q = critic.value(critic.features(data["obs"], torch.tanh(u)))
    alpha, beta = multipliers()

    # J_i = - Q(s_i, a_i) + alpha log pi(a_i|s_i),   a_i = tanh(u_i): the gradient of Q runs through the action
    # alpha and beta are constants for the policy: they have a loss of their own
    objective = alpha.detach() * log_prob - q
    if args.actor_gradient == "score":
        # J_i = - A_i log pi(a_i|s_i),   A = Q - alpha log pi - (V + alpha H): the same gradient in expectation
        # a and A are constants here: only log pi has a gradient
        value, entropy, _ = sample_values(critic, data["obs"], mean, log_std, args.num_value_samples)
        advantage = -objective.detach() - (value + alpha.detach() * entropy)
        objective = -advantage * squashed_log_prob(u.detach(), mean, log_std)

    # L_i = J_i where KL_i < eps_KL, else beta KL_i: Q is trusted only near the policy that collected its data
    kl = gaussian_kl(data["mean"], data["log_std"], mean, log_std)
    if args.kl_estimator == "mc":
        kl = sampled_kl(data["mean"], data["log_std"], mean, log_std, args.num_kl_samples)
    inside = kl < args.kl_bound
    loss = torch.where(inside, objective, beta.detach() * kl)
    if args.kl_mode == "full":
        loss = objective + beta.detach() * kl
    elif args.kl_mode == "value":
        loss = objective

    # L_alpha = alpha (H - eps_H): alpha falls while the entropy is above its target
    # L_beta  = - beta (KL - eps_KL): beta rises while the KL is above its bound
    # entropy and KL are constants for the multipliers: the policy has its own loss
    entropy, mean_kl = -log_prob.detach().mean(), kl.detach().mean()
    target_entropy = args.target_entropy_scale * mean.shape[-1]
    dual_loss = alpha * (entropy - target_entropy) - beta * (mean_kl - args.kl_bound)
    return loss.mean() + dual_loss, {"entropy": entropy, "inside": inside.float().mean()}


def evaluate(actor, normalizer, args, film):
    """Undiscounted returns of the policy with and without its noise, printed and returned; see envs/evaluate.py."""
    env, metrics = envs.make(args.env_id, num_envs=args.num_eval_envs, device=normalizer.mean.device), {}
    for tag, deterministic in (("eval/", False), ("eval/deterministic_", True)):
        policy = lambda obs, mode=deterministic: actor.act(normalizer(obs), mode)  # noqa: E731
        returns, lengths = envs.evaluate(env, policy, args.seed, film if args.capture_video and deterministic else None)
        mean, std, length = returns.mean().item(), returns.std(correction=0).item(), lengths.mean().item()
        print(f"{tag}episodic_return {mean:.1f} +- {std:.1f}, length {length:.1f}, {len(returns)} episodes", flush=True)
        metrics |= {f"{tag}episodic_return": mean, f"{tag}return_std": std, f"{tag}episodic_length": length}
    env.close()
    return metrics


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C ends without a traceback
    limits = {"v_min": (-1e9, 0.0), "v_max": (1e-9, 1e9), "num_bins": (3, 10**4), "target_entropy_scale": (-1e9, 1e9)}
    limits |= {"alpha_init": (1e-9, 1e9), "beta_init": (1e-9, 1e9), "reward_scale": (1e-9, 1e9)}
    # the critic has learned what its outputs mean, and the prices have moved on
    fixed = ("v_min", "v_max", "num_bins", "hl_gauss", "reward_scale", "alpha_init", "beta_init")
    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__, fixed, **limits)
    args.batch_size = args.num_envs * args.num_steps
    args.num_iterations = args.total_timesteps // args.batch_size
    run_dir = f"runs/{os.path.basename(args.env_id)}__{args.exp_name}__{args.seed}__{int(time.time())}"
    run_dir = os.path.dirname(os.path.abspath(args.checkpoint)) if checkpoint else run_dir
    use_cuda = args.cuda and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")

    # torchrun --nproc-per-node K starts K of these processes, each with its share of the environments; rank 0 reports
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        dist.init_process_group("nccl" if use_cuda else "gloo")
    machine = {"device": device, "float32 products on the CPU": envs.use_onednn()}  # before any matrix product

    # TRY NOT TO MODIFY: seeding
    torch.manual_seed(args.seed)
    seed = args.seed * world_size + rank  # of this process's environments

    # env setup
    env = envs.make(args.env_id, num_envs=args.num_envs // world_size, device=device, seed=seed)
    env.reset()  # rollout() takes the observation from env.detach()

    # agent setup
    num_obs, num_actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    actor, critic = Actor(num_obs, num_actions).to(device), Critic(num_obs, num_actions, args).to(device)
    multipliers = Multipliers(args.alpha_init, args.beta_init).to(device)
    normalizer = ObsNormalizer(num_obs).to(device)
    adamw = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": True}  # with decay 0 this is Adam
    actor_optimizer = torch.optim.AdamW(actor.parameters(), **adamw)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), **adamw)
    dual_optimizer = torch.optim.Adam(multipliers.parameters(), lr=args.dual_learning_rate, fused=True)
    parts = {"actor": actor, "critic": critic, "multipliers": multipliers, "normalizer": normalizer}
    parts |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    parts |= {"dual_optimizer": dual_optimizer}
    if world_size > 1:  # every backward() leaves the mean of all processes' gradients
        for parameter in (*actor.parameters(), *critic.parameters(), *multipliers.parameters()):
            parameter.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad.div_(world_size)))

    # resume
    start = checkpoint["iteration"] if checkpoint else 0
    episodes = deque(checkpoint["episodes"] if checkpoint else (), maxlen=100)  # return and length of the last 100
    if args.eval_only:
        envs.restore({"actor": actor, "normalizer": normalizer}, checkpoint)
        if rank == 0:
            evaluate(actor, normalizer, args, f"{run_dir}/video-{start * args.batch_size}")
        sys.exit()
    if checkpoint:
        envs.restore(parts, checkpoint)
        for optimizer in (actor_optimizer, critic_optimizer):  # flags given again win over those of the checkpoint
            optimizer.param_groups[0]["lr"] = args.learning_rate
        dual_optimizer.param_groups[0]["lr"] = args.dual_learning_rate
    if checkpoint and world_size == 1 and checkpoint["process"] == [1, device.type, args.seed]:  # goes on exactly
        envs.restore({"env": env}, checkpoint)
        torch.set_rng_state(checkpoint["rng"])
        for state in checkpoint["cuda_rng"][:1]:  # none on a CPU
            torch.cuda.set_rng_state(state, device)
    elif checkpoint or rank > 0:  # new episodes and new noise; only the networks are the same in all processes
        torch.manual_seed(hash((start, seed)) % 2**32)
        env.reset(seed=torch.initial_seed())

    if rank == 0:
        if args.track:
            import wandb

            wandb.init(id=os.path.basename(run_dir), resume="allow", config=asdict(args), sync_tensorboard=True)
        envs.claim(run_dir, args)  # two runs never share a folder
        writer = SummaryWriter(run_dir, purge_step=start * args.batch_size + 1)
        table = "\n".join(f"    {name}: {value}" for name, value in (asdict(args) | machine).items())
        writer.add_text("hyperparameters", table)
        print(f"{table}\nrun folder {run_dir}; --checkpoint {run_dir}/checkpoint.pt continues it", flush=True)
        if start >= args.num_iterations:
            print("the run is finished: it is only evaluated; a larger --total-timesteps continues it", flush=True)

    # TRY NOT TO MODIFY: start the game
    columns = ("obs", "action", "mean", "log_std", "targets", "next_features", "terminated")  # what the losses read
    warned = False
    num_threads = torch.get_num_threads()
    start_time = time.time()
    for iteration in range(start + 1, args.num_iterations + 1):
        # ALGO LOGIC: a rollout, and the targets of the critic
        times = [time.time()]
        torch.set_num_threads(1)  # torch's other threads would take the cores from the simulator's
        alpha, beta = (price.item() for price in multipliers())
        data = rollout(env, actor, critic, normalizer, alpha, args)
        rewards, next_values, next_bonuses = data["rewards"], data["next_values"], data["next_bonuses"]
        targets = td_lambda_targets(rewards, next_values, next_bonuses, data["ends"], args.gamma, args.td_lambda)
        torch.set_num_threads(num_threads)

        # only now: all observations of an iteration share one normalisation
        normalizer.update(data["raw_obs"].flatten(0, 1))

        # flatten the batch
        b_data = {name: x.flatten(0, 1) for name, x in (data | {"targets": targets}).items()}
        b_targets = b_data["targets"]
        with torch.no_grad():  # for the log: what the critic knew so far
            errors = b_targets - critic.value(critic.features(b_data["obs"], b_data["action"]))
        times.append(time.time())

        # ALGO LOGIC: passes over the rollout, with a step of the critic and one of the actor per minibatch
        actor_norms, critic_norms, stats, v_losses = [], [], [], []
        for _ in range(args.update_epochs):
            for mb_inds in torch.randperm(len(b_targets), device=device).chunk(args.num_minibatches):
                mb_data = {name: b_data[name][mb_inds] for name in columns}
                v_loss, value_loss, aux_loss = critic_loss(critic, mb_data, args)
                critic_optimizer.zero_grad()
                v_loss.backward()
                critic_norms.append(clip_grad_norm_(critic.parameters(), args.max_grad_norm, error_if_nonfinite=True))
                critic_optimizer.step()
                v_losses.append(torch.stack([value_loss, aux_loss]))
                times.append(time.time())

                loss, mb_stats = policy_loss(actor, critic, multipliers, mb_data, args)
                actor_optimizer.zero_grad()
                dual_optimizer.zero_grad()
                # the critic's weights are constants here: the policy follows Q and must not change it
                loss.backward(inputs=[*actor.parameters(), *multipliers.parameters()])
                actor_norms.append(clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True))
                actor_optimizer.step()
                clip_grad_norm_(multipliers.parameters(), math.inf, error_if_nonfinite=True)  # not clipped, but checked
                dual_optimizer.step()
                stats.append(mb_stats)
                times.append(time.time())
        with torch.no_grad():  # for the log: how far the policy has moved
            approx_kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean()

        # TRY NOT TO MODIFY: log data
        if rank > 0:
            continue
        global_step = iteration * args.batch_size
        episodes.extend(torch.stack([b_data["episode_return"], b_data["episode_length"]], 1)[b_data["dones"]].tolist())
        mean_return, mean_length = torch.tensor([*episodes]).reshape(-1, 2).mean(0).tolist()  # NaN before the first end
        value_loss, aux_loss = torch.stack(v_losses).mean(0).tolist()
        entropy, inside = (torch.stack([mb[name] for mb in stats]).mean().item() for name in ("entropy", "inside"))
        outside = ((b_targets < args.v_min) | (b_targets > args.v_max)).float().mean().item() if args.hl_gauss else 0.0
        if outside > 0.01 and not warned:  # beyond the ends of the support Q saturates, and its gradient vanishes
            warned = True
            support = f"--v-min {args.v_min} .. --v-max {args.v_max}"
            print(f"warning: {outside:.0%} of the targets are outside {support}; widen it or lower --reward-scale")
        sps = (iteration - start) * args.batch_size / (time.time() - start_time)
        metrics = {
            "charts/episodic_return": mean_return,
            "charts/episodic_length": mean_length,
            "charts/SPS": sps,
            "charts/learning_rate": args.learning_rate,
            "charts/diverged": env.diverged.item(),
            "losses/value_loss": value_loss,
            "losses/aux_loss": aux_loss,
            "losses/explained_variance": 1.0 - (errors.var(correction=0) / b_targets.var(correction=0)).item(),
            "losses/entropy": entropy,
            "losses/alpha": alpha,
            "losses/beta": beta,
            "losses/approx_kl": approx_kl.item(),
            "losses/clipfrac": 1.0 - inside,
            "losses/target_min": b_targets.min().item(),
            "losses/target_max": b_targets.max().item(),
            "losses/target_clip_frac": outside,
            "losses/actor_grad_norm": torch.stack(actor_norms).mean().item(),
            "losses/critic_grad_norm": torch.stack(critic_norms).mean().item(),
        }
        # the rollout, then critic and actor in turn
        seconds = [until - since for since, until in zip(times, times[1:])]
        metrics |= {"time/rollout": seconds[0], "time/critic": sum(seconds[1::2]), "time/actor": sum(seconds[2::2])}
        left = (args.num_iterations - iteration) * args.batch_size / sps / 60
        progress = f"step {global_step:,}/{args.total_timesteps:,} ({iteration / args.num_iterations:.0%})"
        print(f"{progress}  return {mean_return:.1f}  SPS {sps:,.0f}  {left:.0f} min left", flush=True)
        if args.eval_freq and iteration % args.eval_freq == 0 and iteration < args.num_iterations:
            metrics |= evaluate(actor, normalizer, args, f"{run_dir}/video-{global_step}")
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, global_step)
        writer.flush()  # before the checkpoint: a resumed run begins after it

        checkpoint = {name: part.state_dict() for name, part in (parts | {"env": env}).items()}
        checkpoint |= {"script": os.path.basename(__file__), "args": asdict(args)}
        checkpoint |= {"iteration": iteration, "episodes": [*episodes], "process": [world_size, device.type, args.seed]}
        checkpoint |= {"rng": torch.get_rng_state(), "cuda_rng": [torch.cuda.get_rng_state(device)] if use_cuda else []}
        envs.save_checkpoint(checkpoint, run_dir)  # there is never half a checkpoint

    if rank == 0:
        global_step = max(start, args.num_iterations) * args.batch_size
        for tag, value in evaluate(actor, normalizer, args, f"{run_dir}/video-{global_step}").items():
            writer.add_scalar(tag, value, global_step)
        writer.close()
        print(f"done: {global_step:,} steps, run folder {run_dir}")
    if world_size > 1:
        dist.destroy_process_group()
