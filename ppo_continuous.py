"""Proximal Policy Optimization (PPO), arXiv 1707.06347. Explained in docs/ppo.md.

The score-function baseline: it needs no derivative of the simulator.  Actions that turned out better than expected
become more likely, the others less.  Networks and settings follow the RPO paper (2508.06214) and the code that it runs.

    1. Roll out H steps in N environments.  A critic estimates the return of a state.  The advantage of an action is how
       much more than that followed it, estimated with GAE(gamma, lambda) (arXiv 1506.02438).
    2. K times, go over the same data in shuffled minibatches.  Each makes one step of the policy along the advantages,
       weighted by the importance ratio, which is clipped: no sample draws the policy far from the one that collected
       the data.  Each also makes one step of the critic towards the returns.
    3. After each of these passes, adapt the learning rate to how far the policy has moved.

    paper            code             meaning
    s_t, a_t, r_t    obs, action      normalised observation, action ~ N(mean, std^2), reward
    A_t              advantages       generalised advantage estimate
    r_t(theta)       ratio            pi_theta(a|s) / pi_old(a|s), over all action dimensions jointly
    epsilon          clip_coef        the ratio is clipped to 1 - epsilon .. 1 + epsilon
    V, V_targ        critic, targets  value function and its target A_t + V(s_t), normalised as returns are
    c_2              ent_coef         weight of the entropy
    K                update_epochs    passes over the rollout

Try:     python ppo_continuous.py --env-id ant --total-timesteps 2000000 --capture-video
Train:   python ppo_continuous.py --env-id ant
         10M steps, return 5,590 (6,000 without noise; one seed; RPO paper 4,146, 4,340)
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
    """H, length of a rollout"""
    learning_rate: float = 5e-4
    """of the actor and the critic, at the start"""
    adaptive_lr: bool = True
    """let the learning rate follow the KL divergence; otherwise it is constant"""
    target_kl: float = 0.008
    """KL(pi_old || pi_theta) of a pass: above twice this the learning rate falls, below half of it it rises"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimate"""
    update_epochs: int = 5
    """K, passes over the rollout"""
    num_minibatches: int | None = None
    """minibatches per pass; default: the task's, which makes them 2,048 steps large"""
    norm_adv: bool = True
    """scale the advantages of a rollout to mean 0 and deviation 1"""
    clip_coef: float = 0.2
    """epsilon, the ratio is clipped to 1 - epsilon .. 1 + epsilon"""
    ent_coef: float = 0.0
    """c_2, weight of the entropy"""
    max_grad_norm: float = 0.5
    """the gradients of the actor and of the critic are clipped to this norm"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# table 3 of the RPO paper; budgets: those of the other scripts
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024, "num_minibatches": 16},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128, "num_minibatches": 2},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128, "num_minibatches": 2},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64, "num_minibatches": 1},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64, "num_minibatches": 1},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128, "num_minibatches": 2},  # not in the paper
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128, "num_minibatches": 2},  # not in the paper
    "go1": {"total_timesteps": 1_500_000, "num_envs": 128, "num_minibatches": 2},  # not in the paper
    "file": {"total_timesteps": 5_000_000, "num_envs": 128, "num_minibatches": 2},  # any robot's
}


# ALGO LOGIC: networks
def layer_init(layer, gain=2**0.5):
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(num_inputs):
    layers, sizes = [], [num_inputs, 400, 200, 100]
    for n_in, n_out in zip(sizes, sizes[1:]):
        layers += [layer_init(nn.Linear(n_in, n_out)), nn.LayerNorm(n_out), nn.SiLU()]
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """Gaussian over the action: a mean in [-1, 1] and a standard deviation in [0.1, 1], both state-dependent."""

    def __init__(self, num_obs, num_actions):
        super().__init__()
        self.trunk = mlp(num_obs)
        self.mean = layer_init(nn.Linear(100, num_actions), gain=0.01)
        self.std = layer_init(nn.Linear(100, num_actions), gain=0.01)

    def forward(self, obs):
        features = self.trunk(obs)
        return torch.tanh(self.mean(features)), (0.1 + 0.9 * torch.sigmoid(self.std(features) + 2.0)).log()

    def act(self, obs, deterministic=False):
        mean, log_std = self(obs)
        return mean if deterministic else mean + log_std.exp() * torch.randn_like(mean)


class Critic(nn.Module):
    """The value function V: (..., num_obs) -> (...), in units of the ReturnNormalizer."""

    def __init__(self, num_obs):
        super().__init__()
        self.value = nn.Sequential(*mlp(num_obs), layer_init(nn.Linear(100, 1), gain=1.0))

    def forward(self, obs):
        return self.value(obs).squeeze(-1)


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


class ReturnNormalizer(ObsNormalizer):
    """The same for returns: the critic's targets stay of order 1 while the returns grow."""

    def __init__(self):
        super().__init__(1)

    def restore(self, values):
        return values * torch.sqrt(self.var + 1e-5).float() + self.mean.float()


# ALGO LOGIC: PPO
@torch.no_grad()  # the rollout is data: PPO needs no derivative of the simulator
def rollout(env, actor, critic, normalizer, return_normalizer, args):
    """H steps of every environment, as tensors (H, N, ...)."""
    raw_obs, steps = env.detach(), []  # the current observation
    for _ in range(args.num_steps):
        obs = normalizer(raw_obs)
        mean, log_std = actor(obs)
        action = mean + log_std.exp() * torch.randn_like(mean)
        # the environment clamps the action to [-1, 1]; its density is that of the action as drawn
        next_obs, reward, terminated, truncated, infos = env.step(action)

        step = {"raw_obs": raw_obs, "obs": obs, "mean": mean, "log_std": log_std, "final_obs": infos["final_obs"]}
        step |= {"action": action, "rewards": reward, "terminated": terminated, "dones": terminated | truncated}
        steps.append(step | {"episode_return": infos["episode"]["r"], "episode_length": infos["episode"]["l"]})
        raw_obs = next_obs
    data = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}

    # V(s_t), and V(s_{t+1}) of the true successor, before any reset; 0 if the robot has fallen
    data["values"] = return_normalizer.restore(critic(data["obs"]))
    next_values = return_normalizer.restore(critic(normalizer(data.pop("final_obs"))))
    data["next_values"] = torch.where(data["terminated"], 0.0, next_values)
    return data


def gae(rewards, values, next_values, dones, gamma, lam):
    """Generalised advantage estimates A (H, N), backwards in time; none crosses the end of an episode."""
    # delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    # A_t     = delta_t + gamma lambda A_{t+1}, without the second term where an episode or the rollout ends
    advantages, advantage = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_values[t] - values[t]
        advantage = delta + torch.where(dones[t], 0.0, gamma * lam * advantage)
        advantages[t] = advantage
    return advantages


def normalize_advantages(advantages):
    """A -> (A - mean) / deviation, over the whole rollout."""
    everyone = [advantages]
    if dist.is_initialized():  # the rollouts of all processes
        everyone = [torch.empty_like(advantages) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, advantages)
    everyone = torch.cat(everyone)
    return (advantages - everyone.mean()) / (everyone.std(correction=0) + 1e-8)


def log_ratio(action, mean, log_std, old_mean, old_log_std):
    """log r(theta) = log pi_theta(a|s) - log pi_old(a|s), jointly over action dimensions."""
    # log r = sum_d [ eps_old^2 / 2 - eps^2 / 2 + log sigma_old - log sigma ],   eps = (a - mu) / sigma
    eps, old_eps = (action - mean) / log_std.exp(), (action - old_mean) / old_log_std.exp()
    return (0.5 * old_eps**2 - 0.5 * eps**2 + old_log_std - log_std).sum(-1)


def gaussian_entropy(log_std):
    """H: the entropy of N(mean, std^2), summed over action dimensions."""
    # sum_d [ log sigma + (1 + log 2 pi) / 2 ]
    return (log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))).sum(-1)


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions."""
    # sum_d [ log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2 ]
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def policy_loss(actor, data, args):
    """The loss of one minibatch (B, ...), and four diagnostics."""
    mean, log_std = actor(data["obs"])
    ratio = log_ratio(data["action"], mean, log_std, data["mean"], data["log_std"]).clamp(-20.0, 20.0).exp()

    # The gradient flows through r alone; the advantages are data.
    # L = - E[ min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) ] - c_2 E[ H ]
    # The minimum is constant, without a gradient, only where r has left the interval and r A would grow further.
    clipped = ratio.clamp(1.0 - args.clip_coef, 1.0 + args.clip_coef)
    surrogate = torch.min(ratio * data["advantages"], clipped * data["advantages"]).mean()
    entropy = gaussian_entropy(log_std).mean()
    loss = -surrogate - args.ent_coef * entropy
    with torch.no_grad():  # the KL steers the learning rate and is no part of the loss; the others are for the log
        stats = {"kl": gaussian_kl(data["mean"], data["log_std"], mean, log_std).mean(), "entropy": entropy.detach()}
        return loss, stats | {"kept": (ratio == clipped).float().mean(), "ratio_max": ratio.max()}


def critic_loss(critic, obs, targets):
    """L_V = 1/2 E[ (V(s) - V_targ)^2 ]"""
    return 0.5 * ((critic(obs) - targets) ** 2).mean()


def adapted_learning_rate(lr, kl, target_kl):
    """Smaller where a pass has moved the policy too far, larger where it has hardly moved it."""
    if kl > 2.0 * target_kl:
        return max(lr / 1.5, 1e-6)
    if kl < 0.5 * target_kl:
        return min(lr * 1.5, 1e-2)
    return lr


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
    return_normalizer = ReturnNormalizer().to(device)
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    parts = {"actor": actor, "critic": critic, "normalizer": normalizer, "return_normalizer": return_normalizer}
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
        # given again, or to be constant: it replaces the adapted one
        if args.learning_rate != checkpoint["args"]["learning_rate"] or not args.adaptive_lr:
            actor_optimizer.param_groups[0]["lr"] = critic_optimizer.param_groups[0]["lr"] = args.learning_rate
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
        # ALGO LOGIC: a rollout, its advantages and the targets of the critic
        times = [time.time()]
        torch.set_num_threads(1)  # torch's other threads would take the cores from the simulator's
        data = rollout(env, actor, critic, normalizer, return_normalizer, args)
        torch.set_num_threads(num_threads)
        values, next_values = data["values"], data["next_values"]
        advantages = gae(data["rewards"], values, next_values, data["dones"], args.gamma, args.gae_lambda)
        data["advantages"] = normalize_advantages(advantages) if args.norm_adv else advantages
        data["returns"] = advantages + values
        return_normalizer.update(data["returns"].flatten()[:, None])
        data["targets"] = return_normalizer(data["returns"])

        # only now: all observations of an iteration share one normalisation
        normalizer.update(data["raw_obs"].flatten(0, 1))

        # flatten the batch
        b_data = {name: x.flatten(0, 1) for name, x in data.items()}
        times.append(time.time())

        # ALGO LOGIC: K passes over the rollout
        actor_norms, stats, critic_norms, v_losses = [], [], [], []
        for _ in range(args.update_epochs):
            kls = []
            for mb_inds in torch.randperm(len(b_data["obs"]), device=device).chunk(args.num_minibatches):
                mb_data = {name: x[mb_inds] for name, x in b_data.items()}
                loss, mb_stats = policy_loss(actor, mb_data, args)
                actor_optimizer.zero_grad()
                loss.backward()
                actor_norms.append(clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True))
                actor_optimizer.step()
                stats.append(mb_stats)
                kls.append(mb_stats["kl"])
                times.append(time.time())

                v_loss = critic_loss(critic, mb_data["obs"], mb_data["targets"])
                critic_optimizer.zero_grad()
                v_loss.backward()
                critic_norms.append(clip_grad_norm_(critic.parameters(), args.max_grad_norm, error_if_nonfinite=True))
                critic_optimizer.step()
                v_losses.append(v_loss.detach())  # for the log
                times.append(time.time())

            if args.adaptive_lr:
                kl = torch.stack(kls).mean()
                if world_size > 1:
                    dist.all_reduce(kl.div_(world_size))
                lr = adapted_learning_rate(actor_optimizer.param_groups[0]["lr"], kl.item(), args.target_kl)
                actor_optimizer.param_groups[0]["lr"] = critic_optimizer.param_groups[0]["lr"] = lr
        with torch.no_grad():  # for the log: how far the policy has moved, and what the critic knew so far
            approx_kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean()
            errors = b_data["returns"] - b_data["values"]

        # TRY NOT TO MODIFY: log data
        if rank > 0:
            continue
        global_step = iteration * args.batch_size
        episodes.extend(torch.stack([b_data["episode_return"], b_data["episode_length"]], 1)[b_data["dones"]].tolist())
        mean_return, mean_length = torch.tensor([*episodes]).reshape(-1, 2).mean(0).tolist()  # NaN before the first end
        by_pass = {name: torch.stack([mb[name] for mb in stats]).reshape(args.update_epochs, -1) for name in stats[0]}
        reused = slice(int(args.update_epochs > 1), None)  # the first pass starts from the policy of the rollout
        sps = (iteration - start) * args.batch_size / (time.time() - start_time)
        seconds = [until - since for since, until in zip(times, times[1:])]
        metrics = {
            "charts/episodic_return": mean_return,
            "charts/episodic_length": mean_length,
            "charts/SPS": sps,
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/diverged": env.diverged.item(),
            "losses/value_loss": torch.stack(v_losses).mean().item(),
            "losses/explained_variance": 1.0 - (errors.var(correction=0) / b_data["returns"].var(correction=0)).item(),
            "losses/entropy": by_pass["entropy"].mean().item(),
            "losses/approx_kl": approx_kl.item(),
            "losses/clipfrac": 1.0 - by_pass["kept"].mean().item(),
            "losses/effective_sample_ratio": by_pass["kept"][reused].mean().item(),
            "losses/ratio_max": by_pass["ratio_max"][reused].mean().item(),
            "losses/actor_grad_norm": torch.stack(actor_norms).mean().item(),
            "losses/critic_grad_norm": torch.stack(critic_norms).mean().item(),
            "time/rollout": seconds[0],
            "time/actor": sum(seconds[1::2]),  # actor and critic take turns
            "time/critic": sum(seconds[2::2]),
        }
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
