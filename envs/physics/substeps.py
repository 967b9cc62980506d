"""The buffers and graphs of one environment step for a batch of environments.

A step is a list of kernel launches on static buffers: forward the list, backward the list reversed.

A kernel's adjoint reads its inputs from memory again, so every substep has arrays of its own (`Intermediates`): with
shared ones the adjoint of the first substep would silently use the values of the last.  The gradients of these values
live for one substep only (that of H until the substep that built it) and share one set of buffers; the adjoint of
each store leaves them at zero.

`forward` leaves these values behind, and `backward` of the same step starts from them.  Where another step has used
the buffers in between, it runs the substeps again first.

The launches are captured once and replayed by one call, on the CPU as on CUDA.

Neighbouring threads of a launch are neighbouring environments.  On CUDA arrays have the environments last in memory,
so that these threads read neighbouring addresses; on the CPU first, so that an environment's numbers are side by side,
except what the solve works on, which has them last, for its lanes (lanes.py).  Shapes and indices are the same,
environments first, and so are the results.
"""

from dataclasses import dataclass
from functools import partial

import torch
import warp as wp

from envs.physics.articulation import Articulation
from envs.physics.body_contact import find_touching, pair_wrenches, subtract_pair_wrenches
from envs.physics.forces import joint_forces, link_wrenches
from envs.physics.integrate import find_diverged, integrate_position, integrate_velocity
from envs.physics.kinematics import forward_kinematics
from envs.physics.lanes import in_lanes, round_up
from envs.physics.mass_matrix import composite_inertias, factorise, mass_matrix, solve, solve_adjoint
from envs.physics.model import Model, PairModel
from envs.physics.parameters import ALIKE, DIFFERENTIABLE, VALUES
from envs.physics.reference_point import choose_reference_point, move_origin_of_positions, move_origin_of_velocities


@dataclass
class Variable:
    """What goes into a step or comes out of it: a Warp array and its gradient, if it has one, and torch's views."""

    array: wp.array
    value: torch.Tensor
    grad: torch.Tensor | None


@dataclass
class Stage:
    """One launch of a kernel for all environments."""

    kernel: wp.Kernel
    threads: tuple  # per environment, or per 16 of them if the arrays are in lanes
    inputs: list
    outputs: list
    adjoint_stages: list | None = (
        None  # stages, in the order of the backward pass, in place of Warp's adjoint of the kernel
    )


NO_DERIVATIVE = []  # the adjoint of a stage whose outputs are constants


class Intermediates:
    """What one substep computes on its way: each value is written once."""

    def __init__(self, allocate, num_dofs, num_links, num_pairs, rebuilds_mass_matrix):
        self.link_pose = allocate("link_pose", wp.transform, num_links)  # X
        self.motion_subspace = allocate("motion_subspace", wp.spatial_vector, num_dofs)  # S
        self.link_twist = allocate("link_twist", wp.spatial_vector, num_links)  # v
        self.link_bias = allocate("link_bias", wp.spatial_vector, num_links)  # a
        self.link_wrench = self.net_wrench = allocate("link_wrench", wp.spatial_vector, num_links)  # f
        self.tree_wrench = allocate("tree_wrench", wp.spatial_vector, num_links)  # sums of f from the leaves on
        if num_pairs > 0:
            self.touching = allocate(None, wp.vec2i, num_pairs)  # without a gradient, see body_contact.py
            self.pair_wrench = allocate("pair_wrench", wp.spatial_vector, num_pairs)
            self.net_wrench = allocate("net_wrench", wp.spatial_vector, num_links)  # f less the pairs' wrenches
        self.joint_tau = allocate("joint_tau", float, num_dofs, lanes=True)  # tau
        self.joint_qdd = allocate("joint_qdd", float, num_dofs, lanes=True)  # qdd
        if rebuilds_mass_matrix:
            self.tree_moment = allocate("tree_moment", wp.vec3, num_links)  # m c of a subtree
            self.tree_inertia = allocate("tree_inertia", wp.mat33, num_links)  # I of a subtree
            self.H = allocate("H", float, num_dofs, num_dofs, lanes=True)
            # L and 1 / D, without a gradient: mass_matrix.py
            self.factor = allocate(None, float, num_dofs, num_dofs, lanes=True)


class Substeps:
    """Runs environment steps of one batch, forward and backward, on its own buffers."""

    def __init__(
        self, model: Model, pairs: PairModel, articulation: Articulation, num_envs, dt, substeps, interval, parameters
    ):
        self.num_envs = num_envs
        self.num_coords, self.num_dofs = articulation.num_coords, articulation.num_dofs
        self.num_links, self.num_pairs = len(articulation.links), len(articulation.contact_pairs)
        self.h, self.interval = dt / substeps, interval
        self.warp_device = model.link_parent.device
        # threads that share an environment's pairs: on the CPU a thread costs more than checking a distant pair, so one
        # does them all
        self.lanes = self.num_pairs if self.warp_device.is_cuda else 1
        self.grads, self.num_bytes, self.step_held = {}, 0, None
        self.world_q, self.new_q = self._variable(self.num_coords), self._variable(self.num_coords)
        self.world_qd, self.new_qd = self._variable(self.num_dofs), self._variable(self.num_dofs)
        self.act = self._variable(self.num_dofs)
        # about the reference point, at the start of each substep and after the last
        self.q = [self._differentiable(self.num_coords) for _ in range(substeps + 1)]
        self.qd = [self._differentiable(self.num_dofs) for _ in range(substeps + 1)]
        self.inputs = [self.world_q, self.world_qd, self.act]
        self.model, self.pairs = (self._with_rows(struct, parameters) for struct in (model, pairs))
        self.reference_point = self._allocate(None, wp.vec3)
        self.diverged = self._allocate(None, wp.bool)
        self.diverged_rows = self._view(self.diverged)
        self.substeps = [
            Intermediates(self._allocate, self.num_dofs, self.num_links, self.num_pairs, s % self.interval == 0)
            for s in range(substeps)
        ]
        self.forward_graph = self._capture(self._launch_forward)
        self.backward_graph = self._capture(self._launch_backward)
        wp.synchronize_device(self.warp_device)  # torch's stream does not wait for the buffers to be ready

    @property
    def environments_last(self):
        """Whether the arrays have the environments last in memory."""
        return self.warp_device.is_cuda

    def forward(self, step, *inputs):
        """joint_q (n, nq), joint_qd (n, nv), joint_act (n, nv) and, where environments differ, the parameters' values
        (n, k, ...) -> the state after all substeps, and whether it has blown up (n,).

        step: a number that is given to no other step.
        """
        self.step_held = None  # until the launches finish, the buffers belong to no step
        for variable, value in zip(self.inputs, inputs):
            variable.value.copy_(value)
        self._replay(self.forward_graph)
        self.step_held = step
        return self.new_q.value.clone(), self.new_qd.value.clone(), self.diverged_rows.clone()

    def backward(self, step, *inputs_and_gradients):
        """The vector-Jacobian product of `forward` at the same step and inputs.

        The last two arguments are grad_q (n, nq) and grad_qd (n, nv).  Returned are the gradients of all inputs, or of
        all but the parameters where these have none.
        """
        *inputs, grad_q, grad_qd = inputs_and_gradients
        if self.step_held != step:
            self.forward(step, *inputs)
        variables = [variable for variable in self.inputs if variable.grad is not None]
        # adjoint kernels add to the gradients of their inputs and clear those of their outputs
        for variable in variables:
            variable.grad.zero_()
        self.new_q.grad.copy_(grad_q)
        self.new_qd.grad.copy_(grad_qd)
        self._replay(self.backward_graph)
        return tuple(variable.grad.clone() for variable in variables)

    def stages(self):
        """One environment step, in the order of the physics."""
        model, point, dofs = self.model, self.reference_point, (self.num_dofs,)
        world_q, world_qd, new_q, new_qd = (x.array for x in (self.world_q, self.world_qd, self.new_q, self.new_qd))

        # move the origin to the reference point
        yield Stage(choose_reference_point, (), [model, world_q], [point], NO_DERIVATIVE)
        yield Stage(move_origin_of_positions, (self.num_coords,), [model, 1.0, point, world_q], [self.q[0]])
        yield Stage(move_origin_of_velocities, dofs, [model, 1.0, point, world_qd], [self.qd[0]])

        for s in range(len(self.substeps)):
            yield from self._substep(s)

        # move the origin back
        yield Stage(move_origin_of_positions, (self.num_coords,), [model, -1.0, point, self.q[-1]], [new_q])
        yield Stage(move_origin_of_velocities, dofs, [model, -1.0, point, self.qd[-1]], [new_qd])
        yield Stage(find_diverged, (), [new_q, new_qd], [self.diverged], NO_DERIVATIVE)

    def launch(self, stage, **warp_options):
        """Run one stage; warp_options: those of wp.launch."""
        dim = (*stage.threads, stage.outputs[0].shape[0])
        wp.launch(stage.kernel, dim, stage.inputs, stage.outputs, device=self.warp_device, **warp_options)

    def _substep(self, s):
        model, links, dofs = self.model, (self.num_links,), (self.num_dofs,)
        (q, next_q), (qd, next_qd) = self.q[s : s + 2], self.qd[s : s + 2]
        x, rebuilt = self.substeps[s], self.substeps[s - s % self.interval]  # whose mass matrix is the latest

        # X, S, v, a
        yield Stage(forward_kinematics, (), [model, q, qd], [x.link_pose, x.motion_subspace, x.link_twist, x.link_bias])

        # f: inertia, gravity, ground contact, and contact between bodies
        yield Stage(link_wrenches, links, [model, x.link_pose, x.link_twist, x.link_bias], [x.link_wrench])
        if self.num_pairs > 0:
            yield from self._body_contact(x)

        # tau
        force_inputs = [model, q, qd, self.act.array, x.motion_subspace, x.net_wrench]
        yield Stage(joint_forces, (), force_inputs, [x.tree_wrench, x.joint_tau])

        # H, every `interval` substeps, and factorised
        if x is rebuilt:
            yield Stage(composite_inertias, (), [model, x.link_pose], [x.tree_moment, x.tree_inertia])
            yield Stage(mass_matrix, dofs, [model, x.motion_subspace, x.tree_moment, x.tree_inertia], [x.H])
            yield Stage(factorise, (), [model, in_lanes(x.H)], [in_lanes(x.factor)], NO_DERIVATIVE)

        # qdd = H^-1 tau
        factor, tau, qdd = (in_lanes(array) for array in (rebuilt.factor, x.joint_tau, x.joint_qdd))
        yield Stage(solve, (), [model, factor, tau], [qdd], self._adjoint_of_solve(x, rebuilt))

        # q, qd
        yield Stage(integrate_velocity, dofs, [self.h, qd, x.joint_qdd], [next_qd])
        yield Stage(integrate_position, links, [model, self.h, q, next_qd], [next_q])

    def _body_contact(self, x):
        pairs, lanes, poses = self.pairs, self.lanes, x.link_pose
        yield Stage(find_touching, (lanes,), [pairs, lanes, poses], [x.touching], NO_DERIVATIVE)
        yield Stage(pair_wrenches, (lanes,), [pairs, lanes, poses, x.link_twist, x.touching], [x.pair_wrench])
        yield Stage(subtract_pair_wrenches, (self.num_links,), [pairs, x.link_wrench, x.pair_wrench], [x.net_wrench])

    def _adjoint_of_solve(self, x, rebuilt):
        """One more solve with the same factors, and the gradient of H: see mass_matrix.py."""
        factor, qdd = in_lanes(rebuilt.factor), in_lanes(x.joint_qdd)
        grad_qdd, grad_tau, grad_H = (in_lanes(array.grad) for array in (x.joint_qdd, x.joint_tau, rebuilt.H))
        return [
            Stage(solve, (), [self.model, factor, grad_qdd], [grad_tau]),
            Stage(solve_adjoint, (self.num_dofs,), [self.model, qdd, grad_tau], [grad_H, grad_qdd]),
        ]

    def _launch_forward(self):
        for stage in self.stages():
            self.launch(stage)

    def _launch_backward(self):
        for stage in reversed(list(self.stages())):
            if stage.adjoint_stages is None:
                gradients = [_gradient(x) for x in stage.inputs], [x.grad for x in stage.outputs]
                self.launch(stage, adj_inputs=gradients[0], adj_outputs=gradients[1], adjoint=True)
            else:
                for replacement in stage.adjoint_stages:
                    self.launch(replacement)

    def _capture(self, launches):
        with wp.ScopedCapture(device=self.warp_device) as capture:
            launches()
        return capture.graph

    def _replay(self, graph):
        """Run the launches of stages(), which __init__ has recorded."""
        # on CUDA the graph must run on torch's stream, between the copies in and out
        stream = wp.stream_from_torch(self.act.value.device) if self.warp_device.is_cuda else None
        wp.capture_launch(graph, stream=stream)

    def _zeros(self, dtype, *shape, lanes=False):
        last = (self.environments_last or lanes) and 0 not in shape  # Warp does not slice an array without numbers
        in_memory = (*shape, round_up(self.num_envs)) if last else (self.num_envs, *shape)
        try:
            whole = wp.zeros(in_memory, dtype=dtype, device=self.warp_device)
        except RuntimeError as error:
            expected = "num_envs: expected as many environments as fit into memory"
            raise ValueError(f"{expected}, got {self.num_envs} for one thread") from error
        self.num_bytes += whole.capacity
        array = whole.transpose((len(shape), *range(len(shape))))[: self.num_envs] if last else whole
        return array

    def _differentiable(self, width):
        array = self._zeros(float, width)
        array.grad = self._zeros(float, width)
        return array

    def _variable(self, width):
        array = self._differentiable(width)
        return Variable(array, self._view(array), self._view(array.grad))

    def _with_rows(self, struct, parameters):
        """The model; where environments differ, with rows of their own for VALUES, which become inputs."""
        if parameters == ALIKE:
            return struct
        own = type(struct)()
        own.assign(struct)
        for name in filter(partial(hasattr, struct), VALUES):
            shared = getattr(struct, name)
            array, grad = self._zeros(shared.dtype, *shared.shape[1:]), None
            if parameters == DIFFERENTIABLE:
                array.grad = self._zeros(shared.dtype, *shared.shape[1:])
                grad = self._view(array.grad)
            self.inputs.append(Variable(array, self._view(array), grad))
            setattr(own, name, array)
        return own

    def _view(self, array):
        """The same memory as a torch tensor, whatever torch's default device is."""
        with torch.device(wp.device_to_torch(self.warp_device)):
            return wp.to_torch(array, requires_grad=False)

    def _allocate(self, name, dtype, *shape, lanes=False):
        """An array of its own for the value, the shared buffer of that name for its gradient."""
        array = self._zeros(dtype, *shape, lanes=lanes)
        if name is not None and name not in self.grads:
            self.grads[name] = self._zeros(dtype, *shape, lanes=lanes)
        array.grad = self.grads.get(name)
        return array


def _gradient(x):
    """Where a kernel's adjoint adds the gradient of an input; the model and numbers are constants."""
    if isinstance(x, wp.array):
        return x.grad
    return type(x)()  # 0 or a structure of nothing
