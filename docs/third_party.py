"""Train an environment of this folder with a library that knows nothing of it: `python -m docs.third_party`.

The library is skrl, unmodified: its PPO, networks and scaling. Explained in docs/third_party.md; needs
`pip install skrl "gymnasium[array-api]"`. Less than a minute on one CPU core.
"""

from collections import deque

import numpy as np
import torch
import warp as wp
from gymnasium.wrappers.vector import ArrayConversion
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.utils import set_seed
from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model

import envs


def make_env(env_id, num_envs, **options):
    """Torch tensors become numpy arrays in gymnasium's wrapper, and torch tensors again in skrl's."""
    env = envs.make(env_id, num_envs, **options)
    return wrap_env(ArrayConversion(env, env_xp=torch, target_xp=np, env_device=env.device), verbose=False)


def make_agent(env, rollout=32):
    """skrl's PPO with two small networks; it writes nothing to disk."""
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "elu"}]
    models = {
        "policy": gaussian_model(**spaces, network=network, output="ACTIONS"),
        "value": deterministic_model(**spaces, network=network, output="ONE"),
    }
    scale = {"device": env.device}
    cfg = PPO_CFG(
        rollouts=rollout,
        learning_epochs=5,
        mini_batches=4,
        learning_rate=1e-3,
        time_limit_bootstrap=True,
        observation_preprocessor=RunningStandardScaler,
        observation_preprocessor_kwargs={"size": env.observation_space} | scale,
        value_preprocessor=RunningStandardScaler,
        value_preprocessor_kwargs={"size": 1} | scale,
        experiment={"write_interval": 0, "checkpoint_interval": 0},
    )
    memory = RandomMemory(memory_size=rollout, num_envs=env.num_envs, device=env.device)
    agent = PPO(cfg=cfg, models=models, memory=memory, **spaces)
    agent.init()
    agent.enable_training_mode(True)
    return agent


def train(env, agent, num_steps):
    """skrl's own training loop but for one line. Yields the mean return of the last 100 episodes after each update."""
    returns = deque(maxlen=100)
    obs, _ = env.reset()
    for t in range(num_steps):
        now = {"timestep": t, "timesteps": num_steps}
        with torch.no_grad():  # what was collected is data for PPO
            actions, _ = agent.act(obs, None, **now)
            next_obs, rewards, terminated, truncated, infos = env.step(actions)
            # where an episode ends, next_obs already belongs to the next one: the true successor is final_obs
            successor = torch.as_tensor(infos["final_obs"], device=env.device)
            transition = {"observations": obs, "actions": actions, "next_observations": successor, "rewards": rewards}
            ends = {"terminated": terminated, "truncated": truncated}
            agent.record_transition(**transition, **ends, states=None, next_states=None, infos=infos, **now)
        agent.post_interaction(**now)
        obs = next_obs
        returns.extend(infos["episode"]["r"][infos["_episode"]].tolist())
        if (t + 1) % agent.cfg.rollouts == 0:
            yield np.mean(returns) if returns else float("nan")


def main():
    wp.config.log_level = wp.LOG_WARNING  # no banner
    set_seed(1)
    env = make_env("cartpole", num_envs=128, seed=1)
    for update, mean_return in enumerate(train(env, make_agent(env), num_steps=4800), 1):
        if update % 10 == 0:
            print(f"update {update}: return {mean_return:.1f}", flush=True)
    env.close()


if __name__ == "__main__":
    main()
