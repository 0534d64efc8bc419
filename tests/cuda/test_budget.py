"""Registers and spills of the kernels, for every architecture that `make cuda` compiles for."""

import json

import pytest

from tests.cuda import budget


def test_no_kernel_exceeds_its_budget():
    if not budget.reports():
        pytest.skip("nothing was compiled with nvcc: run `make cuda`")
    allowed = json.loads(budget.BUDGET.read_text())
    used = budget.measured()
    assert budget.excesses(used, allowed) == []
    gone = allowed.keys() - used.keys()
    assert not gone, f"{budget.BUDGET.name} has kernels that are no more: {gone}"


def test_nothing_may_spill():
    allowed = json.loads(budget.BUDGET.read_text())
    for kernel, architectures in allowed.items():
        for architecture, limits in architectures.items():
            assert limits["spills"] == 0, f"{kernel} for {architecture}"


REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4gear4cuda6attendILi64EEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN4gear4cuda6attendILi64EEEvi
    48 bytes stack frame, 60 bytes spill stores, 76 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 48 bytes cumulative stack size, 16 bytes smem
ptxas info    : Compiling entry function '_ZN4gear4cuda6attendILi64EEEvi' for 'sm_90'
ptxas info    : Function properties for _ZN4gear4cuda6attendILi64EEEvi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers
"""


def test_a_regression_is_found():
    used = {}
    for symbol, architecture, usage in budget.parse(REPORT):
        used.setdefault(budget.kernel_name(symbol), {})[architecture] = usage
    limits = {"registers": 72, "spills": 0, "shared": 16}
    assert budget.excesses(used, {"attend<64>": {"sm_80": limits}}) == [
        "attend<64> for sm_80: 80 registers, the budget is 72",
        "attend<64> for sm_80: 136 spills, the budget is 0",
        "attend<64> for sm_90 has no budget",
    ]
