"""What a training script has saved: a checkpoint, the policy in it, and the folder of the run.

    policy, args = envs.load_policy("runs/<run>/checkpoint.pt")
    returns, lengths = envs.evaluate(envs.make(args["env_id"], num_envs=128), policy, seed=args["seed"])

A policy is a class in the script that trained it, so the script is imported, from the folder above this one.  There it
is expected to define Actor(num_obs, num_actions), with act(obs, deterministic), and ObsNormalizer(num_obs).

A checkpoint may be cut, changed or made by somebody else.  load_checkpoint checks the file and what all scripts write;
restore compares the rest with the networks and optimisers that it is meant for, before they are touched.
"""

import errno
import importlib.util
import math
import os
import zipfile
from pathlib import Path

import torch

import envs  # which imports this file: its tasks are there only when a function is called
from envs.physics import resolve_device

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SCRIPTS = Path(__file__).parent.parent  # the folder that holds the scripts
MOST_STEPS = 10**12  # of a run, far beyond any use


def load_checkpoint(path, script=None, device="cpu"):
    """The content of a checkpoint.pt, a dictionary, with its tensors on `device`.

    script: its name, for a run that is to go on: then everything that a resumed run needs has to be there as well.
    Raises ValueError if the file is not the checkpoint of a script that stands beside envs/ or, where one is named, if
    it is not one of `script`; also for a device that is not there.
    """
    device = resolve_device(device)
    try:
        checkpoint = _read(path, device)
        _check_origin(checkpoint, script)
        if script is not None:
            _check_progress(checkpoint)
    except ValueError as error:
        expected = f"a checkpoint.pt of {script or f'a script in {SCRIPTS}'}"
        raise ValueError(f"expected {expected}, got {str(path)!r} ({error})") from error
    return checkpoint


def _read(path, device):
    """torch.load, with a reason in a few words where it fails, and for bytes that have changed."""
    if not os.path.exists(path):
        raise ValueError("there is no such file")
    try:
        with zipfile.ZipFile(path) as records:  # torch.load does not compare the checksums that torch.save has written
            changed = records.testzip()
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever zipfile and torch make of such a file
        raise ValueError("it is not a whole file of torch.save, or holds more than tensors and numbers") from error
    if changed is not None:
        raise ValueError("some of its bytes have changed since it was written")
    return checkpoint


def _check_origin(checkpoint, script):
    """Which script wrote it, for which task, and that the policy is there."""
    _expect(checkpoint, dict, "it")
    for name, kind in {"script": str, "args": dict, "actor": dict, "normalizer": dict}.items():
        _expect(checkpoint.get(name), kind, name)
    written_by, env_id = checkpoint["script"], checkpoint["args"].get("env_id")
    _expect(env_id, str, "env_id")
    if written_by not in {file.name for file in SCRIPTS.glob("*.py")}:
        raise ValueError(f"written by {written_by} for {env_id}")
    try:
        envs.task(env_id)
    except (ValueError, ImportError) as error:
        raise ValueError(f"written by {written_by} for {env_id}: {error}") from error
    if script not in (None, written_by):
        raise ValueError(f"written by {written_by}")


def _check_progress(checkpoint):
    """How far the run is, and the states of the random numbers."""
    kinds = {"iteration": int, "episodes": list, "process": list, "env": dict, "rng": torch.Tensor, "cuda_rng": list}
    for name, kind in kinds.items():
        _expect(checkpoint.get(name), kind, name)
    if not 0 <= checkpoint["iteration"] <= MOST_STEPS:
        raise ValueError(f"iteration: expected 0 to {MOST_STEPS}, got {checkpoint['iteration']}")
    for episode in checkpoint["episodes"]:
        if type(episode) is not list or [type(number) for number in episode] != [float, float]:
            raise ValueError(f"episodes: expected pairs of a return and a length, got {_short(episode)}")
    if [type(part) for part in checkpoint["process"]] != [int, str, int]:
        raise ValueError(f"process: expected number, device and seed, got {_short(checkpoint['process'])}")
    try:
        torch.Generator().set_state(checkpoint["rng"])
    except (TypeError, RuntimeError) as error:
        raise ValueError("rng: expected the state of torch's random numbers, got something else") from error
    states, on_cpu = checkpoint["cuda_rng"], checkpoint["process"][1] == "cpu"
    if on_cpu == bool(states) or any(type(x) is not torch.Tensor or x.dtype != torch.uint8 for x in states):
        raise ValueError(f"cuda_rng: expected {'no' if on_cpu else 'the'} states of random numbers, got something else")


def restore(parts, checkpoint):
    """Put what a checkpoint holds into the parts of a script: networks, optimisers, numbers, an environment.

    parts: {name in the checkpoint: what has load_state_dict(), or a float, which is only checked}.  An optimiser gets
    its moments and its learning rate; its other settings are those that the script has given it.
    Everything is compared before anything is changed: a moment of another shape would be read beyond its end.  What
    does not fit ends the script, with exit code 2 and a sentence on stderr.
    """
    try:
        for name, part in parts.items():
            _check_part(name, part, checkpoint.get(name))
        for name, part in parts.items():
            if isinstance(part, torch.optim.Optimizer):
                settings = part.state_dict()["param_groups"][0] | {"lr": checkpoint[name]["param_groups"][0]["lr"]}
                part.load_state_dict({"state": checkpoint[name]["state"], "param_groups": [settings]})
            elif not isinstance(part, float):
                part.load_state_dict(checkpoint[name])
                if not isinstance(part, torch.nn.Module | envs.VectorEnv):
                    _check_length(part, checkpoint[name])
    except Exception as error:  # also what the load_state_dict() of an environment makes of a wrong state
        reason = str(error).partition("\n")[0] or type(error).__name__
        envs.refuse("checkpoint", f"expected a state that fits, got another ({name}: {reason})")


def _check_part(name, part, state):
    if isinstance(part, float):
        _expect(state, float, "it")
        if not math.isfinite(state):
            raise ValueError(f"expected a finite number, got {state}")
        return
    _expect(state, dict, "it")
    if isinstance(part, torch.nn.Module):
        _check_tensors(part.state_dict(), state)
    elif isinstance(part, torch.optim.Optimizer):
        _check_optimizer(part, state)
    elif not isinstance(part, envs.VectorEnv):  # an environment does so itself
        _check_columns(part.state_dict(), state)


def _check_optimizer(optimizer, state):
    """The moments of Adam against the parameters, of which there is one group."""
    (group,) = optimizer.param_groups
    _expect(state.get("state"), dict, "state")
    groups = state.get("param_groups")
    if type(groups) is not list or len(groups) != 1 or type(groups[0]) is not dict:
        raise ValueError(f"param_groups: expected one group, got {_short(groups)}")
    lr = groups[0].get("lr")
    if type(lr) is not float or not 0.0 < lr <= 1.0:
        raise ValueError(f"lr: expected a number from 0 to 1, got {_short(lr)}")
    if groups[0].get("params") != [*range(len(group["params"]))] or not set(state["state"]) <= {*groups[0]["params"]}:
        raise ValueError(f"expected the states of {len(group['params'])} parameters, got others")
    for number, moments in state["state"].items():
        parameter, step = group["params"][number], torch.zeros(())
        _expect(moments, dict, "state")
        _check_tensors({"step": step, "exp_avg": parameter, "exp_avg_sq": parameter}, moments)
        if moments["step"] < 0.0 or (moments["exp_avg_sq"] < 0.0).any():
            raise ValueError("expected steps and squares of 0 or more, got negative ones")


def _check_tensors(ours, theirs):
    _expect_names(ours, theirs)
    for name, tensor in ours.items():
        found = theirs[name]
        _expect(found, torch.Tensor, name)
        expected, got = (f"{tuple(x.shape)} {x.dtype}" for x in (tensor, found))
        if expected != got:
            raise ValueError(f"{name}: expected {expected}, got {got}")
        if found.layout != torch.strided or not found.is_contiguous() or found.is_meta:
            raise ValueError(f"{name}: expected a contiguous tensor, got another")
        if not found.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got others")


def _check_columns(ours, theirs):
    """A replay buffer: numbers, and columns (steps, environments, ...), both of which may be others than ours."""
    _expect_names(ours, theirs)
    shapes = set()
    for name, column in ours.items():
        found = theirs[name]
        _expect(found, type(column), name)
        if isinstance(column, torch.Tensor):
            if (found.dtype, found.shape[2:], found.dim()) != (column.dtype, column.shape[2:], column.dim()):
                raise ValueError(f"{name}: expected columns like those of this task, got others")
            shapes.add(found.shape[:2])
    if len(shapes) > 1:
        raise ValueError("expected columns of the same steps, got others")


def _check_length(part, state):
    """A buffer is as long as its columns."""
    lengths = {len(column) for column in state.values() if isinstance(column, torch.Tensor)}
    if lengths != {len(part)}:
        raise ValueError(f"expected columns of {len(part)} steps, got {lengths}")


def _expect_names(ours, theirs):
    if set(theirs) != set(ours):
        raise ValueError(f"expected {', '.join(ours)}, got {', '.join(map(_short, theirs)) or 'nothing'}")


def _expect(value, kind, name):
    if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
        raise ValueError(f"{name}: expected {kind.__name__}, got {'nothing' if value is None else _short(value)}")


def _short(value):
    """The text of something of which nothing is known."""
    text = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:40]}..."


def save_checkpoint(checkpoint, run_dir):
    """Write run_dir/checkpoint.pt, beside the old one and renamed: there is never half a checkpoint.

    Raises OSError where the disk is full.
    """
    path = f"{run_dir}/checkpoint.pt"
    try:
        with open(f"{path}.tmp", "wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        cause = error  # torch's message is of a position in the file, what has happened is behind it
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise cause or error from error
    os.replace(f"{path}.tmp", path)


class RunLock:
    """Holds the folder of a run against other processes, as long as it lives; the kernel frees what a killed one held.

    Where the system or the file system has no such locks it holds nothing, and prints a warning.
    Raises ValueError if another process holds it.
    """

    folder = None

    def __init__(self, run_dir):
        self.folder = os.open(run_dir, os.O_RDONLY) if fcntl else None
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, "this system has no flock")
            fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"expected a run that no other process trains, got {str(run_dir)!r}") from error
        except OSError as error:
            print(f"warning: {run_dir} cannot be locked ({error.strerror}): do not resume this run twice at once")

    def __del__(self):
        if self.folder is not None:
            os.close(self.folder)


def claim(run_dir, args):
    """Make the folder of a new run, and hold it: two runs never share one. That of --checkpoint is held already."""
    if args.checkpoint is None:
        os.makedirs(run_dir)
        args.lock = RunLock(run_dir)


def load_policy(path, deterministic=True, device="cpu"):
    """The policy in a checkpoint.pt, a Policy, and the flags of its run as a dict.

    The observations are those of the environment args["env_id"] on `device`, (N, num_obs); the function normalises
    them.  The actions (N, num_actions) are in [-1, 1].  With deterministic=False the policy's noise comes from torch's
    global random numbers; PPO's is added to the action, which may then lie outside, and which env.step clamps.
    The scripts call envs.use_onednn() first; without it the last bits of the actions may differ from theirs.
    Raises ValueError for a file that is not a checkpoint of one of the scripts, and for a device that is not there.
    """
    device = resolve_device(device)
    try:
        state = load_checkpoint(path, device=device)
    except ValueError as error:
        raise ValueError(f"path: {error}") from error
    script, args = _import_script(state["script"]), state["args"]
    task = envs.task(args["env_id"])
    try:
        actor = script.Actor(task.num_obs, task.num_actions).to(device)
        normalizer = script.ObsNormalizer(task.num_obs).to(device)
        for network, name in ((actor, "actor"), (normalizer, "normalizer")):
            _check_tensors(network.state_dict(), state[name])
            network.load_state_dict(state[name])
        policy = Policy(actor, normalizer, deterministic)
    except (AttributeError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"path: expected networks of {state['script']} in {str(path)!r} ({reason})") from error
    return policy, args


class Policy(torch.nn.Module):
    """Observations (N, num_obs) of an environment -> actions (N, num_actions); its weights are constants."""

    def __init__(self, actor, normalizer, deterministic):
        super().__init__()
        self.actor, self.normalizer, self.act, self.deterministic = actor, normalizer, actor.act, deterministic
        self.requires_grad_(False)

    def forward(self, obs):
        return self.act(self.normalizer(obs), deterministic=self.deterministic)


def _import_script(name):
    """Import the script as a fresh module, outside sys.modules."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, SCRIPTS / name)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
