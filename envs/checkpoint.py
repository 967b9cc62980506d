"""What a training script has saved: a checkpoint, and the policy in it.

    policy, args = envs.load_policy("runs/<run>/checkpoint.pt")
    returns, lengths = envs.evaluate(envs.make(args["env_id"], num_envs=128), policy, seed=args["seed"])

A policy is a class in the script that trained it, so the script is imported, from the folder above this one.  There it
is expected to define Actor(num_obs, num_actions), with act(obs, deterministic), and ObsNormalizer(num_obs).
"""

import importlib.util
from pathlib import Path

import torch

import envs  # which imports this file: its tasks are there only when a function is called
from envs.physics import resolve_device

SCRIPTS = Path(__file__).parent.parent  # the folder that holds the scripts


def load_checkpoint(path, script=None, device="cpu"):
    """The content of a checkpoint.pt, a dictionary, with its tensors on `device`.

    Raises ValueError if the file is not the checkpoint of a script that stands beside envs/ or, where one is named, if
    it is not one of `script`; also for a device that is not there.
    """
    device = resolve_device(device)
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        written_by, env_id = checkpoint["script"], checkpoint["args"]["env_id"]
        if missing := {"actor", "normalizer"} - set(checkpoint):
            raise ValueError(f"it has no {' and no '.join(sorted(missing))}")
        if env_id not in envs.TASKS or written_by not in {file.name for file in SCRIPTS.glob("*.py")}:
            raise ValueError(f"written by {written_by} for {env_id}")
        if script not in (None, written_by):
            raise ValueError(f"written by {written_by}")
    except Exception as error:  # whatever torch.load makes of a file that is not a checkpoint
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        expected = f"a checkpoint.pt of {script or f'a script in {SCRIPTS}'}"
        raise ValueError(f"expected {expected}, got {str(path)!r} ({reason})") from error
    return checkpoint


def load_policy(path, deterministic=True, device="cpu"):
    """The policy in a checkpoint.pt: a function from observations to actions, and the flags of its run as a dict.

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
    task = envs.TASKS[args["env_id"]]
    try:
        actor = script.Actor(task.num_obs, task.num_actions).to(device)
        normalizer = script.ObsNormalizer(task.num_obs).to(device)
        actor.load_state_dict(state["actor"])
        normalizer.load_state_dict(state["normalizer"])
        act = actor.act
    except (AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"path: expected networks of {state['script']} in {str(path)!r} ({reason})") from error
    return lambda obs: act(normalizer(obs), deterministic=deterministic), args


def _import_script(name):
    """Import the script as a fresh module, outside sys.modules."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, SCRIPTS / name)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
