"""The substeps of one environment step as two graphs of kernel launches, forward and backward, on static buffers.

A kernel's adjoint reads its inputs from memory again, so every substep has arrays of its own (`Intermediates`): with
shared ones the adjoint of the first substep would silently use the values of the last.  The gradients of these values
live for one substep only and share one set of buffers; the adjoint of each store leaves them at zero.

`forward` leaves these values behind, and `backward` of the same step starts from them.  Where another step has used
the buffers in between, it runs the substeps again first.

The launches are captured once and replayed by one call, on the CPU as on CUDA.

Neighbouring threads of a launch are neighbouring environments.  On CUDA arrays have the environments last in memory,
so that these threads read neighbouring addresses; on the CPU first, so that an environment's numbers are side by side.
Shapes and indices are the same, environments first, and so are the results.
"""

from dataclasses import dataclass

import torch
import warp as wp

from envs.physics.articulation import Articulation
from envs.physics.body_contact import find_touching, pair_wrenches, subtract_pair_wrenches
from envs.physics.forces import joint_forces, link_wrenches
from envs.physics.integrate import find_diverged, integrate_position, integrate_velocity
from envs.physics.kinematics import forward_kinematics
from envs.physics.mass_matrix import composite_inertias, factorise, mass_matrix, solve, solve_adjoint
from envs.physics.model import Model, PairModel
from envs.physics.reference_point import choose_reference_point, move_origin_of_positions, move_origin_of_velocities


@dataclass
class State:
    """A Warp array with a gradient, and torch's views of both."""

    array: wp.array
    value: torch.Tensor
    grad: torch.Tensor


class Intermediates:
    """What one substep computes on its way: each value is written once."""

    def __init__(self, allocate, num_dofs, num_links, num_pairs, rebuilds_mass_matrix):
        self.link_pose = allocate("link_pose", wp.transform, num_links)
        self.motion_subspace = allocate("motion_subspace", wp.spatial_vector, num_dofs)
        self.link_twist = allocate("link_twist", wp.spatial_vector, num_links)
        self.link_bias = allocate("link_bias", wp.spatial_vector, num_links)
        self.link_wrench = allocate("link_wrench", wp.spatial_vector, num_links)
        self.tree_wrench = allocate("tree_wrench", wp.spatial_vector, num_links)
        if num_pairs > 0:
            self.touching = allocate(None, int, num_pairs)  # without a gradient, see body_contact.py
            self.pair_wrench = allocate("pair_wrench", wp.spatial_vector, num_pairs)
            self.net_wrench = allocate("net_wrench", wp.spatial_vector, num_links)
        self.joint_tau = allocate("joint_tau", float, num_dofs)
        self.joint_qdd = allocate("joint_qdd", float, num_dofs)
        if rebuilds_mass_matrix:
            self.tree_moment = allocate("tree_moment", wp.vec3, num_links)
            self.tree_inertia = allocate("tree_inertia", wp.mat33, num_links)
            self.H = allocate("H", float, num_dofs, num_dofs)
            self.factor = allocate(None, float, num_dofs, num_dofs)  # without a gradient, see mass_matrix.py


class Substeps:
    """A batch of environments: buffers for the states and intermediate values of all substeps, and the two graphs."""

    def __init__(self, model: Model, pairs: PairModel, articulation: Articulation, num_envs, dt, substeps, interval):
        self.model, self.pairs, self.num_envs = model, pairs, num_envs
        self.num_coords, self.num_dofs = articulation.num_coords, articulation.num_dofs
        self.num_links, self.num_pairs = len(articulation.links), len(articulation.contact_pairs)
        self.h, self.interval = dt / substeps, interval
        self.warp_device = model.link_mass.device
        # threads that share an environment's pairs: on the CPU, starting one costs more than a pair that is apart
        self.lanes = self.num_pairs if self.warp_device.is_cuda else 1
        self.grads, self.num_bytes, self.step_held = {}, 0, None
        self.world_q, self.new_q, *self.q = (self._state(self.num_coords) for _ in range(substeps + 3))
        self.world_qd, self.new_qd, *self.qd = (self._state(self.num_dofs) for _ in range(substeps + 3))
        self.act = self._state(self.num_dofs)
        self.reference_point = self._allocate(None, wp.vec3)
        self.diverged = self._allocate(None, wp.bool)
        self.diverged_rows = wp.to_torch(self.diverged)
        self.steps = [
            Intermediates(self._allocate, self.num_dofs, self.num_links, self.num_pairs, s % self.interval == 0)
            for s in range(substeps)
        ]
        self.forward_graph = self._capture(self._forward_step)
        self.backward_graph = self._capture(self._backward_step)
        wp.synchronize_device(self.warp_device)  # torch's stream does not wait for the buffers to be ready

    @property
    def environments_last(self):
        """Whether the arrays have the environments last in memory."""
        return self.warp_device.is_cuda

    def forward(self, step, joint_q, joint_qd, joint_act):
        """(n, nq), (n, nv), (n, nv) -> the state after all substeps, and whether it has blown up (n,).

        step: a number that is given to no other step.
        """
        self._run_forward(step, joint_q, joint_qd, joint_act)
        return self.new_q.value.clone(), self.new_qd.value.clone(), self.diverged_rows.clone()

    def backward(self, step, joint_q, joint_qd, joint_act, grad_q, grad_qd):
        """The vector-Jacobian product of `forward` at the same step and inputs."""
        if self.step_held != step:
            self._run_forward(step, joint_q, joint_qd, joint_act)
        inputs = (self.world_q, self.world_qd, self.act)
        # adjoint kernels add to the gradients of their inputs and clear those of their outputs
        for state in inputs:
            state.grad.zero_()
        self.new_q.grad.copy_(grad_q)
        self.new_qd.grad.copy_(grad_qd)
        self._replay(self.backward_graph)
        return tuple(state.grad.clone() for state in inputs)

    def _run_forward(self, step, joint_q, joint_qd, joint_act):
        self.step_held = None  # until the launches below have ended, the buffers hold no step whole
        self.world_q.value.copy_(joint_q)
        self.world_qd.value.copy_(joint_qd)
        self.act.value.copy_(joint_act)
        self._replay(self.forward_graph)
        self.step_held = step

    def _capture(self, launches):
        with wp.ScopedCapture(device=self.warp_device) as capture:
            launches()
        return capture.graph

    def _replay(self, graph):
        # on CUDA the graph must run on torch's stream, between the copies in and out
        stream = wp.stream_from_torch(self.act.value.device) if self.warp_device.is_cuda else None
        wp.capture_launch(graph, stream=stream)

    def _zeros(self, dtype, *shape):
        if self.environments_last:
            array = wp.zeros((*shape, self.num_envs), dtype=dtype, device=self.warp_device)
            array = array.transpose((len(shape), *range(len(shape))))
        else:
            array = wp.zeros((self.num_envs, *shape), dtype=dtype, device=self.warp_device)
        self.num_bytes += array.size * wp.types.type_size_in_bytes(dtype)
        return array

    def _state(self, width):
        array = self._zeros(float, width)
        array.grad = self._zeros(float, width)
        return State(array, wp.to_torch(array, requires_grad=False), wp.to_torch(array.grad))

    def _allocate(self, name, dtype, *shape):
        """An array of its own for the value, the shared buffer of that name for its gradient."""
        array = self._zeros(dtype, *shape)
        if name is not None and name not in self.grads:
            self.grads[name] = self._zeros(dtype, *shape)
        array.grad = self.grads.get(name)
        return array

    def _move_origin(self, sign, old_states, new_states):
        (q, qd), (new_q, new_qd) = ([state.array for state in states] for states in (old_states, new_states))
        point = self.reference_point
        return [
            (move_origin_of_positions, (self.num_coords,), [self.model, sign, point, q], [new_q]),
            (move_origin_of_velocities, (self.num_dofs,), [self.model, sign, point, qd], [new_qd]),
        ]

    def _arrive(self):
        return self._move_origin(1.0, (self.world_q, self.world_qd), (self.q[0], self.qd[0]))

    def _leave(self):
        return self._move_origin(-1.0, (self.q[-1], self.qd[-1]), (self.new_q, self.new_qd))

    def _kinematics(self, s):
        """Stages are (kernel, launch dimensions before the environments, inputs, outputs)."""
        x, q, qd = self.steps[s], self.q[s].array, self.qd[s].array
        motion = [x.link_pose, x.motion_subspace, x.link_twist, x.link_bias]
        return [(forward_kinematics, (), [self.model, q, qd], motion)]

    def _search_contacts(self, s):
        """Comparisons only, without a derivative."""
        x, lanes = self.steps[s], self.lanes
        return [(find_touching, (lanes,), [self.pairs, lanes, x.link_pose], [x.touching])] if self.num_pairs > 0 else []

    def _forces(self, s):
        x, q, qd, model = self.steps[s], self.q[s].array, self.qd[s].array, self.model
        wrench_inputs = [model, x.link_pose, x.link_twist, x.link_bias]
        stages = [(link_wrenches, (self.num_links,), wrench_inputs, [x.link_wrench])]
        net_wrench = x.link_wrench
        if self.num_pairs > 0:
            net_wrench = x.net_wrench
            pair_inputs = [self.pairs, self.lanes, x.link_pose, x.link_twist, x.touching]
            net_inputs = [self.pairs, x.link_wrench, x.pair_wrench]
            stages.append((pair_wrenches, (self.lanes,), pair_inputs, [x.pair_wrench]))
            stages.append((subtract_pair_wrenches, (), net_inputs, [net_wrench]))
        force_inputs = [model, q, qd, self.act.array, x.motion_subspace, net_wrench]
        return stages + [(joint_forces, (), force_inputs, [x.tree_wrench, x.joint_tau])]

    def _mass_matrix(self, s):
        x, model = self.steps[s], self.model
        return [
            (composite_inertias, (), [model, x.link_pose], [x.tree_moment, x.tree_inertia]),
            (mass_matrix, (self.num_dofs,), [model, x.motion_subspace, x.tree_moment, x.tree_inertia], [x.H]),
        ]

    def _integrate(self, s):
        (q, new_q), (qd, new_qd) = ([state.array for state in states[s : s + 2]] for states in (self.q, self.qd))
        return [
            (integrate_velocity, (self.num_dofs,), [self.h, qd, self.steps[s].joint_qdd], [new_qd]),
            (integrate_position, (self.num_links,), [self.model, self.h, q, new_qd], [new_q]),
        ]

    def _forward_step(self):
        self._forward([(choose_reference_point, (), [self.model, self.world_q.array], [self.reference_point])])
        self._forward(self._arrive())
        for s in range(len(self.steps)):
            self._forward_substep(s)
        self._forward(self._leave())
        self._forward([(find_diverged, (), [self.new_q.array, self.new_qd.array], [self.diverged])])

    def _backward_step(self):
        self._adjoint(self._leave())
        for s in reversed(range(len(self.steps))):
            self._backward_substep(s)
        self._adjoint(self._arrive())

    def _forward_substep(self, s):
        x, factor = self.steps[s], self.steps[s - s % self.interval].factor
        self._forward(self._kinematics(s))
        self._forward(self._search_contacts(s))
        self._forward(self._forces(s))
        if s % self.interval == 0:
            self._forward(self._mass_matrix(s))
            self._forward([(factorise, (), [self.model, x.H], [factor])])
        self._forward([(solve, (), [self.model, factor, x.joint_tau], [x.joint_qdd])])
        self._forward(self._integrate(s))

    def _backward_substep(self, s):
        x, rebuilt, model = self.steps[s], self.steps[s - s % self.interval], self.model
        grad_qdd, grad_tau = x.joint_qdd.grad, x.joint_tau.grad
        self._adjoint(self._integrate(s))
        # the adjoint of H qdd = tau, see mass_matrix.py
        self._forward([(solve, (), [model, rebuilt.factor, grad_qdd], [grad_tau])])
        outputs = [rebuilt.H.grad, grad_qdd]
        self._forward([(solve_adjoint, (self.num_dofs,), [model, x.joint_qdd, grad_tau], outputs)])
        if s % self.interval == 0:
            self._adjoint(self._mass_matrix(s))
        self._adjoint(self._forces(s))
        self._adjoint(self._kinematics(s))

    def _forward(self, stages):
        for kernel, dim, inputs, outputs in stages:
            wp.launch(kernel, (*dim, self.num_envs), inputs, outputs, device=self.warp_device)

    def _adjoint(self, stages):
        """Propagate the gradients of the stages' outputs to those of their inputs, last stage first."""
        for kernel, dim, inputs, outputs in reversed(stages):
            wp.launch(
                kernel,
                (*dim, self.num_envs),
                inputs=inputs,
                outputs=outputs,
                adj_inputs=[_gradient(x) for x in inputs],
                adj_outputs=[x.grad for x in outputs],
                device=self.warp_device,
                adjoint=True,
            )


def _gradient(x):
    """Where a kernel's adjoint adds the gradient of an input; the model and numbers are constants."""
    if isinstance(x, wp.array):
        return x.grad
    return type(x)()  # 0 or a structure of nothing
