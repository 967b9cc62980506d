"""FastTD3, arXiv 2505.22642: twin delayed DDPG with many environments. Explained in docs/fasttd3.md.

Off-policy and deterministic: without a derivative of the simulator, and without an entropy term.

    1. Add a step of N environments to a replay buffer.  Every environment has its own noise level.
    2. Several times, on a random batch of the buffer: fit two critics to the rewards of the next n steps plus the value
       of what comes after them.  A critic is a distribution of the return over fixed atoms, not a number.
    3. After every second step of the critics: one of the policy along the gradient of the smaller Q with respect to the
       action.

    paper            code             meaning
    s, a, r          obs, action      normalised observation, action = mu(s) + sigma_e eps, reward times reward_scale
    mu               actor            deterministic, tanh at its end
    sigma_e          noise.std        drawn from [noise_min, noise_max] when an episode begins in environment e
    D                replay           the last buffer_size steps, with the true successor of each
    z_1 .. z_K       critic.atoms     from v_min to v_max
    p_1, p_2         critic           logits of their probabilities; Q_i = sum_j p_ij z_j
    pbar_1, pbar_2   target_critic    slow copies: the weights w <- (1 - tau) w + tau w_critic after every update
    m                targets          the target distribution of both critics

Try:     python fasttd3_continuous.py --env-id hopper --total-timesteps 500000 --capture-video
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
    """steps of every environment in an iteration, between two lines of the log"""
    learning_starts: int = 4096
    """environment steps before the first update"""
    buffer_size: int = 1_000_000
    """steps in the replay buffer, over all environments"""
    num_updates: int | None = None
    """updates after every step of all environments; default: the task's"""
    batch_size: int = 256
    """steps drawn from the buffer for one update"""
    num_nsteps: int = 3
    """n, longest sum of rewards in a target"""
    policy_freq: int = 2
    """updates of the critics per update of the actor"""
    learning_rate: float = 3e-4
    """of the actor"""
    critic_learning_rate: float = 3e-4
    """of the critics"""
    gamma: float = 0.99
    """discount factor"""
    tau: float = 0.1
    """share of the critics that the target critics take over at every update"""
    noise_min: float = 0.1
    """the smallest standard deviation of the exploration noise of an environment"""
    noise_max: float = 0.4
    """the largest one"""
    target_noise: float = 0.1
    """standard deviation of the noise of the actions in the targets"""
    target_noise_clip: float = 0.5
    """that noise is cut off here"""
    reward_scale: float | None = None
    """the learner sees reward_scale * reward, and the support must hold its returns; default: the task's"""
    v_min: float = -200.0
    """the smallest atom"""
    v_max: float = 200.0
    """the largest one"""
    num_atoms: int = 101
    """K"""
    max_grad_norm: float = math.inf
    """the gradients of the actor and of the critics are clipped to this norm"""

    # to be filled in runtime
    num_iterations: tyro.conf.Suppress[int] = 0


# an update for every 16 steps
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 5_000_000, "num_envs": 128, "num_updates": 8, "reward_scale": 0.1},
    "ant": {"total_timesteps": 5_000_000, "num_envs": 128, "num_updates": 8, "reward_scale": 0.1},
    "anymal": {"total_timesteps": 5_000_000, "num_envs": 128, "num_updates": 8, "reward_scale": 0.1},
    "humanoid": {"total_timesteps": 5_000_000, "num_envs": 64, "num_updates": 4, "reward_scale": 0.1},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64, "num_updates": 4, "reward_scale": 0.5},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128, "num_updates": 8, "reward_scale": 0.1},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128, "num_updates": 8, "reward_scale": 0.02},
    "go1": {"total_timesteps": 1_500_000, "num_envs": 128, "num_updates": 8, "reward_scale": 0.5},
    "file": {"total_timesteps": 5_000_000, "num_envs": 128, "num_updates": 8, "reward_scale": 0.5},  # any robot's
}


# ALGO LOGIC: networks
def mlp(num_inputs, num_outputs):
    layers, sizes = [], [num_inputs, 400, 200, 100]
    for n_in, n_out in zip(sizes, sizes[1:]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(100, num_outputs))


def add_noise(action, std):
    """Actions (N, A) with Gaussian noise of standard deviation std (N,), in [-1, 1]."""
    return (action + std[:, None] * torch.randn_like(action)).clamp(-1.0, 1.0)


class Actor(nn.Module):
    """A deterministic policy: the action is tanh(network)."""

    def __init__(self, num_obs, num_actions):
        super().__init__()
        self.network = mlp(num_obs, num_actions)
        nn.init.normal_(self.network[-1].weight, std=0.01)  # the first actions are small
        nn.init.zeros_(self.network[-1].bias)
        self.register_buffer("noise_range", torch.ones(2))  # noise_min and noise_max, for act()

    def forward(self, obs):
        return torch.tanh(self.network(obs))

    def act(self, obs, deterministic=False):
        """The noise levels of the environments are spread evenly over the range."""
        levels = torch.linspace(*self.noise_range.tolist(), len(obs), device=obs.device)
        return self(obs) if deterministic else add_noise(self(obs), levels)


class Critic(nn.Module):
    """Two independent distributions over K atoms: (..., num_obs), (..., num_actions) -> logits (..., 2, K)."""

    def __init__(self, num_obs, num_actions, v_min, v_max, num_atoms):
        super().__init__()
        self.networks = nn.ModuleList([mlp(num_obs + num_actions, num_atoms) for _ in range(2)])
        self.register_buffer("atoms", torch.linspace(v_min, v_max, num_atoms))

    def forward(self, obs, action):
        inputs = torch.cat([obs, action], dim=-1)
        return torch.stack([network(inputs) for network in self.networks], dim=-2)

    def q_values(self, obs, action):
        """Q_i = sum_j softmax(logits_i)_j z_j: (..., 2)."""
        return self(obs, action).softmax(-1) @ self.atoms


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


# ALGO LOGIC: FastTD3
class MixedNoise(nn.Module):
    """The exploration noise: a standard deviation (N,) for every environment, drawn again when it begins an episode."""

    def __init__(self, num_envs, low, high, device):
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("std", torch.zeros(num_envs, device=device))
        self.redraw(torch.ones(num_envs, dtype=torch.bool, device=device))

    def redraw(self, rows):
        fresh = self.low + (self.high - self.low) * torch.rand_like(self.std)  # for all: one stream of random numbers
        self.std = torch.where(rows, fresh, self.std)


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


@torch.no_grad()  # the steps are data: FastTD3 needs no derivative of the simulator
def collect(env, raw_obs, actor, noise, normalizer, replay, args):
    """One step of every environment into the buffer. Returns the next observation and what the log needs, (N, ...)."""
    action = add_noise(actor(normalizer(raw_obs)), noise.std)
    next_obs, reward, terminated, truncated, infos = env.step(action)
    # raw observations: a batch is normalised when it is drawn, with the statistics of that time
    step = {"obs": raw_obs, "action": action, "reward": args.reward_scale * reward, "next_obs": infos["final_obs"]}
    replay.add(**step, terminated=terminated, truncated=truncated)
    noise.redraw(terminated | truncated)
    step = {"raw_obs": raw_obs, "dones": terminated | truncated}
    return next_obs, step | {"episode_return": infos["episode"]["r"], "episode_length": infos["episode"]["l"]}


def project(probs, rewards, discount, atoms):
    """The distributions of r + discount z, z distributed by probs (B, ..., K) over the atoms, on the same atoms."""
    # y_j = clip(r + discount z_j, v_min, v_max),   b_j = (y_j - v_min) / dz: its place among the atoms
    shape = (-1, *[1] * (probs.dim() - 1))
    y = (rewards.view(shape) + discount.view(shape) * atoms).clamp(atoms[0], atoms[-1])
    place = (y - atoms[0]) / (atoms[1] - atoms[0])
    # a probability goes to both neighbours: l = min(floor(b), K - 2) gets the share 1 - (b - l), l + 1 gets b - l
    lower = place.floor().clamp(max=len(atoms) - 2)
    upper_part, lower = probs * (place - lower), lower.long().expand_as(probs)
    projected = torch.zeros_like(probs).scatter_add(-1, lower, probs - upper_part)
    return projected.scatter_add(-1, lower + 1, upper_part)


@torch.no_grad()  # a target is a number: Q is drawn towards it, not it towards Q
def target_distribution(actor, target_critic, batch, args):
    """m (B, K): rewards of the window, plus the return of what comes after it, unless that is a fall."""
    # a' = clip(mu(s') + clip(sigma eps, -c, c), -1, 1): no target actor, and a blur over neighbouring actions
    next_obs = torch.where(batch["terminated"][:, None], 0.0, batch["next_obs"])  # what comes after a fall is not read
    action = actor(next_obs)
    blur = (args.target_noise * torch.randn_like(action)).clamp(-args.target_noise_clip, args.target_noise_clip)
    probs = target_critic(next_obs, (action + blur).clamp(-1.0, 1.0)).softmax(-1)
    discount = torch.where(batch["terminated"], 0.0, batch["discount"])
    projected = project(probs, batch["rewards"], discount, target_critic.atoms)
    # clipped double Q: the whole distribution of the critic with the smaller mean is the target of both
    smaller = (projected @ target_critic.atoms).argmin(-1)
    return projected[torch.arange(len(smaller), device=smaller.device), smaller]


def critic_loss(critic, batch, targets):
    """L_Q = sum_i E[ - sum_j m_j log p_ij(s, a) ], the cross-entropy."""
    log_probs = critic(batch["obs"], batch["action"]).log_softmax(-1)
    return -(targets[:, None] * log_probs).sum(-1).mean(0).sum()


def policy_loss(actor, critic, obs):
    """L_mu = - E[ min_i Q_i(s, mu(s)) ], and the actions."""
    action = actor(obs)
    return -critic.q_values(obs, action).amin(-1).mean(), action.detach()


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
    limits = {"batch_size": (1, 10**9), "num_atoms": (3, 10**4)}
    limits |= {"v_min": (-1e9, 0.0), "v_max": (1e-9, 1e9), "reward_scale": (1e-9, 1e9)}
    fixed = ("buffer_size", "reward_scale", "v_min", "v_max", "num_atoms")
    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__, fixed=fixed, **limits)
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
    env.reset()  # every iteration takes the observation from env.detach()

    # agent setup, on one thread: the last bits of orthogonal weights depend on the number of threads
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    num_obs, num_actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    support = (args.v_min, args.v_max, args.num_atoms)
    actor, critic = Actor(num_obs, num_actions).to(device), Critic(num_obs, num_actions, *support).to(device)
    target_critic, normalizer = copy.deepcopy(critic), ObsNormalizer(num_obs).to(device)
    replay = Replay(args.buffer_size // args.num_envs, env.num_envs, num_obs, num_actions, device)
    noise = MixedNoise(env.num_envs, args.noise_min, args.noise_max, device)
    adamw = {"weight_decay": 0.1, "fused": True}
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, **adamw)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, **adamw)
    parts = {"actor": actor, "critic": critic, "target_critic": target_critic, "normalizer": normalizer}
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
            evaluate(actor, normalizer, args, f"{run_dir}/video-{start * rollout_size}")
        sys.exit()
    if checkpoint:
        envs.restore(parts, checkpoint)
        envs.restore({"replay": replay}, checkpoint)
        del checkpoint["replay"]  # it is as large as the buffer
    actor.noise_range.copy_(torch.tensor([args.noise_min, args.noise_max]))
    if checkpoint and world_size == 1 and checkpoint["process"] == [1, device.type, args.seed]:  # goes on exactly
        envs.restore({"env": env, "noise": noise}, checkpoint)
        torch.set_rng_state(checkpoint["rng"])
        for state in checkpoint["cuda_rng"][:1]:  # none on a CPU
            torch.cuda.set_rng_state(state, device)
    elif checkpoint or rank > 0:  # new episodes and new noise; only the networks are the same in all processes
        torch.manual_seed(hash((start, seed)) % 2**32)
        env.reset(seed=torch.initial_seed())
        noise.redraw(torch.ones_like(noise.std, dtype=torch.bool))
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

        raw_obs = env.detach()  # the current observation
        steps, stats, times = [], [], [("start", time.time())]
        for _ in range(args.num_steps):
            # ALGO LOGIC: a step of every environment into the replay buffer
            torch.set_num_threads(1)  # torch's other threads would take the cores from the simulator's
            raw_obs, step = collect(env, raw_obs, actor, noise, normalizer, replay, args)
            torch.set_num_threads(num_threads)
            steps.append(step)
            normalizer.update(step["raw_obs"])
            times.append(("rollout", time.time()))

            # ALGO LOGIC: updates of the critics, the policy and the target critics
            for k in range(args.num_updates if replay.count * args.num_envs >= args.learning_starts else 0):
                batch = replay.sample(args.batch_size // world_size, args.num_nsteps, args.gamma)
                batch["obs"], batch["next_obs"] = normalizer(batch["obs"]), normalizer(batch["next_obs"])
                targets = target_distribution(actor, target_critic, batch, args)
                v_loss = critic_loss(critic, batch, targets)
                critic_optimizer.zero_grad()
                v_loss.backward()
                critic_norm = clip_grad_norm_(critic.parameters(), args.max_grad_norm, error_if_nonfinite=True)
                critic_optimizer.step()
                stats.append({"value_loss": v_loss.detach(), "critic_grad_norm": critic_norm})
                stats[-1] |= {"q_value": (targets @ critic.atoms).mean()}
                stats[-1] |= {"q_at_the_ends": (targets[:, 0] + targets[:, -1]).mean()}
                times.append(("critic", time.time()))

                if (replay.count * args.num_updates + k) % args.policy_freq == args.policy_freq - 1:
                    loss, action = policy_loss(actor, critic, batch["obs"])
                    actor_optimizer.zero_grad()
                    loss.backward(inputs=[*actor.parameters()])  # the critics' weights are constants here
                    actor_norm = clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True)
                    actor_optimizer.step()
                    stats[-1] |= {"actor_grad_norm": actor_norm, "saturation": (action.abs() > 0.99).float().mean()}

                with torch.no_grad():  # the target critics are not learned: w <- (1 - tau) w + tau w_critic
                    for slow, weight in zip(target_critic.parameters(), critic.parameters()):
                        slow.lerp_(weight, args.tau)
                times.append(("actor", time.time()))
        data = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}

        # TRY NOT TO MODIFY: log data
        if rank > 0:
            continue
        global_step = iteration * rollout_size
        episodes.extend(torch.stack([data["episode_return"], data["episode_length"]], -1)[data["dones"]].tolist())
        mean_return, mean_length = torch.tensor([*episodes]).reshape(-1, 2).mean(0).tolist()  # NaN before the first end
        sps = (iteration - start) * rollout_size / (time.time() - start_time)
        metrics = {
            "charts/episodic_return": mean_return,
            "charts/episodic_length": mean_length,
            "charts/SPS": sps,
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/diverged": env.diverged.item(),
            "charts/noise_std": noise.std.mean().item(),
        }
        for name in dict.fromkeys(name for update in stats for name in update):  # there are none in the beginning
            metrics[f"losses/{name}"] = torch.stack([x[name] for x in stats if name in x]).mean().item()
        for part in ("rollout", "critic", "actor"):
            metrics[f"time/{part}"] = sum(b - a for (_, a), (name, b) in zip(times, times[1:]) if name == part)
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
        others = {"env": env, "noise": noise, "replay": replay}
        checkpoint = {name: part.state_dict() for name, part in (parts | others).items()}
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
