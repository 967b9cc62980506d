"""What arguments have to be. Anything else gets one sentence: the argument's name, what was expected, what came."""

import math
from numbers import Integral, Real

import numpy as np
import torch

LARGEST = 2**63 - 1
"""whole number that a tensor can hold"""
LARGEST_FLOAT = torch.finfo(torch.float32).max


def shown(value):
    """A value in an error: its repr in one line of at most 80 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python's, of whole numbers with thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole_number(name, value, at_least=1, at_most=LARGEST):
    """The argument `name` as an int; numpy's integers are accepted. Raises ValueError for anything else."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < at_least:
        raise ValueError(f"{name}: expected a whole number >= {at_least}, got {shown(value)}")
    if value > at_most:
        raise ValueError(f"{name}: expected a whole number <= {at_most}, got {shown(value)}")
    return int(value)


def positive_number(name, value):
    """The argument `name` as a float above 0 that float32 can hold. Raises ValueError for anything else."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not 0.0 < value < LARGEST_FLOAT:
        raise ValueError(f"{name}: expected a number above 0 and below {LARGEST_FLOAT:.0e}, got {shown(value)}")
    return float(value)


def number_range(name, value):
    """The argument `name` as two floats (low, high), 0 <= low <= high. Raises ValueError for anything else."""
    pair = isinstance(value, tuple | list) and len(value) == 2
    real = pair and all(isinstance(x, Real) and not isinstance(x, bool) for x in value)
    if not real or not 0.0 <= value[0] <= value[1] < LARGEST_FLOAT:
        raise ValueError(f"{name}: expected two numbers 0 <= low <= high, got {shown(value)}")
    return float(value[0]), float(value[1])


def truth(name, value):
    """The argument `name` as a bool. Raises TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def check_tensor(name, value, shape, dtype=torch.float32, device=None):
    """Raise TypeError or ValueError unless it is a tensor of this shape and dtype; on `device`, where one is given."""
    got = type(value).__name__
    if isinstance(value, torch.Tensor):
        kinds = {"nested": value.is_nested, "sparse": value.layout != torch.strided}
        kinds["meta"] = device is None and value.is_meta
        got = ", ".join(f"a {kind} one" for kind, holds in kinds.items() if holds)
    if got:
        raise TypeError(f"{name}: expected a torch tensor of shape {tuple(shape)}, got {got}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {value.device}")


def check_numbers(name, value, at_least=-math.inf):
    """Raise ValueError unless all numbers of a tensor (N, ...) are finite and not too small."""
    bad = ~(value.isfinite() & (value >= at_least))
    if bad.any():
        expected = "finite numbers" if at_least == -math.inf else f"numbers >= {at_least}"
        rows = str(bad.nonzero()[:, :1].unique().tolist()[:8])[1:-1]
        where = f"others in environment(s) {rows}" if value.dim() > 0 else str(value.item())
        raise ValueError(f"{name}: expected {expected}, got {where}")


def resolve_device(device):
    """The torch.device, with its index on CUDA. Raises ValueError where there is no such device."""
    expected = "device: expected 'cpu', 'cuda' or 'cuda:<index>'"
    if not isinstance(device, str | torch.device):
        raise ValueError(f"{expected}, got {shown(device)}")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{expected}, got {shown(device)}") from error
    if device.type not in ("cpu", "cuda") or device.type == "cpu" and device.index:
        raise ValueError(f"{expected}, got {str(device)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected 'cpu', because torch finds no CUDA device, got {str(device)!r}")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ValueError(f"device: expected an index below {torch.cuda.device_count()}, got {str(device)!r}")
    return torch.device("cpu") if device.type == "cpu" else device
