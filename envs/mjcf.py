"""A robot from an MJCF or URDF file: `articulation, actuation = envs.mjcf.load("robot.xml")`.

MuJoCo's own parser compiles the file (`pip install mujoco`); its arrays become links, contact points and shapes.

    exact        free root, hinge, slide, several joints on a body, joints off the body's origin, ref, springref,
                 armature, damping, stiffness; motors, position and velocity servos with gear and a symmetric clamp of
                 the force; gravity; friction coefficients as MuJoCo combines them with those of the ground
    approximate  joint limits and contact are springs and dampers, see Contact; a box touches the ground with its
                 corners, a mesh with those of its bounding box, a capsule with its ends; the clamp of an actuator's
                 force acts on the joint's own spring too
    left out     with a warning that counts them: LEFT_OUT below
    refused      unless the caller lists them in `ignore`: REFUSED below; without them it would be another robot.
                 A ball joint is always refused

The file's solver, integrator, solref and solimp are not used.  The ground is the plane z = 0 of the file, y = 0 here;
a file without one gets it.

Contact: the constants follow from the robot's mass M and the gravity g.  A single contact point under the whole robot

    sinks in by `penetration`:                                 ke = M g / penetration
    stops it there within `time_constant`:                     kd = M / (time_constant penetration)
    sticks, and lets it creep no longer than that:             kf = M / time_constant

and a joint limit gives by `limit_give` under M g times the robot's height (a slide: under M g), or under the full force
of its motor where that is larger.  Its damper is critical for the inertia that this joint sees, from a tenth of that
depth on.

Steps: semi-implicit Euler is stable while a substep is shorter than 2 / omega of every spring and 2 / rate of every
damper.  `Robot.substeps(dt)` makes it half of that, from the inertia that each contact point and each joint sees in the
start pose (the inverse of the mass matrix); the other half is for points and joints that act together.  8 is the
minimum: strong motors can spin a light torso at rates that the start pose does not show.  What asks for many substeps
is a joint without the inertia of its motor: a file that has no armature needs `min_armature`.
"""

import math
import warnings
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np

from envs.physics import FIXED, FREE, PRISMATIC, REVOLUTE, Z_UP, Articulation, Box, Capsule, ContactPoint, Link
from envs.physics.arguments import positive_number, shown, truth

try:
    import mujoco
except ImportError:  # optional
    mujoco = None

TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # world axes of the file -> ours
UP = (Z_UP[3], *Z_UP[:3])  # the same as a quaternion wxyz
KINDS = {"FREE": FREE, "SLIDE": PRISMATIC, "HINGE": REVOLUTE}
# flags of <option> that are not obeyed; those of gravity, contact, limits and all constraints are
PHYSICS = ("PASSIVE", "SPRING", "DAMPER", "CLAMPCTRL", "ACTUATION")

REFUSED = (
    "ball joint",
    "equality constraint",
    "tendon with a force",
    "actuator not on a hinge or slide",
    "actuator with a state or a delay",
    "actuator with a varying gain",
    "actuator with a constant force",
    "gravity compensation",
    "fluid",
    "spring or damper that is not linear",
    "spring of a free joint",
    "adhesion",
    "moving surface",
    "override of contact parameters",
    "plugin",
    "flexible body",
    "ground that is not the plane z = 0",
    "disabled part of the physics",
)
LEFT_OUT = (
    "friction in a joint",
    "damping or armature of a free joint",
    "contact between two bodies",
    "contact with another shape of the world",
    "contact of a cylinder, ellipsoid or field",
    "control without a range, taken as -1 to 1",
    "force clamp that is not symmetric",
)


IGNORABLE = tuple(name for name in REFUSED if name != "ball joint")


@dataclass
class Actuation:
    """How controls drive the joints: joint_act = control @ matrix, with low <= control <= high as in the file."""

    names: list
    matrix: np.ndarray
    """(nu, nv) force or torque per unit of control; the spring of a position servo is the joint's"""
    low: np.ndarray
    high: np.ndarray
    servo: np.ndarray
    """(nu,) bool: the control is a position"""
    per_position: np.ndarray
    """(nu,) by how much the control of a servo changes for one rad or m of its joint; 0 of the others"""


def load(path, **options):
    """The Articulation and the Actuation of a file; options: see Robot."""
    robot = Robot(path, **options)
    return robot.articulation, robot.actuation


def unsupported(path):
    """What the file has and our physics has not, {name: count}; names: those of REFUSED and LEFT_OUT."""
    return _unsupported(_compile(path, floating=False))


class Robot:
    """A file as articulation and actuation, its start pose, and its state in MuJoCo's coordinates.

    ignore: names in REFUSED, but for the ball joint, that may be left out; they are counted in the warning.  Of a
    disabled part of the physics the disabling is left out.
    floating: give the root body a free joint where the file welds it to the world (most URDF files do).
    penetration [m], time_constant [s], limit_give [rad or, for a slide, m]: see above.
    min_armature: hinges with less armature get this much, kg m^2.
    Raises ImportError without MuJoCo, ValueError for a file that MuJoCo cannot read and for what is refused.
    """

    def __init__(
        self, path, ignore=(), floating=False, penetration=0.01, time_constant=0.05, limit_give=0.1, min_armature=0.0
    ):
        _check_names(ignore)
        for name, value in (("penetration", penetration), ("time_constant", time_constant), ("limit_give", limit_give)):
            positive_number(name, value)
        if not isinstance(min_armature, Real) or not 0.0 <= min_armature < math.inf:
            raise ValueError(f"min_armature: expected a number of at least 0, got {shown(min_armature)}")
        self.path, self.limit_give = str(path), limit_give
        self.model = _compile(path, truth("floating", floating))
        self._report(ignore)
        hinges = self.model.jnt_dofadr[self.model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE]
        self.model.dof_armature[hinges] = np.maximum(self.model.dof_armature[hinges], min_armature)
        self.data = mujoco.MjData(self.model)
        self.mass = float(self.model.body_subtreemass[0])
        self.weight = self.mass * (float(np.linalg.norm(self.model.opt.gravity)) or 9.81)
        self.ground = {
            "stiffness": self.weight / penetration,
            "damping": self.mass / (time_constant * penetration),
            "friction_stiffness": self.mass / time_constant,
        }
        self._build()

    def _build(self):
        tree = _Links(self.model)
        self.links, self.link_of, self.shift = tree.links, tree.link_of, tree.shift
        if not self.links:
            raise ValueError(f"path: expected a robot with a joint, got none in {self.path!r}")
        _add_motors(self.model, self.links)
        self.actuation = _actuation(self.model)
        self.contacts = _contacts(self.model, self.link_of, self.shift, self.ground)
        self.start_qpos = self._start()
        self._limit_joints()
        gravity = tuple(TO_Y_UP @ self.model.opt.gravity * (not _is_off(self.model, "GRAVITY")))
        shapes, slides = _shapes(self.model, self.link_of, self.shift), _slides_along_x(self.links)
        self.articulation = Articulation(self.links, self.contacts, [], shapes, gravity, slides)

    def substeps(self, dt):
        """The number of substeps, a multiple of 4, that is stable for steps of dt seconds: see above."""
        rate = max([*self._joint_rates(), *self._contact_rates()], default=0.0)
        return 4 * max(2, math.ceil(dt * rate / 4.0))

    def from_mujoco(self, qpos, qvel):
        """MuJoCo's state, (nq,) and (nv,), as our joint_q and joint_qd."""
        q, qd = qpos - self.model.qpos0, np.array(qvel, float)
        for a, d in self._free_joints():
            position, w = TO_Y_UP @ qpos[a : a + 3], TO_Y_UP @ _rotate(qpos[a + 3 : a + 7], qvel[d + 3 : d + 6])
            q[a : a + 3], q[a + 3 : a + 7] = position, _xyzw(_product(UP, qpos[a + 3 : a + 7]))
            # the twist about the world origin: v = v_p - w x p
            qd[d : d + 3], qd[d + 3 : d + 6] = w, TO_Y_UP @ qvel[d : d + 3] - np.cross(w, position)
        return q, qd

    def to_mujoco(self, joint_q, joint_qd):
        """Our state, (nq,) and (nv,), as MuJoCo's qpos and qvel."""
        joint_q, joint_qd = np.asarray(joint_q, float), np.asarray(joint_qd, float)
        qpos, qvel = joint_q + self.model.qpos0, joint_qd.copy()
        for a, d in self._free_joints():
            p, w = joint_q[a : a + 3], joint_qd[d : d + 3]
            quat = _product(_conjugate(UP), joint_q[[a + 6, a + 3, a + 4, a + 5]])
            qpos[a : a + 3], qpos[a + 3 : a + 7] = TO_Y_UP.T @ p, quat
            qvel[d : d + 3] = TO_Y_UP.T @ (joint_qd[d + 3 : d + 6] + np.cross(w, p))
            qvel[d + 3 : d + 6] = _rotate(_conjugate(quat), TO_Y_UP.T @ w)
        return qpos, qvel

    @property
    def start(self):
        """joint_q (nq,): the first keyframe or else the reference pose, within limits, a free root on the ground."""
        return self.from_mujoco(self.start_qpos, np.zeros(self.model.nv))[0]

    @property
    def start_controls(self):
        """The controls (nu,) with which servos hold the start pose; 0 for the others."""
        m, actuation = self.model, self.actuation
        controls = [_holding(m, a, gear, self.start_qpos[m.jnt_qposadr[j]]) for a, j, gear in _on_joints(m)]
        return np.where(actuation.servo, controls, 0.0) if controls else np.zeros(len(actuation.names))

    def _free_joints(self):
        """Where their coordinates and velocities begin."""
        m = self.model
        for j in np.flatnonzero(m.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
            yield m.jnt_qposadr[j], m.jnt_dofadr[j]

    def _report(self, ignore):
        found = _unsupported(self.model)
        refused = {name: count for name, count in found.items() if name in REFUSED and name not in ignore}
        if refused:
            expected = f"{self.path}: expected a robot without {_listed(refused)}"
            if not set(refused) <= set(IGNORABLE):
                raise ValueError(f"{expected}; a ball joint cannot be ignored")
            raise ValueError(f"{expected}; ignore=({', '.join(map(repr, refused))},) leaves them out")
        if found:
            warnings.warn(f"{self.path}: left out: {_listed(found)}", stacklevel=3)

    def _start(self):
        m, qpos = self.model, self.model.qpos0.copy()
        if m.nkey > 0:
            qpos = m.key_qpos[0].copy()
        for j in np.flatnonzero(m.jnt_limited) if m.nkey == 0 else []:
            a = m.jnt_qposadr[j]
            qpos[a] = np.clip(qpos[a], *m.jnt_range[j])
        self.data.qpos[:] = qpos
        mujoco.mj_forward(m, self.data)
        for a, _ in [] if m.nkey > 0 else [*self._free_joints()][:1]:
            qpos[a + 2] -= min((self._world(c)[2] - c.radius for c in self.contacts), default=0.0)
            self.data.qpos[:] = qpos
            mujoco.mj_forward(m, self.data)
        return qpos

    def _body_of(self, link):
        return next(b for b, i in self.link_of.items() if i == link and b > 0)

    def _world(self, contact):
        """Place of a contact point in the file's world, in the start pose."""
        b = self._body_of(contact.link)
        return self.data.xpos[b] + self.data.xmat[b].reshape(3, 3) @ (contact.point + self.shift[b])

    def _limit_joints(self):
        """The spring and damper of joint limits: see above."""
        m = self.model
        heights = [self._world(c)[2] for c in self.contacts] + list(self.data.xpos[1:, 2])
        height, motors = max(max(heights) - min(heights), 0.1), self._motor_forces()
        for link, j in self._driven_links():
            if m.jnt_limited[j]:
                lever, motor = height if link.joint == REVOLUTE else 1.0, motors[m.jnt_dofadr[j]]
                link.limit_stiffness = max(self.weight * lever, min(motor, link.effort_limit)) / self.limit_give
                link.limit_damping = 2.0 * math.sqrt(link.limit_stiffness / self._mobility(m.jnt_dofadr[j]))
                link.limit_damping_depth = 0.1 * self.limit_give

    def _motor_forces(self):
        """(nv,) largest forces of the motors; a servo's ends at its target, and does not count."""
        a = self.actuation
        return (np.maximum(np.abs(a.low), np.abs(a.high)) * ~a.servo) @ np.abs(a.matrix)

    def _driven_links(self):
        """Links with a hinge or a slide, and the joint's index in MuJoCo's model."""
        moving = [link for link in self.links if link.joint in (PRISMATIC, REVOLUTE)]
        return zip(moving, np.flatnonzero(np.isin(self.model.jnt_type, [*_hinges_and_slides()])))

    def _mobility(self, dof):
        """Acceleration of a joint per unit of its force, all others free, in the start pose."""
        return self._solve(np.eye(self.model.nv)[dof])[dof]

    def _solve(self, force):
        result = np.zeros((1, self.model.nv))
        mujoco.mj_solveM(self.model, self.data, result, force[None])
        return result[0]

    def _joint_rates(self):
        for link, j in self._driven_links():
            mobility = self._mobility(self.model.jnt_dofadr[j])
            limited = bool(self.model.jnt_limited[j])
            stiffness = link.stiffness + limited * link.limit_stiffness
            yield (link.damping + link.motor_damping + limited * link.limit_damping) * mobility
            yield math.sqrt(max(stiffness, 0.0) * mobility)

    def _contact_rates(self):
        """Of the spring, the damper at the depth `penetration`, and friction, at every contact point."""
        jacobian = np.zeros((3, self.model.nv))
        damping = self.ground["friction_stiffness"]  # which is kd times the depth as well
        for contact in self.contacts:
            body = self._body_of(contact.link)
            mujoco.mj_jac(self.model, self.data, jacobian, None, self._world(contact), body)
            mobility = max(row @ self._solve(row) for row in jacobian)
            yield math.sqrt(self.ground["stiffness"] * mobility)
            yield damping * mobility


class _Links:
    """The links of a compiled model, and where its bodies are among them.

    link_of: {body: index of its last link}, -1 for what is welded to the world.
    shift: {body: origin of that link's frame in the body's}: a link's frame is at its joint.
    fixed: {body: place and orientation (wxyz) in the file's world} of what is welded to it.
    """

    def __init__(self, model):
        self.model, self.links = model, []
        self.link_of, self.shift = {0: -1}, {0: np.zeros(3)}
        self.fixed = {0: (np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))}
        for body in range(1, model.nbody):
            self._add(body)

    def _pose(self, b):
        """Place and orientation of a body in its parent's link or, on what is welded to the world, in the world."""
        m, above = self.model, self.model.body_parentid[b]
        if above not in self.fixed:
            return m.body_pos[b] - self.shift[above], m.body_quat[b]
        place, quat = self.fixed[above]
        pos, quat = place + _rotate(quat, m.body_pos[b]), _product(quat, m.body_quat[b])
        if not _moves(m, b):
            self.fixed[b] = pos, quat
        return TO_Y_UP @ pos, _product(UP, quat)

    def _add(self, b):
        m, parent = self.model, self.link_of[self.model.body_parentid[b]]
        pos, quat = self._pose(b)
        if not _moves(m, b):
            self.link_of[b], self.shift[b] = -1, np.zeros(3)
            return
        origin = np.zeros(3)  # of the latest link's frame, in the body's
        joints = range(m.body_jntadr[b], m.body_jntadr[b] + m.body_jntnum[b])
        for j in joints:
            name = m.body(b).name + (f" {m.joint(j).name}" if len(joints) > 1 else "")
            link = self._link(name, parent, j)
            if link.joint != FREE:
                offset = pos + _rotate(quat, m.jnt_pos[j] - origin)
                link.offset, link.rotation = tuple(offset), _xyzw(quat)
                pos, quat, origin = np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]), m.jnt_pos[j].copy()
            self.links.append(link)
            parent = len(self.links) - 1
        if len(joints) == 0:
            self.links.append(Link(m.body(b).name, parent, FIXED, offset=tuple(pos), rotation=_xyzw(quat)))
        self.link_of[b], self.shift[b] = len(self.links) - 1, origin
        R, last = _matrix(m.body_iquat[b]), self.links[-1]
        last.mass, last.com = float(m.body_mass[b]), tuple(m.body_ipos[b] - origin)
        last.inertia = tuple((R @ np.diag(m.body_inertia[b]) @ R.T).flat)

    def _link(self, name, parent, j):
        m = self.model
        kind = KINDS[mujoco.mjtJoint(m.jnt_type[j]).name.removeprefix("mjJNT_")]
        link = Link(name, parent, kind, limit_damping=0.0)
        if kind in (PRISMATIC, REVOLUTE):
            dof, q = m.jnt_dofadr[j], m.jnt_qposadr[j]
            link.axis, link.armature, link.damping = tuple(m.jnt_axis[j]), m.dof_armature[dof], m.dof_damping[dof]
            link.stiffness, link.target = m.jnt_stiffness[j], m.qpos_spring[q] - m.qpos0[q]
            if m.jnt_limited[j]:
                link.limits = tuple(m.jnt_range[j] - m.qpos0[q])
        return link


def _on_joints(m):
    """(actuator, joint, gear) of the actuators that drive a hinge or a slide."""
    transmissions, joints = _codes(mujoco.mjtTrn, "JOINT", "JOINTINPARENT"), _hinges_and_slides()
    for a in range(len(m.actuator_trntype)):
        j = m.actuator_trnid[a, 0]
        if m.actuator_trntype[a] in transmissions and m.jnt_type[j] in joints:
            yield a, j, m.actuator_gear[a, 0]


def _motorised(m):
    """Joints that get a motor as strong as the file allows their actuators to be: all, in a file without actuators."""
    joints = _hinges_and_slides()
    return [j for j in range(m.njnt) if m.nu == 0 and m.jnt_actfrclimited[j] and m.jnt_type[j] in joints]


def _add_motors(m, links):
    """The springs, dampers and clamps of servos, added to the joints' own."""
    moving = iter([link for link in links if link.joint in (PRISMATIC, REVOLUTE)])
    link_of_joint = {j: next(moving) for j in range(m.njnt) if m.jnt_type[j] in _hinges_and_slides()}
    driven = {j for _, j, _ in _on_joints(m)} | set(_motorised(m))  # the clamp is one of actuators, not of springs
    clamps = {j: [max(abs(m.jnt_actfrcrange[j]))] for j in driven if m.jnt_actfrclimited[j]}
    forces = {}  # {joint: largest forces of its actuators}
    for a, j, gear in _on_joints(m):
        link, q0 = link_of_joint[j], m.qpos0[m.jnt_qposadr[j]]
        b0, stiffness, damping = _bias(m, a) * [gear, -gear * gear, -gear * gear]
        # torque = spring (target - q), and the servo's spring pulls towards qpos = 0: q = -qpos0
        pull = link.stiffness * link.target - stiffness * q0 + b0
        link.stiffness, link.motor_damping = link.stiffness + stiffness, link.motor_damping + damping
        link.target = pull / link.stiffness if link.stiffness != 0.0 else 0.0
        link.servo = link.servo or bool(stiffness != 0.0)
        link.armature += gear * gear * _extra(m, "actuator_armature", a)
        link.damping += gear * gear * _extra(m, "actuator_damping", a)
        limit = abs(gear) * max(abs(m.actuator_forcerange[a])) if m.actuator_forcelimited[a] else math.inf
        forces.setdefault(j, []).append(limit)
    for j in link_of_joint:
        link_of_joint[j].effort_limit = min([sum(forces.get(j, [math.inf])), *clamps.get(j, [])])


def _bias(m, a):
    """b0, b1, b2 of an actuator's force  gain control + b0 + b1 length + b2 velocity."""
    return m.actuator_biasprm[a, :3] * (m.actuator_biastype[a] == mujoco.mjtBias.mjBIAS_AFFINE)


def _extra(m, name, a):
    """An actuator's armature or damping, which MuJoCo before 4 does not have."""
    return float(getattr(m, name, np.zeros(m.nu))[a])


def _holding(m, a, gear, q):
    """The control with which a servo has no force at the joint position q; 0 if it has no effect."""
    # gain control + b0 + b1 gear q = 0
    (b0, b1, _), gain = _bias(m, a), m.actuator_gainprm[a, 0]
    return -(b0 + b1 * gear * q) / gain if gain != 0.0 else 0.0


def _actuation(m):
    rows = [_control(m, a, j, gear) for a, j, gear in _on_joints(m)]
    for j in _motorised(m):
        rows.append((m.joint(j).name, np.eye(m.nv)[m.jnt_dofadr[j]], *m.jnt_actfrcrange[j], False, 0.0))
    names, matrix, *numbers = zip(*rows) if rows else ([], np.zeros((0, m.nv)), [], [], [], [])
    low, high, servo, per_position = (np.array(x, kind) for x, kind in zip(numbers, (float, float, bool, float)))
    return Actuation(list(names), np.array(matrix), low, high, servo, per_position)


def _control(m, a, j, gear):
    """Name, force on the joints per unit of control, its range, whether it is a position, and control per position."""
    gain, servo, first = m.actuator_gainprm[a, 0], bool(_bias(m, a)[1] != 0.0), _first_control(m, a)
    row = np.eye(m.nv)[m.jnt_dofadr[j]] * gear * gain
    bounds = np.array([-1.0, 1.0])
    if m.actuator_ctrllimited[first]:
        bounds = m.actuator_ctrlrange[first]
    elif _has_bounds(m, a, j):
        bounds = [_holding(m, a, gear, q) for q in m.jnt_range[j]] if servo else m.actuator_forcerange[a] / gain
    per_position = (_holding(m, a, gear, 1.0) - _holding(m, a, gear, 0.0)) * servo
    return m.actuator(a).name or m.joint(j).name, row, min(bounds), max(bounds), servo, per_position


def _first_control(m, a):
    """Index of an actuator's control; before MuJoCo 4 each has one."""
    return m.actuator_ctrladr[a] if hasattr(m, "actuator_ctrladr") else a


def _has_bounds(m, a, j):
    """Whether joint or force limits bound a control without a range of its own."""
    servo = _bias(m, a)[1] != 0.0
    return m.actuator_gainprm[a, 0] != 0.0 and (m.jnt_limited[j] if servo else m.actuator_forcelimited[a])


def _contacts(m, link_of, shift, ground):
    """Contact points with the ground of everything that moves and touches it."""
    planes = _planes(m)
    points = []
    for g in range(m.ngeom):
        body, friction = m.geom_bodyid[g], _friction(m, g, planes)
        if friction is not None and _moves(m, body):
            link, radius = link_of[body], _radius(m, g)
            places = [tuple(p - shift[body]) for p in _touching_points(m, g)]
            points += [ContactPoint(link, p, radius, friction=friction, **ground) for p in places]
    return points


def _planes(m):
    """Indices of the ground."""
    return np.flatnonzero(m.geom_type == mujoco.mjtGeom.mjGEOM_PLANE).tolist()


def _friction(m, g, planes):
    """The coefficient of geom g on the ground as MuJoCo combines it, or None if it does not touch the ground."""
    if m.geom_type[g] == mujoco.mjtGeom.mjGEOM_PLANE or _is_off(m, "CONTACT", "CONSTRAINT"):
        return None
    for pair in range(m.npair):
        both = {m.pair_geom1[pair], m.pair_geom2[pair]}
        if g in both and both & set(planes):
            return float(m.pair_friction[pair, 0]) * (m.pair_dim[pair] > 1)
    if _excluded(m, 0, m.geom_bodyid[g]):  # which a listed pair overrides
        return None
    for plane in planes:
        kind, affinity, priority, mu, dim = _material(m, plane)
        own_kind, own_affinity, own_priority, own_mu, own_dim = _material(m, g)
        if kind & own_affinity or own_kind & affinity:
            if priority != own_priority:
                mu, dim = (mu, dim) if priority > own_priority else (own_mu, own_dim)
            else:
                mu, dim = max(mu, own_mu), max(dim, own_dim)
            return float(mu) * (dim > 1)
    return None


def _material(m, g):
    mu, dim = m.geom_friction[g, 0], m.geom_condim[g]
    return m.geom_contype[g], m.geom_conaffinity[g], m.geom_priority[g], mu, dim


def _excluded(m, a, b):
    """Whether the file excludes contact between two bodies."""
    return any((int(low) << 16) + int(high) in m.exclude_signature for low, high in ((a, b), (b, a)))


def _moves(m, body):
    return m.body_weldid[body] != 0


def _radius(m, g):
    is_round = m.geom_type[g] in _codes(mujoco.mjtGeom, "SPHERE", "CAPSULE")
    return float(m.geom_size[g, 0]) if is_round else 0.0


def _touching_points(m, g):
    """Where geom g touches the ground, in its body's frame: centre, ends or corners."""
    kind, half_length, local = m.geom_type[g], m.geom_size[g, 1], []
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        local = [np.zeros(3)]
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        local = [[0.0, 0.0, -half_length], [0.0, 0.0, half_length]]
    if kind in _codes(mujoco.mjtGeom, "BOX", "MESH"):
        center, half = _bounding_box(m, g)
        local = [center + half * (2.0 * np.array(s) - 1.0) for s in np.ndindex(2, 2, 2)]
    return [m.geom_pos[g] + _rotate(m.geom_quat[g], p) for p in local]


def _bounding_box(m, g):
    """Centre and half extents in the geom's frame."""
    if m.geom_type[g] != mujoco.mjtGeom.mjGEOM_MESH:
        return np.zeros(3), _half_extents(m, g)
    mesh = m.geom_dataid[g]
    start = m.mesh_vertadr[mesh]
    vertices = m.mesh_vert[start : start + m.mesh_vertnum[mesh]]
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return 0.5 * (low + high), 0.5 * (high - low)


def _half_extents(m, g):
    size, kind = m.geom_size[g], m.geom_type[g]
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return np.full(3, size[0])
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return np.array([size[0], size[0], size[1] + size[0]])
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return np.array([size[0], size[0], size[1]])
    return size.copy()


def _shapes(m, link_of, shift):
    """What is drawn: all that touches; of a body on which nothing does, all that there is."""
    drawable = [g for g in range(m.ngeom) if link_of[m.geom_bodyid[g]] >= 0 and _is_solid(m, g)]
    touching = {g for g in drawable if m.geom_contype[g] or m.geom_conaffinity[g]}
    bodies = {m.geom_bodyid[g] for g in touching}
    return [
        _shape(m, g, link_of[m.geom_bodyid[g]], shift[m.geom_bodyid[g]])
        for g in drawable
        if g in touching or m.geom_bodyid[g] not in bodies
    ]


def _is_solid(m, g):
    return m.geom_type[g] not in _codes(mujoco.mjtGeom, "PLANE", "HFIELD")


def _shape(m, g, link, shift):
    """A box where its faces are parallel to the link's axes, else a capsule along the longest axis of the geom."""
    center, half = _bounding_box(m, g)
    R, place = _matrix(m.geom_quat[g]), m.geom_pos[g] - shift
    center = place + R @ center
    boxy = m.geom_type[g] in _codes(mujoco.mjtGeom, "BOX", "MESH")
    if boxy and np.isclose(np.abs(R).max(axis=0), 1.0, atol=1e-3).all():
        return Box(link, tuple(center), tuple(np.abs(R) @ half))
    long = int(np.argmax(half))
    radius = float(np.delete(half, long).mean())
    reach = R[:, long] * max(half[long] - radius, 0.0)
    return Capsule(link, tuple(center - reach), tuple(center + reach), radius)


def _slides_along_x(links):
    """Whether the place along x of the root does not matter: see Articulation."""
    root, roots = links[0], [link for link in links if link.parent < 0]
    if len(roots) > 1 or root.joint != PRISMATIC or root.stiffness != 0.0 or tuple(root.limits) != Link.limits:
        return False
    return bool(np.allclose(_rotate([root.rotation[3], *root.rotation[:3]], root.axis), [1.0, 0.0, 0.0], atol=1e-6))


def _compile(path, floating):
    """MuJoCo's model of a file. Raises ImportError without MuJoCo and ValueError for a file that it cannot read."""
    if mujoco is None:
        raise ImportError("a robot from a file is read by MuJoCo, which is not installed: pip install mujoco")
    if not Path(path).is_file():
        raise ValueError(f"path: expected an MJCF or URDF file, got {str(path)!r}, which is not there")
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        if floating and not any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in spec.joints):
            spec.compiler.fusestatic = False  # which would merge the root into the world
            spec.worldbody.first_body().add_freejoint()
        if not any(geom.type == mujoco.mjtGeom.mjGEOM_PLANE for geom in spec.geoms):
            plain = mujoco.MjSpec()  # the file's own defaults may place or shape a geom
            spec.worldbody.add_geom(plain.default, type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0.0, 0.0, 1.0])
        model = spec.compile()
    except Exception as error:  # whatever MuJoCo makes of a file that is not a robot
        reason = " ".join(str(error).split())
        raise ValueError(f"path: expected a file that MuJoCo can read, got {str(path)!r} ({reason})") from error
    model.jnt_limited &= not _is_off(model, "LIMIT", "CONSTRAINT")
    return model


def _is_off(m, *names):
    """Whether the file's <option> turns one of these parts of the physics off."""
    return any(m.opt.disableflags & bit for bit in _codes(mujoco.mjtDisableBit, *names))


def _unsupported(m):
    """{name: count} of what the model has and our physics has not."""
    return {name: int(count) for name, count in (_refused(m) | _left_out(m)).items() if count}


def _refused(m):
    on_joints = {a: j for a, j, _ in _on_joints(m)}
    gains = m.actuator_gaintype != mujoco.mjtGain.mjGAIN_FIXED
    biases = ~np.isin(m.actuator_biastype, [*_codes(mujoco.mjtBias, "NONE", "AFFINE")])
    states = m.actuator_dyntype != mujoco.mjtDyn.mjDYN_NONE
    delays = getattr(m, "actuator_delay", np.zeros(m.nu)) > 0.0
    pulls = [a for a in on_joints if _bias(m, a)[0] != 0.0 and _bias(m, a)[1] == 0.0]
    polynomials = ("jnt_stiffnesspoly", "dof_dampingpoly", "actuator_dampingpoly", "jnt_springyield")
    springs = (m.jnt_type == mujoco.mjtJoint.mjJNT_FREE) & (m.jnt_stiffness != 0.0)
    return {
        "ball joint": (m.jnt_type == mujoco.mjtJoint.mjJNT_BALL).sum(),
        "equality constraint": m.neq,
        "tendon with a force": sum(_has_force(m, tendon) for tendon in range(m.ntendon)),
        "actuator not on a hinge or slide": len(m.actuator_trntype) - len(on_joints),
        "actuator with a state or a delay": (states | delays).sum(),
        "actuator with a varying gain": (gains | biases).sum(),
        "actuator with a constant force": len(pulls),
        "gravity compensation": (m.body_gravcomp != 0.0).sum(),
        "fluid": int(m.opt.density > 0.0 or m.opt.viscosity > 0.0),
        "spring or damper that is not linear": sum(np.any(getattr(m, name, 0.0)) for name in polynomials),
        "spring of a free joint": springs.sum(),
        "adhesion": sum(np.count_nonzero(getattr(m, name, 0.0)) for name in ("geom_adhesion", "pair_adhesion")),
        "moving surface": np.any(getattr(m, "geom_surfacevel", np.zeros((1, 1))), axis=1).sum(),
        "override of contact parameters": int(m.opt.enableflags & mujoco.mjtEnableBit.mjENBL_OVERRIDE != 0),
        "plugin": sum((x >= 0).sum() for x in (m.actuator_plugin, m.body_plugin, m.geom_plugin)),
        "flexible body": getattr(m, "nflex", 0),
        "ground that is not the plane z = 0": sum(not _is_ground(m, g) for g in _planes(m)),
        "disabled part of the physics": _disabled(m),
    }


def _disabled(m):
    """How many of these flags the file sets; groups of actuators that are off count as one."""
    return sum(_is_off(m, name) for name in PHYSICS) + int(getattr(m.opt, "disableactuator", 0) != 0)


def _has_force(m, t):
    names = ("tendon_stiffness", "tendon_damping", "tendon_frictionloss", "tendon_limited")
    of_mujoco_4 = ("tendon_stiffnesspoly", "tendon_dampingpoly", "tendon_armature")
    return any(np.any(getattr(m, name)[t]) for name in (*names, *of_mujoco_4) if hasattr(m, name))


def _is_ground(m, g):
    upright = np.allclose(_matrix(m.geom_quat[g])[:, 2], [0.0, 0.0, 1.0], atol=1e-6)
    return bool(m.geom_bodyid[g] == 0 and upright and abs(m.geom_pos[g, 2]) < 1e-6)


def _left_out(m):
    planes = _planes(m)
    free = [d for d in range(m.nv) if m.jnt_type[m.dof_jntid[d]] == mujoco.mjtJoint.mjJNT_FREE]
    touching = [g for g in range(m.ngeom) if _friction(m, g, planes) is not None and _moves(m, m.geom_bodyid[g])]
    without_points = [g for g in touching if not _touching_points(m, g)]
    collides = (m.geom_contype != 0) | (m.geom_conaffinity != 0)
    collides &= not _is_off(m, "CONTACT", "CONSTRAINT")
    listed = set() if _is_off(m, "CONTACT", "CONSTRAINT") else {*m.pair_geom1, *m.pair_geom2}
    still = [g for g in range(m.ngeom) if (collides[g] or g in listed) and not _moves(m, m.geom_bodyid[g])]
    driven = [(a, j) for a, j, _ in _on_joints(m) if not m.actuator_ctrllimited[_first_control(m, a)]]
    unbounded = [a for a, j in driven if not _has_bounds(m, a, j)]
    clamps = [m.actuator_forcerange[a] for a in np.flatnonzero(m.actuator_forcelimited)]
    clamps += [m.jnt_actfrcrange[j] for j in {j for _, j, _ in _on_joints(m)} if m.jnt_actfrclimited[j]]
    return {
        "friction in a joint": (m.dof_frictionloss > 0.0).sum(),
        "damping or armature of a free joint": sum(m.dof_damping[d] > 0.0 or m.dof_armature[d] > 0.0 for d in free),
        "contact between two bodies": len(_pairs_of_bodies(m, collides, listed)),
        "contact with another shape of the world": sum(m.geom_type[g] != mujoco.mjtGeom.mjGEOM_PLANE for g in still),
        "contact of a cylinder, ellipsoid or field": len(without_points),
        "control without a range, taken as -1 to 1": len(unbounded),
        "force clamp that is not symmetric": sum(abs(clamp.sum()) > 1e-9 for clamp in clamps),
    }


def _pairs_of_bodies(m, collides, listed):
    """Pairs of moving bodies whose geoms touch each other in the file; parent and child only if it lists them."""
    moving = [g for g in range(m.ngeom) if collides[g] and _moves(m, m.geom_bodyid[g])]
    bodies = [m.body_weldid[m.geom_bodyid[list(pair)]] for pair in zip(m.pair_geom1, m.pair_geom2)]
    pairs = {(int(min(pair)), int(max(pair))) for pair in bodies if listed and min(pair) > 0}
    for k, g in enumerate(moving):
        for h in moving[:k]:
            meet = m.geom_contype[g] & m.geom_conaffinity[h] or m.geom_contype[h] & m.geom_conaffinity[g]
            a, b = sorted((m.body_weldid[m.geom_bodyid[g]], m.body_weldid[m.geom_bodyid[h]]))
            related = a == b or a == m.body_weldid[m.body_parentid[b]]
            if meet and not related and not _excluded(m, m.geom_bodyid[g], m.geom_bodyid[h]):
                pairs.add((int(a), int(b)))
    return pairs


def _check_names(ignore):
    unknown = [ignore] if isinstance(ignore, str) else [name for name in ignore if name not in IGNORABLE]
    if unknown:
        raise ValueError(f"ignore: expected a tuple of names among {', '.join(IGNORABLE)}, got {shown(unknown[0])}")


def _codes(enum, *names):
    """The numbers of MuJoCo's types by their names, less the prefix."""
    return {int(value) for name, value in enum.__members__.items() if name.split("_", 1)[-1] in names}


def _hinges_and_slides():
    return _codes(mujoco.mjtJoint, "HINGE", "SLIDE")


def _listed(found):
    return ", ".join(f"{name} ({count})" for name, count in found.items())


def _rotate(quat, vector):
    return _matrix(quat) @ np.asarray(vector, float)


def _matrix(quat):
    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, np.asarray(quat, float))
    return out.reshape(3, 3)


def _product(a, b):
    out = np.zeros(4)
    mujoco.mju_mulQuat(out, np.asarray(a, float), np.asarray(b, float))
    return out


def _conjugate(quat):
    return np.asarray(quat, float) * [1.0, -1.0, -1.0, -1.0]


def _xyzw(quat):
    quat = np.asarray(quat, float) / np.linalg.norm(quat)
    return (*map(float, quat[1:]), float(quat[0]))
