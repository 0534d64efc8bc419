"""A process that dies while it saves: the file is the old one or the new one, never a half."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gear_trt

ROOT = Path(__file__).parents[2]
KILLS = 4
SAVE_FOR_EVER = """
import sys, gear_trt
with gear_trt.load(sys.argv[1], threads=1, max_tokens=390) as engine:
    tokens = list(range(30))
    while True:
        engine.cache.reset()
        engine.step([tokens])
        engine.cache.save(sys.argv[2])
        print("saved", flush=True)
        tokens = tokens + tokens[:30] if len(tokens) < 300 else tokens[:30]
"""


def test_kill_during_a_save(toy_folder, tmp_path):
    path = tmp_path / "cache"
    for kill in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, toy_folder, path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        process.stdout.readline()
        time.sleep(0.003 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with gear_trt.load(toy_folder, threads=1, max_tokens=390) as engine:
            engine.cache.load(path)
            assert engine.cache.lengths[0] % 30 == 0
            engine.cache.save(path)
            assert sorted(tmp_path.iterdir()) == [path]
