"""The hand and its task: table, observation and motion against Rewarped's numbers; goals, success, reset, the end.

What cannot be compared: Rewarped's contact, which sets in at full strength and pushes palm and thumb, which overlap,
apart. So its motion is comparable where nothing but the thumb touches: for the fingers and the falling cube.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import warp as wp
from hand_states import UP, make, pushing_fingers, start
from torch.nn.functional import pad

import envs
from envs.hand_reorient import CUBE_LINK, HandReorient
from envs.physics import FIXED, FREE, REVOLUTE, Articulation, Capsule, Link, Simulator
from envs.physics.mass_matrix import composite_inertias, mass_matrix
from envs.physics.model import build_model
from envs.physics.substeps import Stage

HAND = HandReorient.articulation


@cache
def golden():
    return {
        key: torch.tensor(value) for key, value in np.load(Path(__file__).parent / "data/hand_reorient.npz").items()
    }


def turned(vectors, quaternions):
    u, w = quaternions[..., :3], quaternions[..., 3:]
    return vectors + 2.0 * np.cross(u, np.cross(u, vectors) + w * vectors)


def test_the_table_is_the_hand_of_the_source():
    links, gold = HAND.links, {key: value.double().numpy() for key, value in golden().items()}
    assert np.allclose([link.mass for link in links[1:]], gold["mass"], rtol=1e-6)
    assert np.allclose([link.com for link in links[1:]], gold["com"], atol=1e-8)
    inertia = [np.diag(x) if len(x) == 3 else np.reshape(x, (3, 3)) for x in (link.inertia for link in links[1:])]
    assert np.allclose(inertia, gold["inertia"], rtol=1e-6, atol=1e-12)
    assert np.allclose([link.limits for link in links[1:-1]], gold["limits"], atol=1e-6)
    assert all(link.armature == 0.001 and link.limit_stiffness == 100.0 for link in links[1:-1])
    assert links[-1].armature == 0.0 and HAND.gravity == (0.0, 0.0, -9.81)
    # the palm's box lies in the frame of the world there, in that of the palm here
    assert np.allclose([*links[0].offset, *links[0].rotation], gold["palm"], atol=1e-6)
    center = links[0].offset + turned(np.array(HAND.shapes[0].center), gold["palm"][3:])
    assert np.allclose(center, gold["palm_box"][:3], atol=1e-6)
    ours = []
    for shape in HAND.shapes:
        ball = isinstance(shape, Capsule)
        center, extents = (shape.start, (0, 0, 0)) if ball else (shape.center, shape.half_extents)
        ours.append([shape.link - 1, *center, *extents, shape.radius if ball else 0.0])
    expected = gold["shapes"][:, :8]
    expected[expected[:, 0] == -1, 1:4] = HAND.shapes[0].center
    assert sorted(map(tuple, np.round(ours, 6) + 0.0)) == sorted(map(tuple, np.round(expected, 6) + 0.0))
    materials = [[p.stiffness, p.damping, p.friction_stiffness, p.friction] for p in HAND.contact_pairs]
    assert (gold["shapes"][:, 8:] == materials[0]).all() and all(m == materials[0] for m in materials)


def test_links_are_where_they_are_in_the_source():
    """The source's numbers come from its own tree of bodies, which has no palm."""
    env = make()
    for step, expected in zip(golden()["steps"], golden()["link_pose"].numpy()):
        env.simulator.step(golden()["q"][step], torch.zeros(4, 22), torch.zeros(4, 22))
        ours = env.simulator.batches[0].substeps[0].link_pose.numpy()[:, 1:]
        assert np.allclose(ours[..., :3], expected[..., :3], atol=1e-6)
        same_sign = np.sign((ours[..., 3:] * expected[..., 3:]).sum(-1, keepdims=True))
        assert np.allclose(ours[..., 3:] * same_sign, expected[..., 3:], atol=2e-6)


def test_observation_and_reward_are_those_of_the_source():
    gold, env = golden(), make()
    env.goal = gold["goal0"][:, 3:]
    assert torch.allclose(env.observe(gold["q0"], gold["qd0"], torch.zeros(4, 16)), gold["obs0"], atol=1e-6)
    for q, qd, action, obs, reward in zip(*(gold[key] for key in ("q", "qd", "actions", "obs", "reward"))):
        # velocities there are up to 30 rad/s, with a rounding error of 2e-6
        assert torch.allclose(env.observe(q, qd, action), obs, atol=5e-6)
        assert torch.allclose(env.reward(obs, action), reward, atol=5e-6)
        assert not HandReorient.is_terminal(env, obs).any() and not env.is_goal_reached(obs).any()


def mixed_up(stage, model, order):
    """The stage with the mistake of the source's mass matrix.

    Bodies are numbered there as the fingers are named and joints in the order of the actions, and the mass matrix takes
    the body with the number of the joint, where that body is, for the one that the joint moves.
    """
    if stage.kernel is composite_inertias:
        poses = wp.zeros_like(stage.inputs[1])
        taken = Stage(take_poses, (len(order),), [order, stage.inputs[1]], [poses])
        return [taken, replace(stage, inputs=[model, poses])]
    return [replace(stage, inputs=[model, *stage.inputs[1:]])] if stage.kernel is mass_matrix else [stage]


@wp.kernel
def take_poses(order: wp.array[int], pose: wp.array2d[wp.transform], pose_out: wp.array2d[wp.transform]):
    i, env = wp.tid()
    pose_out[env, i] = pose[env, order[i]]


def step_of_the_source(simulator, q, qd, act):
    """New state after the simulator's stages, with the mass matrix of the source."""
    body_of_joint = golden()["joint_body"].tolist()
    other = [0, *(1 + body_of_joint.index(joint) for joint in range(17))]  # by link
    links = [
        replace(HAND.links[k], parent=link.parent, joint=link.joint, axis=link.axis, armature=link.armature)
        for link, k in zip(HAND.links, other)
    ]
    model = build_model(replace(HAND, links=links, contact_pairs=[], shapes=[]), "cpu", 4)
    order, (batch,) = wp.array(other, dtype=int, device="cpu"), simulator.batches
    for state, value in zip(batch.inputs, (q, qd, act)):
        state.value.copy_(value)
    for stage in batch.stages():
        for replacement in mixed_up(stage, model, order):
            batch.launch(replacement)
    return batch.new_q.value.clone(), batch.new_qd.value.clone()


def test_fingers_and_falling_cube_move_as_in_the_source():
    """One step from golden states, with the source's mass matrix and limit damping, which it has at full strength."""
    links = [replace(link, limit_damping_depth=1e-9) if link.joint == REVOLUTE else link for link in HAND.links]
    simulator = Simulator(replace(HAND, links=links), 4, HandReorient.dt, 64, 64, num_threads=1)
    gold = golden()
    for q, qd, action, new_q, new_qd in (
        (gold["q0"], gold["qd0"], gold["actions"][0], gold["q"][0], gold["qd"][0]),
        (gold["q"][0], gold["qd"][0], gold["actions"][1], gold["q"][1], gold["qd"][1]),
    ):
        ours_q, ours_qd = step_of_the_source(simulator, q, qd, pad(2.0 * action, (0, 6)))
        # all but the thumb's four; measured: 3e-7 and 8e-5, at rates up to 27 rad/s
        assert torch.allclose(ours_q[:, 4:], new_q[:, 4:], rtol=0.0, atol=2e-6)
        assert torch.allclose(ours_qd[:, 4:], new_qd[:, 4:], rtol=0.0, atol=5e-4)
        assert (new_q - q)[:, 4:16].abs().max() > 0.05 and (ours_q - new_q)[:, :4].abs().max() < 0.01
        assert not simulator.batches[0].substeps[63].touching.numpy().any()


# The task


def test_success_brings_the_bonus_and_a_new_goal():
    env = make(num_envs=3)
    q, qd = env.rest_state()
    start(env, q, qd, goal=torch.tensor([0.0, 0.0, 1.0, 0.0]))
    env.goal = env.goal.clone()
    env.goal[1] = UP  # reached: the cube falls without turning
    old_goal, action = env.goal.clone(), torch.full((3, 16), 0.5, requires_grad=True)
    obs, reward, terminated, truncated, infos = env.step(action)
    assert infos["successes"].tolist() == [0, 1, 0] and not (terminated | truncated).any()
    assert torch.equal(infos["final_obs"][:, 48:52], old_goal)
    assert torch.equal(env.goal[[0, 2]], old_goal[[0, 2]]) and (env.goal[1] - old_goal[1]).abs().max() > 1e-3
    assert torch.equal(obs[:, 48:52], env.goal)
    assert torch.equal(obs[:, :48], infos["final_obs"][:, :48]) and torch.equal(obs[:, 56:], action)
    distance = torch.linalg.vector_norm(obs[:, 32:35] - obs[:, 45:48], dim=1)
    # 1 / 0.1, and half of 250; the others are half a turn away, of which the arc sine shows 3.05 rad
    expected = torch.tensor([1.0 / 3.152, 10.0 + 125.0, 1.0 / 3.152])
    assert torch.allclose(reward, -10.0 * distance - 2e-4 * 16 * 0.25 + expected, atol=1e-3)
    assert torch.autograd.grad(reward.sum() + obs.sum(), action)[0].isfinite().all()
    # the count is the episode's
    env.max_episode_steps = 2
    infos = env.step(action)[4]
    assert infos["successes"].tolist() == [0, 1, 0] and infos["_episode"].all() and not env.successes.any()


def test_an_episode_that_blows_up_reports_its_successes():
    env = make(num_envs=3)
    q, qd = env.rest_state()
    qd[1] = 1e9
    start(env, q, qd, goal=torch.tensor([0.0, 0.0, 1.0, 0.0]))
    env.successes += 2
    infos = env.step(torch.zeros(3, 16))[4]
    assert infos["diverged"] == 1 and infos["_episode"].tolist() == [False, True, False]
    assert infos["successes"].tolist() == [2, 2, 2] and env.successes.tolist() == [2, 0, 2]


def test_reward_has_a_gradient_at_and_around_success():
    env = make(num_envs=5)
    for angle in (0.0, 1e-4, 0.05, 0.093, 0.0946, 0.1, 3.0, 3.13, np.pi):
        obs = torch.zeros(5, 72)
        obs[:, 32:35] = obs[:, 45:48]  # no distance
        obs[:, 52], obs[:, 55] = np.sin(angle / 2), np.cos(angle / 2)
        obs.requires_grad_()
        reward = env.reward(obs, torch.zeros(5, 16))
        grad = torch.autograd.grad(reward.sum(), obs)[0]
        assert reward.isfinite().all() and grad.isfinite().all()
        assert (grad[:, 52] < 0.0).all() == (0.0 < angle <= 3.0)  # turning further away costs, where the angle is seen
        assert env.is_goal_reached(obs).all() == (angle <= 0.1)


def test_the_bonus_sets_in_later_than_the_new_goal():
    env = make(num_envs=4)
    obs = torch.zeros(4, 72)
    obs[:, 32:35] = obs[:, 45:48]  # no distance
    angle = torch.tensor([0.15, 0.0999, 0.0951, 0.09])
    obs[:, 52], obs[:, 55] = torch.sin(angle / 2), torch.cos(angle / 2)
    bonus = env.reward(obs, torch.zeros(4, 16)) - 1.0 / (angle + 0.1)
    assert env.is_goal_reached(obs).tolist() == [False, True, True, True]
    assert (bonus[:3].abs() < 0.3).all() and 120.0 < bonus[3] < 125.0


def test_a_dropped_cube_ends_the_episode():
    env = envs.make("hand_reorient", num_envs=2)
    env.reset()
    q, qd = env.rest_state()
    q[:, 18] = torch.tensor([0.56 - 0.2395, 0.56 - 0.2398])  # below everything; it falls by 0.34 mm in a step
    env.set_state(q, qd)
    _, _, terminated, truncated, infos = env.step(torch.zeros(2, 16))
    assert terminated.tolist() == [False, True] and not truncated.any() and env.max_episode_steps == 600
    assert infos["final_obs"][1, 34] < 0.33 and env.joint_q[1, 18] > 0.58  # its new episode has begun


def test_reset_is_the_documented_one():
    env = make(num_envs=2048)
    lower, upper = env.limits
    share = env.joint_q[:, :16] / 0.2
    assert (share >= lower - 1e-5).all() and (share <= upper + 1e-5).all()
    assert (share.amin(0) < lower + 0.01 * (upper - lower)).all()
    assert (share.amax(0) > upper - 0.01 * (upper - lower)).all()
    shift = env.joint_q[:, 16:19] - torch.tensor([0.0, -0.1, 0.6])
    assert shift.abs().max() <= 0.01 + 1e-6 and (shift.abs().amax(0) > 0.0099).all() and not env.joint_qd.any()
    for q in (env.joint_q[:, 19:], env.goal):
        assert torch.allclose(q.norm(dim=1), torch.ones(2048), atol=1e-6)
        # R_x(a) R_y(b): (sin a/2 cos b/2, cos a/2 sin b/2, sin a/2 sin b/2, cos a/2 cos b/2), so x y = z w
        assert torch.allclose(q[:, 0] * q[:, 1], q[:, 2] * q[:, 3], atol=1e-6)
        # |a| and |b| are uniform in [0, pi]: cos a/2 is positive, and its square has the mean 1/2, to 3 standard errors
        for square in (q[:, 1] ** 2 + q[:, 3] ** 2, q[:, 0] ** 2 + q[:, 3] ** 2):
            assert square.mean().item() == pytest.approx(0.5, abs=3 * (0.125 / 2048) ** 0.5)
    # the two are drawn independently
    assert ((env.goal * env.joint_q[:, 19:]).sum(1).abs() < 0.5).float().mean() > 0.3


def test_a_resumed_episode_goes_on_with_its_goal():
    env, other = make(seed=4), make(seed=5)
    start(env, *(x.repeat(4, 1) for x in pushing_fingers(1.0)))
    actions = 0.2 * torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(0))
    env.successes += 2
    other.load_state_dict(env.state_dict())
    for action in actions:
        (obs, reward, *_, infos), (obs_2, reward_2, *_, infos_2) = env.step(action), other.step(action)
        env.goal[0] = other.goal[0] = env.joint_q[0, 19:].detach()  # so that this one gets new ones
    assert torch.equal(obs, obs_2) and torch.equal(reward, reward_2) and torch.equal(env.goal, other.goal)
    assert infos["successes"].tolist() == infos_2["successes"].tolist() and infos["successes"][0] >= 6


def test_a_picture_shows_the_goal():
    env = make(num_envs=1, stochastic_reset=False)
    env.goal = UP[None]
    before = env.render()
    env.goal = torch.tensor([[0.5**0.5, 0.0, 0.0, 0.5**0.5]])
    changed = (env.render() != before).any(axis=2).nonzero()
    assert len(changed[0]) > 500 and changed[1].max() < 160  # pixels, in the left half


def test_what_touches_what():
    """21 parts of the hand with the cube, and the pairs that the docstring names; nobody is paired with a neighbour."""
    names = [frozenset(HAND.links[link].name for link in pair.links) for pair in HAND.contact_pairs]
    assert sum("cube" in pair for pair in names) == 21 and len(names) == 79
    assert all(len(pair) == 2 for pair in names) and CUBE_LINK == len(HAND.links) - 1
    for pair in names:
        a, b = sorted(pair, key=lambda name: name != "cube")
        if a != "cube":
            assert a.split("_")[0] != b.split("_")[0] and "knuckle" not in a + b
            assert {a.split("_")[0], b.split("_")[0]} != {"index", "ring"}


def test_two_roots_keep_the_world_origin():
    robot = Articulation([Link("a", -1, FREE, mass=1.0, inertia=(1, 1, 1)), Link("b", -1, FREE, mass=1.0)])
    assert build_model(robot, "cpu").num_shifted == 0
    assert build_model(replace(robot, links=robot.links[:1]), "cpu").num_shifted == 3
    hand = [link for link in HAND.links if link.joint == FIXED]
    assert build_model(HAND, "cpu").num_shifted == 0 and len(hand) == 1
