"""One environment step of an articulation, differentiable from torch.

    repeat `substeps` times, h = dt / substeps:
        X, S, v, a  <- forward_kinematics(q, qd)
        f           <- link_wrenches(X, v, a)         inertia, gravity, ground contact
        tau         <- joint_forces(f, q, qd, act)
        H           <- mass_matrix(X, S)              every `mass_matrix_interval` substeps, and factorised
        qdd         <- H^-1 tau
        q, qd       <- integrate_velocity(qd, qdd), then integrate_position(q, qd)

The derivative is Warp's adjoint of these kernels (for the solve: see mass_matrix.py).  It includes the path through a
mass matrix that several substeps share.  autograd keeps only the state at the start of each environment step; the
backward pass runs the substeps again from there and then the adjoint kernels in reverse order (substeps.py).
"""

import os
from concurrent.futures import ThreadPoolExecutor

import torch
import warp as wp

from envs.articulation import FREE, build_model
from envs.substeps import Substeps

MIN_ENVS_PER_THREAD = 16
DIVERGED = 1.0e6
"""a coordinate or velocity beyond this, or not finite, means that the simulation has blown up"""


class Simulator:
    """Steps `num_envs` independent copies of an articulation.

    dt: duration of one environment step in s, divided into `substeps`.
    mass_matrix_interval: the mass matrix is rebuilt at substeps 0, k, 2k, ... of each environment step.
    device: "cpu", "cuda" or "cuda:1".  On the CPU the environments are split among `num_threads` threads, by default
    torch's number of them, but at most one per 16 environments.

    The buffers are static: one Simulator serves one thread of the caller at a time.  On the CPU results do not depend
    on the number of threads; on CUDA gradients may differ in the last bits from run to run (atomic sums).
    """

    def __init__(self, articulation, num_envs, dt, substeps, mass_matrix_interval, device="cpu", num_threads=None):
        wp.init()
        self.device = resolve_device(device)
        self.root_is_free = articulation.links[0].joint == FREE
        self.translates_along_x = articulation.translates_along_x
        self.ground_plane = torch.tensor([1.0, 0.0, 1.0], device=self.device)
        num_threads = self._num_threads(num_envs, num_threads)
        bounds = [num_envs * k // num_threads for k in range(num_threads + 1)]
        self.slices = [slice(a, b) for a, b in zip(bounds, bounds[1:])]
        model = build_model(articulation, wp.device_from_torch(self.device))
        sizes = [rows.stop - rows.start for rows in self.slices]
        self.batches = [Substeps(model, articulation, size, dt, substeps, mass_matrix_interval) for size in sizes]
        self.pool = ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None

    def step(self, joint_q, joint_qd, joint_act):
        """Advance by one environment step of duration dt with constant actuation.

        joint_q (N, nq), joint_qd (N, nv), joint_act (N, nv; forces in N, torques in N m), float32 on the device.
        The six entries of joint_act for a free joint are a wrench about the ground below the robot (0 in every task).
        Returns the new joint_q and joint_qd, differentiable with respect to all three, and `diverged` (N,) bool.
        A diverged environment propagates no gradient.
        """
        origin = self._origin(joint_q)
        joint_q, joint_qd = self._move_origin(joint_q, joint_qd, origin)
        joint_q, joint_qd = _SimulatorStep.apply(self, joint_q, joint_qd, joint_act)
        joint_q, joint_qd = self._move_origin(joint_q, joint_qd, -origin)
        return joint_q, joint_qd, has_diverged(joint_q, joint_qd)

    def close(self):
        """End the threads; there is no step after this."""
        if self.pool is not None:
            self.pool.shutdown()

    def run(self, method, *inputs):
        """Call a method of Substeps for every batch with its rows of the inputs, one thread a batch; join the outputs.

        Plain numbers for plain numbers: autograd's part is in _SimulatorStep, so the rows are detached.
        """
        jobs = [(method, batch, *(x.detach()[rows] for x in inputs)) for batch, rows in zip(self.batches, self.slices)]
        futures = [self.pool.submit(*job) for job in jobs[1:]]
        first, *arguments = jobs[0]
        results = [first(*arguments), *(future.result() for future in futures)]
        return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results))

    def _num_threads(self, num_envs, num_threads):
        if self.device.type != "cpu":
            return 1
        wanted = num_threads or min(os.cpu_count() or 1, torch.get_num_threads())
        return max(1, min(wanted, num_envs // MIN_ENVS_PER_THREAD))

    def _origin(self, joint_q):
        """The point on the ground below the robot, which spatial quantities refer to during the step.

        About the world origin the linear part of a twist grows with the distance from it, and at 200 m float32 has
        lost the observation.
        """
        # no gradient: the choice of the reference point changes no physical quantity.  Any point would do, so a robot
        # whose position is not a number, and which will be reported as diverged, is given one
        if self.root_is_free:
            return joint_q[:, :3].detach().nan_to_num() * self.ground_plane
        return joint_q[:, :1].detach().nan_to_num() * float(self.translates_along_x)

    def _move_origin(self, joint_q, joint_qd, c):
        """Coordinates about the point c: positions p - c, and for a twist (w; v) the velocity v + w x c."""
        k = c.shape[1]
        joint_q = torch.cat([joint_q[:, :k] - c, joint_q[:, k:]], dim=1)
        if self.root_is_free:
            w, v, joints = joint_qd.split([3, 3, joint_qd.shape[1] - 6], dim=1)
            joint_qd = torch.cat([w, v + torch.linalg.cross(w, c), joints], dim=1)
        return joint_q, joint_qd


def has_diverged(joint_q, joint_qd):
    """(N,) bool: some coordinate or velocity is beyond 1e6, or not finite."""
    # written so that NaN, for which every comparison is false, counts
    return ~((joint_q.abs() <= DIVERGED).all(dim=1) & (joint_qd.abs() <= DIVERGED).all(dim=1))


def resolve_device(device):
    """The torch.device, with its index on CUDA. Raises ValueError where there is no such device."""
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:<index>', got {device!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:<index>', got {str(device)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected 'cpu', because torch finds no CUDA device, got {str(device)!r}")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ValueError(f"device: expected an index below {torch.cuda.device_count()}, got {str(device)!r}")
    return torch.device("cpu") if device.type == "cpu" else device


class _SimulatorStep(torch.autograd.Function):
    """The simulator as one node of autograd's graph, which keeps nothing but the state at the start of the step."""

    @staticmethod
    def forward(ctx, simulator, joint_q, joint_qd, joint_act):
        new_q, new_qd = simulator.run(Substeps.forward, joint_q, joint_qd, joint_act)
        ctx.simulator = simulator
        ctx.save_for_backward(joint_q, joint_qd, joint_act, has_diverged(new_q, new_qd))
        return new_q, new_qd

    @staticmethod
    @torch.autograd.function.once_differentiable  # the adjoint kernels have no adjoint: second derivatives are refused
    def backward(ctx, grad_q, grad_qd):
        *inputs, diverged = ctx.saved_tensors
        grads = ctx.simulator.run(Substeps.backward, *inputs, grad_q, grad_qd)
        # where the state blew up the derivative means nothing, and 0 * inf would make it NaN
        return None, *(grad.masked_fill(diverged[:, None], 0.0) for grad in grads)
