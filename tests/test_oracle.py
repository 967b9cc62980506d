"""The physics against MuJoCo's, for a robot with every joint type that the tasks use; without contact."""

import numpy as np
import pytest
import torch

from envs.articulation import FREE, PRISMATIC, REVOLUTE, Articulation, Link
from envs.simulator import Simulator

mujoco = pytest.importorskip("mujoco")

TURNED = (0.5, -0.5, 0.1, 0.7)  # a quaternion xyzw like any other, made unit below
TURNED = tuple(np.array(TURNED) / np.linalg.norm(TURNED))
TILTED = (0.6, 0.0, 0.8)

ROBOT = Articulation(
    links=[
        Link("base", -1, FREE, mass=3.0, com=(0.05, -0.1, 0.02), inertia=(0.05, 0.04, 0.06)),
        Link(
            *("upper", 0, REVOLUTE, TILTED, (0.2, 0.1, -0.3), TURNED),
            **{"mass": 1.5, "com": (0.0, 0.2, 0.05), "inertia": (0.02, 0.01, 0.015), "armature": 0.1},
            **{"stiffness": 5.0, "damping": 0.3, "target": 0.4, "limit_damping": 0.0},
        ),
        Link(
            *("rod", 1, PRISMATIC, (0.0, 1.0, 0.0), (0.0, 0.3, 0.0)),
            **{"mass": 0.7, "com": (0.1, 0.0, 0.0), "inertia": (0.004, 0.006, 0.005), "limit_damping": 0.0},
        ),
        Link(
            *("arm", 0, REVOLUTE, (0.0, 0.0, 1.0), (-0.2, 0.0, 0.1)),
            **{"mass": 0.9, "com": (0.0, -0.15, 0.0), "inertia": (0.01, 0.003, 0.008), "limit_damping": 0.0},
        ),
    ]
)


def mujoco_model(robot):
    """The same robot, built link by link from the same table."""
    spec = mujoco.MjSpec()
    spec.option.gravity, spec.compiler.degree = robot.gravity, False
    bodies = [spec.worldbody]
    for link in robot.links:
        x, y, z, w = link.rotation
        body = bodies[link.parent + 1].add_body(name=link.name, pos=link.offset, quat=(w, x, y, z))
        body.mass, body.ipos, body.inertia, body.explicitinertial = link.mass, link.com, link.inertia, True
        kind = {FREE: "FREE", REVOLUTE: "HINGE", PRISMATIC: "SLIDE"}[link.joint]
        joint = body.add_joint(type=getattr(mujoco.mjtJoint, f"mjJNT_{kind}"))
        if link.joint != FREE:
            joint.axis, joint.armature, joint.springref = link.axis, link.armature, link.target
            joint.stiffness, joint.damping = (np.append(x, [0.0, 0.0]) for x in (link.stiffness, link.damping))
        bodies.append(body)
    return spec.compile()


def random_state(seed):
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=4)
    q = np.concatenate([rng.normal(size=3), quaternion / np.linalg.norm(quaternion), rng.normal(size=3)])
    actuation = np.append(np.zeros(6), 3.0 * rng.normal(size=3))
    return q, rng.normal(size=9), actuation


@pytest.mark.parametrize("seed", range(5))
def test_kinematics_mass_matrix_and_acceleration(seed):
    q, qvel, force = random_state(seed)
    model = mujoco_model(ROBOT)
    data = mujoco.MjData(model)
    data.qpos = np.concatenate([q[:3], q[[6, 3, 4, 5]], q[7:]])  # MuJoCo's quaternions are wxyz
    data.qvel, data.qfrc_applied = qvel, force
    mujoco.mj_forward(model, data)

    # MuJoCo's free joint: velocity of the body's origin in world axes, angular velocity in the body's
    R = data.xmat[1].reshape(3, 3)
    w, v_p = R @ qvel[3:6], qvel[:3]
    ours_qd = np.concatenate([w, v_p - np.cross(w, q[:3]), qvel[6:]])
    simulator = Simulator(ROBOT, 1, 1e-4, 1, 1)
    simulator.step(*(torch.tensor(x, dtype=torch.float32)[None] for x in (q, ours_qd, force)))
    inside = simulator.batches[0].steps[0]
    origin = q[:3] * [1.0, 0.0, 1.0]  # the simulator's reference point
    p = q[:3] - origin

    # float32 against float64: 1e-5 of the values' scale
    poses = inside.link_pose.numpy()[0]
    for i in range(4):
        assert np.allclose(poses[i, :3] + origin, data.xpos[i + 1], atol=1e-5)
        same_sign = np.sign(poses[i, 6] * data.xquat[i + 1, 0])
        assert np.allclose(poses[i, [6, 3, 4, 5]] * same_sign, data.xquat[i + 1], atol=1e-5)

    # ours = T theirs, hence H_theirs = T' H_ours T
    T = np.eye(9)
    T[:6, :6] = 0.0
    T[0:3, 3:6] = R
    T[3:6, 0:3] = np.eye(3)
    T[3:6, 3:6] = np.cross(p, R, axisb=0, axisc=0)  # v = v_p - w x p = v_p + p x w
    H = inside.H.numpy()[0]
    H = np.tril(H) + np.tril(H, -1).T
    M = np.zeros((9, 9))
    mujoco.mj_fullM(model, data, M)
    M -= np.diag(model.dof_armature)
    assert np.allclose(T.T @ H @ T, M, atol=1e-5 * np.abs(M).max())

    # a_p = dv + dw x p + w x v_p, and MuJoCo differentiates the angular velocity in the body's axes
    qdd = inside.joint_qdd.numpy()[0]
    a_p = qdd[3:6] + np.cross(qdd[:3], p) + np.cross(w, v_p)
    theirs = np.concatenate([R.T @ qdd[:3], a_p, qdd[6:]])
    expected = np.concatenate([data.qacc[3:6], data.qacc[:3], data.qacc[6:]])
    assert np.allclose(theirs, expected, atol=2e-5 * np.abs(expected).max())


def test_gradient_through_a_free_joint_matches_central_differences():
    """One step of 16 substeps with one mass matrix, about a reference point that is not the origin."""
    q, qd, act = (torch.tensor(x, dtype=torch.float32) for x in random_state(0))
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
    """The same motion 200 m from the origin; about the world origin float32 would be off by more than 0.01."""
    results = []
    for x in (0.0, 200.0):
        q, qd, act = (torch.tensor(values, dtype=torch.float64) for values in random_state(1))
        q[:3] = torch.tensor([x, 1.0, 0.0])
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
        ([Link("a", -1, REVOLUTE), Link("b", 0, FREE)], ["link 1 (b)", "free joint", "got parent 0"]),
    ],
)
def test_a_wrong_table_is_refused(links, words):
    with pytest.raises(ValueError) as caught:
        Simulator(Articulation(links), 1, 0.01, 1, 1)
    assert all(word in str(caught.value) for word in words)
