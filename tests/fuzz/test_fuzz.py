"""A few damaged inputs of every kind; `python -m benchmarks.fuzz` tries many more."""

import pytest

from tests.fuzz.run import Findings, fuzz
from tests.fuzz.targets import TARGETS

INPUTS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_works_or_is_refused(name):
    findings = Findings()
    fuzz(name, 0, INPUTS, findings)
    assert not findings.faults
    assert findings.executions == INPUTS
    assert findings.refused > INPUTS // 10


def test_a_crash_costs_its_own_input_only(monkeypatch, tmp_path):
    """The harness itself: a worker that dies is found, named and started again."""
    module = tmp_path / "dying.py"
    module.write_text(
        "import os, sys\n"
        "first, count = int(sys.argv[2]), int(sys.argv[3])\n"
        "for seed in range(first, first + count):\n"
        "    print('start', seed, flush=True)\n"
        "    if seed == 3: os.abort()\n"
        "    print('failed oops' if seed == 5 else 'refused', flush=True)\n"
    )
    monkeypatch.setattr("tests.fuzz.run.WORKER", str(module))
    findings = Findings()
    fuzz("any", 0, 8, findings)
    assert [seed for seed, _ in findings.faults] == [3, 5]
    assert "exit status -6" in findings.faults[0][1]
    assert findings.refused == 6
