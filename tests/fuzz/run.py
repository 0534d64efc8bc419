"""Starts workers and counts what becomes of their inputs."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).with_name("worker.py"))
TIMEOUT_S = 300
"""Seconds after which a worker that says nothing hangs."""


@dataclass
class Findings:
    """What a target made of its inputs.

    Attributes:
        accepted: Inputs that worked.
        refused: Inputs that were refused in one clear line.
        faults: Seed and what went wrong: another exception, a crash, a hang.
    """

    accepted: int = 0
    refused: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)

    @property
    def executions(self):
        return self.accepted + self.refused + len(self.faults)


def fuzz(name: str, first: int, count: int, findings: Findings) -> None:
    """Run seeds first .. first + count − 1 of a target; a crash costs its own seed only."""
    seed = first
    while seed < first + count:
        seed = _run_worker(name, seed, first + count - seed, findings) + 1


def _run_worker(name, first, count, findings):
    """Return the last seed that a worker began."""
    command = [sys.executable, WORKER, name, str(first), str(count)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S + count,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        output, end = done.stdout, f"exit status {done.returncode}: {done.stderr[-500:]}"
    except subprocess.TimeoutExpired as expired:
        output, end = (expired.stdout or b"").decode(), "it hangs"
    seed, is_open = first - 1, False
    for line in output.splitlines():
        kind, _, rest = line.partition(" ")
        is_open = kind == "start"
        if kind == "start":
            seed = int(rest)
        elif kind == "accepted":
            findings.accepted += 1
        elif kind == "refused":
            findings.refused += 1
        else:
            findings.faults.append((seed, rest))
    if seed < first:
        raise RuntimeError(f"the worker of {name} does not start: {end}")
    if is_open:
        findings.faults.append((seed, end))
    return seed
