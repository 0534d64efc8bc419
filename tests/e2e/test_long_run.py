"""Four thousand tokens, one by one: neither memory nor the time of a step grows away."""

import statistics
import time

import psutil
import pytest

import gear_trt
from gear_trt.export import export_model
from gear_trt.spec import CompressionConfig
from tests.export import decoders

pytestmark = pytest.mark.slow

STEPS = 4000
LAYERS = 3
SIZES = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "num_hidden_layers": LAYERS,
    "max_position_embeddings": 8192,
}  # fmt: skip
"""SmolLM2-135M, whose thirty layers are alike, with fewer of them."""
MAX_GROWTH = LAYERS * STEPS * 170
"""Bytes: less than one allocation of a head's row per layer and step."""


def test_four_thousand_steps_keep_memory_and_speed(tmp_path):
    decoders.llama(**SIZES).save_pretrained(tmp_path / "model")
    folder = tmp_path / "engine"
    export_model(
        tmp_path / "model", folder, config=CompressionConfig.preset("k4v4"), max_context=8192
    )
    process = psutil.Process()
    with gear_trt.load(folder, max_tokens=STEPS + 8, threads=1) as engine:
        for array in (*engine.cache.page_pools, *engine.cache.residual_buffers):
            array[...] = 0  # take the memory now, so that growth later is a leak
        engine.step([[1]])
        before = process.memory_info().rss
        seconds = []
        for token in range(STEPS):
            started = time.process_time()  # not wall time: other processes share the machine
            engine.step([[token % decoders.VOCABULARY]])
            seconds.append(time.process_time() - started)
        grown = process.memory_info().rss - before
    assert grown < MAX_GROWTH, f"resident memory grew by {grown / 1e6:.1f} MB"
    median = statistics.median(seconds)
    slow = sorted(seconds)[-1 - STEPS // 1000]  # one in a thousand may meet another process
    assert slow < 5 * median, f"slow step {slow:.4f} s, median {median:.4f} s"
