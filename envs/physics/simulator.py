"""One environment step of an articulation, differentiable from torch.

    move the origin to the reference point        (reference_point.py)
    repeat `substeps` times, h = dt / substeps:
        X, S, v, a  <- forward_kinematics(q, qd)
        f           <- link_wrenches(X, v, a)         inertia less gravity and ground contact
        f           <- f - pair_wrenches(X, v)        contact between bodies, where a robot has any
        tau         <- joint_forces(f, q, qd, act)    actuation and springs less the bias force C
        H           <- mass_matrix(X, S)              every `mass_matrix_interval` substeps, and factorised
        qdd         <- H^-1 tau
        q, qd       <- integrate_velocity(qd, qdd), then integrate_position(q, qd)
    move the origin back

The derivative is Warp's adjoint of these kernels (for the solve: see mass_matrix.py).  It includes the path through a
mass matrix that several substeps share.  autograd keeps only the inputs of each environment step.  What the
kernels computed during the latest steps, up to KEPT_STEPS of them, is still in the buffers (substeps.py) when the
backward pass comes; steps before that are run again from their inputs.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait

import torch
import warp as wp

from envs.physics.articulation import check_free_joints
from envs.physics.model import build_model, build_pair_model
from envs.physics.substeps import Substeps

MIN_ENVS_PER_THREAD = 16
# Environment steps whose intermediate values are kept for the backward pass: at most 32, or as many as fit into 1 GiB.
# Recording the launches for new buffers takes time, so 4 steps are kept at first, and one more after every 4 steps.
KEPT_STEPS, KEPT_BYTES = 32, 2**30
KEPT_AT_FIRST, STEPS_PER_KEPT = 4, 4


class Simulator:
    """Steps `num_envs` independent copies of an articulation.

    dt: duration of one environment step in s, divided into `substeps`.
    mass_matrix_interval: the mass matrix is rebuilt at substeps 0, k, 2k, ... of each environment step.
    device: "cpu", "cuda" or "cuda:1".  On the CPU the environments are split among `num_threads` threads, by default
    torch's number of them, but at most one per 16 environments; on CUDA num_threads is None.
    Raises ValueError for an argument that is none of this, or an articulation that cannot be simulated.

    The buffers are static: one Simulator serves one thread of the caller at a time.  On the CPU results do not depend
    on the number of threads; on CUDA gradients may differ in the last bits from run to run (atomic sums).
    """

    def __init__(self, articulation, num_envs, dt, substeps, mass_matrix_interval, device="cpu", num_threads=None):
        wp.init()
        self.device = resolve_device(device)
        whole_number("num_envs", num_envs)
        whole_number("substeps", substeps)
        whole_number("mass_matrix_interval", mass_matrix_interval)
        num_threads = self._num_threads(num_envs, num_threads)
        bounds = [num_envs * k // num_threads for k in range(num_threads + 1)]
        self.slices = [slice(a, b) for a, b in zip(bounds, bounds[1:])]
        models = [build(articulation, wp.device_from_torch(self.device)) for build in (build_model, build_pair_model)]
        check_free_joints(articulation)
        positions, velocities = (num_envs, articulation.num_coords), (num_envs, articulation.num_dofs)
        self.shapes = {"joint_q": positions, "joint_qd": velocities, "joint_act": velocities}
        self.batch_options = (models, articulation, dt, substeps, mass_matrix_interval)
        self.batches = self._new_batches()
        self.kept = deque([self.batches])  # with what they computed: oldest first, latest last
        self.max_kept = max(1, min(KEPT_STEPS, KEPT_BYTES // sum(batch.num_bytes for batch in self.batches)))
        self.step_count = 0
        self.pool = ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None

    def step(self, joint_q, joint_qd, joint_act):
        """Advance by one environment step of duration dt with constant actuation.

        joint_q (N, nq), joint_qd (N, nv), joint_act (N, nv; forces in N, torques in N m), float32 on the device.
        The six entries of joint_act for a free joint are a wrench about the reference point (0 in every task).
        Returns the new joint_q and joint_qd, differentiable with respect to all three, and `diverged` (N,) bool.
        A diverged environment propagates no gradient.  Raises ValueError for another shape.
        """
        inputs = (joint_q, joint_qd, joint_act)
        for (name, shape), x in zip(self.shapes.items(), inputs):
            if x.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
        self.step_count += 1
        # without a gradient, the buffers of the step before are used again
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            self.batches = self._batches_to_keep()
        return _SimulatorStep.apply(self, self.batches, self.step_count, *inputs)

    def close(self):
        """End the threads; there is no step after this."""
        if self.pool is not None:
            self.pool.shutdown()

    def run(self, method, batches, step, *inputs):
        """Call a method of Substeps for every batch with its rows of the inputs, one thread a batch; join the outputs.

        Plain numbers for plain numbers: autograd's part is in _SimulatorStep, so the rows are detached.
        """
        jobs = [(method, batch, step, *(x.detach()[rows] for x in inputs)) for batch, rows in zip(batches, self.slices)]
        futures = [self.pool.submit(*job) for job in jobs[1:]]
        first, *arguments = jobs[0]
        try:
            results = [first(*arguments)]
        finally:
            wait(futures)  # even if the caller's own part was interrupted: nobody may go on writing to the buffers
        results += [future.result() for future in futures]
        return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results))

    def _num_threads(self, num_envs, num_threads):
        if num_threads is not None:
            whole_number("num_threads", num_threads)
        if self.device.type != "cpu":
            if num_threads is not None:
                raise ValueError(f"num_threads: expected None on {self.device}, which has its own, got {num_threads}")
            return 1
        wanted = num_threads or min(os.cpu_count() or 1, torch.get_num_threads())
        return max(1, min(wanted, num_envs // MIN_ENVS_PER_THREAD))

    def _batches_to_keep(self):
        """Batches whose content the backward pass of this step will find: new ones or those used longest ago."""
        room = min(self.max_kept, KEPT_AT_FIRST + self.step_count // STEPS_PER_KEPT)
        self.kept.append(self._new_batches() if len(self.kept) < room else self.kept.popleft())
        return self.kept[-1]

    def _new_batches(self):
        models, articulation, *timing = self.batch_options
        return [Substeps(*models, articulation, rows.stop - rows.start, *timing) for rows in self.slices]


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


def whole_number(name, value, at_least=1):
    """The value of the argument `name`. Raises ValueError if it is not an int, or too small."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name}: expected a whole number >= {at_least}, got {value!r}")
    return value


class _SimulatorStep(torch.autograd.Function):
    """The simulator as one node of autograd's graph, which keeps nothing but the inputs of the step."""

    @staticmethod
    def forward(ctx, simulator, batches, step, joint_q, joint_qd, joint_act):
        new_q, new_qd, diverged = simulator.run(Substeps.forward, batches, step, joint_q, joint_qd, joint_act)
        ctx.simulator, ctx.batches, ctx.step = simulator, batches, step
        ctx.save_for_backward(joint_q, joint_qd, joint_act, diverged)
        ctx.mark_non_differentiable(diverged)
        return new_q, new_qd, diverged

    @staticmethod
    @torch.autograd.function.once_differentiable  # the adjoint kernels have no adjoint: second derivatives are refused
    def backward(ctx, grad_q, grad_qd, _):
        *inputs, diverged = ctx.saved_tensors
        grads = ctx.simulator.run(Substeps.backward, ctx.batches, ctx.step, *inputs, grad_q, grad_qd)
        # where the state blew up the derivative means nothing, and 0 * inf would make it NaN
        return None, None, None, *(grad.masked_fill(diverged[:, None], 0.0) for grad in grads)
