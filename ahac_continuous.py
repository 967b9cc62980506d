"""Adaptive Horizon Actor-Critic (AHAC), arXiv 2405.17784. Explained in docs/ahac.md.

SHAC with rollouts that become shorter where the dynamics are stiff, as in hard contact: there the gradient through many
steps is misleading.

    1. Roll out H steps in N environments.
    2. Backpropagate the return R into the policy, and take one step.  Discard the rollout.
    3. Measure the stiffness of the dynamics.  H falls while the dual variable of its limit is positive, else it rises.
    4. Fit two critics to TD(lambda) targets until their loss stops falling.  The smaller one is used.

    paper            code            meaning
    s, a, r          obs, tanh(u)    normalised observation, action, reward
    pi_theta         u               u = mu + sigma eps, eps ~ N(0, 1)
    H, h             horizon         a real number, and the steps of a rollout: H rounded
    c                stiffness       mean norm of J^T v: v random signs, J = d(q', qd') / d(q, qd) of one step
    C                horizon.limit() its limit: the mean of c over the first iterations, times stiffness_limit
    lambda           horizon.dual    the dual variable of c <= C: sums up c / C - 1, within bounds; may be negative
    R                returns         discounted return; the critics' value where an episode or the rollout ends
    L_theta          loss            minus the mean return per step
    V_psi            critic          two of them: their minimum is used, in R and in the targets
    V~(s_t)          targets         TD(lambda); G_t below

Try:     python ahac_continuous.py --env-id ant --total-timesteps 700000 --capture-video
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
    """H at the start, length of the differentiated rollout"""
    horizon_min: int = 8
    """the smallest H"""
    horizon_max: int = 64
    """the largest H"""
    horizon_lr: float = 0.25
    """step size of H; 0 keeps it at num_steps"""
    horizon_dual_lr: float = 2e-3
    """step size of lambda"""
    stiffness_limit: float = 1.0
    """C, as a multiple of the mean stiffness over the first 10 iterations (so that 1 serves every task)"""
    learning_rate: float = 2e-3
    """of the actor"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    final_learning_rate: float = 1e-5
    """where both learning rates end, after a linear decay"""
    gamma: float = 0.99
    """discount factor"""
    td_lambda: float = 0.95
    """lambda of the critics' TD(lambda) targets"""
    critic_epochs: int = 64
    """the most passes of the critics over the rollout"""
    critic_tolerance: float = 0.2
    """the passes end earlier where their loss changes by less than this per pass"""
    num_minibatches: int = 4
    """minibatches per pass of the critics"""
    max_grad_norm: float = 0.5
    """the gradients of the actor and of the critics are clipped to this norm"""
    max_action_grad_norm: float = math.inf
    """the gradient of R with respect to a single action is clipped to this norm (not in the paper)"""


# as in shac_continuous.py
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64},
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128},
    "go1": {"total_timesteps": 1_500_000, "num_envs": 128},
    "file": {"total_timesteps": 5_000_000, "num_envs": 128},  # any robot's
}
TASK_DEFAULTS["hand_reorient"] |= {"max_action_grad_norm": 1.0}
TASK_DEFAULTS["go1"] |= {"max_action_grad_norm": 5.0}  # not in a paper


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


# ALGO LOGIC: AHAC
class Horizon(nn.Module):
    """H and the dual variable lambda of the constraint c <= C. No gradient reaches them: each has a rule of its own."""

    def __init__(self, num_steps):
        super().__init__()
        numbers = {"length": num_steps, "dual": 0.0, "reference": 0.0}
        numbers |= {"num_updates": 0.0, "total_steps": 0.0}  # rollouts so far, and their steps
        for name, value in numbers.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def forward(self):
        """The steps of the next rollout: H rounded, one half upwards."""
        return math.floor(self.length.item() + 0.5)

    def limit(self, args):
        """C. Within the first 10 iterations the sum is not complete, and C is not used."""
        return args.stiffness_limit * self.reference

    def update(self, stiffness, num_steps, args):
        """After a rollout of num_steps with the stiffness c. The first 10 only add to the mean that sets C."""
        self.num_updates, self.total_steps = self.num_updates + 1, self.total_steps + num_steps
        if self.num_updates <= 10:
            self.reference += stiffness / 10
            return
        # lambda <- clip(lambda + alpha_lambda (c / C - 1)): it rises while c > C; bounded, so that it can turn soon
        violation = stiffness / self.limit(args) - 1.0
        self.dual = (self.dual + args.horizon_dual_lr * violation).clamp(-0.05, 0.05)
        # H <- clip(H - alpha_H h lambda)
        length = self.length - args.horizon_lr * num_steps * self.dual
        self.length = length.clamp(args.horizon_min, args.horizon_max)


def limit_rows(grads, max_norm):
    """Scale rows (..., A) down to norm max_norm. Rows that are not finite, or whose norm is not, become 0."""
    norms = grads.norm(dim=-1, keepdim=True)
    return torch.where(norms.isfinite(), grads * (max_norm / norms).clamp(max=1.0), 0.0)


def rollout(env, actor, critic, normalizer, num_steps, args):
    """num_steps of every environment, with the graph of autograd from every action to every later reward.

    Returns the rollout as data, tensors (H, N, ...) without gradients; the returns R (N,) with their graph; and a list
    that the backward pass will fill with the gradients of the H actions u (N, A), the last one first.
    """
    raw_obs = env.detach()  # the graph starts here: what came before belongs to the previous rollout's gradient
    discount, action_grads, steps = torch.ones_like(raw_obs[:, 0]), [], []
    # the loss is - 1/(H N) sum_n R_n: its rows are 1/(H N) times as long as those of R
    max_norm = args.max_action_grad_norm / (num_steps * len(raw_obs))

    def on_backward(grad):  # called with the gradient of each u, on its way to the policy and to the earlier actions
        action_grads.append(grad)
        return limit_rows(grad, max_norm)

    for t in range(num_steps):
        obs = normalizer(raw_obs)
        mean, log_std = actor(obs)
        u = mean + log_std.exp() * torch.randn_like(mean)
        u.register_hook(on_backward)
        state = {"joint_q": env.joint_q, "joint_qd": env.joint_qd, "action": torch.tanh(u)}  # before the step
        next_obs, reward, terminated, truncated, infos = env.step(state["action"])
        done = terminated | truncated
        step = {"raw_obs": raw_obs, "obs": obs, "mean": mean, "log_std": log_std, "final_obs": infos["final_obs"]}
        step |= state | {"rewards": reward, "discounts": discount}
        step |= {"terminated": terminated, "dones": done, "ends": done | (t == num_steps - 1)}
        steps.append(step | {"episode_return": infos["episode"]["r"], "episode_length": infos["episode"]["l"]})
        raw_obs, discount = next_obs, torch.where(done, 1.0, args.gamma * discount)
    data = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}

    # V(s_{t+1}) of the true successor, before any reset; 0 if the robot has fallen
    final_obs = normalizer(data.pop("final_obs"))
    with torch.no_grad():  # for the targets of the critics, which are numbers
        data["next_values"] = torch.where(data["terminated"], 0.0, critic(final_obs).amin(-1))

    # R = sum_t gamma^t r_t, plus gamma^(t+1) V(s_{t+1}) where an episode or the rollout ends;
    # with a new episode gamma^t starts again at 1.  These values keep their graph: the gradient enters s_{t+1} too
    last = data["ends"] & ~data["terminated"]
    values = torch.zeros_like(data["rewards"])
    values[last] = critic(final_obs[last]).amin(-1)
    returns = (data["discounts"] * (data["rewards"] + args.gamma * values)).sum(0)

    # data is constant: the losses computed from it reach only the current policy and critics
    return {name: x.detach() for name, x in data.items()}, returns, action_grads


def policy_loss(returns, num_steps):
    """L_theta = - 1/(H N) sum_n R_n: its gradient is that of the return, back through every step of the simulator."""
    return -returns.mean() / num_steps


def measure_stiffness(env, joint_q, joint_qd, action):
    """c, the stiffness of one step of the simulator, a number, from states and actions (H, N, ...) of a rollout.

    One random step of each environment is simulated again, at the origin: the twist of a floating robot is taken about
    the origin, so J grows with the distance from it.  The environments themselves do not notice.
    """
    # c = mean of |J^T v|, J = d(q', qd') / d(q, qd), v random signs: E |J^T v|^2 = |J|_F^2  (Hutchinson)
    num_steps, num_envs, _ = action.shape
    rows = torch.randint(num_steps, (num_envs,), device=action.device), torch.arange(num_envs, device=action.device)
    state = [x.requires_grad_() for x in env.at_origin(joint_q[rows], joint_qd[rows])]
    *new_state, diverged = env.simulator.step(*state, env.actuate(action[rows]))
    signs = [2.0 * torch.randint_like(x, 2) - 1.0 for x in new_state]
    norms = torch.cat(torch.autograd.grad(new_state, state, signs), dim=1).norm(dim=1)
    usable = ~diverged & norms.isfinite()  # the derivative of a state that blew up is 0
    total = torch.stack([norms[usable].sum(), usable.sum()])
    if dist.is_initialized():  # the rows of all processes
        dist.all_reduce(total)
    return (total[0] / total[1].clamp(min=1.0)).item()


def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d [ log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2 ]
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


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


def converged(losses, tolerance):
    """Whether the last five passes have changed the critics' loss by less than the tolerance per pass, on average."""
    return len(losses) >= 5 and abs(losses[-1] - losses[-5]) / 4 < tolerance


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
    args, checkpoint = envs.parse_args(Args, TASK_DEFAULTS, __file__, stiffness_limit=(1e-12, math.inf))
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
    normalizer, horizon = ObsNormalizer(num_obs).to(device), Horizon(args.num_steps)
    adamw = {"betas": (0.7, 0.95), "weight_decay": 0.01, "fused": True}  # the RPO paper's betas, SAPO's weight decay
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, **adamw)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, **adamw)
    parts = {"actor": actor, "critic": critic, "normalizer": normalizer, "horizon": horizon}
    parts |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    torch.set_num_threads(num_threads)
    if world_size > 1:  # every backward() leaves the mean of all processes' gradients
        for parameter in (*actor.parameters(), *critic.parameters()):
            parameter.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad.div_(world_size)))

    # resume
    start = checkpoint["iteration"] if checkpoint else 0
    episodes = deque(checkpoint["episodes"] if checkpoint else (), maxlen=100)  # return and length of the last 100
    if args.eval_only:
        envs.restore({"actor": actor, "normalizer": normalizer, "horizon": horizon}, checkpoint)
        if rank == 0:
            evaluate(actor, normalizer, args, f"{run_dir}/video-{int(horizon.total_steps) * args.num_envs}")
        sys.exit()
    if checkpoint:
        envs.restore(parts, checkpoint)
    first_step = int(horizon.total_steps) * args.num_envs
    if args.total_timesteps < first_step:
        expected = f"expected the {first_step} steps of --checkpoint or more"
        envs.refuse("total_timesteps", f"{expected}, got {args.total_timesteps}")
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
        writer = SummaryWriter(run_dir, purge_step=first_step + 1)
        table = "\n".join(f"    {name}: {value}" for name, value in (asdict(args) | machine).items())
        writer.add_text("hyperparameters", table)
        print(f"{table}\nrun folder {run_dir}; --checkpoint {run_dir}/checkpoint.pt continues it", flush=True)
        if first_step + args.num_envs > args.total_timesteps:
            print("the run is finished: it is only evaluated; a larger --total-timesteps continues it", flush=True)

    # TRY NOT TO MODIFY: start the game
    start_time = time.time()
    iteration, global_step = start, first_step
    while global_step + args.num_envs <= args.total_timesteps:
        # lr_k = lr + (lr_end - lr) k / total_timesteps after k steps
        fraction = global_step / args.total_timesteps
        for optimizer, lr in ((actor_optimizer, args.learning_rate), (critic_optimizer, args.critic_learning_rate)):
            optimizer.param_groups[0]["lr"] = lr + (args.final_learning_rate - lr) * fraction

        # ALGO LOGIC: a rollout, and one policy step along the gradient of its return
        times = [time.time()]
        torch.set_num_threads(1)  # torch's other threads would take the cores from the simulator's
        num_steps = min(horizon(), (args.total_timesteps - global_step) // args.num_envs)
        data, returns, action_grads = rollout(env, actor, critic, normalizer, num_steps, args)
        iteration, global_step = iteration + 1, global_step + num_steps * args.num_envs
        times.append(time.time())
        loss = policy_loss(returns, num_steps)
        actor_optimizer.zero_grad()
        loss.backward(inputs=[*actor.parameters()])  # the critics' weights are constants here
        del returns, loss  # and with them the graph
        times.append(time.time())
        torch.set_num_threads(num_threads)
        actor_norm = clip_grad_norm_(actor.parameters(), args.max_grad_norm, error_if_nonfinite=True)
        actor_optimizer.step()
        action_grads = torch.stack(action_grads) * data["ends"].numel()  # those of -R; only their norms count

        # ALGO LOGIC: the horizon of the next rollout; after backward(), which would otherwise run some steps again
        stiffness = measure_stiffness(env, data.pop("joint_q"), data.pop("joint_qd"), data.pop("action"))
        horizon.update(stiffness, num_steps, args)

        # only now: all observations of an iteration share one normalisation
        normalizer.update(data["raw_obs"].flatten(0, 1))

        # flatten the batch
        rewards, next_values, ends = data["rewards"], data["next_values"], data["ends"]
        b_targets = td_lambda_targets(rewards, next_values, ends, args.gamma, args.td_lambda).flatten()
        b_data = {name: x.flatten(0, 1) for name, x in data.items()}

        with torch.no_grad():  # for the log: how far the policy has moved, and what the critics knew so far
            approx_kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean()
            errors = b_targets - critic(b_data["obs"]).mean(-1)
        times.append(time.time())

        # ALGO LOGIC: passes of the critics towards the fixed targets, until they come no closer
        critic_norms, v_losses, pass_losses = [], [], []
        while len(pass_losses) < args.critic_epochs and not converged(pass_losses, args.critic_tolerance):
            pass_start = len(v_losses)
            for mb_inds in torch.randperm(len(b_targets), device=device).chunk(args.num_minibatches):
                v_loss = critic_loss(critic, b_data["obs"][mb_inds], b_targets[mb_inds])
                critic_optimizer.zero_grad()
                v_loss.backward()
                critic_norms.append(clip_grad_norm_(critic.parameters(), args.max_grad_norm, error_if_nonfinite=True))
                critic_optimizer.step()
                v_losses.append(v_loss.detach())  # only compared and logged
            pass_loss = torch.stack(v_losses[pass_start:]).mean()
            if world_size > 1:  # all processes stop after the same pass
                dist.all_reduce(pass_loss.div_(world_size))
            pass_losses.append(pass_loss.item())
        times.append(time.time())

        # TRY NOT TO MODIFY: log data
        if rank > 0:
            continue
        episodes.extend(torch.stack([b_data["episode_return"], b_data["episode_length"]], 1)[b_data["dones"]].tolist())
        mean_return, mean_length = torch.tensor([*episodes]).reshape(-1, 2).mean(0).tolist()  # NaN before the first end
        sps = (global_step - first_step) / (time.time() - start_time)
        metrics = {
            "charts/episodic_return": mean_return,
            "charts/episodic_length": mean_length,
            "charts/SPS": sps,
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/diverged": env.diverged.item(),
            "charts/horizon": num_steps,
            "charts/horizon_dual": horizon.dual.item(),
            "charts/stiffness": stiffness,
            "charts/stiffness_limit": horizon.limit(args).item() if iteration >= 10 else math.nan,
            "losses/critic_passes": len(pass_losses),
            "losses/value_loss": torch.stack(v_losses).mean().item(),
            "losses/explained_variance": 1.0 - (errors.var(correction=0) / b_targets.var(correction=0)).item(),
            "losses/approx_kl": approx_kl.item(),
            "losses/actor_grad_norm": actor_norm.item(),
            "losses/critic_grad_norm": torch.stack(critic_norms).mean().item(),
            "losses/action_grad_norm": limit_rows(action_grads, args.max_action_grad_norm).norm(dim=-1).mean().item(),
            "losses/nonfinite_action_grads": (~action_grads.norm(dim=-1).isfinite()).sum().item(),
        }
        for name, since, until in zip(("rollout", "backward", "actor", "critic"), times, times[1:]):
            metrics[f"time/{name}"] = until - since
        left = (args.total_timesteps - global_step) / sps / 60
        progress = f"step {global_step:,}/{args.total_timesteps:,} ({global_step / args.total_timesteps:.0%})"
        print(f"{progress}  return {mean_return:.1f}  SPS {sps:,.0f}  {left:.0f} min left", flush=True)
        is_last = global_step + args.num_envs > args.total_timesteps
        if args.eval_freq and iteration % args.eval_freq == 0 and not is_last:
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
        for tag, value in evaluate(actor, normalizer, args, f"{run_dir}/video-{global_step}").items():
            writer.add_scalar(tag, value, global_step)
        writer.close()
        print(f"done: {global_step:,} steps, run folder {run_dir}")
    if world_size > 1:
        dist.destroy_process_group()
