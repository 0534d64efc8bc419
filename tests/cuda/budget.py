"""Registers and spills of every kernel: what `make cuda` measured, and what is allowed.

``python -m tests.cuda.budget`` writes the budget anew from the last `make cuda`: look at its diff.
"""

import json
import re
import subprocess
from pathlib import Path

from tests.cuda.build import CUDA_BUILD, ROOT

BUDGET = ROOT / "plugins" / "cuda" / "ptxas_budget.json"

REGISTER_UNIT = 8
"""GPUs allocate registers per thread in these units; versions of nvcc differ by less."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def reports() -> list[Path]:
    """What ptxas said, one file per object; empty where nothing was compiled."""
    return sorted(CUDA_BUILD.rglob("*.cu.o.report"))


def measured() -> dict[str, dict[str, dict[str, int]]]:
    """Return registers, spilled bytes and static shared bytes by kernel and architecture."""
    usage: dict[str, dict[str, dict[str, int]]] = {}
    for report in reports():
        for symbol, architecture, text in parse(report.read_text()):
            usage.setdefault(kernel_name(symbol), {})[architecture] = text
    return usage


def parse(report):
    """Yield symbol, architecture and usage of every entry function of a report."""
    parts = _ENTRY.split(report)[1:]
    for symbol, architecture, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        stores, loads = map(int, _SPILLS.search(text).groups())
        shared = _SHARED.search(text)
        yield (
            symbol,
            architecture,
            {
                "registers": int(_REGISTERS.search(text).group(1)),
                "spills": stores + loads,
                "shared": int(shared.group(1)) if shared else 0,
            },
        )


def kernel_name(symbol):
    """`attend<64>` of a mangled name."""
    run = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True)
    name = run.stdout.strip().replace("(anonymous namespace)::", "").removeprefix("void ")
    return name.split("(")[0].replace("gear::cuda::", "").replace("(int)", "")


def excesses(usage, budget):
    """Return one line for everything that is not within the budget."""
    lines = []
    for kernel, architectures in usage.items():
        for architecture, used in architectures.items():
            allowed = budget.get(kernel, {}).get(architecture)
            if allowed is None:
                lines.append(f"{kernel} for {architecture} has no budget")
                continue
            lines += [
                f"{kernel} for {architecture}: {used[what]} {what}, the budget is {allowed[what]}"
                for what in used
                if used[what] > allowed[what]
            ]
    return lines


def main():
    """Write the budget: registers rounded up to the unit of their allocation."""
    budget = measured()
    for architectures in budget.values():
        for used in architectures.values():
            used["registers"] = -(-used["registers"] // REGISTER_UNIT) * REGISTER_UNIT
    lines = json.dumps(budget, indent=2, sort_keys=True)
    compact = re.sub(r"\{\s*\"registers\": (\d+),\s*\"shared\": (\d+),\s*\"spills\": (\d+)\s*\}",
                     r'{"registers": \1, "shared": \2, "spills": \3}', lines)  # fmt: skip
    BUDGET.write_text(compact + "\n")


if __name__ == "__main__":
    main()
