"""Parameters per environment: their effect, how they are drawn, and gradients with respect to them."""

from dataclasses import replace

import pytest
import torch
from golden import relative

import envs
from envs.anymal import Anymal
from envs.physics import (
    FIXED,
    FREE,
    PRISMATIC,
    REVOLUTE,
    Articulation,
    Box,
    Capsule,
    ContactPoint,
    Link,
    Simulator,
    contact_pair,
)
from envs.physics.parameters import ALIKE, DIFFERENT, DIFFERENTIABLE

RANGES = {"friction": (0.5, 1.25), "mass_scale": (0.9, 1.1), "motor_strength": (0.8, 1.0)}
ALL = ("friction", "mass_scale", "motor_strength", "stiffness", "damping")


def make(env_id="go1", num_envs=4, **options):
    env = envs.make(env_id, num_envs=num_envs, num_threads=1, **options)
    env.reset()
    return env


def factors_of(env):
    return env.simulator.parameters.sizes


def scaled(articulation, friction=1.0, mass_scale=1.0, motor_strength=1.0, stiffness=1.0, damping=1.0):
    """The robot whose author has written other numbers, as parameters.py says."""
    links = []
    for link in articulation.links:
        servo = motor_strength if link.servo else 1.0
        limit = damping if link.limit_damping_depth == 0.0 else 1.0
        numbers = {"mass": mass_scale * link.mass, "inertia": tuple(mass_scale * x for x in link.inertia)}
        numbers |= {"stiffness": stiffness * servo * link.stiffness, "damping": damping * link.damping}
        numbers |= {"motor_damping": damping * motor_strength * link.motor_damping}
        numbers |= {"effort_limit": motor_strength * link.effort_limit, "limit_damping": limit * link.limit_damping}
        links.append(replace(link, **numbers))
    surfaces = [
        [replace(surface, friction=friction * surface.friction) for surface in kind]
        for kind in (articulation.contacts, articulation.contact_pairs)
    ]
    return replace(articulation, links=links, contacts=surfaces[0], contact_pairs=surfaces[1])


@pytest.mark.parametrize("env_id", ("go1", "anymal", "hopper", "cartpole"))
def test_a_factor_does_what_other_numbers_in_the_robot_do(env_id):
    """Every parameter alone, each in an environment of its own, against a robot that has been written so."""
    env = make(env_id, seed=3)
    names, generator = list(factors_of(env)), torch.Generator().manual_seed(0)
    for _ in range(3):  # onto the ground
        env.step(torch.zeros(4, env.num_actions))
    n, own = len(names), (env.joint_q[:1], env.joint_qd[:1])
    action = 2.0 * torch.rand(4, env.num_actions, generator=generator) - 1.0
    act, timing = env.actuate(action)[:1], (env.dt, env.substeps, env.mass_matrix_interval)
    simulator, nominal = Simulator(env.articulation, n, *timing), Simulator(env.articulation, 1, *timing)
    factors = {name: torch.where(torch.arange(n) == k, 0.7, 1.0) for k, name in enumerate(names)}
    simulator.set_parameters({name: simulator.parameters.check(name, x) for name, x in factors.items()})
    _, together, _ = simulator.step(*(x.repeat(n, 1) for x in (*own, act)))
    _, plain, _ = nominal.step(*own, act)
    servos = torch.tensor([link.servo for link in env.articulation.links if link.joint != FREE])
    for k, name in enumerate(names):
        robot = scaled(env.articulation, **{name: 0.7})
        other = act.clone()
        if name == "motor_strength" or name == "stiffness" and servos.all():
            other = 0.7 * act
        _, alone, _ = Simulator(robot, 1, *timing).step(*own, other)
        error, effect = relative(together[k], alone[0]), relative(alone[0], plain[0])
        assert error < 1e-5, name  # float32; measured: 2e-6
        assert effect > 1e-4 or name == "friction"  # where nothing slides it has none


MATERIAL = {"stiffness": 1e4, "damping": 1e2, "friction_stiffness": 1e3, "friction": 0.5}
GROUND = [ContactPoint(2, (0.0, 0.0, 0.0), 0.1, **MATERIAL)]
FLOOR = [contact_pair(Capsule(2, (0, 0, 0), (0, 0, 0), 0.1), Box(0, (0, -1, 0), (5, 1, 5)), **MATERIAL)]


@pytest.mark.parametrize("touching", ({"contacts": GROUND}, {"contact_pairs": FLOOR}), ids=("ground", "floor"))
def test_a_block_slides_as_far_as_its_friction_lets_it(touching, monkeypatch):
    """d = v^2 / (2 mu g), and d' = -d / mu, for different friction, on the ground and on another body."""
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", 1)
    v, floor = 1.0, Link("floor", -1, FIXED)
    slides = [Link("x", -1, PRISMATIC, axis=(1, 0, 0), limit_damping=0.0)]
    slides += [Link("y", 1, PRISMATIC, axis=(0, 1, 0), mass=2.0, inertia=(1, 1, 1), limit_damping=0.0)]
    simulator = Simulator(Articulation([floor, *slides], **touching), 3, 0.01, 20, 20)
    factor = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    simulator.set_parameters({"friction": factor[:, None]})
    q = torch.tensor([[0.0, 0.1 - 2.0 * 9.81 / 1e4]]).repeat(3, 1)  # where the ground carries it
    qd = torch.tensor([[v, 0.0]]).repeat(3, 1)
    for _ in range(50):
        q, qd, _ = simulator.step(q, qd, torch.zeros(3, 2))
    assert qd.abs().max() < 1e-3
    distance = v**2 / (2.0 * 0.5 * factor * 9.81)
    assert torch.allclose(q[:, 0], distance, rtol=0.01)
    assert torch.allclose(torch.autograd.grad(q[:, 0].sum(), factor)[0], -distance / factor, rtol=0.02)


def test_an_arm_turns_as_its_torque_and_its_inertia_say():
    """qdd = strength * torque / (mass_scale * I); a clamp of the torque is scaled as well."""
    arm = {"axis": (0, 1, 0), "mass": 1.0, "inertia": (0.5, 0.5, 0.5), "limit_damping": 0.0, "effort_limit": 4.0}
    simulator = Simulator(Articulation([Link("arm", -1, REVOLUTE, **arm)]), 4, 1e-3, 1, 1)
    strength, mass = torch.tensor([1.0, 1.5, 1.0, 1.5]), torch.tensor([1.0, 1.0, 2.0, 3.0])
    simulator.set_parameters({"motor_strength": strength[:, None], "mass_scale": mass[:, None]})
    for torque in (2.0, 40.0):
        _, qd, _ = simulator.step(torch.zeros(4, 1), torch.zeros(4, 1), torch.full((4, 1), torque))
        assert torch.allclose(qd[:, 0], 1e-3 * strength * min(torque, 4.0) / (0.5 * mass), rtol=1e-5)


def test_twice_the_mass_falls_alike_and_twice_the_strength_moves_it_alike():
    robot = replace(Anymal.articulation, contacts=[])
    robot.links = [replace(link, armature=0.0, stiffness=0.0, damping=0.0, limit_damping=0.0) for link in robot.links]
    simulator = Simulator(robot, 3, 0.05, 50, 50)
    simulator.set_parameters({"mass_scale": torch.tensor([[1.0], [2.0], [2.0]]).repeat(1, 13)})
    simulator.set_parameters({"motor_strength": torch.tensor([[1.0], [2.0], [1.0]]).repeat(1, 18)})
    env = make("anymal", 3, stochastic_reset=False)
    act = torch.cat([torch.zeros(3, 6), torch.linspace(-2.0, 2.0, 12).repeat(3, 1)], dim=1)
    q, qd, _ = simulator.step(*env.rest_state(), act)
    assert relative(q[1], q[0]) < 1e-5 and relative(qd[1], qd[0]) < 1e-3
    assert relative(qd[2], qd[0]) > 0.1
    fallen, _, _ = simulator.step(*env.rest_state(), torch.zeros(3, 18))
    assert torch.allclose(0.55 - fallen[:, 1], torch.tensor(0.5 * 9.81 * 0.05**2), rtol=0.03)


def test_the_reward_of_go1_counts_the_torques_that_act():
    env = make(num_envs=2)
    env.set_parameters(motor_strength=torch.tensor([1.0, 0.5]), stiffness=torch.tensor([1.0, 1.2]))
    obs = env.observe(*(x.repeat(2, 1) for x in (env.joint_q[:1], torch.zeros(1, 18))), torch.zeros(2, 12))
    action = torch.full((2, 12), 0.1)
    torques = env.torques(obs, action)
    assert torch.allclose(torques[1], 0.5 * 1.2 * torques[0]) and torques.abs().min() > 0.0
    assert torch.allclose(env.torques(obs, 1e3 * action)[1], 0.5 * env.strongest)


def test_without_parameters_all_environments_read_one_row():
    """No memory, no input of a step and no operation more: the numbers are those of other tests, to the last bit."""
    env = make(num_envs=64)
    (batch,), model = env.simulator.batches, env.simulator.batches[0].model
    assert env.simulator.environments == ALIKE and len(batch.inputs) == 3 and env.parameters == {}
    assert model.link_inertia.shape == (64, 13) and model.link_inertia.strides[0] == model.stiffness.strides[0] == 0
    assert set(env.state_dict()) == {*env._blank_state(), "generator"}


def test_factors_of_one_change_nothing():
    results = []
    for factors in ({}, dict.fromkeys(ALL, torch.ones(4))):
        env = make(seed=3)
        env.set_parameters(**factors)
        for _ in range(5):
            obs, reward, *_ = env.step(torch.full((4, 12), 0.3))
        results.append((obs, reward))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results))


def test_draws_are_uniform_in_their_range_and_independent():
    env = make("cartpole", 4000, randomize={"mass_scale": (0.5, 1.5), "motor_strength": (2.0, 2.0), "damping": (0, 4)})
    mass, strength, damping = (env.parameters[name] for name in ("mass_scale", "motor_strength", "damping"))
    assert (mass == mass[:, :1]).all() and (strength == 2.0).all()
    for factor, low, high in ((mass[:, 0], 0.5, 1.5), (damping[:, 0], 0.0, 4.0)):
        counts = torch.histc(factor, 10, low, high)
        # 400 each; the standard deviation is 19
        assert counts.sum() == 4000 and (counts - 400.0).abs().max() < 100
    assert torch.corrcoef(torch.stack([mass[:, 0], damping[:, 0]]))[0, 1].abs() < 0.1


def trajectory(env, steps=12):
    noise = torch.Generator().manual_seed(0)
    return torch.stack([env.step(torch.randn(4, 12, generator=noise))[0] for _ in range(steps)])


def test_a_seed_and_a_state_bring_the_same_draws(tmp_path):
    env, other = (make(seed=seed, randomize=RANGES, max_episode_steps=5) for seed in (3, 4))
    before = {name: factor.clone() for name, factor in env.parameters.items()}
    assert set(before) == set(RANGES) and not any(torch.equal(x, other.parameters[name]) for name, x in before.items())
    trajectory(env)
    assert not any(torch.equal(x, env.parameters[name]) for name, x in before.items())
    env.reset(seed=3)
    assert all(torch.equal(x, env.parameters[name]) for name, x in before.items())
    trajectory(env, 3)
    torch.save(env.state_dict(), tmp_path / "env.pt")
    expected, end = trajectory(env), env.state_dict()
    other.load_state_dict(torch.load(tmp_path / "env.pt", weights_only=True))
    assert torch.equal(trajectory(other), expected)
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in end.items())


def test_a_state_brings_the_factors_that_were_set_and_takes_back_others():
    env, other, plain = make(), make(), make()
    state = plain.state_dict()
    env.set_parameters(friction=torch.tensor([0.5, 1.0, 2.0, 3.0]))
    other.load_state_dict(env.state_dict())
    assert torch.equal(trajectory(other), trajectory(env))
    for changed in (env, plain):
        changed.load_state_dict(state)
    assert (env.parameters["friction"] == 1.0).all()
    assert torch.allclose(trajectory(env, 3), trajectory(plain, 3), rtol=1e-4, atol=1e-5)


def test_a_new_episode_changes_the_parameters_of_its_environment_only():
    env = make(num_envs=2, randomize=RANGES)
    before = env.parameters
    env.reset(options={"reset_mask": torch.tensor([True, False])})
    for name, factor in env.parameters.items():
        assert torch.equal(factor[1], before[name][1]) and (factor[0] != before[name][0]).all()
    before, (joint_q, joint_qd) = env.parameters, (env.joint_q.clone(), env.joint_qd)
    env.step(torch.zeros(2, 12))
    assert all(torch.equal(factor, before[name]) for name, factor in env.parameters.items())
    joint_q[1, 1] = 0.1  # it has fallen
    env.set_state(joint_q, joint_qd)
    *_, terminated, _, _ = env.step(torch.zeros(2, 12))
    assert terminated.tolist() == [False, True]
    for name, factor in env.parameters.items():
        assert torch.equal(factor[0], before[name][0]) and (factor[1] != before[name][1]).all()


def test_threads_do_not_change_a_single_bit(monkeypatch):
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", 1)
    results = []
    for num_threads in (1, 3):
        env = envs.make("ant", num_envs=50, num_threads=num_threads, randomize={"mass_scale": (0.5, 2.0)})
        env.reset()
        damping = torch.linspace(0.5, 1.5, 50).requires_grad_()
        env.set_parameters(damping=damping)
        total = sum(env.step(torch.zeros(50, 8))[1].sum() for _ in range(3))
        results.append((env.joint_q.detach(), *torch.autograd.grad(total, damping)))
    assert len(env.simulator.slices) == 3 and results[0][1].any()
    assert all(torch.equal(a, b) for a, b in zip(*results))


def returns(env, state, factors, actions):
    """Sum of the rewards (N,) and the last observation's entries of an episode with these parameters."""
    env.load_state_dict(state)
    env.set_parameters(**factors)
    total = 0.0
    for action in actions:
        obs, reward, *_ = env.step(action)
        total = total + reward
    return total + 0.1 * obs.sum(dim=1)


# three steps, on the ground
@pytest.mark.parametrize(
    "env_id, name",
    [(env_id, name) for env_id in ("go1", "anymal") for name in ALL]
    + [("ant", "friction"), ("hopper", "damping"), ("cartpole", "mass_scale")],
)
def test_gradients_equal_central_differences(env_id, name):
    env, noise = make(env_id, 8, seed=3), torch.Generator().manual_seed(0)
    for _ in range(20):
        env.step(torch.zeros(8, env.num_actions))
    state = env.state_dict()
    actions = 0.3 * torch.randn(3, 8, env.num_actions, generator=noise)
    size = factors_of(env)[name]
    factor = (0.8 + 0.4 * torch.rand(8, size, generator=noise)).requires_grad_()
    (gradient,) = torch.autograd.grad(returns(env, state, {name: factor}, actions).sum(), factor)
    direction = torch.rand(8, size, generator=noise)  # all signs alike: no sum of terms that cancel
    e = 2e-3
    plus, minus = (
        returns(env, state, {name: factor.detach() + sign * e * direction}, actions).double() for sign in (1, -1)
    )
    slopes = (gradient * direction).sum(dim=1).double()
    assert relative(slopes, (plus - minus) / (2.0 * e)) < 0.02 and slopes.norm() > 1e-3


@pytest.mark.parametrize("kept", (1, 32))
def test_gradients_add_up_over_steps_and_passes(kept, monkeypatch):
    """Steps that are run again, a second pass without setting the factor again, and actions along with it."""
    monkeypatch.setattr("envs.physics.simulator.KEPT_STEPS", kept)
    env, results = make(seed=3), []
    mass = torch.full((4,), 1.1, requires_grad=True)
    env.set_parameters(mass_scale=mass)
    state = env.state_dict()
    for _ in range(2):
        env.load_state_dict(state)
        env.set_parameters(mass_scale=mass)
        for _ in range(2):
            env.detach()
            action = torch.full((4, 12), 0.2, requires_grad=True)
            total = sum(env.step(action)[1].sum() for _ in range(6))
            results.append(torch.autograd.grad(total, [mass, action]))
    assert all(torch.equal(a, b) for k in (0, 1) for a, b in zip(results[k], results[k + 2]))
    assert env.simulator.environments == DIFFERENTIABLE and all(x.all() for x in results[0])


def test_one_number_for_all_links_gets_the_sum_of_their_gradients():
    gradients = []
    for size in ((4,), (4, 13)):
        env = make(seed=3)
        mass = torch.full(size, 1.1, requires_grad=True)
        env.set_parameters(mass_scale=mass)
        total = sum(env.step(torch.zeros(4, 12))[1].sum() for _ in range(3))
        gradients.append(torch.autograd.grad(total, mass)[0])
    assert torch.allclose(gradients[0], gradients[1].sum(dim=1), rtol=1e-4, atol=1e-5)


def test_an_environment_that_has_blown_up_has_no_gradient():
    env = make(num_envs=2)
    mass = torch.ones(2, 13, requires_grad=True)
    env.set_parameters(mass_scale=mass)
    joint_q, joint_qd = env.joint_q.clone(), env.joint_qd.clone()
    joint_qd[1] = 1e7
    env.set_state(joint_q, joint_qd)
    _, reward, *_, infos = env.step(torch.zeros(2, 12))
    (gradient,) = torch.autograd.grad(reward.sum() + env.joint_qd.sum(), mass)
    assert infos["diverged"] == 1 and gradient.isfinite().all() and gradient[0].any() and not gradient[1].any()


def test_what_is_drawn_has_no_gradient_and_no_room_for_one():
    env = make(randomize=RANGES)
    assert env.simulator.environments == DIFFERENT
    obs, *_ = env.step(torch.zeros(4, 12))
    assert not obs.requires_grad and all(x.grad is None for x in env.simulator.batches[0].inputs[3:])
    action = torch.zeros(4, 12, requires_grad=True)
    assert torch.autograd.grad(env.step(action)[1].sum(), action)[0].any()


@pytest.mark.parametrize(
    "randomize, message",
    [
        ([("friction", (1, 2))], r"randomize: expected None or a dict like .*, got \[\('friction'"),
        ({"fricton": (1, 2)}, r"randomize: expected names among friction, mass_scale, .* got 'fricton'"),
        ({3: (1, 2)}, r"randomize: expected names among .*, got 3"),
        ({"friction": 0.5}, r"randomize\['friction'\]: expected two numbers 0 <= low <= high, got 0.5"),
        ({"friction": (2.0, 1.0)}, r"randomize\['friction'\]: expected two numbers .*, got \(2.0, 1.0\)"),
        ({"mass_scale": (-0.1, 1.0)}, r"randomize\['mass_scale'\]: expected two numbers .*, got \(-0.1, 1.0\)"),
        ({"mass_scale": (0.5, float("nan"))}, r"randomize\['mass_scale'\]: expected two numbers .*, got"),
        ({"mass_scale": (0.5, float("inf"))}, r"randomize\['mass_scale'\]: expected two numbers .*, got"),
        ({"mass_scale": ("a", True)}, r"randomize\['mass_scale'\]: expected two numbers .*, got"),
    ],
)
def test_a_wrong_range_is_refused(randomize, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        envs.make("go1", randomize=randomize)


@pytest.mark.parametrize(
    "value, error, message",
    [
        ([1.0] * 4, TypeError, r"expected a torch tensor of shape \(4, 13\), got list"),
        (torch.ones(3), ValueError, r"expected shape \(4,\), got \(3,\)"),
        (torch.ones(4, 12), ValueError, r"expected shape \(4, 13\), got \(4, 12\)"),
        (torch.ones(4).double(), TypeError, "expected torch.float32, got torch.float64"),
        (torch.tensor([1.0, -1.0, 1.0, torch.nan]), ValueError, r"expected numbers >= 0, got others in .* 1, 3$"),
    ],
)
def test_a_wrong_factor_is_refused_and_changes_nothing(value, error, message):
    env = make()
    with pytest.raises(error, match=f"^mass_scale: {message}"):
        env.set_parameters(friction=torch.full((4,), 2.0), mass_scale=value)
    assert env.parameters == {}


def test_a_factor_that_would_change_nothing_is_refused():
    with pytest.raises(ValueError, match="^friction: expected one of mass_scale, .* for this robot, got friction$"):
        make("cartpole").set_parameters(friction=torch.ones(4))
    with pytest.raises(ValueError, match="^randomize: expected names among .* for this robot, got 'stiffness'$"):
        make("ant", randomize={"stiffness": (0.5, 2.0)})


def test_a_state_without_the_parameters_is_refused():
    state = make().state_dict()
    with pytest.raises(ValueError, match="^state: expected a dict with the keys .*'friction'"):
        make(randomize=RANGES).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state\['friction'\]: expected numbers >= 0, got others"):
        make().load_state_dict(state | {"friction": torch.full((4, 1), -1.0)})
