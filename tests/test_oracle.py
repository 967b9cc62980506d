"""The physics against MuJoCo's: a made-up robot with all kinds of joints, ANYmal, and the hand with its cube; contact
with the ground against its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.anymal import Anymal
from envs.hand_reorient import HandReorient
from envs.physics import FIXED, FREE, PRISMATIC, REVOLUTE, Articulation, ContactPoint, Link, Simulator

mujoco = pytest.importorskip("mujoco")

TURNED = (0.5, -0.5, 0.1, 0.7)  # a quaternion xyzw like any other, made unit below
TURNED = tuple(np.array(TURNED) / np.linalg.norm(TURNED))

ROBOT = Articulation(
    links=[
        Link("base", -1, FREE, mass=3.0, com=(0.05, -0.1, 0.02), inertia=(0.05, 0.04, 0.06)),
        Link(
            name="upper",
            parent=0,
            joint=REVOLUTE,
            axis=(0.6, 0.0, 0.8),
            offset=(0.2, 0.1, -0.3),
            rotation=TURNED,
            mass=1.5,
            com=(0.0, 0.2, 0.05),
            inertia=(0.02, 0.01, 0.015),
            armature=0.1,
            stiffness=5.0,
            damping=0.3,
            target=0.4,
            limit_damping=0.0,
        ),
        Link(
            name="rod",
            parent=1,
            joint=PRISMATIC,
            axis=(0.0, 1.0, 0.0),
            offset=(0.0, 0.3, 0.0),
            mass=0.7,
            com=(0.1, 0.0, 0.0),
            inertia=(0.004, 0.006, 0.005),
            limit_damping=0.0,
        ),
        Link(
            name="arm",
            parent=0,
            joint=REVOLUTE,
            axis=(0.0, 0.0, 1.0),
            offset=(-0.2, 0.0, 0.1),
            mass=0.9,
            com=(0.0, -0.15, 0.0),
            inertia=(0.01, 0.002, -0.001, 0.002, 0.006, 0.001, -0.001, 0.001, 0.008),
        ),
    ]
)
ANYMAL = replace(Anymal.articulation, contacts=[])
ROBOTS = pytest.mark.parametrize("robot", (ROBOT, ANYMAL), ids=("made_up", "anymal"))


def inertia_of(link):
    return np.diag(link.inertia) if len(link.inertia) == 3 else np.reshape(link.inertia, (3, 3))


def mujoco_model(robot, dt):
    """The same robot, built link by link from the same table; no limits."""
    spec = mujoco.MjSpec()
    spec.option.gravity, spec.option.timestep, spec.compiler.degree = robot.gravity, dt, False
    # explicit damping, as ours: MuJoCo's Euler integrator would take that of the joints at the new velocities
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    bodies = [spec.worldbody]
    for link in robot.links:
        x, y, z, w = link.rotation
        body = bodies[link.parent + 1].add_body(name=link.name, pos=link.offset, quat=(w, x, y, z))
        # MuJoCo refuses moving bodies without mass; a microgram changes nothing within the tolerances
        body.mass, body.ipos, body.explicitinertial = max(link.mass, 1e-9), link.com, True
        inertia = inertia_of(link) + 1e-9 * np.eye(3) * (link.mass == 0.0)
        body.fullinertia = inertia[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        bodies.append(body)
        if link.joint == FIXED:
            continue
        kind = {FREE: "FREE", REVOLUTE: "HINGE", PRISMATIC: "SLIDE"}[link.joint]
        joint = body.add_joint(type=getattr(mujoco.mjtJoint, f"mjJNT_{kind}"))
        if link.joint != FREE:
            joint.axis, joint.armature, joint.springref = link.axis, link.armature, link.target
            limit_damping = (
                link.limit_damping if link.limit_damping_depth == 0.0 else 0.0
            )  # which acts within the limits
            constants = (link.stiffness, link.damping + limit_damping)
            joint.stiffness, joint.damping = (np.append(x, [0.0, 0.0]) for x in constants)
    return spec.compile()


def random_state(robot, seed):
    rng = np.random.default_rng(seed)
    joints = robot.num_dofs - 6
    quaternion = rng.normal(size=4)
    q = np.concatenate([rng.normal(size=3), quaternion / np.linalg.norm(quaternion), rng.normal(size=joints)])
    actuation = np.append(np.zeros(6), 3.0 * rng.normal(size=joints))
    return q, rng.normal(size=6 + joints), actuation


def mujoco_quaternion(q):
    return np.concatenate([q[:3], q[[6, 3, 4, 5]], q[7:]])  # wxyz


class Comparison:
    """One state in both simulators, and ours after some substeps of length dt.

    MuJoCo's free joint: velocity of the body's origin in world axes, then the angular velocity in the body's; ours:
    spatial twist (angular; linear) about the simulator's reference point.
    """

    def __init__(self, robot, seed, dt=1e-4, substeps=1):
        q, qvel, actuation = random_state(robot, seed)
        self.model = mujoco_model(robot, dt)
        self.data = mujoco.MjData(self.model)
        self.data.qpos, self.data.qvel, self.data.qfrc_applied = mujoco_quaternion(q), qvel, actuation
        mujoco.mj_forward(self.model, self.data)
        self.R = self.data.xmat[1].reshape(3, 3).copy()
        self.w, self.v_p = self.R @ qvel[3:6], qvel[:3]
        qd = np.concatenate([self.w, self.v_p - np.cross(self.w, q[:3]), qvel[6:]])
        simulator = Simulator(robot, 1, substeps * dt, substeps, 1)
        state = (torch.tensor(x, dtype=torch.float32)[None] for x in (q, qd, actuation))
        self.new_q, self.new_qd, _ = (x.numpy()[0] for x in simulator.step(*state))
        self.inside = simulator.batches[0].substeps[0]
        self.origin = q[:3] * [1.0, 0.0, 1.0]
        self.p = q[:3] - self.origin

    def new_qpos(self):
        """Our new position as MuJoCo's, with the sign that its quaternion has."""
        qpos = mujoco_quaternion(self.new_q)
        qpos[3:7] *= np.sign(qpos[3:7] @ self.data.qpos[3:7])
        return qpos


@ROBOTS
@pytest.mark.parametrize("seed", range(5))
def test_link_poses(robot, seed):
    both = Comparison(robot, seed)
    poses = both.inside.link_pose.numpy()[0]
    assert len(poses) == len(both.data.xpos) - 1
    for pose, position, quaternion in zip(poses, both.data.xpos[1:], both.data.xquat[1:]):
        # float32 against float64: 1e-5 of the values' scale, which is 1
        assert np.allclose(pose[:3] + both.origin, position, atol=1e-5)
        same_sign = np.sign(pose[[6, 3, 4, 5]] @ quaternion)
        assert np.allclose(pose[[6, 3, 4, 5]] * same_sign, quaternion, atol=1e-5)


@ROBOTS
@pytest.mark.parametrize("seed", range(5))
def test_mass_matrix(robot, seed):
    both = Comparison(robot, seed)
    # our velocities = T theirs, hence H_theirs = T' H_ours T
    T = np.eye(robot.num_dofs)
    T[:6, :6] = 0.0
    T[0:3, 3:6] = both.R
    T[3:6, 0:3] = np.eye(3)
    T[3:6, 3:6] = np.cross(both.p, both.R, axisb=0, axisc=0)  # v = v_p - w x p = v_p + p x w
    H = both.inside.H.numpy()[0]
    H = np.tril(H) + np.tril(H, -1).T
    M = np.zeros_like(T)
    mujoco.mj_fullM(both.model, both.data, M)
    M -= np.diag(both.model.dof_armature)
    # every element in proportion to the two on the diagonal: a foot's inertia is a ten-thousandth of the trunk's.
    # Measured: 3e-6
    size = np.sqrt(np.outer(np.diag(M), np.diag(M)))
    assert np.allclose((T.T @ H @ T) / size, M / size, rtol=0.0, atol=1e-5)


@ROBOTS
@pytest.mark.parametrize("seed", range(5))
def test_acceleration(robot, seed):
    both = Comparison(robot, seed)
    qdd = both.inside.joint_qdd.numpy()[0]
    # a_p = dv + dw x p + w x v_p, and MuJoCo differentiates the angular velocity in the body's axes
    a_p = qdd[3:6] + np.cross(qdd[:3], both.p) + np.cross(both.w, both.v_p)
    ours = np.concatenate([a_p, both.R.T @ qdd[:3], qdd[6:]])
    # the solve loses up to three digits of float32: ANYmal's mass matrix has a condition number of 5e3.  Measured:
    # 1e-6, and 5e-5 in the worst of 40 states
    assert np.allclose(ours, both.data.qacc, rtol=0.0, atol=1e-4 * np.abs(both.data.qacc).max())


@pytest.mark.parametrize("seed", range(3))
def test_free_fall(seed):
    """ANYmal falls for 0.1 s, its legs pulled by their motors, springs and dampers."""
    steps, h = 400, 2.5e-4
    both = Comparison(ANYMAL, seed, dt=h, substeps=steps)
    start = both.data.qpos.copy()
    for _ in range(steps):
        mujoco.mj_step(both.model, both.data)
    # Both take the new velocities for the new positions, but ours sums up a twist about a fixed point and MuJoCo the
    # velocity of the base's origin.  Measured: 6e-5, and half of that with half the step
    assert np.allclose(both.new_qpos(), both.data.qpos, rtol=0.0, atol=2e-4)
    assert np.abs(both.data.qpos - start)[7:].max() > 0.3  # rad; legs that did not move would be found out


@pytest.mark.parametrize("seed", range(3))
def test_positions_follow_the_new_velocities(seed):
    h = 1e-3
    both = Comparison(ROBOT, seed, dt=h)
    w, p_old = both.new_qd[:3].astype(float), both.p + both.origin
    v_p = both.new_qd[3:6] + np.cross(w, p_old)
    qpos = both.data.qpos.copy()
    mujoco.mj_integratePos(both.model, qpos, np.concatenate([v_p, both.R.T @ w, both.new_qd[6:]]), h)
    # ours is Euler's step of the quaternion, MuJoCo's the exact turn: they differ by (|w| h)^2 / 8 < 2e-6
    assert np.allclose(both.new_qpos(), qpos, atol=5e-6)
    assert np.abs(qpos - both.data.qpos).max() > 5e-4  # a step that did not move would be found out


@pytest.mark.parametrize("seed", range(3))
def test_hand_and_cube(seed):
    """Several roots under z-up gravity, the last with a free joint; joints within their limits, no contact."""
    rng, robot = np.random.default_rng(seed), replace(HandReorient.articulation, contact_pairs=[])
    # no body can have some of the asset's inertias, where one axis has more than the others together: MuJoCo refuses
    # them.  Both get the same on top
    robot.links = [replace(link, inertia=(inertia_of(link) + 1e-4 * np.eye(3)).ravel()) for link in robot.links]
    lower, upper = np.array([link.limits for link in robot.links if link.joint == REVOLUTE]).T
    quaternion = rng.normal(size=4)
    q = np.concatenate([rng.uniform(lower, upper), rng.normal(size=3), quaternion / np.linalg.norm(quaternion)])
    rates, v_p, w, actuation = rng.normal(size=16), rng.normal(size=3), rng.normal(size=3), rng.normal(size=16)
    model = mujoco_model(robot, 1e-4)
    data = mujoco.MjData(model)
    data.qpos, data.qfrc_applied[:16] = np.concatenate([q[:19], q[[22, 19, 20, 21]]]), actuation
    mujoco.mj_kinematics(model, data)
    R = data.xmat[-1].reshape(3, 3)
    data.qvel = np.concatenate([rates, v_p, R.T @ w])
    mujoco.mj_forward(model, data)
    qd = np.concatenate([rates, w, v_p - np.cross(w, q[16:19])])
    simulator = Simulator(robot, 1, 1e-4, 1, 1)
    simulator.step(*(torch.tensor(x, dtype=torch.float32)[None] for x in (q, qd, np.append(actuation, np.zeros(6)))))
    inside = simulator.batches[0].substeps[0]
    poses = inside.link_pose.numpy()[0]
    assert np.allclose(poses[:, :3], data.xpos[1:], atol=1e-6)
    same_sign = np.sign((poses[:, [6, 3, 4, 5]] * data.xquat[1:]).sum(axis=1, keepdims=True))
    assert np.allclose(poses[:, [6, 3, 4, 5]] * same_sign, data.xquat[1:], atol=1e-6)
    H, M = inside.H.numpy()[0], np.zeros((22, 22))
    mujoco.mj_fullM(model, data, M)
    H = np.tril(H) + np.tril(H, -1).T
    # float32 about the world origin, half a metre away.  Measured: 2e-8 kg m^2 of 1e-4 to 1e-3
    assert np.allclose(H[:16, :16], (M - np.diag(model.dof_armature))[:16, :16], rtol=0.0, atol=3e-8)
    qdd = inside.joint_qdd.numpy()[0].astype(float)
    a_p = qdd[19:] + np.cross(qdd[16:19], q[16:19]) + np.cross(w, v_p)
    ours = np.concatenate([qdd[:16], a_p, R.T @ qdd[16:19]])
    assert np.allclose(ours[:16], data.qacc[:16], rtol=0.0, atol=1e-4 * np.abs(data.qacc[:16]).max())
    # free fall without a moment; measured: 3e-4, of terms of 10 and an inertia about a point 2 m away
    assert np.allclose(ours[16:], [0.0, 0.0, -9.81, 0.0, 0.0, 0.0], atol=3e-3)
    assert np.allclose(data.qacc[16:], [0.0, 0.0, -9.81, 0.0, 0.0, 0.0], atol=1e-9)


def test_ground_contact_of_a_ball_in_three_dimensions():
    """f_n = ke d + kd d max(-u_y, 0) and f_t = -u_t / |u_t| min(kf |u_t|, mu ke d), from the wrench of one substep."""
    ke, kd, kf, mu, radius, mass = 2e4, 1e3, 50.0, 0.6, 0.1, 2.0
    ball = Link("ball", -1, FREE, mass=mass, inertia=(0.01, 0.01, 0.01))
    robot = Articulation([ball], [ContactPoint(0, (0.0, 0.0, 0.0), radius, ke, kd, kf, mu)])
    depth, w = 0.003, np.array([2.0, 1.0, -3.0])
    for v in ([0.4, -0.5, -0.3], [0.4, 0.5, -0.3], [4.0, -0.5, 3.0]):  # sinking and sticking, rising, sliding
        p = np.array([0.0, radius - depth, 0.0])
        q, qd = np.concatenate([p, TURNED]), np.concatenate([w, v - np.cross(w, p)])
        simulator = Simulator(robot, 1, 1e-4, 1, 1)
        simulator.step(*(torch.tensor(x, dtype=torch.float32)[None] for x in (q, qd, np.zeros(6))))
        u = v + np.cross(w, [0.0, -radius, 0.0])  # of the lowest point of the ball
        slip = np.array([u[0], 0.0, u[2]])
        friction = -slip / np.linalg.norm(slip) * min(kf * np.linalg.norm(slip), mu * ke * depth)
        force = np.array([0.0, ke * depth + kd * depth * max(-u[1], 0.0), 0.0]) + friction
        lowest = p - [0.0, radius, 0.0]
        weight = np.concatenate([np.zeros(3), [0.0, -9.81 * mass, 0.0]])
        a_bias = np.cross(w, v)  # the twist's own change: classical acceleration with zero spatial acceleration
        inertial = np.concatenate([np.cross(p, mass * a_bias), mass * a_bias])
        expected = inertial - weight - np.concatenate([np.cross(lowest, force), force])
        ours = simulator.batches[0].substeps[0].link_wrench.numpy()[0, 0]
        assert np.allclose(ours, expected, atol=1e-5 * np.abs(expected).max()), v


def test_a_fixed_joint_welds():
    """A body made of two welded links moves like the one with their joint mass, centre and inertia."""
    offset, m1, m2 = np.array([0.0, 0.4, 0.0]), 2.0, 3.0
    welded = [Link("a", -1, FREE, mass=m1, inertia=(0.1, 0.2, 0.3)), Link("b", 0, FIXED, offset=tuple(offset), mass=m2)]
    com = offset * m2 / (m1 + m2)
    extra = m1 * com[1] ** 2 + m2 * (offset - com)[1] ** 2
    merged = [Link("ab", -1, FREE, mass=m1 + m2, com=tuple(com), inertia=(0.1 + extra, 0.2, 0.3 + extra))]
    state = [torch.randn(1, n, generator=torch.Generator().manual_seed(0)) for n in (7, 6)]
    state[0][:, 3:] /= state[0][:, 3:].norm()
    results = [
        Simulator(Articulation(links), 1, 0.01, 4, 4).step(*state, torch.zeros(1, 6)) for links in (welded, merged)
    ]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(results[0][:2], results[1][:2]))


def test_gradient_through_a_free_joint_matches_central_differences():
    """One step of 16 substeps with one mass matrix, about a reference point that is not the origin."""
    q, qd, act = (torch.tensor(x, dtype=torch.float32) for x in random_state(ROBOT, 0))
    simulator = Simulator(ROBOT, 1, 1 / 60, 16, 16)
    x = torch.cat([q, qd, act]).requires_grad_()

    def step(simulator, x):
        q, qd, act = x.split([10, 9, 9], dim=-1)
        return torch.cat(simulator.step(q, qd, act)[:2], dim=-1)

    y = step(simulator, x[None])[0]
    jacobian = torch.stack([torch.autograd.grad(y[k], x, retain_graph=True)[0] for k in range(19)])
    e = 1e-2
    points = x.detach() + torch.cat([k * e * torch.eye(28) for k in (-2, -1, 1, 2)])
    actuated = [k for k in range(28) if not 19 <= k < 25]  # no motor acts on the free joint
    values = step(Simulator(ROBOT, 112, 1 / 60, 16, 16), points).double().reshape(4, 28, 19)
    differences = ((8.0 * (values[2] - values[1]) - (values[3] - values[0])) / (12.0 * e)).T
    for column in actuated:
        error = (jacobian[:, column] - differences[:, column]).norm()
        assert error <= 1e-3 * max(1.0, differences[:, column].norm()), column


def test_distance_does_not_cost_accuracy():
    """The same motion 250 m from the origin; about the world origin float32 would be off by more than 0.01."""
    results = []
    for x in (0.0, 200.0):
        q, qd, act = (torch.tensor(values, dtype=torch.float64) for values in random_state(ROBOT, 1))
        q[:3] = torch.tensor([x, 1.0, -0.75 * x])
        velocity = qd[3:6].clone()
        qd[3:6] = velocity - torch.linalg.cross(qd[:3], q[:3])
        new_q, new_qd, _ = Simulator(ROBOT, 1, 1 / 60, 16, 16).step(*(y.float()[None] for y in (q, qd, act)))
        p, w, v = new_q[0, :3].double(), new_qd[0, :3].double(), new_qd[0, 3:6].double()
        results.append(torch.cat([p - q[:3], w, v + torch.linalg.cross(w, p), new_q[0, 3:], new_qd[0, 6:]]))
    # the position is stored with a resolution of 1.5e-5 m there, the twist about the world origin with one of 5e-5
    assert torch.allclose(*results, atol=2e-4)


@pytest.mark.parametrize(
    "links, words",
    [
        ([Link("a", 0, REVOLUTE)], ["link 0 (a)", "parent", "got 0"]),
        ([Link("a", -1, 7)], ["joint", "got 7"]),
        ([Link("a", -1, REVOLUTE, (0, 0, 1)), Link("b", 0, FREE)], ["link 1 (b)", "free joint"]),
        ([Link("a", -1, REVOLUTE, (0, 0, 2))], ["link 0 (a)", "axis", "unit length", "(0, 0, 2)"]),
        ([Link("a", -1, FREE, inertia=(1, 1))], ["inertia", "3 or 9", "got 2"]),
        ([Link("a", -1, FREE, rotation=(0, 0, 0, 2))], ["rotation", "unit quaternion"]),
    ],
)
def test_a_wrong_table_is_refused(links, words):
    with pytest.raises(ValueError) as caught:
        Simulator(Articulation(links), 1, 0.01, 1, 1)
    assert all(word in str(caught.value) for word in words)


def test_only_a_slide_along_x_can_move_the_reference_point():
    for axis, joint in (((0, 1, 0), PRISMATIC), ((1, 0, 0), REVOLUTE)):
        robot = Articulation([Link("cart", -1, joint, axis, mass=1.0)], translates_along_x=True)
        with pytest.raises(ValueError, match="link 0 .cart.: translates_along_x"):
            Simulator(robot, 1, 0.01, 1, 1)
