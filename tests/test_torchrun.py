"""Data-parallel training: two processes on one machine do what one process does with all environments."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPTS = ("rpo", "shac", "sapo", "reppo", "ppo", "gippo", "sac")
SIZES = "--env-id cartpole --num-envs 8 --num-steps 4 --num-eval-envs 4"
SIZES = {name: f"{SIZES} --num-minibatches 2" for name in SCRIPTS} | {
    "sac": f"{SIZES} --num-updates 2 --batch-size 16 --learning-starts 64"
}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
CHILDREN = "/proc/{0}/task/{0}/children"  # of Linux
# runs a script, then leaves the weights and learning rates of all its optimisers in rank0.pt and rank1.pt
WATCHED = """
import os, runpy, sys, torch
optimizers, create = [], torch.optim.AdamW.__init__
def remember(self, *args, **options):
    create(self, *args, **options)
    optimizers.append(self)
torch.optim.AdamW.__init__ = remember
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end
groups = [optimizer.param_groups[0] for optimizer in optimizers]
torch.save([[group["lr"], *(p.detach() for p in group["params"])] for group in groups], f"rank{os.environ['RANK']}.pt")
"""


STARTED = []


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    while STARTED:
        with contextlib.suppress(ProcessLookupError):  # the launcher and its processes have ended
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


def start(cwd, *command, processes=2):
    # a session of its own, so that the launcher and its processes can be killed together
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    command = [*launcher, *map(str, command)]
    STARTED.append(subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, text=True, **options))
    return STARTED[-1]


def run(cwd, *command, expect=0, processes=2):
    process = start(cwd, *command, processes=processes)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expect, output
    return output


def script(name):
    return ROOT / f"{name}_continuous.py"


def text_between(name, begin, end):
    return script(name).read_text().split(begin)[1].split(end)[0]


def test_all_scripts_have_the_same_functions_for_it():
    for begin, end in (("# Data-parallel", "# Evaluation"), ("def clipped_step", "def count_failures")):
        assert len({text_between(name, begin, end) for name in SCRIPTS}) == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_processes_stay_alike_and_one_of_them_reports(tmp_path, name):
    (tmp_path / "watched.py").write_text(WATCHED)
    output = run(tmp_path, "watched.py", script(name), *SIZES[name].split(), "--total-timesteps", 160, "--seed", 5)
    assert output.count("done: 160 steps") == 1 and output.count("step 160/160") == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == len(second) >= 2
    for (lr, *weights), (other_lr, *other_weights) in zip(first, second):
        assert lr == other_lr and all(map(torch.equal, weights, other_weights))
    (folder,) = (tmp_path / "runs").iterdir()
    with open(folder / "metrics.csv", newline="") as file:
        assert [int(row["global_step"]) for row in csv.DictReader(file)] == [32, 64, 96, 128, 160, 160]
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    # of the observations of all eight environments, five rollouts of four steps; SAC does not count the last one's end
    assert checkpoint["normalizer"]["count"] == 1 + 8 * 5 * (4 if name == "sac" else 5)
    shares = checkpoint["shares"]
    assert [len(share["env"]["joint_q"]) for share in shares] == [4, 4]
    assert not torch.equal(shares[0]["env"]["joint_q"], shares[1]["env"]["joint_q"])  # each has noise of its own
    assert not torch.equal(shares[0]["rng"], shares[1]["rng"])


# what K processes do with a share each of the same numbers; K = 1 is the reference
COMPUTE = """
import os, sys, types, torch, torch.distributed as dist
import gippo_continuous as gippo, reppo_continuous as reppo, rpo_continuous as rpo
rank, size = rpo.RANK, rpo.WORLD_SIZE
dist.init_process_group("gloo")
torch.manual_seed(0)
N, O, A = 64, 5, 2
actor, critic, normalizer = rpo.Actor(O, A), rpo.Critic(O), rpo.ObsNormalizer(O)
data = {"obs": torch.randn(N, O), "u": torch.randn(N, A), "action_grads": torch.randn(N, A)}
data |= {"mean": 0.3 * torch.randn(N, A), "log_std": 0.1 * torch.randn(N, A)}
targets = torch.randn(N)
q = reppo.Critic(O, A, reppo.Args(v_min=-2.0, v_max=2.0))
q_data = {"obs": data["obs"], "action": data["u"].tanh(), "targets": targets, "terminated": torch.arange(N) < 20}
q_data["next_features"] = torch.randn(N, q.features(data["obs"][:1], data["u"][:1]).shape[-1])
noise = torch.randn(N, 2)
alpha_data = {"log_std": data["log_std"], "log_prob": noise[:, 0], "alpha_log_prob": 0.1 * noise[:, 1] + noise[:, 0]}
alpha_data["raw_advantages"] = targets

def share(x):
    return x[rank * N // size : (rank + 1) * N // size]

def shares(tensors):
    return {name: share(x) for name, x in tensors.items()}

def step(module, loss):
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    loss.backward()
    return rpo.clipped_step(optimizer, 1e9)[0]

result = {}
normalizer.update(rpo.gather(share(data["obs"])))
result |= normalizer.state_dict()
rpo.squashed_entropy = lambda mean, log_std: log_std.mean(-1)  # without its noise, which each process draws for itself
args = rpo.Args(kl_coef=0.3, ent_coef=0.2)
result["actor_norm"] = step(actor, rpo.policy_loss(actor, shares(data), args)[0])
result["critic_norm"] = step(critic, rpo.critic_loss(critic, share(data["obs"]), share(targets)))
result["q_norm"] = step(q, reppo.critic_loss(q, shares(q_data), reppo.Args())[0])
for name, module in (("actor", actor), ("critic", critic), ("q", q)):
    result |= {f"{name}.{key}": p.detach() for key, p in module.named_parameters()}
gippo_args = types.SimpleNamespace(alpha_interval=0.4, alpha_factor=1.1, clip_coef=0.1, max_oorr=0.9)
gains = gippo.ObsNormalizer(1)
result["alpha"], result["oorr"] = gippo.adapted_alpha(
    0.1, shares(alpha_data), share(data["mean"]), share(data["log_std"] + 0.05), gains, gippo_args
)
result["gain"] = gains.mean
torch.save(result, f"result-{size}-{rank}.pt")
"""


def test_two_shares_give_what_the_whole_batch_gives(tmp_path):
    """Gradient steps, their norms before clipping, observation statistics, and what steers GI-PPO's alpha."""
    (tmp_path / "compute.py").write_text(COMPUTE)
    for processes in (1, 2):
        run(tmp_path, "compute.py", processes=processes)
    results = [torch.load(tmp_path / f"result-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]
    whole, first, second = results
    assert len(whole) > 40
    for name, value in whole.items():
        value, a, b = (torch.as_tensor(x) for x in (value, first[name], second[name]))
        assert torch.equal(a, b), name
        # sums of 64 float32 numbers in another order
        torch.testing.assert_close(a, value, rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}")  # noqa: B023


def wait_for_iterations(process, folder, count):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        files = list(folder.glob("runs/*/metrics.csv"))
        if files and len(files[0].read_text().splitlines()) > count:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


def test_sigterm_leaves_a_checkpoint_that_goes_on_bit_identically(tmp_path):
    flags = [*SIZES["rpo"].split(), "--total-timesteps", 960]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", script("rpo"), *flags)
    process = start(tmp_path / "cut", script("rpo"), *flags)
    wait_for_iterations(process, tmp_path / "cut", 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    resume = re.search(r"resume with: torchrun --nproc-per-node 2 rpo_continuous.py --checkpoint (\S+)", output)
    assert resume, output
    alone = [sys.executable, str(script("rpo")), "--checkpoint", resume[1]]
    other = subprocess.run(alone, cwd=tmp_path / "cut", env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert other.returncode == 2 and "it was written by 2 process(es), not 1" in other.stderr
    run(tmp_path / "cut", script("rpo"), "--checkpoint", resume[1])
    whole, cut = (
        torch.load(next((tmp_path / name).glob("runs/*/checkpoint.pt")), weights_only=True) for name in ("whole", "cut")
    )
    assert cut["global_step"] == whole["global_step"] == 960
    for name in ("actor", "critic", "normalizer"):
        assert all(torch.equal(cut[name][key], whole[name][key]) for key in whole[name])
    for share, other_share in zip(cut["shares"], whole["shares"], strict=True):
        assert torch.equal(share["rng"], other_share["rng"])
        assert torch.equal(share["env"]["joint_q"], other_share["env"]["joint_q"])


@pytest.mark.skipif(not os.path.exists(CHILDREN.format(os.getpid())), reason="finds the process to kill in /proc")
def test_killing_one_process_ends_the_other_with_a_message(tmp_path):
    process = start(tmp_path, script("rpo"), *SIZES["rpo"].split(), "--total-timesteps", 1_000_000)
    wait_for_iterations(process, tmp_path, 3)
    children = Path(CHILDREN.format(process.pid)).read_text().split()
    (victim,) = (pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(victim), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)  # within a minute
    assert process.returncode == 1
    assert re.search(r"training failed: cartpole, iteration \d+: another process of this run has ended", output), output
    (checkpoint,) = tmp_path.glob("runs/*")
    assert not list(checkpoint.glob("*.tmp"))


def test_environments_must_divide_evenly(tmp_path):
    output = run(tmp_path, script("rpo"), "--env-id", "cartpole", "--num-envs", 7, expect=1)
    assert "--num-envs: expected a multiple of the 2 processes, got 7" in output
