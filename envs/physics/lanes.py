"""One quantity of 16 environments side by side in a register of the CPU, for kernels of plain arithmetic.

Such a kernel is written once, for elements of any type.  On the CPU an element is one `Lanes`: one thread serves 16
environments, and an instruction works on all of them.  On CUDA, where threads are the lanes, it is a plain float.
Lanes never mix: what happens in one cannot reach another.  So the results are those of plain floats to the last bit,
and the lanes that fill up the last register, which belong to no environment, may hold anything.
"""

import warp as wp

NUM_LANES = 16
Lanes = wp.types.vector(length=NUM_LANES, dtype=float)


@wp.func
def times(a: float, b: float):
    return a * b


@wp.func
def times(a: Lanes, b: Lanes):  # noqa: F811 - Warp chooses by the types of the arguments
    return wp.cw_mul(a, b)


@wp.func
def over(a: float, b: float):
    return a / b


@wp.func
def over(a: Lanes, b: Lanes):  # noqa: F811
    return wp.cw_div(a, b)


def for_floats_and_lanes(kernel, *names):
    """Compile a kernel for both kinds of elements of its arrays of these names."""
    for element in (float, Lanes):
        generic = {name: kernel.adj.arg_types[name] for name in names}
        wp.overload(kernel, {name: wp.array(dtype=element, ndim=array.ndim) for name, array in generic.items()})


def round_up(num_envs):
    """The number of lanes that so many environments take."""
    return -(-num_envs // NUM_LANES) * NUM_LANES


def in_lanes(array):
    """A view of floats (N, ...) on the CPU, N rounded up in memory: Lanes (N / 16, ...). On CUDA the floats."""
    if array.device.is_cuda:
        return array
    shape, strides = (round_up(array.shape[0]) // NUM_LANES, *array.shape[1:]), array.strides
    strides = (NUM_LANES * strides[0], *strides[1:])
    return wp.array(ptr=array.ptr, dtype=Lanes, shape=shape, strides=strides, device=array.device)
