"""The emulated GPU itself: emulator_test.cpp has the kernels."""

import os
import signal
import subprocess

import pytest

from tests.cuda.build import emulated_build

RIGHT = (
    "block_sums", "collectives", "last_block", "mma", "movmatrix", "cp_async", "half", "bfloat16",
    "neighbours_of_a_warp", "neighbours_of_a_block", "hand_on",
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
    "no_barrier": "races: writes what thread 0 of this block accessed",
    "shuffle_is_no_barrier": "races: reads what thread 30 of this block accessed",
    "warp_barrier_for_a_block": "races: writes what thread 0 of this block accessed",
    "neighbours_copy": "races: writes what thread 0 of this block accessed",
    "refilled_while_read": "races: reads what thread 0 of this block accessed",
    "hand_on_without_fence": "races: reads past caches what thread 0 of another block accessed",
    "hand_on_without_barrier": "races: reads past caches what thread 1 of another block accessed",
    "hand_on_without_atomic": "races: reads past caches what thread 0 of another block accessed",
    "hand_on_unasked": "races: reads past caches what thread 0 of another block accessed",
    "hand_on_through_caches": "races: reads what thread 0 of another block accessed",
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
    assert set(listed.stdout.split()) == {*RIGHT, *WRONG, "misaligned_vector"}


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


def test_a_vector_must_be_aligned():
    ran = run("misaligned_vector")
    assert ran.returncode
    assert "misaligned address" in ran.stderr
