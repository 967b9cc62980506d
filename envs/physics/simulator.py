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

import math
import os
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
import warp as wp

from envs.physics.arguments import check_tensor, positive_number, resolve_device, whole_number
from envs.physics.articulation import check_free_joints
from envs.physics.lanes import NUM_LANES
from envs.physics.model import build_model, build_pair_model
from envs.physics.parameters import ALIKE, DIFFERENT, DIFFERENTIABLE, Parameters
from envs.physics.substeps import Substeps
from envs.physics.warp_lock import WARP

# below that a thread is not worth waking: environments, and environments times links times substeps of a step
MIN_ENVS_PER_THREAD, MIN_LINKS_PER_THREAD = 16, 1024
# Environment steps whose intermediate values are kept for the backward pass: at most 32, or as many as fit into 4 GiB
# and into a quarter of the memory that is free at the start.
# Recording the launches for new buffers takes time, so 4 steps are kept at first, and one more after every 4 steps.
KEPT_STEPS, KEPT_BYTES, KEPT_PART = 32, 2**32, 0.25
KEPT_AT_FIRST, STEPS_PER_KEPT = 4, 4
MANY_ENVS = 4096  # from here on it is checked first whether there is memory for them


class Simulator:
    """Steps `num_envs` independent copies of an articulation.

    dt: duration of one environment step in s, divided into `substeps`.
    mass_matrix_interval: the mass matrix is rebuilt at substeps 0, k, 2k, ... of each environment step.
    device: "cpu", "cuda" or "cuda:1".  On the CPU the environments are split among `num_threads` threads, by default
    torch's number of them, but at most one per 16 environments, or more of a robot that takes little time; on CUDA
    num_threads is None.
    Raises ValueError for an argument that is none of this, for more environments than memory has room for, and for an
    articulation that cannot be simulated.

    The buffers are static: one Simulator serves one thread of the caller at a time, and cannot be copied.  After a
    fork on the CPU it goes on in the child process too.  On the CPU results do not depend on the number of threads; on
    CUDA gradients may differ in the last bits from run to run (atomic sums).
    """

    def __init__(self, articulation, num_envs, dt, substeps, mass_matrix_interval, device="cpu", num_threads=None):
        self.device = resolve_device(device)
        num_envs = whole_number("num_envs", num_envs, at_most=2**31 - 1)
        positive_number("dt", dt)
        whole_number("substeps", substeps)
        whole_number("mass_matrix_interval", mass_matrix_interval)
        num_threads = self._num_threads(num_envs, len(articulation.links) * substeps, num_threads)
        bounds = [num_envs * k // num_threads for k in range(num_threads + 1)]
        self.slices = [slice(a, b) for a, b in zip(bounds, bounds[1:])]
        with WARP:
            wp.init()
            device = wp.device_from_torch(self.device)
            models = [build(articulation, device, num_envs) for build in (build_model, build_pair_model)]
            check_free_joints(articulation)
            positions, velocities = (num_envs, articulation.num_coords), (num_envs, articulation.num_dofs)
            self.shapes = {"joint_q": positions, "joint_qd": velocities, "joint_act": velocities}
            self.batch_options = (models, articulation, dt, substeps, mass_matrix_interval)
            self.parameters, self.environments = Parameters(articulation, num_envs, self.device), ALIKE
            self._check_memory(num_envs)
        self._start_keeping()
        self.step_count = 0
        self.pool, self.process = ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None, os.getpid()

    def step(self, joint_q, joint_qd, joint_act):
        """Advance by one environment step of duration dt with constant actuation.

        joint_q (N, nq), joint_qd (N, nv), joint_act (N, nv; forces in N, torques in N m), float32 on the device.
        The six entries of joint_act for a free joint are a wrench about the reference point (0 in every task).
        Returns the new joint_q and joint_qd, differentiable with respect to all three, and `diverged` (N,) bool.
        A diverged environment propagates no gradient.  Raises ValueError or TypeError for anything but such tensors.
        There are no second derivatives: a backward pass with create_graph=True raises RuntimeError.
        """
        inputs = (joint_q, joint_qd, joint_act)
        for (name, shape), x in zip(self.shapes.items(), inputs):
            check_tensor(name, x, shape, device=self.device)
        if self.environments != ALIKE:
            values, strength = self.parameters.values()
            inputs = (joint_q, joint_qd, joint_act * strength, *values)
        self.step_count += 1
        # without a gradient, the buffers of the step before are used again
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            self.batches = self._batches_to_keep()
        return _SimulatorStep.apply(self, self.batches, self.step_count, *inputs)

    def set_parameters(self, factors):
        """Multiply the robot's own values by factors {name: (N, k)} from the next step on; see parameters.py.

        Steps are differentiable with respect to these too.  Factors of other names stay as they are.
        """
        self.parameters.update(factors)
        needed = DIFFERENTIABLE if self.parameters.requires_grad else DIFFERENT
        if needed > self.environments:  # the buffers have no room for these values, or for their gradients
            self.environments = needed
            self._start_keeping()

    def close(self):
        """End the threads. What is computed after this, such as a backward pass, runs in the caller's thread alone."""
        pool, self.pool = self._threads(), None
        if pool is not None:
            pool.shutdown()

    def __reduce_ex__(self, protocol):
        raise TypeError("a Simulator cannot be copied or pickled: make another")

    def run(self, method, batches, step, *inputs):
        """Call a method of Substeps for every batch with its rows of the inputs, one thread a batch; join the outputs.

        Plain numbers for plain numbers: autograd's part is in _SimulatorStep, so the rows are detached.
        """
        jobs = [(method, batch, step, *(x.detach()[rows] for x in inputs)) for batch, rows in zip(batches, self.slices)]
        pool = self._threads()
        own, others = (jobs, []) if pool is None else (jobs[:1], jobs[1:])
        futures = [pool.submit(*job) for job in others]
        try:
            results = [function(*arguments) for function, *arguments in own]
        finally:
            wait(futures)  # even if the caller's own part was interrupted: nobody may go on writing to the buffers
        results += [future.result() for future in futures]
        return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results))

    def _threads(self):
        """The pool, if there is one; in a child process a new one, because a fork copies no threads."""
        if self.pool is not None and self.process != os.getpid():
            self.pool, self.process = ThreadPoolExecutor(len(self.slices) - 1), os.getpid()
        return self.pool

    def _num_threads(self, num_envs, links_per_env, num_threads):
        if num_threads is not None:
            whole_number("num_threads", num_threads)
        if self.device.type != "cpu":
            if num_threads is not None:
                raise ValueError(f"num_threads: expected None on {self.device}, which has its own, got {num_threads}")
            return 1
        wanted = num_threads or min(os.cpu_count() or 1, torch.get_num_threads())
        worth = min(num_envs // MIN_ENVS_PER_THREAD, num_envs * links_per_env // MIN_LINKS_PER_THREAD)
        return max(1, min(wanted, worth))

    def _start_keeping(self):
        """Make the first batches. Earlier ones live on in the graphs of their steps."""
        self.batches = self._new_batches()
        self.kept = deque([self.batches])  # with what they computed: oldest first, latest last
        room = min(KEPT_BYTES, KEPT_PART * available_memory(self.device))
        self.max_kept = max(1, min(KEPT_STEPS, int(room // sum(batch.num_bytes for batch in self.batches))))

    def _batches_to_keep(self):
        """Batches whose content the backward pass of this step will find: new ones or those used longest ago."""
        room = min(self.max_kept, KEPT_AT_FIRST + self.step_count // STEPS_PER_KEPT)
        self.kept.append(self._new_batches() if len(self.kept) < room else self.kept.popleft())
        return self.kept[-1]

    def _new_batches(self):
        with WARP:
            return [self._new_batch(rows.stop - rows.start) for rows in self.slices]

    def _new_batch(self, num_envs):
        models, articulation, *timing = self.batch_options
        return Substeps(*models, articulation, num_envs, *timing, self.environments)

    def _check_memory(self, num_envs):
        """Linux grants memory that is not there, and ends the process that uses it."""
        if num_envs < MANY_ENVS:
            return
        # of a batch that leaves no lane idle
        num_bytes, available = self._new_batch(NUM_LANES).num_bytes // NUM_LANES, available_memory(self.device)
        if num_bytes * num_envs > available:
            room = f"room for at most {int(available // num_bytes)} environments of {num_bytes} bytes in memory"
            raise ValueError(f"num_envs: expected {room}, got {num_envs}")


def available_memory(device):
    """Bytes that can be allocated on a device; infinite where nobody says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return 1024 * int(found[1]) if found else math.inf


class _SimulatorStep(torch.autograd.Function):
    """The simulator as one node of autograd's graph, which keeps nothing but the inputs of the step."""

    @staticmethod
    def forward(ctx, simulator, batches, step, *inputs):
        new_q, new_qd, diverged = simulator.run(Substeps.forward, batches, step, *inputs)
        ctx.simulator, ctx.batches, ctx.step = simulator, batches, step
        ctx.save_for_backward(*inputs, diverged)
        ctx.mark_non_differentiable(diverged)
        return new_q, new_qd, diverged

    @staticmethod
    def backward(ctx, grad_q, grad_qd, _):
        # the adjoint kernels have no adjoint: a graph through here would be without them
        if torch.is_grad_enabled():
            raise RuntimeError("create_graph: expected False (the simulator has no second derivatives), got True")
        *inputs, diverged = ctx.saved_tensors
        grads = ctx.simulator.run(Substeps.backward, ctx.batches, ctx.step, *inputs, grad_q, grad_qd)
        # where the state blew up the derivative means nothing, and 0 * inf would make it NaN
        grads = [grad.masked_fill(diverged.view(-1, *[1] * (grad.dim() - 1)), 0.0) for grad in grads]
        without = [None] * (len(inputs) - len(grads))  # parameters that are constants
        return None, None, None, *grads, *without
