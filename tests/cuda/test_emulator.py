"""The emulated GPU itself: emulator_test.cpp has the kernels."""

import os
import signal
import subprocess

import pytest

from tests.cuda.build import emulated_build

RIGHT = (
    "block_sums", "collectives", "last_block", "mma", "movmatrix", "cp_async", "half", "bfloat16",
)  # fmt: skip

WRONG = {
    "early_exit": r"thread 63 waits here for thread 3, which has left the kernel",
    "diverged_warp": "meets others that wait at",
    "diverged_block": "meets others that wait at",
    "part_of_a_warp": "a warp collective needs the full mask",
    "out_of_shared": "a block wrote beyond the shared memory of its launch",
    "unwaited_copy": "a thread ended with copies that it never waited for",
    "misaligned_copy": "cp_async: source is not aligned",
    "half_a_warp": "a block must have whole warps",
}


def run(name, order="forward"):
    return subprocess.run(
        [emulated_build() / "emulator_test", name],
        env={**os.environ, "GEAR_EMULATOR_ORDER": order},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_every_kernel_of_the_program_is_tested_here():
    listed = subprocess.run(
        [emulated_build() / "emulator_test"], capture_output=True, text=True, check=True
    )
    assert set(listed.stdout.split()) == {*RIGHT, *WRONG, "race"}


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kernel_gives_the_right_result(name, order):
    ran = run(name, order)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_aborts_and_says_where(name):
    ran = run(name)
    assert ran.returncode == -signal.SIGABRT
    assert "emulated GPU: " in ran.stderr
    assert WRONG[name] in ran.stderr


def test_a_missing_barrier_shows_in_the_order_of_threads():
    assert run("race").stdout != run("race", "reverse").stdout
