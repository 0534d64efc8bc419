"""Steps on a device: cut, padded, captured and replayed, they give what the CPU engine gives."""

import numpy as np
import pytest
import torch

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.device.graph import DeviceGraph, Limits
from gear_trt.runtime.device.logits import DeviceLogits
from gear_trt.runtime.engine import Engine
from gear_trt.runtime.manifest import Manifest
from gear_trt.runtime.memory import DeviceMemory
from tests.runtime.device import HostQueue, device_model

TEXT = np.random.default_rng(0).integers(0, 256, 150)
DECODE = Limits(batch=4, seq_len=1)
PREFILL = Limits(batch=2, seq_len=48)
UNSPLIT = Limits(batch=64, seq_len=512)


def open_engine(folder, *, batch=1, **programs):
    model = device_model(folder, **programs)
    return model.backend, Engine(model, batch=batch)


def rows_of(rng, lengths):
    return [rng.integers(0, 256, length) for length in lengths]


@pytest.mark.parametrize("decode", [None, DECODE])
@pytest.mark.parametrize("prefill", [PREFILL, UNSPLIT])
@pytest.mark.parametrize("batch", [1, 3, 6])
def test_steps_give_what_the_cpu_engine_gives(exact_folder, batch, prefill, decode):
    rng = np.random.default_rng(batch)
    lengths = [rng.integers(0, 80, batch), *[np.ones(batch, int)] * 4, rng.integers(0, 3, batch)]
    lengths[0][0] = 100
    lengths[3][0] = 0  # an idle row
    lengths[3][-1] = 1
    _, engine = open_engine(exact_folder, batch=batch, prefill=prefill, decode=decode)
    with gear_trt.load(exact_folder, batch=batch, threads=1, backend="onnxruntime") as reference:
        for step in lengths:
            rows = rows_of(rng, step)
            np.testing.assert_allclose(engine.step(rows), reference.step(rows), atol=2e-4)
        rows = rows_of(rng, rng.integers(1, 60, batch))
        got, want = (one.step(rows, all_logits=True) for one in (engine, reference))
        np.testing.assert_allclose(got, want, atol=2e-4)
        assert engine.cache.lengths.tolist() == reference.cache.lengths.tolist()


def test_state_on_a_device_is_saved_and_loaded(toy_folder, tmp_path):
    _, engine = open_engine(toy_folder, batch=2)
    engine.step([TEXT, TEXT[:20]])
    engine.cache.save(tmp_path / "cache")
    engine.cache.check_integrity()
    with gear_trt.load(toy_folder, batch=2, threads=1, backend="onnxruntime") as reference:
        reference.cache.load(tmp_path / "cache")
        want = reference.step([[1], [2]])
        np.testing.assert_allclose(engine.step([[1], [2]]), want, atol=2e-4)
    _, other = open_engine(toy_folder, batch=2)
    other.cache.load(tmp_path / "cache")
    np.testing.assert_allclose(other.step([[1], [2]]), want, atol=2e-4)


# --- Padding and graphs ---------------------------------------------------------------------------


def decode_shapes(backend):
    return backend.programs.decode.shapes


def test_decode_steps_are_captured_once_and_replayed(toy_folder):
    backend, engine = open_engine(toy_folder, decode=DECODE)
    engine.step([TEXT])
    for token in TEXT[:6]:
        engine.step([[token]])
    assert len(decode_shapes(backend)) == 2, "the first run is an ordinary one, the next captured"
    assert (backend.queue.captures, backend.queue.replays) == (1, 5)


def test_batches_and_page_tables_are_padded_to_powers_of_two(toy_folder):
    backend, engine = open_engine(toy_folder, batch=3, decode=DECODE)
    assert engine.cache.page_table.shape == (3, 6)
    engine.step([[1], [2], [3]])
    assert decode_shapes(backend) == [(4, 1, 8)]


def test_no_batch_is_padded_beyond_the_limit(toy_folder):
    backend, engine = open_engine(toy_folder, batch=5, decode=Limits(batch=3, seq_len=1))
    engine.step([[token] for token in range(5)])
    assert decode_shapes(backend) == [(3, 1, 8), (2, 1, 8)]


def test_a_graph_is_captured_only_right_after_a_run_of_its_shape(toy_folder):
    backend, engine = open_engine(toy_folder, batch=3, decode=Limits(batch=2, seq_len=1))
    for _ in range(3):  # shapes of two rows and of one take turns
        engine.step([[1], [2], [3]])
    assert backend.queue.captures == 0
    assert len(decode_shapes(backend)) == 6


def test_without_graphs_decoding_goes_on(toy_folder, caplog):
    backend, engine = open_engine(toy_folder, decode=DECODE)
    backend.queue.can_capture = False
    with gear_trt.load(toy_folder, threads=1, backend="onnxruntime") as reference:
        for token in TEXT[:5]:
            got, want = engine.step([[token]]), reference.step([[token]])
            np.testing.assert_allclose(got, want, atol=2e-4)
    assert backend.queue.replays == 0
    assert caplog.text.count("without CUDA graphs: operation not permitted") == 1


def test_siblings_have_graphs_of_their_own(toy_folder):
    _, engine = open_engine(toy_folder, decode=DECODE)
    sibling = engine.sibling()
    with gear_trt.load(toy_folder, threads=1, backend="onnxruntime") as reference:
        for token in TEXT[:5]:
            want = reference.step([[token]])
            for one in (engine, sibling):
                np.testing.assert_allclose(one.step([[token]]), want, atol=2e-4)


def test_bfloat16_logits_come_as_float32():
    logits_BSV = torch.arange(24.0).reshape(1, 4, 6).bfloat16()
    logits = DeviceLogits(logits_BSV, HostQueue())
    assert logits.shape == (1, 4, 6)
    np.testing.assert_array_equal(np.asarray(logits), logits_BSV.float().numpy())
    rows, columns = np.array([0, 0]), np.array([3, 1], np.int32)
    np.testing.assert_array_equal(logits[rows, columns], logits_BSV.float().numpy()[0, [3, 1]])


# --- What the kernels met -------------------------------------------------------------------------


def test_a_fault_empties_the_cache(toy_folder):
    fault = GearError(ErrorCode.NON_FINITE_ACTIVATION, "layer 0", hint="check the weights")

    def raise_faults():
        if engine.cache.lengths[0] == 3:
            raise fault

    _, engine = open_engine(toy_folder, decode=DECODE, faults=raise_faults)
    engine.step([TEXT[:3]])
    with pytest.raises(GearError) as caught:
        engine.step([[1]])
    assert caught.value is fault
    assert engine.cache.lengths[0] == 0


def test_a_step_that_does_not_fit_the_device_is_refused(toy_folder, monkeypatch):
    def no_room(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    _, engine = open_engine(toy_folder)
    monkeypatch.setattr(DeviceGraph, "_empty_logits", no_room)
    with pytest.raises(GearError, match="the GPU has too little memory") as caught:
        engine.step([TEXT])
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY


def test_a_cache_that_does_not_fit_the_device_is_refused(toy_folder, monkeypatch):
    def zeros(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    layers = Manifest.read(toy_folder).layers
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(GearError, match="max_tokens") as caught:
        GearCache(layers, batch=2, max_tokens=100, memory=DeviceMemory(HostQueue()))
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY
