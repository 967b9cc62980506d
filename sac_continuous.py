"""Soft Actor-Critic (SAC), arXiv 1801.01290, with n-step returns. Explained in docs/sac.md.

The off-policy baseline, as the RPO paper (2508.06214) runs it: without a derivative of the simulator, from old data.

    1. Add some steps of N environments to a replay buffer, with noisy actions of the policy.
    2. Several times, on a random batch of the buffer: fit two critics Q(s, a) to the rewards of the next n steps plus
       the soft value of what comes after them, computed with slowly moving copies of the critics.
    3. After each step of the critics: one of the policy along the gradient of the smaller Q with respect to the action,
       and one of the temperature, the weight of the entropy.

    paper            code             meaning
    s, a, r          obs, action      normalised observation, action = tanh(u) with u ~ N(mean, std^2), reward
    D                replay           the last buffer_size steps, with the true successor of each
    Q_1, Q_2         critic           the smaller one is used
    Qbar_1, Qbar_2   target_critic    their copies: Qbar <- (1 - tau) Qbar + tau Q after every update
    y                targets          discounted rewards of k <= n steps, plus gamma^k times the soft value after them
    alpha            temperature      weight of the entropy; it keeps H = E[ -log pi(a|s) ] near H bar = -A/2

Try:     python sac_continuous.py --env-id hopper --total-timesteps 500000 --capture-video
Train:   python sac_continuous.py --env-id hopper --total-timesteps 1000000 --num-envs 128
         6 minutes on one CPU core, return 3,980 (4,050 without noise; one seed)
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
from torch.distributions import Normal, kl_divergence
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
    checkpoint_freq: int = 200
    """iterations between checkpoints, which hold the replay buffer"""
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
    """steps of every environment between updates"""
    learning_starts: int = 4096
    """environment steps with uniformly random actions before the first update"""
    buffer_size: int = 1_000_000
    """steps in the replay buffer, over all environments"""
    num_updates: int = 32
    """updates after every num_steps steps"""
    batch_size: int = 512
    """steps drawn from the buffer for one update"""
    num_nsteps: int = 3
    """n, longest sum of rewards in a target"""
    learning_rate: float = 5e-5
    """of the actor; low, because every iteration makes num_updates steps"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    gamma: float = 0.99
    """discount factor"""
    tau: float = 0.05
    """share of the critics that the target critics take over at every update"""
    autotune: bool = True
    """adapt alpha to keep the entropy near -A/2; --no-autotune keeps it fixed"""
    alpha: float = 1.0
    """temperature at the start"""
    alpha_learning_rate: float = 5e-3
    """of log alpha"""
    max_grad_norm: float = 0.5
    """the gradients of the actor, the critics and log alpha are clipped to this norm"""

    # to be filled in runtime
    num_iterations: tyro.conf.Suppress[int] = 0


# The RPO paper runs SAC on two tasks: n, learning rate and tau are those of its table 7, updates and batch those of the
# code that it runs, the budgets our estimates.  The other tasks have the defaults above, and more updates.
PAPER = {"total_timesteps": 10_000_000, "num_updates": 8, "batch_size": 2048}
TASK_DEFAULTS = {
    "anymal": PAPER | {"num_envs": 128, "num_nsteps": 10, "learning_rate": 2e-3, "tau": 0.6},
    "humanoid": PAPER | {"num_envs": 64, "num_nsteps": 3, "learning_rate": 5e-4, "tau": 0.2},
    "hopper": {"total_timesteps": 5_000_000, "num_envs": 64},
    "ant": {"total_timesteps": 5_000_000, "num_envs": 64},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 64},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 64},
    "go1": {"total_timesteps": 1_500_000, "num_envs": 64},
    "file": {"total_timesteps": 5_000_000, "num_envs": 64},  # any robot's
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64},
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
    """Two independent functions Q_1, Q_2: (..., num_obs), (..., num_actions) -> (..., 2)."""

    def __init__(self, num_obs, num_actions):
        super().__init__()
        size = num_obs + num_actions
        self.values = nn.ModuleList([nn.Sequential(*mlp(size), layer_init(nn.Linear(100, 1))) for _ in range(2)])

    def forward(self, obs, action):
        inputs = torch.cat([obs, action], dim=-1)
        return torch.cat([value(inputs) for value in self.values], dim=-1)


class Temperature(nn.Module):
    """alpha = exp(log_alpha): it stays positive."""

    def __init__(self, alpha):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))

    def forward(self):
        return self.log_alpha.exp()


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


# ALGO LOGIC: SAC
class Replay:
    """The last steps of every environment, in order: a ring of `rows` steps, each (N, ...), on the device."""

    def __init__(self, rows, num_envs, num_obs, num_actions, device):
        widths = {"obs": (num_obs,), "action": (num_actions,), "reward": (), "next_obs": (num_obs,)}
        self.data = {name: torch.zeros(rows, num_envs, *width, device=device) for name, width in widths.items()}
        flags = torch.zeros(rows, num_envs, dtype=torch.bool, device=device)
        self.data |= {"terminated": flags, "truncated": flags.clone()}
        self.rows, self.num_envs, self.count = rows, num_envs, 0  # count: of all steps, overwritten ones too

    def __len__(self):
        return min(self.count, self.rows)

    def add(self, **step):
        for name, column in step.items():
            self.data[name][self.count % self.rows] = column
        self.count += 1

    def sample(self, batch_size, n, gamma):
        """Windows of k <= n steps from random places, as a batch (B, ...).

        obs and action are those of the first step, next_obs and terminated those of the last, discount is gamma^k.
        A window stops after a step that ended its episode, and at the newest step: it never mixes two episodes.
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
        self.count = state["count"]
        for name, column in self.data.items():
            # only the first process saves its steps; after a resume all of them begin with copies of these
            column[: len(self)] = state[name][:, torch.arange(self.num_envs) % state[name].shape[1]]


@torch.no_grad()  # the steps are data: SAC needs no derivative of the simulator
def collect(env, actor, normalizer, replay, args):
    """H = num_steps steps of every environment into the buffer. Returns what the log needs, tensors (H, N, ...)."""
    raw_obs, steps = env.detach(), []  # the current observation
    for _ in range(args.num_steps):
        if replay.count * args.num_envs < args.learning_starts:
            action = 2.0 * torch.rand(len(raw_obs), env.num_actions, device=raw_obs.device) - 1.0
        else:
            action = actor.act(normalizer(raw_obs))
        next_obs, reward, terminated, truncated, infos = env.step(action)
        # raw observations: a batch is normalised when it is drawn, with the statistics of that time
        step = {"obs": raw_obs, "action": action, "reward": reward, "next_obs": infos["final_obs"]}
        replay.add(**step, terminated=terminated, truncated=truncated)
        step = {"raw_obs": raw_obs, "dones": terminated | truncated}
        steps.append(step | {"episode_return": infos["episode"]["r"], "episode_length": infos["episode"]["l"]})
        raw_obs = next_obs
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


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
    """L_pi = E[ alpha log pi(a|s) - min_i Q_i(s, a) ] with a fresh action, and the entropy -E[ log pi ]."""
    action, log_prob = sample_action(actor, obs)
    return (alpha * log_prob - critic(obs, action).amin(-1)).mean(), -log_prob.detach().mean()


def temperature_loss(alpha, entropy, num_actions):
    """L_alpha = alpha (H - H bar) with H bar = -A/2: alpha falls where the entropy is above its target."""
    return alpha * (entropy + 0.5 * num_actions)


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
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C: what came after the last checkpoint is lost
    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__, fixed=("buffer_size",), batch_size=(1, 10**9))
    rollout_size = args.num_envs * args.num_steps
    args.num_iterations = args.total_timesteps // rollout_size
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
    env.reset()  # collect() takes the observation from env.detach()

    # agent setup, on one thread: the last bits of orthogonal weights depend on the number of threads
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    num_obs, num_actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    actor, critic = Actor(num_obs, num_actions).to(device), Critic(num_obs, num_actions).to(device)
    target_critic, normalizer = copy.deepcopy(critic), ObsNormalizer(num_obs).to(device)
    temperature = Temperature(args.alpha).to(device)
    replay = Replay(args.buffer_size // args.num_envs, env.num_envs, num_obs, num_actions, device)
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, fused=True)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, fused=True)
    alpha_optimizer = torch.optim.AdamW(temperature.parameters(), lr=args.alpha_learning_rate, fused=True)
    parts = {"actor": actor, "critic": critic, "target_critic": target_critic, "normalizer": normalizer}
    parts |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    parts |= {"temperature": temperature, "alpha_optimizer": alpha_optimizer}
    torch.set_num_threads(num_threads)
    if world_size > 1:  # every backward() leaves the mean of all processes' gradients
        for parameter in (*actor.parameters(), *critic.parameters(), *temperature.parameters()):
            parameter.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad.div_(world_size)))

    # resume
    start = checkpoint["iteration"] if checkpoint else 0
    episodes = deque(checkpoint["episodes"] if checkpoint else (), maxlen=100)  # return and length of the last 100
    if args.eval_only:
        envs.restore({"actor": actor, "normalizer": normalizer}, checkpoint)
        if rank == 0:
            evaluate(actor, normalizer, args, f"{run_dir}/video-{start * rollout_size}")
        sys.exit()
    if checkpoint:
        envs.restore(parts, checkpoint)
        if args.alpha != checkpoint["args"]["alpha"] or not args.autotune:  # it replaces the adapted one
            temperature.log_alpha.data.fill_(math.log(args.alpha))
        envs.restore({"replay": replay}, checkpoint)
        del checkpoint["replay"]  # it is as large as the buffer
    if checkpoint and world_size == 1 and checkpoint["process"] == [1, device.type, args.seed]:  # goes on exactly
        envs.restore({"env": env}, checkpoint)
        torch.set_rng_state(checkpoint["rng"])
        for state in checkpoint["cuda_rng"][:1]:  # none on a CPU
            torch.cuda.set_rng_state(state, device)
    elif checkpoint or rank > 0:  # new episodes and new noise; only the networks are the same in all processes
        torch.manual_seed(hash((start, seed)) % 2**32)
        env.reset(seed=torch.initial_seed())
        replay.data["truncated"][(replay.count - 1) % replay.rows] = True  # no window crosses into the new episodes

    if rank == 0:
        if args.track:
            import wandb

            wandb.init(id=os.path.basename(run_dir), resume="allow", config=asdict(args), sync_tensorboard=True)
        envs.claim(run_dir, args)  # two runs never share a folder
        writer = SummaryWriter(run_dir, purge_step=start * rollout_size + 1)
        table = "\n".join(f"    {name}: {value}" for name, value in (asdict(args) | machine).items())
        writer.add_text("hyperparameters", table)
        print(f"{table}\nrun folder {run_dir}; --checkpoint {run_dir}/checkpoint.pt continues it", flush=True)
        if start >= args.num_iterations:
            print("the run is finished: it is only evaluated; a larger --total-timesteps continues it", flush=True)

    # TRY NOT TO MODIFY: start the game
    start_time = time.time()
    for iteration in range(start + 1, args.num_iterations + 1):
        actor_optimizer.param_groups[0]["lr"] = args.learning_rate
        critic_optimizer.param_groups[0]["lr"] = args.critic_learning_rate
        alpha_optimizer.param_groups[0]["lr"] = args.alpha_learning_rate

        # ALGO LOGIC: steps of every environment into the replay buffer
        times = [time.time()]
        torch.set_num_threads(1)  # torch's other threads would take the cores from the simulator's
        data = collect(env, actor, normalizer, replay, args)
        torch.set_num_threads(num_threads)
        normalizer.update(data["raw_obs"].flatten(0, 1))
        times.append(time.time())

        # ALGO LOGIC: updates of the critics, the policy, the temperature and the target critics
        old_actor, stats = copy.deepcopy(actor), []
        for _ in range(args.num_updates if replay.count * args.num_envs >= args.learning_starts else 0):
            batch = replay.sample(args.batch_size // world_size, args.num_nsteps, args.gamma)
            batch["obs"], batch["next_obs"] = normalizer(batch["obs"]), normalizer(batch["next_obs"])
            alpha = temperature().detach()  # a constant for the critics and the policy; it has a loss of its own
            targets = nstep_targets(actor, target_critic, batch, alpha)
            v_loss = critic_loss(critic, batch, targets)
            critic_optimizer.zero_grad()
            v_loss.backward()
            critic_norm = clip_grad_norm_(critic.parameters(), args.max_grad_norm, error_if_nonfinite=True)
            critic_optimizer.step()
            times.append(time.time())

            loss, entropy = policy_loss(actor, critic, batch["obs"], alpha)
            actor_optimizer.zero_grad()
            loss.backward(inputs=[*actor.parameters()])  # the critics' weights are constants here
            actor_norm = clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True)
            actor_optimizer.step()
            if args.autotune:
                alpha_optimizer.zero_grad()
                temperature_loss(temperature(), entropy, num_actions).backward()
                clip_grad_norm_(temperature.parameters(), args.max_grad_norm, error_if_nonfinite=True)
                alpha_optimizer.step()

            with torch.no_grad():  # the target critics are not learned: Qbar <- (1 - tau) Qbar + tau Q
                for slow, weight in zip(target_critic.parameters(), critic.parameters()):
                    slow.lerp_(weight, args.tau)
            stats.append({"value_loss": v_loss.detach(), "q_value": targets.mean(), "entropy": entropy})
            stats[-1] |= {"actor_grad_norm": actor_norm, "critic_grad_norm": critic_norm}
            times.append(time.time())
        with torch.no_grad():  # for the log: KL(old policy || new policy), how far these updates have moved it
            obs = normalizer(data["raw_obs"])
            old, new = (Normal(mean, log_std.exp()) for mean, log_std in (old_actor(obs), actor(obs)))
            approx_kl = kl_divergence(old, new).sum(-1).mean()

        # TRY NOT TO MODIFY: log data
        if rank > 0:
            continue
        global_step = iteration * rollout_size
        episodes.extend(torch.stack([data["episode_return"], data["episode_length"]], -1)[data["dones"]].tolist())
        mean_return, mean_length = torch.tensor([*episodes]).reshape(-1, 2).mean(0).tolist()  # NaN before the first end
        sps = (iteration - start) * rollout_size / (time.time() - start_time)
        seconds = [until - since for since, until in zip(times, times[1:])]
        metrics = {
            "charts/episodic_return": mean_return,
            "charts/episodic_length": mean_length,
            "charts/SPS": sps,
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/diverged": env.diverged.item(),
            "losses/alpha": temperature().item(),
            "losses/approx_kl": approx_kl.item(),
            "time/rollout": seconds[0],
            "time/critic": sum(seconds[1::2]),  # critics and actor take turns
            "time/actor": sum(seconds[2::2]),
        }
        for name in stats[0] if stats else ():  # there are no updates while the actions are random
            metrics[f"losses/{name}"] = torch.stack([update[name] for update in stats]).mean().item()
        left = (args.num_iterations - iteration) * rollout_size / sps / 60
        progress = f"step {global_step:,}/{args.total_timesteps:,} ({iteration / args.num_iterations:.0%})"
        print(f"{progress}  return {mean_return:.1f}  SPS {sps:,.0f}  {left:.0f} min left", flush=True)
        if args.eval_freq and iteration % args.eval_freq == 0 and iteration < args.num_iterations:
            metrics |= evaluate(actor, normalizer, args, f"{run_dir}/video-{global_step}")
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, global_step)
        writer.flush()  # before the checkpoint: a resumed run begins after it

        if iteration % args.checkpoint_freq and iteration < args.num_iterations:
            continue
        checkpoint = {name: part.state_dict() for name, part in (parts | {"env": env, "replay": replay}).items()}
        checkpoint |= {"script": os.path.basename(__file__), "args": asdict(args)}
        checkpoint |= {"iteration": iteration, "episodes": [*episodes], "process": [world_size, device.type, args.seed]}
        checkpoint |= {"rng": torch.get_rng_state(), "cuda_rng": [torch.cuda.get_rng_state(device)] if use_cuda else []}
        envs.save_checkpoint(checkpoint, run_dir)  # there is never half a checkpoint
        del checkpoint  # and with it the copy of the replay buffer

    if rank == 0:
        global_step = max(start, args.num_iterations) * rollout_size
        for tag, value in evaluate(actor, normalizer, args, f"{run_dir}/video-{global_step}").items():
            writer.add_scalar(tag, value, global_step)
        writer.close()
        print(f"done: {global_step:,} steps, run folder {run_dir}")
    if world_size > 1:
        dist.destroy_process_group()
