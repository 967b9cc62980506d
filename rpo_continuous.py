"""Reparameterization Proximal Policy Optimization (RPO), arXiv 2508.06214. Docs: README.md

Not CleanRL's `rpo_continuous_action.py`, which is *Robust* Policy Optimization (arXiv 2212.07536).

The simulator is differentiable, so one backward pass through a short rollout (BPTT) gives the gradient of the return
with respect to every action.  SHAC takes one policy step with it and throws it away.  RPO caches it and takes several:
for each later policy it regenerates the noise with which *that* policy would have emitted the stored action, sends
the cached gradient through the new path, weighs it by the importance ratio, drops samples whose ratio left an
asymmetric interval, and holds the policy near the one that collected the data by a KL term.

    paper            code             meaning
    s, a, r          obs, action      normalised observation, action = tanh(u), reward
    f_theta(eps; s)  pre_tanh u       u = mu + sigma * eps, eps ~ N(0, 1): the reparameterised sample
    eps_reg          eps_reg          the noise that makes the current policy emit the stored u
    R(tau)           returns          discounted soft return of the rollout, with the critic's value where it is cut
    grad_a R         action_grads     cached once per iteration, here with respect to u
    rho              ratio            pi_theta(a|s) / pi_old(a|s), jointly over the action dimensions
    c_low, c_high    clip_low/high    a sample is kept while 1 - c_low <= rho <= 1 + c_high
    lambda_KL        kl_coef          weight of KL(pi_old || pi_theta)
    lambda_ent       ent_coef         weight of the entropy, in the reward and in the loss
    M, L             update_epochs, critic_epochs

Run:     python rpo_continuous.py --env-id hopper --total-timesteps 1500000
Full:    python rpo_continuous.py --env-id hopper --total-timesteps 10000000
Resume:  python rpo_continuous.py --checkpoint runs/<run>/checkpoint.pt
Results: README.md and benchmarks/results.
"""

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
import torch.nn as nn
import tyro
import warp as wp
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
    save_model: bool = False
    """write the actor and the observation normaliser to runs/{run_name}/{exp_name}.cleanrl_model at the end"""
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
    """environment steps over all environments; default: the task's, printed at the start"""
    num_envs: int | None = None
    """N, parallel environments; default: the task's"""
    num_steps: int = 32
    """H, length of the differentiated rollout (16 to 64)"""
    learning_rate: float = 5e-4
    """of the actor"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    anneal_lr: bool = True
    """let both learning rates decay exponentially to final_learning_rate"""
    final_learning_rate: float = 1e-5
    """learning rates at the end of training"""
    gamma: float = 0.99
    """discount factor"""
    td_lambda: float = 0.95
    """lambda of the critics' TD(lambda) targets"""
    update_epochs: int = 5
    """M, policy steps per rollout, each on the full batch; 1 is no reuse"""
    critic_epochs: int = 16
    """L, passes of the critics over the rollout"""
    num_minibatches: int = 4
    """minibatches per pass of the critics"""
    surrogate_coef: float = 1.0
    """weight of the surrogate objective (the paper's sum over time instead of the mean is num_steps)"""
    clip_low: float = 0.8
    """c_low: samples with a ratio below 1 - c_low are dropped"""
    clip_high: float = 1.0
    """c_high: samples with a ratio above 1 + c_high are dropped"""
    clip_gradient: bool = True
    """drop samples by their ratio; --no-clip-gradient keeps all of them"""
    kl_coef: float | None = None
    """lambda_KL; default: the task's"""
    ent_coef: float | None = None
    """lambda_ent; default: the task's"""
    critic_agg: Literal["mean", "min"] = "mean"
    """how the TD targets join the two critics (the return always uses the mean)"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    minibatch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# the paper's settings per task (tables 3 and 4)
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024, "ent_coef": 0.25, "kl_coef": 0.2},
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
    """Running mean and variance of the observations; part of the model, so that it is saved with it."""

    def __init__(self, num_obs):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_obs, dtype=torch.float64))
        self.register_buffer("var", torch.ones(num_obs, dtype=torch.float64))
        self.register_buffer("count", torch.ones((), dtype=torch.float64))

    def forward(self, obs):
        return (obs - self.mean.float()) / torch.sqrt(self.var + 1e-5).float()

    @torch.no_grad()  # statistics of the data, constants for every gradient
    def update(self, obs):
        obs = obs.double()
        delta, n, total = obs.mean(0) - self.mean, len(obs), self.count + len(obs)
        squares = self.var * self.count + obs.var(0, correction=min(1, n - 1)) * n + delta**2 * self.count * n / total
        self.mean, self.var, self.count = self.mean + delta * n / total, squares / total, total


# ALGO LOGIC: the parts of RPO
def squashed_entropy(mean, log_std):
    """Entropy of tanh(u), one sample per state, scaled so that 0 is the target -A/2 and 1 is A/2."""
    u = mean + log_std.exp() * torch.randn_like(mean)
    # H = sum_d [ log sigma + (1 + log 2 pi)/2 + log(1 - tanh(u)^2) ],   log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))
    gaussian = log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))
    entropy = (gaussian + 2.0 * (math.log(2.0) - u - softplus(-2.0 * u))).sum(-1)
    target = 0.5 * mean.shape[-1]
    return (entropy + target) / (2.0 * target)


def log_ratio(u, mean, log_std, old_mean, old_log_std):
    """log rho = log pi_theta(a|s) - log pi_old(a|s); the Jacobian of tanh is the same in both and cancels."""
    eps, old_eps = (u - mean) / log_std.exp(), (u - old_mean) / old_log_std.exp()
    return (0.5 * old_eps**2 - 0.5 * eps**2 + old_log_std - log_std).sum(-1)


def regenerate(u, mean, log_std):
    """The stored u as a function of the current policy: u = f_theta(eps_reg; s) with eps_reg = f_theta^-1(u; s)."""
    # eps_reg is a constant (eq. 10): with a gradient through it u would not depend on theta at all
    eps_reg = ((u - mean) / log_std.exp()).detach()
    return mean + log_std.exp() * eps_reg


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def rollout(env, actor, critic, normalizer, args):
    """H steps of every environment with a live graph. Returns the data (H, N, ...), detached, and the action gradients.

    The gradient with respect to u_t is the total one: it contains the effect of u_t on every later state *and* on the
    actions that the policy takes there.
    """
    frozen = copy.deepcopy(normalizer)  # one fixed normalisation per rollout, or the ratio would not be 1 in epoch 1
    raw_obs = env.detach()  # the graph starts here: earlier rollouts belong to earlier gradients
    normalizer.update(raw_obs)
    returns, discount = torch.zeros(len(raw_obs), device=raw_obs.device), torch.ones(len(raw_obs), device=raw_obs.device)
    steps, episodes = [], []
    for t in range(args.num_steps):
        obs = frozen(raw_obs)
        mean, log_std = actor(obs)
        u = mean + log_std.exp() * torch.randn_like(mean)
        raw_obs, reward, terminated, truncated, infos = env.step(torch.tanh(u))
        normalizer.update(raw_obs)
        reward = reward + args.ent_coef * squashed_entropy(mean, log_std)

        # the value of the true successor: 0 after a fall, V(s') after a time-out or where the rollout is cut
        done = terminated | truncated
        end = done | (t == args.num_steps - 1)
        next_values = torch.where(terminated[:, None], 0.0, critic(frozen(infos["final_obs"])))

        # R = sum_t gamma^t r_t + gamma^(t+1) V(s_{t+1}) [the trajectory ends at t], restarting after each reset
        bootstrap = torch.where(end, args.gamma * next_values.mean(-1), 0.0)
        returns = returns + discount * (reward + bootstrap)
        discount = torch.where(done, 1.0, args.gamma * discount)
        next_value = next_values.mean(-1) if args.critic_agg == "mean" else next_values.amin(-1)
        steps.append((obs, u, mean, log_std, reward, next_value, end))
        ended = infos["_episode"]
        episodes.append(torch.stack([infos["episode"]["r"][ended], infos["episode"]["l"][ended]], dim=1))

    # grad_u R: the one backward pass through the simulator (BPTT).  The actions are inner nodes of the graph, not
    # leaves, and only their gradients are asked for: the critic and the actor's weights are constants here.
    start = time.time()
    action_grads = torch.stack(torch.autograd.grad(returns.sum(), [step[1] for step in steps]))
    backward_time = time.time() - start
    # from here on the rollout is data: every later gradient path goes through the current policy only
    names = ("obs", "u", "mean", "log_std", "rewards", "next_values", "ends")
    data = {name: torch.stack(column).detach() for name, column in zip(names, zip(*steps))}
    return data | {"action_grads": action_grads}, torch.cat(episodes), backward_time


def policy_loss(actor, data, args):
    """The loss of one policy epoch on the full batch, and its diagnostics. data: flattened over time (H N, ...)."""
    mean, log_std = actor(data["obs"])
    u = regenerate(data["u"], mean, log_std)

    # rho weighs a sample and decides whether it is kept; the gradient is only that of u (eq. 11), so both are constants
    with torch.no_grad():
        ratio = log_ratio(data["u"], mean, log_std, data["mean"], data["log_std"]).clamp(-20.0, 20.0).exp()
        keep = (ratio >= 1.0 - args.clip_low) & (ratio <= 1.0 + args.clip_high)
        weight = ratio * keep if args.clip_gradient else ratio

    # L = lambda_surr E[ rho <grad_u R, u> ] - lambda_KL E[ KL(pi_old || pi_theta) ] + lambda_ent E[ H ]
    surrogate = (weight * (data["action_grads"] * u).sum(-1)).mean()
    kl = gaussian_kl(data["mean"], data["log_std"], mean, log_std).mean()
    entropy = squashed_entropy(mean, log_std).mean()
    loss = -(args.surrogate_coef * surrogate - args.kl_coef * kl + args.ent_coef * entropy)
    return loss, {"ratio": ratio, "keep": keep, "kl": kl.detach(), "entropy": entropy.detach()}


def td_lambda_targets(rewards, next_values, ends, gamma, lam):
    """Targets of the critics (H, N), backwards in time from values of the critics that saw the rollout."""
    # G_t = r_t + gamma V(s_{t+1})                                        where the trajectory ends
    # G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})        elsewhere
    targets, target = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        mixed = (1.0 - lam) * next_values[t] + lam * target
        target = rewards[t] + gamma * torch.where(ends[t], next_values[t], mixed)
        targets[t] = target
    return targets


class TrainingFailed(Exception):
    pass


class Optimizer:
    """AdamW with gradient clipping that refuses gradients which are not finite, and gives up after ten in a row."""

    def __init__(self, name, module, learning_rate, max_grad_norm):
        self.name, self.params, self.max_grad_norm = name, list(module.parameters()), max_grad_norm
        self.adam = torch.optim.AdamW(self.params, lr=learning_rate, betas=(0.7, 0.95))
        self.skipped = self.skipped_in_a_row = 0

    def step(self, loss):
        self.adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.params, self.max_grad_norm).item()
        if math.isfinite(norm):
            self.adam.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            if self.skipped_in_a_row == 10:
                raise TrainingFailed(f"the gradient of the {self.name} was not finite ten times in a row")
        return norm

    def state_dict(self):
        return {"adam": self.adam.state_dict(), "skipped": self.skipped, "in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state):
        self.adam.load_state_dict(state["adam"])
        self.skipped, self.skipped_in_a_row = state["skipped"], state["in_a_row"]


@torch.no_grad()  # an evaluation learns nothing
def evaluate(actor, normalizer, args, device, deterministic):
    """The first whole episode of every evaluation environment: undiscounted returns and lengths (num_eval_envs, 2)."""
    env = envs.make(args.env_id, num_envs=args.num_eval_envs, device=device, seed=args.seed + 1_000_000)
    noise = torch.Generator(device).manual_seed(args.seed)  # of its own: training must not notice an evaluation
    obs, _ = env.reset()
    results = torch.full((args.num_eval_envs, 2), torch.nan, device=device)
    while results.isnan().any():
        mean, log_std = actor(normalizer(obs))
        eps = torch.randn(mean.shape, generator=noise, device=device)
        u = mean if deterministic else mean + log_std.exp() * eps
        obs, _, _, _, infos = env.step(torch.tanh(u))
        episode = torch.stack([infos["episode"]["r"], infos["episode"]["l"].float()], dim=1)
        first = infos["_episode"] & results[:, 0].isnan()
        results = torch.where(first[:, None], episode, results)
    env.close()
    return results


def report_evaluation(actor, normalizer, args, device):
    scores = {}
    for kind in ("stochastic", "deterministic"):
        returns, lengths = evaluate(actor, normalizer, args, device, kind == "deterministic").unbind(1)
        scores[kind] = returns.mean().item()
        print(
            f"eval {kind}: return {returns.mean():.1f} +- {returns.std(correction=0):.1f} "
            f"(min {returns.min():.1f}, max {returns.max():.1f}), length {lengths.mean():.1f}, {len(returns)} episodes"
        )
    return scores


# Checkpoints, arguments and logs
def save_atomically(state, path):
    """Write beside the file and rename: whenever the process is killed, `path` holds one whole checkpoint."""
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)


def load_checkpoint(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        Args(**state["args"])
    except Exception as error:
        sys.exit(usage_error(f"--checkpoint: expected a checkpoint.pt of this script, could not read {path!r} ({error})"))
    return state


def usage_error(message):
    print(f"error: {message}", file=sys.stderr)
    return 2


def parse_args():
    """The command line on top of the checkpoint's arguments, if one is given, on top of the task's defaults."""
    args = tyro.cli(Args)
    state = load_checkpoint(args.checkpoint) if args.checkpoint else None
    if state is not None:
        args = tyro.cli(Args, default=Args(**state["args"]))
    for name, value in TASK_DEFAULTS[args.env_id].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.batch_size = args.num_envs * args.num_steps
    args.minibatch_size = args.batch_size // max(args.num_minibatches, 1)
    args.num_iterations = args.total_timesteps // max(args.batch_size, 1)
    at_least_one = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "critic_epochs", "num_eval_envs")
    positive = ("learning_rate", "critic_learning_rate", "final_learning_rate", "max_grad_norm", "checkpoint_freq")
    bounds = {name: (1, math.inf) for name in at_least_one} | {name: (1e-12, math.inf) for name in positive}
    bounds |= {"gamma": (0, 1), "td_lambda": (0, 1), "total_timesteps": (args.batch_size, math.inf)}
    bounds |= {name: (0, math.inf) for name in ("kl_coef", "ent_coef", "clip_low", "clip_high", "eval_freq")}
    for name, (low, high) in bounds.items():
        if not low <= getattr(args, name) <= high:
            flag = "--" + name.replace("_", "-")
            sys.exit(usage_error(f"{flag}: expected a value from {low} to {high}, got {getattr(args, name)}"))
    if args.minibatch_size == 0:
        sys.exit(usage_error(f"--num-minibatches: expected at most {args.batch_size}, got {args.num_minibatches}"))
    if args.eval_only and state is None:
        sys.exit(usage_error("--eval-only: expected --checkpoint with the run to evaluate, got none"))
    return args, state


def create_run_dir(args):
    stamp = int(time.time())
    while True:  # a run that started in the same second has taken the name
        try:
            os.makedirs(f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{stamp}")
            return f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{stamp}"
        except FileExistsError:
            stamp += 1


class Logger:
    """TensorBoard events and metrics.csv (one line per iteration, columns named by the last part of the tag)."""

    def __init__(self, run_dir, args, global_step):
        self.writer = SummaryWriter(run_dir, purge_step=global_step + 1 if global_step else None)
        table = "\n".join(f"|{key}|{value}|" for key, value in asdict(args).items())
        self.writer.add_text("hyperparameters", "|param|value|\n|-|-|\n" + table)
        self.path, self.columns = os.path.join(run_dir, "metrics.csv"), None
        # a resumed run does again what came after its checkpoint
        lines = list(csv.reader(open(self.path))) if os.path.exists(self.path) else []
        if lines:
            self.columns = lines[0]
            lines = lines[:1] + [line for line in lines[1:] if line[-1:] and int(line[0]) <= global_step]
        with open(self.path, "w", newline="") as file:
            csv.writer(file).writerows(lines)

    def write(self, global_step, wall, metrics):
        for tag, value in metrics.items():
            self.writer.add_scalar(tag, value, global_step)
        row = {"global_step": global_step, "wall_s": round(wall, 2)}
        row |= {tag.split("/")[1] if tag[:5] != "time/" else "time_" + tag[5:]: f"{v:.7g}" for tag, v in metrics.items()}
        with open(self.path, "a", newline="") as file:
            if self.columns is None:
                self.columns = list(row)
                csv.writer(file).writerow(self.columns)
            csv.writer(file).writerow([row[name] for name in self.columns])


def print_progress(args, global_step, metrics):
    seconds = (args.total_timesteps - global_step) / max(metrics["charts/SPS"], 1e-9)
    line = (
        f"step {global_step:,}/{args.total_timesteps:,} ({100 * global_step / args.total_timesteps:.0f} %)  "
        f"SPS {metrics['charts/SPS']:,.0f}  ETA {int(seconds) // 60}:{int(seconds) % 60:02d}  "
        f"return {metrics['charts/episodic_return']:.1f}  length {metrics['charts/episodic_length']:.0f}"
    )
    print("\r\033[K" + line if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


def main():
    args, state = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    wp.config.quiet = True  # no banner

    # TRY NOT TO MODIFY: seeding
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic

    # env setup
    print(f"{args.env_id} on {device}; the simulator's kernels are compiled on the first start (about a minute)")
    env = envs.make(args.env_id, num_envs=args.num_envs, device=device, seed=args.seed)
    env.reset()
    num_obs, num_actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]

    # agent setup
    actor, critic = Actor(num_obs, num_actions).to(device), Critic(num_obs).to(device)
    normalizer = ObsNormalizer(num_obs).to(device)
    actor_optimizer = Optimizer("actor", actor, args.learning_rate, args.max_grad_norm)
    critic_optimizer = Optimizer("critic", critic, args.critic_learning_rate, args.max_grad_norm)
    saved = {"actor": actor, "critic": critic, "normalizer": normalizer, "env": env}
    saved |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    iteration = global_step = 0
    wall_before, finished_episodes = 0.0, deque(maxlen=100)

    if state is not None:
        if args.eval_only:
            saved = {"actor": actor, "normalizer": normalizer}
        try:
            for name, module in saved.items():
                module.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            return usage_error(f"--checkpoint: expected one of {args.env_id} with {args.num_envs} environments: {error}")
        if args.eval_only:
            report_evaluation(actor, normalizer, args, device)
            return 0
        torch.set_rng_state(state["rng"])
        if device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        iteration, global_step, wall_before = state["iteration"], state["global_step"], state["wall_s"]
        finished_episodes.extend(state["episodes"])
    run_dir = os.path.dirname(os.path.abspath(args.checkpoint)) if args.checkpoint else create_run_dir(args)
    checkpoint_path = os.path.join(run_dir, "checkpoint.pt")
    run_name = os.path.basename(run_dir)
    if args.track:
        import wandb

        wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            sync_tensorboard=True,
            config=asdict(args),
            name=run_name,
            save_code=True,
        )
    logger = Logger(run_dir, args, global_step)
    print("\n".join(f"  {key}: {value}" for key, value in asdict(args).items()))
    print(f"run folder {os.path.relpath(run_dir)}")

    def save_checkpoint():
        state = {name: module.state_dict() for name, module in saved.items()}
        state |= {"args": asdict(args), "iteration": iteration, "global_step": global_step, "wall_s": wall()}
        state |= {"rng": torch.get_rng_state(), "episodes": list(finished_episodes)}
        state["cuda_rng"] = torch.cuda.get_rng_state() if device.type == "cuda" else None
        save_atomically(state, checkpoint_path)

    def wall():
        return wall_before + time.time() - start_time

    # the first Ctrl-C or SIGTERM lets the iteration finish, the second ends the process at once
    received = []

    def on_signal(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping after this iteration; again to stop at once", flush=True)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)

    # TRY NOT TO MODIFY: start the game
    start_time, start_step = time.time(), global_step
    try:
        while iteration < args.num_iterations and not received:
            # learning rates: lr_k = lr (lr_end / lr)^(k / K)
            fraction = iteration / args.num_iterations if args.anneal_lr else 0.0
            for optimizer, lr in ((actor_optimizer, args.learning_rate), (critic_optimizer, args.critic_learning_rate)):
                optimizer.adam.param_groups[0]["lr"] = lr * (args.final_learning_rate / lr) ** fraction

            # ALGO LOGIC: collect a rollout and cache the gradient of the return with respect to every action
            time_0 = time.time()
            data, episodes, backward_time = rollout(env, actor, critic, normalizer, args)
            finished_episodes.extend(episodes.tolist()[-100:])
            finite = data["action_grads"].isfinite().all(-1, keepdim=True)
            data["action_grads"] = torch.where(finite, data["action_grads"], 0.0)  # dropped and counted below
            targets = td_lambda_targets(data["rewards"], data["next_values"], data["ends"], args.gamma, args.td_lambda)

            # flatten the batch
            b_data = {name: x.flatten(0, 1) for name, x in data.items()}
            b_targets = targets.flatten()

            # ALGO LOGIC: M policy epochs on the same rollout
            time_1 = time.time()
            policy_stats = []
            for _ in range(args.update_epochs):
                loss, stats = policy_loss(actor, b_data, args)
                norm = actor_optimizer.step(loss)
                ratio, keep = stats["ratio"], stats["keep"].float()
                policy_stats.append([norm, keep.mean().item(), ratio.max().item(), stats["entropy"].item()])
            with torch.no_grad():  # a measurement: how far the policy has moved
                kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean().item()

            # ALGO LOGIC: L passes of the critics towards the fixed targets
            time_2 = time.time()
            value_losses, critic_norms = [], []
            for _ in range(args.critic_epochs):
                for mb_inds in torch.randperm(args.batch_size, device=device).split(args.minibatch_size):
                    v_loss = ((critic(b_data["obs"][mb_inds]) - b_targets[mb_inds, None]) ** 2).mean()
                    critic_norms.append(critic_optimizer.step(v_loss))
                    value_losses.append(v_loss.item())
            time_3 = time.time()
            iteration, global_step = iteration + 1, global_step + args.batch_size

            # TRY NOT TO MODIFY: execute the game and log data
            norms, kept, ratio_max, entropies = np.array(policy_stats).T
            mean_return, mean_length = np.mean(finished_episodes, axis=0) if finished_episodes else (math.nan, math.nan)
            metrics = {
                "charts/episodic_return": mean_return,
                "charts/episodic_length": mean_length,
                "charts/SPS": (global_step - start_step) / (time.time() - start_time),
                "charts/learning_rate": actor_optimizer.adam.param_groups[0]["lr"],
                "charts/diverged": env.diverged.item(),
                "losses/value_loss": np.mean(value_losses),
                "losses/explained_variance": 1.0 - np.mean(value_losses) / targets.var().item(),
                "losses/entropy": entropies[0],
                "losses/approx_kl": kl,
                "losses/clipfrac": 1.0 - kept.mean(),
                "losses/effective_sample_ratio": kept[1:].mean() if len(kept) > 1 else 1.0,
                "losses/ratio_max": ratio_max[1:].mean() if len(kept) > 1 else 1.0,
                "losses/actor_grad_norm": np.mean(norms),
                "losses/critic_grad_norm": np.mean(critic_norms),
                "losses/action_grad_norm": data["action_grads"].norm(dim=-1).mean().item(),
                "losses/nonfinite_action_grads": (~finite).sum().item(),
                "losses/skipped_updates": actor_optimizer.skipped + critic_optimizer.skipped,
                "time/rollout": time_1 - time_0 - backward_time,
                "time/backward": backward_time,
                "time/actor": time_2 - time_1,
                "time/critic": time_3 - time_2,
            }
            if args.eval_freq and iteration % args.eval_freq == 0:
                scores = report_evaluation(actor, normalizer, args, device)
                logger.writer.add_scalar("eval/episodic_return", scores["stochastic"], global_step)
                logger.writer.add_scalar("eval/episodic_return_deterministic", scores["deterministic"], global_step)
            logger.write(global_step, wall(), metrics)
            print_progress(args, global_step, metrics)
            if iteration % args.checkpoint_freq == 0:
                save_checkpoint()
    except (TrainingFailed, ValueError) as error:
        print(f"\ntraining failed: {args.env_id}, iteration {iteration}: {error}", file=sys.stderr)
        return 1
    print()
    save_checkpoint()
    if received:
        logger.writer.close()
        print(f"resume with: python {os.path.basename(__file__)} --checkpoint {os.path.relpath(checkpoint_path)}")
        return 128 + received[0]

    # evaluation
    scores = report_evaluation(actor, normalizer, args, device)
    logger.writer.add_scalar("eval/episodic_return", scores["stochastic"], global_step)
    logger.writer.add_scalar("eval/episodic_return_deterministic", scores["deterministic"], global_step)
    if args.save_model:
        model = {"actor": actor.state_dict(), "normalizer": normalizer.state_dict()}
        save_atomically(model, os.path.join(run_dir, f"{args.exp_name}.cleanrl_model"))
    print(f"done: {global_step:,} steps in {wall():.0f} s, run folder {os.path.relpath(run_dir)}")
    logger.writer.close()
    env.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
