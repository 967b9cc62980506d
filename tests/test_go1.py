"""Go1: the table against the file it comes from, the PD law, the reward, and that it stands."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from robot_files import find

import envs
from envs import go1, mjcf
from envs.physics import Simulator


def test_the_numbers_are_those_of_the_file():
    pytest.importorskip("mujoco")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        articulation, _ = mjcf.load(find("mjlab/unitree_go1/xmls/go1.xml"))
    ours, theirs = go1.Go1.articulation.links, articulation.links
    assert sum(link.mass for link in ours) == pytest.approx(12.74, abs=0.005)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.name == other.name and (mine.parent, mine.joint) == (other.parent, other.joint)
        for name in ("mass", "com", "axis", "offset", "limits"):
            assert np.allclose(getattr(mine, name), getattr(other, name), rtol=1e-6, atol=1e-9), (mine.name, name)
        assert np.allclose(mine.inertia, other.inertia, rtol=1e-4, atol=1e-9), mine.name
    feet = [contact for contact in articulation.contacts if contact.radius == 0.023]
    assert [contact.point for contact in feet] == [pytest.approx(go1.FOOT)] * 4


def test_the_motors_are_mjlabs():
    """Largest torque, armature, gains: mjlab has them in Python, which is read here without importing it."""
    text = (find("mjlab/unitree_go1/xmls/go1.xml").parent.parent / "go1_constants.py").read_text()
    number = r"([\d.]+)"
    rotor = float(re.search(f"ROTOR_INERTIA = {number}", text)[1])
    frequency, ratio = 10.0 * 2.0 * math.pi, 2.0
    assert "NATURAL_FREQ = 10 * 2.0 * 3.14" in text and "DAMPING_RATIO = 2.0" in text
    for motor, name, gear in ((go1.HIP_MOTOR, "HIP", 6.0), (go1.CALF_MOTOR, "KNEE", 9.0)):
        assert motor["effort_limit"] == float(re.search(f"{name}_ACTUATOR = .*?effort_limit={number}", text, re.S)[1])
        armature = rotor * gear**2
        assert motor["armature"] == pytest.approx(armature)
        assert motor["stiffness"] == pytest.approx(armature * frequency**2, rel=0.02)
        assert motor["motor_damping"] == pytest.approx(2.0 * ratio * armature * frequency, rel=0.02)
    assert "HIP_GEAR_RATIO = 6\n" in text and "KNEE_GEAR_RATIO = HIP_GEAR_RATIO * 1.5" in text


def standing(num_envs=1, **options):
    env = envs.make("go1", num_envs=num_envs, **options)
    env.reset()
    return env


def test_the_pd_law():
    """tau = kp (stand + 0.5 a - q) - kd q', at most the motor's: in the simulator and in the reward."""
    env = standing()
    angles = env.stand + torch.linspace(-0.3, 0.3, 12)
    rates, action = torch.linspace(-4.0, 4.0, 12), torch.linspace(1.0, -1.0, 12)
    action[5], rates[5] = 1.0, -15.0  # beyond what the motor can give
    joint_q, joint_qd = env.rest_state()
    joint_q[0, 7:], joint_qd[0, 6:] = angles, rates
    kp, kd = torch.tensor([16.0, 16.0, 36.0]).repeat(4), torch.tensor([1.0, 1.0, 2.3]).repeat(4)
    wanted = kp * (env.stand + 0.5 * action - angles) - kd * rates
    strongest = torch.tensor([23.7, 23.7, 35.55]).repeat(4)
    torques = torch.maximum(torch.minimum(wanted, strongest), -strongest)
    assert wanted[5] > 36.0
    assert torch.allclose(
        env.torques(env.observe(joint_q, joint_qd, action[None]), action[None])[0], torques, atol=1e-4
    )
    # without motors, and with these torques put in by hand, the joints move as with the PD law
    free = [link.__class__(**vars(link) | {"stiffness": 0.0, "motor_damping": 0.0}) for link in env.articulation.links]
    by_hand = env.articulation.__class__(**vars(env.articulation) | {"links": free})
    moved = Simulator(env.articulation, 1, 1e-3, 1, 1).step(joint_q, joint_qd, env.actuate(action[None]))
    expected = Simulator(by_hand, 1, 1e-3, 1, 1).step(joint_q, joint_qd, torch.cat([torch.zeros(6), torques])[None])
    assert torch.allclose(moved[1], expected[1], atol=1e-3)


def test_the_reward_is_the_documented_one():
    env = standing()
    action, before = torch.full((1, 12), 0.2), torch.full((1, 12), -0.1)
    env.last_action = before
    env.actuate(action)
    obs = torch.zeros(1, 49)
    obs[0, 11:23], obs[0, 23:35] = env.stand, 0.1 * 2.0  # 2 rad/s
    obs[0, [0, 5, 7, 35, 36]] = torch.tensor([0.22, 0.7, 0.2, 0.9, 0.8])
    hip, calf = 16.0 * 0.5 * 0.2 - 1.0 * 2.0, 36.0 * 0.5 * 0.2 - 2.3 * 2.0
    effort = 8.0 * hip**2 + 4.0 * calf**2
    expected = 1.0 + 1.0 - 0.09 - 0.04 - 0.1 - 0.2 - 20.0 * 0.05**2 - 2e-4 * effort - 0.02 * 12 * 0.09
    assert env.reward(obs, action).item() == pytest.approx(expected, abs=1e-5)


def test_it_ends_where_it_has_tipped_over():
    env = standing()
    obs = torch.full((1, 49), 0.3)
    for up, ended in ((0.49, True), (0.51, False)):
        obs[0, 35] = up
        assert env.is_terminal(obs).item() == ended


def test_it_stands_when_nothing_is_asked_of_it():
    """Action 0 for two seconds, without the push of a reset: upright and at rest."""
    env = standing(stochastic_reset=False)
    for _ in range(100):
        obs, _, _, _, infos = env.step(torch.zeros(1, 12))
    assert infos["diverged"] == 0 and env.episode_length == 100
    assert 0.22 < obs[0, 0] < 0.28 and obs[0, 35] > 0.98 and obs[0, 5:8].norm() < 0.05


def test_gradients_match_central_differences():
    """Of the reward of three steps on the ground, with respect to the actions."""
    env = standing(stochastic_reset=False)
    for _ in range(50):
        env.step(torch.zeros(1, 12))
    state = env.joint_q.clone(), env.joint_qd.clone()

    def total(actions):
        env = standing(num_envs=actions.shape[1])
        env.set_state(*(x.repeat(env.num_envs, 1) for x in state))
        return sum(env.step(action)[1] for action in actions)

    actions = (0.2 * torch.randn(3, 1, 12, generator=torch.Generator().manual_seed(0))).requires_grad_()
    (gradient,) = torch.autograd.grad(total(actions).sum(), actions)
    directions, e = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(1)), 2e-3
    shifted = torch.cat([actions.detach() + sign * e * directions for sign in (1, -1)], dim=1)
    plus, minus = total(shifted).double().split(12)
    differences, slopes = (plus - minus) / (2.0 * e), (gradient * directions).sum(dim=(0, 2)).double()
    assert (slopes - differences).norm() < 0.05 * differences.norm()
