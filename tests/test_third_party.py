"""Other people's code on these environments: gymnasium's wrapper to numpy, and an unmodified library that trains."""

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers.vector import ArrayConversion
from skrl.agents.torch.ppo import PPO
from skrl.utils import set_seed

import envs
from docs import third_party


def leaves(value):
    """The arrays in (nested) tuples and dictionaries, in their order."""
    if isinstance(value, (tuple, dict)):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in leaves(item)]
    return [value]


def test_gymnasiums_wrapper_hands_out_the_same_numbers_as_numpy_arrays():
    bare, wrapped = (envs.make("hopper", num_envs=4, seed=3, max_episode_steps=5) for _ in range(2))
    wrapped = ArrayConversion(wrapped, env_xp=torch, target_xp=np, env_device=wrapped.device)
    assert wrapped.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    results = [(bare.reset(), wrapped.reset())]
    wrapped.action_space.seed(0)
    for _ in range(6):
        action = wrapped.action_space.sample()
        results.append((bare.step(torch.from_numpy(action)), wrapped.step(action)))
    assert results[5][1][3].all()  # the time limit
    for ours, theirs in results:
        assert len(leaves(ours)) == len(leaves(theirs))
        assert theirs[0] in wrapped.observation_space
        for tensor, array in zip(leaves(ours), leaves(theirs)):
            assert isinstance(array, np.ndarray)
            assert array.dtype == tensor.numpy().dtype and np.array_equal(array, tensor.numpy())


def test_an_unmodified_library_learns_to_swing_up_the_pole():
    set_seed(1)
    env = third_party.make_env("cartpole", num_envs=128, seed=1)
    agent = third_party.make_agent(env)
    assert type(agent) is PPO
    *_, before, after = (r for k, r in enumerate(third_party.train(env, agent, num_steps=1920)) if k in (9, 59))
    # of five seeds, none had more than -2,000 after ten updates, and none less than -1,400 after sixty; torch's
    # sums, and with them the run, differ between processors
    assert after > before + 300.0
    env.close()


def test_the_library_is_told_the_true_successor_of_every_step():
    env = third_party.make_env("hopper", num_envs=16, seed=1, max_episode_steps=80)
    agent = third_party.make_agent(env, rollout=120)
    recorded = []
    agent.record_transition = lambda **transition: recorded.append(transition)
    agent.post_interaction = lambda **_: None
    list(third_party.train(env, agent, num_steps=120))
    ends = torch.stack([step["terminated"] | step["truncated"] for step in recorded]).squeeze(-1)[:-1]
    assert any(step["terminated"].any() for step in recorded) and any(step["truncated"].any() for step in recorded)
    successor = torch.stack([step["next_observations"] for step in recorded[:-1]])
    following = torch.stack([step["observations"] for step in recorded[1:]])
    assert torch.equal(successor[~ends], following[~ends])
    # height and pitch at the end are those of a robot that was moving, not of one that is put back on its foot
    assert (successor[ends] != following[ends]).any(-1).all()
    final = torch.stack([torch.as_tensor(step["infos"]["final_obs"]) for step in recorded[:-1]])
    assert torch.equal(successor, final)
