"""Registers and stack of every kernel, forward and adjoint, as NVIDIA's compiler makes them; no GPU is needed.

    python -m benchmarks.registers --output benchmarks/results/registers_sm90.csv

`registers` is per thread, of 255 that there are.  `stack` is bytes per thread of local memory, which is as slow as the
GPU's main memory: arrays that are indexed by a variable, and what does not fit into the registers (spills).
"""

import importlib
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import warp as wp

import envs
from benchmarks.provenance import read_flags, write_rows
from envs.physics.lanes import Lanes

FOLDER = Path(envs.__file__).parent
REGISTER_COUNT, FRAME_SIZE = 0x2F, 0x11  # kinds of entries in the section .nv.info of a cubin


@dataclass
class Args:
    arch: int = 90
    """compute capability: 80 for an A100, 90 for an H100"""
    output: str | None = None
    """write the table to this CSV file as well"""


def kernel_modules():
    """The Python modules in envs/ that have kernels."""
    for path in sorted(FOLDER.rglob("*.py")):
        if "@wp.kernel" in path.read_text():
            yield importlib.import_module(".".join(["envs", *path.relative_to(FOLDER).with_suffix("").parts]))


def sections(cubin):
    """The sections of an ELF file of 64 bits: name -> (content, size of an entry)."""
    (table,), (entry, count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + k * entry) for k in range(count)]
    contents = [cubin[header[4] : header[4] + header[5]] for header in headers]
    return {string_at(contents[names], h[0]): (content, h[9]) for h, content in zip(headers, contents)}


def string_at(strings, start):
    return strings[start : strings.index(b"\0", start)].decode()


def resources(cubin):
    """Name of every kernel in a cubin -> {kind of entry: its value}."""
    parts, found = sections(cubin), {}
    (symbols, entry), (strings, _), (info, _) = (parts[name] for name in (".symtab", ".strtab", ".nv.info"))
    position = 0
    while position < len(info):
        # one byte for the format, one for the kind, two for the number of bytes that follow (4: symbol and value)
        form, kind, size = struct.unpack_from("<BBH", info, position)
        if kind in (REGISTER_COUNT, FRAME_SIZE):
            symbol, value = struct.unpack_from("<II", info, position + 4)
            name = string_at(strings, *struct.unpack_from("<I", symbols, symbol * entry))
            found.setdefault(name, {})[kind] = value
        position += 4 + (size if form == 4 else 0)
    return found


def module_rows(module, arch):
    with tempfile.TemporaryDirectory() as folder:
        (path,) = wp.compile_aot_module(module, arch=arch, module_dir=folder, use_ptx=False)
        found = resources(path.read_bytes())
    for kernel in wp.get_module(module.__name__).kernels.values():
        # of those that are compiled for floats and for lanes, CUDA uses the floats
        on_cuda = [k for k in kernel.overloads.values() if not uses_lanes(k)] if kernel.is_generic else [kernel]
        for direction in ("forward", "backward"):
            name = f"{on_cuda[0].get_mangled_name()}_cuda_kernel_{direction}"
            if name in found:
                row = {"module": module.__name__.split(".")[-1], "kernel": kernel.key, "direction": direction}
                yield row | {"registers": found[name][REGISTER_COUNT], "stack": found[name][FRAME_SIZE]}


def uses_lanes(kernel):
    return any(getattr(kind, "dtype", None) is Lanes for kind in kernel.adj.arg_types.values())


def main():
    args = read_flags(Args)
    wp.config.log_level = wp.LOG_WARNING
    rows = [row for module in kernel_modules() for row in module_rows(module, args.arch)]
    for row in rows:
        print(("{module:16} {kernel:26} {direction:9} {registers:4} registers {stack:6} bytes of stack").format(**row))
    if args.output:
        write_rows(args.output, rows)


if __name__ == "__main__":
    main()
