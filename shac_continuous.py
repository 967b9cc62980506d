"""Short-Horizon Actor-Critic (SHAC), arXiv 2204.07137, as run by the RPO paper (2508.06214). Docs: docs/shac.md

The simulator is differentiable, so one backward pass through a short rollout (BPTT) gives the gradient of the return
with respect to the policy.  Cut after H steps it neither explodes nor needs a whole episode: a critic, trained on the
rollouts, stands for everything that comes after.  SHAC takes one policy step with this gradient and collects the next
rollout.

    paper            code             meaning
    s, a, r          obs, action      normalised observation, action = tanh(u), reward
    pi_theta         u                u = mu + sigma * eps, eps ~ N(0, 1): the reparameterised sample
    H, N             num_steps, num_envs
    V_phi            critic           two of them: their mean in the return, their minimum in the targets
    L_theta          loss             minus the discounted return per step, with V_phi where the rollout is cut
    V~(s_t)          targets          TD(lambda)

Try:     python shac_continuous.py --env-id ant --total-timesteps 700000 --capture-video
Train:   python shac_continuous.py --env-id ant --total-timesteps 5000000 --final-learning-rate 1e-4
         87 minutes beside other runs on two CPU cores; return 7,310, and 7,310 with the deterministic policy (one seed;
         RPO paper, at about twice the steps: 8,206 and 8,206)
Resume:  python shac_continuous.py --checkpoint runs/<run>/checkpoint.pt
Share:   torchrun --nproc-per-node 2 shac_continuous.py ... divides the environments among two processes, or GPUs
The numbers come from benchmarks/results.
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
    learning_rate: float = 2e-3
    """of the actor"""
    critic_learning_rate: float = 5e-4
    """of the critics"""
    anneal_lr: bool = True
    """let both learning rates decay linearly to final_learning_rate"""
    final_learning_rate: float = 1e-5
    """learning rates at the end of training"""
    gamma: float = 0.99
    """discount factor"""
    td_lambda: float = 0.95
    """lambda of the critics' TD(lambda) targets"""
    critic_epochs: int = 16
    """L, passes of the critics over the rollout"""
    num_minibatches: int = 4
    """minibatches per pass of the critics"""
    critic_agg: Literal["mean", "min"] = "min"
    """how the TD targets join the two critics (the return always uses the mean)"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""
    max_action_grad_norm: float | None = None
    """rows of the action gradient, grad_u R of one action, are scaled down to this length; default: left as they are"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    num_iterations: tyro.conf.Suppress[int] = 0


# the RPO paper's settings per task (table 3); budgets: it states ANYmal's, the others are estimates
TASK_DEFAULTS = {
    "hopper": {"total_timesteps": 20_000_000, "num_envs": 1024},
    "ant": {"total_timesteps": 10_000_000, "num_envs": 128},
    "anymal": {"total_timesteps": 10_000_000, "num_envs": 128},
    "humanoid": {"total_timesteps": 10_000_000, "num_envs": 64},
    "hand_reorient": {"total_timesteps": 4_096_000, "num_envs": 64},
    # not in the paper
    "cheetah": {"total_timesteps": 5_000_000, "num_envs": 128},
    "cartpole": {"total_timesteps": 500_000, "num_envs": 128},
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


# ALGO LOGIC: the parts of SHAC
def gaussian_kl(old_mean, old_log_std, mean, log_std):
    """KL(pi_old || pi_theta) in closed form, summed over action dimensions; tanh leaves it unchanged."""
    # sum_d log(sigma / sigma_old) + (sigma_old^2 + (mu_old - mu)^2) / (2 sigma^2) - 1/2
    old_var, var = (2.0 * old_log_std).exp(), (2.0 * log_std).exp()
    return (log_std - old_log_std + (old_var + (old_mean - mean) ** 2) / (2.0 * var) - 0.5).sum(-1)


def watch(u, action_grads, max_norm=math.inf):
    """Keep the gradient with respect to u when it passes, its rows no longer than max_norm; stop those not finite."""

    def hook(grad):
        lengths = grad.norm(dim=-1, keepdim=True)
        grad = torch.where(lengths > max_norm, grad * (max_norm / lengths), grad)
        action_grads.append(grad)
        return torch.where(grad.isfinite().all(-1, keepdim=True), grad, 0.0)

    u.register_hook(hook)


def rollout(env, actor, critic, normalizer, args):
    """H steps of every environment with a live graph.

    Returns the rollout as data (H, N, ...), the returns R (N,) with their graph, the list that will hold the gradients
    with respect to every action after a backward pass, and the return and length of every episode that ended.
    """
    frozen = copy.deepcopy(normalizer)  # one fixed normalisation per rollout: the critics see the same observations
    raw_obs = env.detach()  # the graph starts here: earlier rollouts belong to earlier gradients
    normalizer.update(gather(raw_obs))
    returns, discount, action_grads, steps, episodes = 0.0, 1.0, [], [], []
    # not in the paper: for tasks whose contacts make a few rows hundreds of times longer than the others.  The loss is
    # - 1/(H N) sum_n R_n, and its rows are shorter than those of R by H N
    max_norm = math.inf if args.max_action_grad_norm is None else args.max_action_grad_norm
    max_norm = max_norm / (args.num_steps * len(raw_obs))
    for t in range(args.num_steps):
        obs = frozen(raw_obs)
        mean, log_std = actor(obs)
        u = mean + log_std.exp() * torch.randn_like(mean)
        watch(u, action_grads, max_norm)
        raw_obs, reward, terminated, truncated, infos = env.step(torch.tanh(u))
        normalizer.update(gather(raw_obs))

        # the values of the true successor: 0 after a fall, V_i(s') after a time-out or where the rollout is cut
        done = terminated | truncated
        end = done | (t == args.num_steps - 1)
        values = torch.where(terminated[:, None], 0.0, critic(frozen(infos["final_obs"])))

        # R = sum_t gamma^t r_t, plus gamma^(t+1) V(s_{t+1}) where the trajectory ends; gamma^t restarts with an episode
        returns = returns + discount * (reward + torch.where(end, args.gamma * values.mean(-1), 0.0))
        discount = torch.where(done, 1.0, args.gamma * discount)
        td_value = values.mean(-1) if args.critic_agg == "mean" else values.amin(-1)
        steps.append((obs, mean, log_std, reward, td_value, end))
        episodes.append(torch.stack([infos["_episode"], infos["episode"]["r"], infos["episode"]["l"]], dim=1))

    # as data the rollout has no gradient: the critics learn from numbers, and the policy from R alone
    names = ("obs", "mean", "log_std", "rewards", "td_values", "ends")
    data = {name: torch.stack(column).detach() for name, column in zip(names, zip(*steps))}
    episodes = torch.cat(episodes)  # of which some have ended; asked once, because the host waits for a GPU's answer
    return data, returns, action_grads, episodes[episodes[:, 0] == 1.0, 1:].tolist()


def policy_loss(returns, args):
    """L_theta = - 1/(H N) sum_n R_n: its gradient is that of the return, back through every step of the simulator."""
    return -returns.mean() / args.num_steps


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


def critic_loss(critic, obs, targets):
    """L_V = 1/2 sum_i E[ (V_i(s) - G)^2 ] over the two critics."""
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
    at_least = dict.fromkeys("num_envs num_steps num_minibatches critic_epochs num_eval_envs".split(), 1)
    at_least |= dict.fromkeys("seed gamma td_lambda eval_freq".split(), 0)
    at_least |= dict.fromkeys("learning_rate critic_learning_rate final_learning_rate max_grad_norm".split(), 1e-12)
    if args.max_action_grad_norm is not None:
        at_least["max_action_grad_norm"] = 1e-12
    at_least |= {"checkpoint_freq": 1, "total_timesteps": args.batch_size}
    at_most = {"seed": 2**32 - 1, "gamma": 1, "td_lambda": 1, "num_minibatches": args.batch_size // WORLD_SIZE}
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
    approx_kl actor_grad_norm critic_grad_norm action_grad_norm
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
    # betas and weight decay are those of the code that the paper builds on
    adamw = {"betas": (0.7, 0.95), "weight_decay": 0.01, "fused": True}
    actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, **adamw)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, **adamw)
    modules = {"actor": actor, "critic": critic, "normalizer": normalizer}
    modules |= {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    if RANK > 0:
        # all have drawn the same networks; from here on each draws noise of its own, and not the numbers of its resets
        torch.manual_seed(2**32 + seed)
    iteration, global_step, wall_before, finished_episodes = 0, 0, 0.0, deque(maxlen=100)
    quantities = ("the gradient of the return", "the gradient of the actor", "the gradient of the critic")
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

    critic_loss_fn = critic_loss
    if args.compile or args.cudagraphs:
        critic_loss_fn = torch.compile(critic_loss, mode="reduce-overhead" if args.cudagraphs else "default")

    # TRY NOT TO MODIFY: start the game
    num_threads = torch.get_num_threads()
    start_time, start_step = time.time(), global_step
    try:
        while global_step + args.batch_size <= args.total_timesteps and not first_signal(received, device):
            iteration += 1
            # lr_k = lr + (lr_end - lr) k / K
            fraction = global_step / (args.num_iterations * args.batch_size) if args.anneal_lr else 0.0
            for optimizer, lr in ((actor_optimizer, args.learning_rate), (critic_optimizer, args.critic_learning_rate)):
                optimizer.param_groups[0]["lr"] = lr + (args.final_learning_rate - lr) * fraction

            # ALGO LOGIC: collect a rollout, and take one policy step along the gradient of its return
            time_0 = time.time()
            torch.set_num_threads(1)  # the batches are small: more threads would spin on the simulator's cores
            try:
                data, returns, action_grads, episodes = rollout(env, actor, critic, normalizer, args)
            except ValueError as error:  # the environment refuses an action that is not a number
                raise TrainingFailed(error) from error
            finished_episodes.extend(episodes)
            time_1 = time.time()
            loss = policy_loss(returns, args)
            actor_optimizer.zero_grad()
            loss.backward(inputs=list(actor.parameters()))  # the critics' weights are constants here
            del returns, loss  # and with them the graph
            time_2 = time.time()
            torch.set_num_threads(num_threads)
            action_grads = torch.stack(action_grads) * data["ends"].numel()  # of -R, summed over the environments
            finite = action_grads.isfinite().all(-1)
            action_grads = torch.where(finite[..., None], action_grads, 0.0)
            count_failures(failures, quantities[0], [gather(finite.any()[None]).any().item()])
            actor_steps = [clipped_step(actor_optimizer, args.max_grad_norm)]
            targets = td_lambda_targets(data["rewards"], data["td_values"], data["ends"], args.gamma, args.td_lambda)

            # flatten the batch
            b_data, b_targets = {name: x.flatten(0, 1) for name, x in data.items()}, targets.flatten()
            with torch.no_grad():  # only measurements: how far the policy has moved, what the critics knew
                approx_kl = gaussian_kl(b_data["mean"], b_data["log_std"], *actor(b_data["obs"])).mean().item()
                errors = b_targets - critic(b_data["obs"]).mean(-1)

            # ALGO LOGIC: L passes of the critics towards the fixed targets
            time_3 = time.time()
            critic_steps, v_losses = [], []
            for _ in range(args.critic_epochs):
                for mb_inds in torch.randperm(len(b_targets), device=device).chunk(args.num_minibatches):
                    v_loss = critic_loss_fn(critic, b_data["obs"][mb_inds], b_targets[mb_inds])
                    critic_optimizer.zero_grad()
                    v_loss.backward()
                    critic_steps.append(clipped_step(critic_optimizer, args.max_grad_norm))
                    v_losses.append(v_loss.item())

            # TRY NOT TO MODIFY: execute the game and log data
            time_4 = time.time()
            global_step += args.batch_size
            (actor_norms, actor_usable), (critic_norms, critic_usable) = zip(*actor_steps), zip(*critic_steps)
            count_failures(failures, quantities[1], actor_usable)
            count_failures(failures, quantities[2], critic_usable)
            mean_return, mean_length = np.mean(finished_episodes, axis=0) if finished_episodes else (math.nan, math.nan)
            metrics = {
                "charts/episodic_return": mean_return,
                "charts/episodic_length": mean_length,
                "charts/SPS": (global_step - start_step) / (time.time() - start_time),
                "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
                "charts/diverged": env.diverged.item(),
                "losses/value_loss": np.mean(v_losses),
                "losses/explained_variance": 1.0 - (errors.var() / b_targets.var()).item(),
                "losses/approx_kl": approx_kl,
                "losses/actor_grad_norm": np.mean(actor_norms),
                "losses/critic_grad_norm": np.mean(critic_norms),
                "losses/action_grad_norm": action_grads.norm(dim=-1).mean().item(),
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
