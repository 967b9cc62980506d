"""Gradient-Informed PPO (GI-PPO), arXiv 2312.08710, as tuned in the RPO paper (arXiv 2508.06214). See docs/gippo.md.

PPO that uses the gradient of a differentiable simulator as far as it helps:

    1. Roll out H steps in N environments.  One backward pass through the simulator (BPTT) gives the gradient of every
       advantage with respect to its own action.
    2. Move every action a little along its gradient, and train the actor by regression to produce the moved actions.
       The result is the alpha-policy.
    3. Adapt the step alpha.  It shrinks if the alpha-policy changes volumes of actions too much, leaves PPO's interval
       of ratios too often, or is worse than the old policy.  Otherwise it grows.
    4. Run PPO's epochs on the same rollout.  Their ratio is that to pi_h, the average of old policy and alpha-policy.
    5. Fit two critics to the targets A + V.  The V in A is that of target critics, which follow with a delay.

    paper            code             meaning
    s, a, r          obs, tanh(u)     normalised observation, action, reward
    f_theta(eps; s)  u                u = mu + sigma eps, eps ~ N(0, 1): all densities are those of u
    A_t              advantages       GAE(gamma, lambda), with its graph
    grad_a A         action_grads     of each A_t with respect to its own u_t
    alpha            alpha            step of the alpha-policy along that gradient
    delta            alpha_interval   volumes may change by this share
    max oorr         max_oorr         share of samples that the alpha-policy may take out of PPO's interval
    beta             alpha_factor     alpha is multiplied or divided by it
    pi_h             mixture          (pi_old + pi_alpha) / 2, the behaviour policy of PPO's ratio

Try:     python gippo_continuous.py --env-id hopper --total-timesteps 1000000 --capture-video
Train:   python gippo_continuous.py --env-id anymal --total-timesteps 1000000
         12 minutes on one CPU core, return 12,670 (12,900 without noise; one seed; paper, 10M steps: 12,260 and 12,247)
"""

import copy
import math
import os
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import tyro
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
    """H, length of the differentiated rollout; beyond 32, or what memory allows, some steps are simulated twice"""
    learning_rate: float = 5e-4
    """of the actor, in the regression and in the PPO epochs; each lowers its own where its loss keeps growing"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimate; the gradients of the actions are divided by its powers"""
    alpha: float | None = None
    """step of the alpha-policy at the start; default: the task's"""
    alpha_interval: float = 0.4
    """delta: alpha is lowered where volumes of actions change by more than this share"""
    alpha_factor: float = 1.02
    """beta: alpha is multiplied or divided by this"""
    alpha_epochs: int = 1
    """steps of the regression to the alpha-policy, each on the full batch (the authors' code: 16)"""
    max_oorr: float | None = None
    """alpha is lowered where a larger share of samples is outside PPO's interval; default: the task's"""
    update_epochs: int = 5
    """PPO's passes over the rollout"""
    minibatch_size: int = 2048
    """samples per minibatch of PPO's passes"""
    clip_coef: float | None = None
    """epsilon: PPO's interval of ratios is 1 - epsilon .. 1 + epsilon; default: the task's"""
    critic_epochs: int = 16
    """passes of the critics over the rollout"""
    num_minibatches: int = 4
    """minibatches per pass of the critics"""
    target_critic_keep: float = 0.2
    """share of themselves that the target critics keep after an iteration; the rest comes from the critics"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# tables 3 and 5 of the RPO paper; it states a budget for ANYmal only, and has none of the last four tasks
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024, "alpha": 0.5, "max_oorr": 0.7, "clip_coef": 0.2},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128, "alpha": 0.5, "max_oorr": 0.8, "clip_coef": 0.2},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128, "alpha": 1e-3, "max_oorr": 0.5, "clip_coef": 0.2},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64, "alpha": 5e-3, "max_oorr": 0.1, "clip_coef": 0.2},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64, "alpha": 5e-4, "max_oorr": 0.1, "clip_coef": 0.05},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128, "alpha": 1e-2, "max_oorr": 0.5, "clip_coef": 0.2},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128, "alpha": 1e-3, "max_oorr": 0.5, "clip_coef": 0.2},
    "go1": {"total_timesteps": 1_500_000, "num_envs": 128, "alpha": 0.5, "max_oorr": 0.7, "clip_coef": 0.2},
    "file": {"total_timesteps": 5_000_000, "num_envs": 128, "alpha": 0.5, "max_oorr": 0.7, "clip_coef": 0.2},
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
    """Gaussian over u with a state-dependent standard deviation; the action is tanh(u)."""

    def __init__(self, num_obs, num_actions):
        super().__init__()
        self.trunk = mlp(num_obs)
        self.mean = layer_init(nn.Linear(100, num_actions))
        self.log_std = layer_init(nn.Linear(100, num_actions))

    def forward(self, obs):
        features = self.trunk(obs)
        return self.mean(features), self.log_std(features).clamp(-5.0, 2.0)

    def act(self, obs, deterministic=False):
        mean, log_std = self(obs)
        return torch.tanh(mean if deterministic else mean + log_std.exp() * torch.randn_like(mean))


class Critic(nn.Module):
    """Two independent value functions V_1, V_2: (..., num_obs) -> (..., 2)."""

    def __init__(self, num_obs):
        super().__init__()
        self.values = nn.ModuleList([nn.Sequential(*mlp(num_obs), layer_init(nn.Linear(100, 1))) for _ in range(2)])

    def forward(self, obs):
        return torch.cat([value(obs) for value in self.values], dim=-1)


def all_rows(rows):
    """The rows (n, ...) of all K processes of torchrun, (K n, ...): the same in each of them."""
    if not dist.is_initialized():
        return rows
    everyone = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, rows.contiguous())
    return torch.cat(everyone)


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
        # merge two sets a, b with S = n var:  S = S_a + S_b + delta^2 n_a n_b / (n_a + n_b)   (Chan et al. 1979)
        obs, n = obs.double(), len(obs)
        delta, total = obs.mean(0) - self.mean, self.count + n
        squares = self.var * self.count + obs.var(0, correction=0) * n + delta**2 * self.count * n / total
        self.mean, self.var, self.count = self.mean + delta * n / total, squares / total, total


# ALGO LOGIC: GI-PPO
def gae(rewards, values, next_values, dones, gamma, lam):
    """Generalised advantage estimates A (H, N), backwards in time, with the graph of rewards and values."""
    # delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    # A_t     = delta_t + gamma lambda A_{t+1}, without the second term where an episode ends
    advantages, advantage = [], torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_values[t] - values[t]
        advantage = delta + torch.where(dones[t], 0.0, gamma * lam * advantage)
        advantages.insert(0, advantage)
    return torch.stack(advantages)


def rollout(env, actor, critic, normalizer, args):
    """H steps of every environment, with the graph of autograd from every action to every later reward and value.

    critic: the target critics.  Returns the rollout as data, tensors (H, N, ...) without gradients; the advantages
    (H, N) with their graph; and the H actions u (N, A) on which they depend.
    """
    raw_obs = env.detach()  # the graph starts here: what came before belongs to the previous rollout's gradient
    us, steps = [], []
    for _ in range(args.num_steps):
        obs = normalizer(raw_obs)
        mean, log_std = actor(obs)
        eps = torch.randn_like(mean)
        us.append(mean + log_std.exp() * eps)
        next_obs, reward, terminated, truncated, infos = env.step(torch.tanh(us[-1]))
        step = {"raw_obs": raw_obs, "obs": obs, "mean": mean, "log_std": log_std, "final_obs": infos["final_obs"]}
        step |= {"eps": eps, "u": us[-1], "rewards": reward, "terminated": terminated, "dones": terminated | truncated}
        steps.append(step | {"episode_return": infos["episode"]["r"], "episode_length": infos["episode"]["l"]})
        raw_obs = next_obs
    data = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}

    # V(s_t), and V(s_{t+1}) of the true successor, before any reset; 0 if the robot has fallen
    data["values"], next_values = critic(data["obs"]).mean(-1), critic(normalizer(data.pop("final_obs"))).mean(-1)
    next_values = torch.where(data["terminated"], 0.0, next_values)
    advantages = gae(data["rewards"], data["values"], next_values, data["dones"], args.gamma, args.gae_lambda)

    # data carries no gradient: the epochs that follow reach only the current policy and critics
    return {name: x.detach() for name, x in (data | {"advantages": advantages}).items()}, advantages, us


def action_gradients(advantages, us, dones, gamma, lam):
    """grad_{u_t} A_t (H, N, A): of every advantage with respect to its own action, in one backward pass (BPTT).

    In an episode that begins at step b, A_b = sum_k (gamma lambda)^k delta_{b+k}.  The action u_{b+k} acts only on the
    deltas from step b + k on.  In A_b they have (gamma lambda)^k times their weight in A_{b+k}: the gradient of A_b
    yields all the others.  It includes how later actions react to u_t, because actions are nodes of the graph.
    """
    # the steps b at which an episode, or the rollout, begins; each action is in one A_b only: the sum mixes nothing
    starts = torch.cat([torch.ones_like(dones[:1]), dones[:-1]])
    grads = torch.stack(torch.autograd.grad((advantages * starts).sum(), us))
    # grad_{u_{b+k}} A_{b+k} = (gamma lambda)^-k grad_{u_{b+k}} A_b
    t = torch.arange(len(starts), device=starts.device)[:, None]
    k = t - torch.where(starts, t, 0).cummax(dim=0).values
    return grads * ((gamma * lam) ** -k)[..., None]


def gaussian_log_prob(u, mean, log_std):
    """log N(u; mean, std^2), summed over action dimensions."""
    return (-0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d [ log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2 ]
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def regression_epochs(actor, optimizer, data, args):
    """Regression to the alpha-policy, one step on the full batch (H N, ...) per epoch. Returns the losses."""
    losses = []
    for _ in range(args.alpha_epochs):
        # L_alpha = E[ |f_theta(eps; s) - u_alpha|^2 ]: the noise of the rollout is to produce the moved action
        mean, log_std = actor(data["obs"])
        loss = ((mean + log_std.exp() * data["eps"] - data["alpha_actions"]) ** 2).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True)
        optimizer.step()
        losses.append(loss.detach())  # only compared
    return losses, []


@torch.no_grad()  # alpha is chosen, not learned
def adapted_alpha(alpha, data, alpha_log_std, gains, args):
    """alpha for the next iteration, and the out-of-range ratio, from the full batch (H N, ...).

    alpha_log_std: of the alpha-policy.  gains: running statistics of the `gain` below in the earlier iterations.
    """
    # det(1 + alpha grad_a^2 A), estimated as prod_d sigma_alpha / sigma_old: how the step changes volumes of actions
    volume = all_rows((alpha_log_std - data["log_std"]).sum(-1).exp())
    safe = volume.min() >= 1.0 - args.alpha_interval and volume.max() <= 1.0 + args.alpha_interval
    # w = pi_alpha / pi_old on the actions of the rollout; oorr: the share of samples outside PPO's interval
    w = all_rows((data["alpha_log_prob"] - data["log_prob"]).clamp(-16.0, 16.0).exp())
    oorr = (w - 1.0).abs().gt(args.clip_coef).float().mean().item()
    # the gain of the alpha-policy over the old, as PPO estimates it; worse: below 0 and a deviation below its mean
    gain = (all_rows(data["advantages"]) * (w - 1.0)).sum().view(1, 1)
    worse = gain < 0.0 and gains(gain) < -1.0
    gains.update(gain)
    grows = safe and oorr <= args.max_oorr and not worse
    return min(alpha * args.alpha_factor, 1.0) if grows else alpha / args.alpha_factor, oorr


def policy_loss(actor, data, args):
    """PPO's loss of one minibatch (B, ...), and three diagnostics."""
    mean, log_std = actor(data["obs"])
    # pi_h = (pi_old + pi_alpha) / 2; if the two are far apart in a sample of the minibatch, pi_alpha alone
    mixture = torch.logaddexp(data["log_prob"], data["alpha_log_prob"]) - math.log(2.0)
    far = all_rows((data["alpha_log_prob"] - data["log_prob"]).abs()).max() > 4.0
    behaviour = torch.where(far, data["alpha_log_prob"], mixture)
    # rho = pi_theta / pi_h
    ratio = (gaussian_log_prob(data["u"], mean, log_std) - behaviour).clamp(-16.0, 16.0).exp()

    # L = - E[ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A) ]
    clipped = ratio.clamp(1.0 - args.clip_coef, 1.0 + args.clip_coef)
    loss = -torch.min(ratio * data["scaled_advantages"], clipped * data["scaled_advantages"]).mean()
    with torch.no_grad():  # only for the log
        entropy = log_std.sum(-1).mean() + 0.5 * mean.shape[-1] * (1.0 + math.log(2.0 * math.pi))
        stats = {"kept": (ratio == clipped).float().mean(), "ratio_max": ratio.max(), "entropy": entropy}
    return loss, stats


def ppo_epochs(actor, optimizer, data, args):
    """PPO's epochs, in minibatches. Returns their mean losses, and the diagnostics of every step."""
    losses, stats, num_minibatches = [], [], math.ceil(args.batch_size / args.minibatch_size)
    for _ in range(args.update_epochs):
        mb_losses = []
        for mb_inds in torch.randperm(len(data["u"]), device=data["u"].device).chunk(num_minibatches):
            loss, mb_stats = policy_loss(actor, {name: x[mb_inds] for name, x in data.items()}, args)
            optimizer.zero_grad()
            loss.backward()
            mb_stats["grad_norm"] = clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()
            mb_losses.append(loss.detach())  # only compared
            stats.append(mb_stats)
        losses.append(torch.stack(mb_losses).mean())
    return losses, stats


def with_retries(phase, actor, optimizer, data, args):
    """Train the actor in regression_epochs or ppo_epochs; if the loss has grown, undo it and try smaller steps.

    The retries are for steps that overshoot.  A single epoch has no second loss to compare and is always kept.  A large
    gradient is scaled down and followed; one that is not finite ends the run, because smaller steps on the same data
    would not mend it.  After eight tries the actor stays what it was, and the learning rate is lowered for good.
    Returns the diagnostics of the last try, and how many tries were undone.
    """
    before, lr = copy.deepcopy((actor.state_dict(), optimizer.state_dict())), optimizer.param_groups[0]["lr"]
    for undone in range(8):
        optimizer.param_groups[0]["lr"] = lr / 1.5**undone
        losses, stats = phase(actor, optimizer, data, args)
        if all_rows((losses[-1] - losses[0])[None]).sum() <= 0.0:  # of all processes: they decide alike
            optimizer.param_groups[0]["lr"] = lr
            return stats, undone
        actor.load_state_dict(before[0])
        optimizer.load_state_dict(copy.deepcopy(before[1]))  # a copy, or the optimiser would change the original
    optimizer.param_groups[0]["lr"] = max(lr / 1.5, min(lr, 1e-5))
    return stats, 8


def critic_loss(critic, obs, targets):
    """L_V: the mean over both critics of E[ (V_i(s) - G)^2 ], G = A + V."""
    return ((critic(obs) - targets[:, None]) ** 2).mean()


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
    limits = {"alpha": (1e-12, 1.0), "alpha_factor": (1.0, math.inf), "target_critic_keep": (0.0, 1.0)}
    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__, gae_lambda=(0.1, 1.0), **limits)
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

    # agent setup, on one thread: the last bits of orthogonal weights depend on the number of threads
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    num_obs, num_actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    actor, critic = Actor(num_obs, num_actions).to(device), Critic(num_obs).to(device)
    normalizer = ObsNormalizer(num_obs).to(device)
    alpha, target_critic = args.alpha, copy.deepcopy(critic)
    gains = ObsNormalizer(1).to(device)  # of sum A (w - 1), see adapted_alpha
    adamw = {"betas": (0.7, 0.95), "weight_decay": 0.01, "fused": True}  # PPO's epochs have PPO's usual betas
    alpha_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, **adamw)
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, fused=True)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, **adamw)
    parts = {"actor": actor, "critic": critic, "normalizer": normalizer}
    parts |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    parts |= {"target_critic": target_critic, "alpha_optimizer": alpha_optimizer, "gains": gains}
    torch.set_num_threads(num_threads)
    if world_size > 1:  # every backward() leaves the mean of all processes' gradients
        for parameter in (*actor.parameters(), *critic.parameters()):
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
        envs.restore(parts | {"alpha": alpha}, checkpoint)
        # alpha and the actor's learning rates have been adapted: a flag replaces them only if it is not the run's own
        alpha = checkpoint["alpha"] if args.alpha == checkpoint["args"]["alpha"] else args.alpha
        if args.learning_rate != checkpoint["args"]["learning_rate"]:
            alpha_optimizer.param_groups[0]["lr"] = actor_optimizer.param_groups[0]["lr"] = args.learning_rate
        critic_optimizer.param_groups[0]["lr"] = args.critic_learning_rate
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
    start_time = time.time()
    for iteration in range(start + 1, args.num_iterations + 1):
        # ALGO LOGIC: a rollout, and the gradient of every advantage with respect to its action
        times = [time.time()]
        torch.set_num_threads(1)  # torch's other threads would take the cores from the simulator's
        data, advantages, us = rollout(env, actor, target_critic, normalizer, args)
        times.append(time.time())
        action_grads = action_gradients(advantages, us, data["dones"], args.gamma, args.gae_lambda)
        del advantages, us  # and with them the graph
        times.append(time.time())
        torch.set_num_threads(num_threads)
        finite = action_grads.norm(dim=-1).isfinite()
        data["action_grads"] = torch.where(finite[..., None], action_grads, 0.0)  # 0: the action stays where it is

        # only now: all observations of an iteration share one normalisation
        normalizer.update(all_rows(data["raw_obs"].flatten(0, 1)))

        # flatten the batch
        b_data = {name: x.flatten(0, 1) for name, x in data.items()}
        b_targets = b_data["advantages"] + b_data["values"]
        everyone = all_rows(b_data["advantages"])
        b_data["scaled_advantages"] = (b_data["advantages"] - everyone.mean()) / (everyone.std(correction=0) + 1e-8)
        b_data["log_prob"] = gaussian_log_prob(b_data["u"], b_data["mean"], b_data["log_std"])

        # ALGO LOGIC: regression to the alpha-policy, u_alpha = u + alpha grad_u A
        b_data["alpha_actions"] = b_data["u"] + alpha * b_data["action_grads"]
        _, alpha_retries = with_retries(regression_epochs, actor, alpha_optimizer, b_data, args)
        with torch.no_grad():  # in the PPO epochs the alpha-policy is a constant
            alpha_mean, alpha_log_std = actor(b_data["obs"])
            b_data["alpha_log_prob"] = gaussian_log_prob(b_data["u"], alpha_mean, alpha_log_std)
            alpha_kl = gaussian_kl(b_data["mean"], b_data["log_std"], alpha_mean, alpha_log_std).mean()  # for the log
        alpha_used, oorr = alpha, 0.0
        if alpha_retries < 8:  # otherwise this is the old policy, which says nothing about alpha
            alpha, oorr = adapted_alpha(alpha, b_data, alpha_log_std, gains, args)

        # ALGO LOGIC: PPO epochs on the same rollout
        stats, ppo_retries = with_retries(ppo_epochs, actor, actor_optimizer, b_data, args)
        with torch.no_grad():  # for the log: how far the policy has moved, and what the critics knew so far
            approx_kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean()
            errors = b_targets - critic(b_data["obs"]).mean(-1)
        times.append(time.time())

        # ALGO LOGIC: passes of the critics towards the fixed targets
        critic_norms, v_losses = [], []
        for _ in range(args.critic_epochs):
            for mb_inds in torch.randperm(len(b_targets), device=device).chunk(args.num_minibatches):
                v_loss = critic_loss(critic, b_data["obs"][mb_inds], b_targets[mb_inds])
                critic_optimizer.zero_grad()
                v_loss.backward()
                critic_norms.append(clip_grad_norm_(critic.parameters(), args.max_grad_norm, error_if_nonfinite=True))
                critic_optimizer.step()
                v_losses.append(v_loss.detach())  # for the log
        with torch.no_grad():  # the target critics are a running average, they are not trained
            for target, weight in zip(target_critic.parameters(), critic.parameters()):
                target.lerp_(weight, 1.0 - args.target_critic_keep)
        times.append(time.time())

        # TRY NOT TO MODIFY: log data
        if rank > 0:
            continue
        global_step = iteration * args.batch_size
        episodes.extend(torch.stack([b_data["episode_return"], b_data["episode_length"]], 1)[b_data["dones"]].tolist())
        mean_return, mean_length = torch.tensor([*episodes]).reshape(-1, 2).mean(0).tolist()  # NaN before the first end
        means = {name: torch.stack([step[name] for step in stats]).mean().item() for name in stats[0]}
        sps = (iteration - start) * args.batch_size / (time.time() - start_time)
        metrics = {
            "charts/episodic_return": mean_return,
            "charts/episodic_length": mean_length,
            "charts/SPS": sps,
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/alpha_learning_rate": alpha_optimizer.param_groups[0]["lr"],
            "charts/diverged": env.diverged.item(),
            "losses/value_loss": torch.stack(v_losses).mean().item(),
            "losses/explained_variance": 1.0 - (errors.var(correction=0) / b_targets.var(correction=0)).item(),
            "losses/entropy": stats[0]["entropy"].item(),
            "losses/alpha": alpha_used,
            "losses/alpha_kl": alpha_kl.item(),
            "losses/alpha_retries": alpha_retries,
            "losses/ppo_retries": ppo_retries,
            "losses/out_of_range_ratio": oorr,
            "losses/approx_kl": approx_kl.item(),
            "losses/clipfrac": 1.0 - means["kept"],
            "losses/effective_sample_ratio": means["kept"],
            "losses/ratio_max": means["ratio_max"],
            "losses/actor_grad_norm": means["grad_norm"],
            "losses/critic_grad_norm": torch.stack(critic_norms).mean().item(),
            "losses/action_grad_norm": data["action_grads"].norm(dim=-1).mean().item(),
            "losses/nonfinite_action_grads": (~finite).sum().item(),
        }
        for name, since, until in zip(("rollout", "backward", "actor", "critic"), times, times[1:]):
            metrics[f"time/{name}"] = until - since
        left = (args.num_iterations - iteration) * args.batch_size / sps / 60
        progress = f"step {global_step:,}/{args.total_timesteps:,} ({iteration / args.num_iterations:.0%})"
        print(f"{progress}  return {mean_return:.1f}  SPS {sps:,.0f}  {left:.0f} min left", flush=True)
        if args.eval_freq and iteration % args.eval_freq == 0 and iteration < args.num_iterations:
            metrics |= evaluate(actor, normalizer, args, f"{run_dir}/video-{global_step}")
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, global_step)
        writer.flush()  # before the checkpoint: a resumed run begins after it

        checkpoint = {name: part.state_dict() for name, part in (parts | {"env": env}).items()} | {"alpha": alpha}
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
