"""The case table on the CUDA kernels, without pytest.

python -m benchmarks.gpu_cases [ROW ...]    # all rows, or those whose name begins so
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.gpu_kernels import DeviceKernels
from gear_trt import cuda
from tests.cases import ATTENTION_CASES, COMPRESSION_CASES, AttentionCase
from tests.plugins.checks import (
    TOKEN_STEPS,
    check_attention,
    check_compression,
    check_that_steps_do_not_matter,
)

TOLERANCE = {"float32": 5e-6, "float16": 5e-6, "bfloat16": 8e-6}
"""Largest NMSE by output type: queries and weights meet codes as FP16 in the tensor cores. The
emulated GPU's worst is 5.4e-7; with sums that are cut off as tensor cores cut them off, 1.1e-6 with
one bit more than FP32 holds, and 3.6e-6 with none. Rounding to bfloat16 alone costs 3e-6."""

SHARP_TOLERANCE = 1e-5
"""Of prefill in 16 bits with scores many times as large: its keys are rounded once more."""
_SHARP, _LONG, _PREFILL_HEAD_DIMS = 4.0, 17, (64, 80, 96, 128)

_PRESETS_IN_STEPS = ("k4v4", "paper-2bit", "exact")


@dataclass(frozen=True)
class Failure:
    """A row that went wrong, and how."""

    row: str
    text: str


def run_table(device: torch.device, names: Sequence[str] = ()) -> list[Failure]:
    """Run the rows and return those that failed; say on standard output how many there were.

    Args:
        device: A GPU; or the CPU, where the emulated library is loaded.
        names: Beginnings of the rows to run; empty means all.
    """
    return run_rows(row for row in _rows(device) if not names or row[0].startswith(tuple(names)))


def run_rows(named_checks: Iterable[tuple[str, Callable[[], None]]]) -> list[Failure]:
    """Run checks by name and return those that failed; say how many there were.

    What breaks while the checks are listed is a failure too: those before it are run.
    """
    started = time.perf_counter()
    rows: list[tuple[str, Callable[[], None]]] = []
    unlisted = _failure("the list of rows", lambda: rows.extend(named_checks))
    failures = [failure for name, check in rows if (failure := _failure(name, check))]
    if unlisted:
        failures.append(unlisted)
    seconds = time.perf_counter() - started
    print(f"{len(rows)} rows of the case table in {seconds:.0f} s, {len(failures)} failed")
    return failures


def _rows(device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    kernels = DeviceKernels(device)
    for case in COMPRESSION_CASES:
        yield f"compress-{case}", partial(check_compression, kernels.compress_pages, case)
    for row in (*ATTENTION_CASES, *_long_half_precision_cases()):
        check = partial(check_attention, kernels.attention, row, tolerance_of(row))
        yield f"attention-{row}", check
    for preset in _PRESETS_IN_STEPS:
        for steps in TOKEN_STEPS:
            check = partial(check_that_steps_do_not_matter, kernels.attention, preset, steps)
            yield f"steps-{preset}-{len(steps)}", check


def tolerance_of(row: AttentionCase) -> float:
    """Largest NMSE of a row's output."""
    is_sharp = row.name.startswith("long-") and row.sharpness > _SHARP
    return SHARP_TOLERANCE if is_sharp else TOLERANCE[row.dtype]


def _long_half_precision_cases() -> Iterator[AttentionCase]:
    """The table's calls of many tokens as the prefill kernel takes them: 16 bits, over 128 rows."""
    for case in ATTENTION_CASES:
        if max(case.new) >= _LONG and case.head_dim in _PREFILL_HEAD_DIMS:
            head_dim = 64 if case.head_dim == 80 else case.head_dim
            changes = {"group": 8, "head_dim": head_dim}
            yield replace(case, name=f"long-{case.name}", dtype="float16", **changes)
            yield replace(case, name=f"long-bfloat16-{case.name}", dtype="bfloat16", **changes)


def _failure(name: str, check: Callable[[], None]) -> Failure | None:
    try:
        check()
    except Exception as error:  # whatever it is: the other rows shall run
        return Failure(name, f"{type(error).__name__}: {error}".strip(": \n"))
    return None


def main() -> int:
    """Run rows on the GPU; exit 1 where one failed."""
    print(cuda.build_info())
    failures = run_table(torch.device("cuda", torch.cuda.current_device()), sys.argv[1:])
    for failure in failures:
        print(f"FAILED {failure.row}: {failure.text}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
