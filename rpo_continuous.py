"""Reparameterization Proximal Policy Optimization (RPO), arXiv 2508.06214. Explained in docs/rpo.md.

Not CleanRL's `rpo_continuous_action.py`, which is *Robust* Policy Optimization (arXiv 2212.07536).

The simulator is differentiable: one backward pass through a short rollout (BPTT) gives the gradient of the return with
respect to every action.  SHAC spends that gradient on a single policy step.  RPO caches it and takes several:

    1. Roll out H steps in N environments; backpropagate the return R; cache its gradient with respect to every action.
    2. M times, on the same data: find the noise with which the *current* policy would have produced the stored action,
       and send the cached gradient through this new path into the policy.  Weight each sample by the importance ratio,
       and drop it if the ratio has left an asymmetric interval.  A KL term keeps the policy near the one that acted.
    3. Fit two critics to TD(lambda) targets.  They estimate the return after the H steps.

    paper            code            meaning
    H, N, A          num_steps, num_envs, num_actions
    s, a, r          obs, tanh(u)    normalised observation, action, reward
    f_theta(eps; s)  u               the action before tanh: u = mu + sigma eps, eps ~ N(0, 1); atanh(a) would overflow
    eps_reg          eps_reg         the noise with which the current policy produces the stored u
    R(tau)           returns         discounted return with entropy bonus; V where an episode or the rollout ends
    V, G             critic, targets two critics, of which the mean is used, and their TD(lambda) targets
    grad_a R         action_grads    cached with respect to u: grad_u R = (1 - a^2) grad_a R
    rho              ratio           pi_theta(a|s) / pi_old(a|s), over all action dimensions jointly
    c_low, c_high    clip_low/high   a sample counts while 1 - c_low <= rho <= 1 + c_high
    lambda_KL        kl_coef         weight of KL(pi_old || pi_theta)
    lambda_ent, h    ent_coef        weight of the entropy h: in every reward, and once more in the loss

Try:     python rpo_continuous.py --env-id anymal --total-timesteps 700000 --capture-video    # 5 minutes, two CPU cores
Train:   python rpo_continuous.py --env-id anymal
         10M steps, 58 and 99 minutes, two cores, return 16,180 (16,390 without noise; two seeds; paper 15,674, 15,873)
"""

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
    """H, length of the differentiated rollout; beyond 32, or what memory allows, some steps are simulated twice"""
    learning_rate: float = 5e-4
    """of the actor"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    final_learning_rate: float = 1e-5
    """where both learning rates end, after an exponential decay"""
    gamma: float = 0.99
    """discount factor"""
    td_lambda: float = 0.95
    """lambda of the critics' TD(lambda) targets"""
    update_epochs: int = 5
    """M, policy steps per rollout, each on the full batch; 1: no reuse"""
    critic_epochs: int = 16
    """passes of the critics over the rollout"""
    num_minibatches: int = 4
    """minibatches per pass of the critics"""
    surrogate_coef: float = 1.0
    """lambda_surr, weight of the surrogate, a mean over time; --num-steps as its value makes it the paper's sum"""
    clip_low: float = 0.8
    """c_low; inf: no lower bound"""
    clip_high: float = 1.0
    """c_high; inf: no upper bound"""
    kl_coef: float | None = None
    """lambda_KL; default: the task's"""
    ent_coef: float | None = None
    """lambda_ent; default: the task's"""
    max_grad_norm: float = 0.5
    """the gradients of the actor and of the critics are clipped to this norm"""
    max_action_grad_norm: float = math.inf
    """the gradient of R with respect to a single action is clipped to this norm (not in the paper)"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# tables 3 and 4 of the paper, which states only ANYmal's budget; go1 and file are short runs of ours
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024, "ent_coef": 0.25, "kl_coef": 0.2},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128, "ent_coef": 0.2, "kl_coef": 0.25},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128, "ent_coef": 0.25, "kl_coef": 0.2},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64, "ent_coef": 0.5, "kl_coef": 0.5},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64, "ent_coef": 0.001, "kl_coef": 0.003},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128, "ent_coef": 0.2, "kl_coef": 0.25},  # not in the paper
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128, "ent_coef": 0.2, "kl_coef": 0.25},  # not in the paper
    "go1": {"total_timesteps": 800_000, "num_envs": 64, "ent_coef": 0.05, "kl_coef": 0.25, "max_action_grad_norm": 5.0},
    "file": {"total_timesteps": 800_000, "num_envs": 64, "ent_coef": 0.1, "kl_coef": 0.25, "max_action_grad_norm": 5.0},
}
TASK_DEFAULTS["hand_reorient"] |= {"max_action_grad_norm": 1.0, "learning_rate": 2e-4}  # the paper: no limit, 5e-4


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


# ALGO LOGIC: RPO
def squashed_entropy(mean, log_std):
    """h: the entropy of tanh(u), from one fresh sample per state, scaled: -A/2 becomes 0, +A/2 becomes 1."""
    u = mean + log_std.exp() * torch.randn_like(mean)
    # entropy = sum_d [ log sigma + (1 + log 2 pi) / 2 + log(1 - tanh(u)^2) ]
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))
    gaussian = log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))
    entropy = (gaussian + 2.0 * (math.log(2.0) - u - softplus(-2.0 * u))).sum(-1)
    return entropy / mean.shape[-1] + 0.5


def limit_rows(grads, max_norm):
    """Scale rows (..., A) down to norm max_norm. Rows that are not finite, or whose norm is not, become 0."""
    norms = grads.norm(dim=-1, keepdim=True)
    return torch.where(norms.isfinite(), grads * (max_norm / norms).clamp(max=1.0), 0.0)


def rollout(env, actor, critic, normalizer, args):
    """H steps of every environment, with the graph of autograd from every action to every later reward.

    Returns the rollout as data, tensors (H, N, ...) without gradients; the returns R (N,); and the H actions u (N, A)
    on which R depends.  The rewards include the entropy; "ends" marks the last step of an episode or of the rollout.
    """
    raw_obs = env.detach()  # the graph starts here: what came before belongs to the previous rollout's gradient
    discount, us, steps = torch.ones_like(raw_obs[:, 0]), [], []
    for t in range(args.num_steps):
        obs = normalizer(raw_obs)
        mean, log_std = actor(obs)
        u = mean + log_std.exp() * torch.randn_like(mean)
        us.append(u)
        next_obs, reward, terminated, truncated, infos = env.step(torch.tanh(u))
        done = terminated | truncated
        step = {"raw_obs": raw_obs, "obs": obs, "mean": mean, "log_std": log_std, "final_obs": infos["final_obs"]}
        step |= {"u": u, "rewards": reward + args.ent_coef * squashed_entropy(mean, log_std), "discounts": discount}
        step |= {"terminated": terminated, "dones": done, "ends": done | (t == args.num_steps - 1)}
        steps.append(step | {"episode_return": infos["episode"]["r"], "episode_length": infos["episode"]["l"]})
        raw_obs, discount = next_obs, torch.where(done, 1.0, args.gamma * discount)
    data = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}

    # V(s_{t+1}) of the true successor, before any reset; 0 if the robot has fallen
    final_obs = normalizer(data.pop("final_obs"))
    with torch.no_grad():  # for the targets of the critics, which are numbers
        data["next_values"] = torch.where(data["terminated"], 0.0, critic(final_obs).mean(-1))

    # R = sum_t gamma^t (r_t + lambda_ent h_t), plus gamma^(t+1) V(s_{t+1}) where an episode or the rollout ends;
    # with a new episode gamma^t starts again at 1.  These values keep their graph: the gradient enters s_{t+1} too
    last = data["ends"] & ~data["terminated"]
    values = torch.zeros_like(data["rewards"])
    values[last] = critic(final_obs[last]).mean(-1)
    returns = (data["discounts"] * (data["rewards"] + args.gamma * values)).sum(0)

    # data is constant: the losses computed from it reach only the current policy and critics
    return {name: x.detach() for name, x in data.items()}, returns, us


def action_gradients(returns, us):
    """grad_u R (H, N, A): one backward pass through the simulator (BPTT), cached for all epochs.

    The actions are inner nodes of the graph, so this is the total derivative: it includes gamma^t and the effect of u_t
    on all later states and on the actions taken there.  The weights of the actor and the critics get no gradient.
    """
    return torch.stack(torch.autograd.grad(returns.sum(), us))  # environments are independent: the sum mixes nothing


def log_ratio(u, mean, log_std, old_mean, old_log_std):
    """log rho = log pi_theta(a|s) - log pi_old(a|s); the Jacobian of tanh is the same in both and cancels."""
    # log rho = sum_d [ eps_old^2 / 2 - eps^2 / 2 + log sigma_old - log sigma ],   eps = (u - mu) / sigma
    eps, old_eps = (u - mean) / log_std.exp(), (u - old_mean) / old_log_std.exp()
    return (0.5 * old_eps**2 - 0.5 * eps**2 + old_log_std - log_std).sum(-1)


def regenerate(u, mean, log_std):
    """The stored u as a function of the policy: u = f_theta(eps_reg; s), eps_reg = f_theta^-1(u; s) (eq. 10)."""
    # eps_reg is a constant: with a gradient through it the two paths would cancel, du / dtheta = 0
    eps_reg = ((u - mean) / log_std.exp()).detach()
    return mean + log_std.exp() * eps_reg


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d [ log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2 ]
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def policy_loss(actor, data, args):
    """The loss of one policy epoch on the full batch (H * N, ...), and three diagnostics."""
    mean, log_std = actor(data["obs"])
    u = regenerate(data["u"], mean, log_std)

    # rho corrects for actions drawn by the old policy.  It and the clipping are constants: the gradient is u's (eq. 11)
    with torch.no_grad():  # clamped, because inf * 0 is NaN
        ratio = log_ratio(data["u"], mean, log_std, data["mean"], data["log_std"]).clamp(-20.0, 20.0).exp()
        keep = (ratio >= 1.0 - args.clip_low) & (ratio <= 1.0 + args.clip_high)

    # maximise lambda_surr E[ rho <grad_u R, u> ] - lambda_KL E[ KL(pi_old || pi_theta) ] + lambda_ent E[ h ]   (eq. 14)
    # The first term is linear in u: only its gradient has a meaning.  A dropped sample counts as 0 in the mean.
    surrogate = (ratio * keep * (data["action_grads"] * u).sum(-1)).mean()
    kl = gaussian_kl(data["mean"], data["log_std"], mean, log_std).mean()
    entropy = squashed_entropy(mean, log_std).mean()
    loss = -(args.surrogate_coef * surrogate - args.kl_coef * kl + args.ent_coef * entropy)
    return loss, {"kept": keep.float().mean(), "ratio_max": ratio.max(), "entropy": entropy.detach()}  # for the log


def td_lambda_targets(rewards, next_values, ends, gamma, lam):
    """Targets G (H, N) of the critics, backwards in time, from the values that the critics had in the rollout."""
    # G_t = r_t + gamma V(s_{t+1})                                        where an episode or the rollout ends
    # G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})        elsewhere
    targets, target = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        mixed = (1.0 - lam) * next_values[t] + lam * target
        target = rewards[t] + gamma * torch.where(ends[t], next_values[t], mixed)
        targets[t] = target
    return targets


def critic_loss(critic, obs, targets):
    """L_V: the mean over both critics of E[ (V_i(s) - G)^2 ] (RPO, eq. 15)."""
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
    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__)
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
    adamw = {"betas": (0.7, 0.95), "weight_decay": 0.01, "fused": True}  # the RPO paper's betas, SAPO's weight decay
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, **adamw)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, **adamw)
    parts = {"actor": actor, "critic": critic, "normalizer": normalizer}
    parts |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
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
        envs.restore(parts, checkpoint)
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
        # lr_k = lr (lr_end / lr)^(k / num_iterations)
        fraction = (iteration - 1) / args.num_iterations
        for optimizer, lr in ((actor_optimizer, args.learning_rate), (critic_optimizer, args.critic_learning_rate)):
            optimizer.param_groups[0]["lr"] = lr * (args.final_learning_rate / lr) ** fraction

        # ALGO LOGIC: a rollout, and the gradient of its return with respect to every action
        times = [time.time()]
        torch.set_num_threads(1)  # torch's other threads would take the cores from the simulator's
        data, returns, us = rollout(env, actor, critic, normalizer, args)
        times.append(time.time())
        action_grads = action_gradients(returns, us)
        del returns, us  # and with them the graph
        times.append(time.time())
        torch.set_num_threads(num_threads)
        data["action_grads"] = limit_rows(action_grads, args.max_action_grad_norm)

        # only now: all observations of an iteration share one normalisation
        normalizer.update(data["raw_obs"].flatten(0, 1))

        # flatten the batch
        rewards, next_values, ends = data["rewards"], data["next_values"], data["ends"]
        b_targets = td_lambda_targets(rewards, next_values, ends, args.gamma, args.td_lambda).flatten()
        b_data = {name: x.flatten(0, 1) for name, x in data.items()}

        # ALGO LOGIC: M policy epochs on the same rollout
        actor_norms, stats = [], []
        for _ in range(args.update_epochs):
            loss, epoch_stats = policy_loss(actor, b_data, args)
            actor_optimizer.zero_grad()
            loss.backward()
            actor_norms.append(clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True))
            actor_optimizer.step()
            stats.append(epoch_stats)
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
        times.append(time.time())

        # TRY NOT TO MODIFY: log data
        if rank > 0:
            continue
        global_step = iteration * args.batch_size
        episodes.extend(torch.stack([b_data["episode_return"], b_data["episode_length"]], 1)[b_data["dones"]].tolist())
        mean_return, mean_length = torch.tensor([*episodes]).reshape(-1, 2).mean(0).tolist()  # NaN before the first end
        kept, ratio_max = (torch.stack([epoch[name] for epoch in stats]) for name in ("kept", "ratio_max"))
        reused = slice(int(args.update_epochs > 1), None)  # the first epoch keeps everything
        sps = (iteration - start) * args.batch_size / (time.time() - start_time)
        metrics = {
            "charts/episodic_return": mean_return,
            "charts/episodic_length": mean_length,
            "charts/SPS": sps,
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/diverged": env.diverged.item(),
            "losses/value_loss": torch.stack(v_losses).mean().item(),
            "losses/explained_variance": 1.0 - (errors.var(correction=0) / b_targets.var(correction=0)).item(),
            "losses/entropy": stats[0]["entropy"].item(),
            "losses/approx_kl": approx_kl.item(),
            "losses/clipfrac": 1.0 - kept.mean().item(),
            "losses/effective_sample_ratio": kept[reused].mean().item(),
            "losses/ratio_max": ratio_max[reused].mean().item(),
            "losses/actor_grad_norm": torch.stack(actor_norms).mean().item(),
            "losses/critic_grad_norm": torch.stack(critic_norms).mean().item(),
            "losses/action_grad_norm": data["action_grads"].norm(dim=-1).mean().item(),
            "losses/nonfinite_action_grads": (~action_grads.norm(dim=-1).isfinite()).sum().item(),
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
