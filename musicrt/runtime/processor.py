"""What the CPU of this machine can do."""

from __future__ import annotations

import functools
import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names of the instructions, by makers: two of x86, then Arm."""
_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Names of instructions that make a difference to networks: of x86, then of Arm."""


def count_cores() -> int:
    """Those that this process may run on; all of the machine where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def known_flags() -> list[str]:
    """The instructions of this CPU that make a difference to networks; none where the system does not say."""
    try:
        flags = _read_flags()
    except OSError:
        return []
    return [flag for flag in _FLAGS if flag in flags]


@functools.cache
def bfloat16_obstacle() -> str | None:
    """Why networks in bfloat16 would be slower than in float32 here; None if the CPU computes in it by itself."""
    try:
        flags = _read_flags()
    except OSError as error:
        return f"it can't be seen whether this CPU has instructions for bfloat16 ({error.strerror or error})"
    return None if _BFLOAT16 & flags else "this CPU has no instructions for bfloat16 (AVX512-BF16, AMX), and is slow without"


def _read_flags() -> set[str]:
    """All of them. Raises OSError."""
    lines = _CPUINFO.read_text().splitlines()
    return set(next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), []))
