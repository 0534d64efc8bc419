"""`load`, `step`, siblings, and what a damaged folder or a bad request leads to."""

import json
import threading

import numpy as np
import onnx
import pytest

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime import engine as engine_module
from gear_trt.runtime.manifest import MANIFEST_FILE, MODEL_FILE
from gear_trt.spec import CompressionConfig
from tests.graphs import ToyModel
from tests.runtime.folders import MAX_CONTEXT, with_infinite_keys, write_engine

TEXT = np.random.default_rng(0).integers(0, 256, 150)


def refusal(code, call, *args, **kwargs):
    with pytest.raises(GearError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is code
    return caught.value


def load(folder, **kwargs):
    return gear_trt.load(folder, threads=1, **kwargs)


def test_stepwise_bulk_and_all_logits_agree(exact_folder):
    with load(exact_folder) as bulk, load(exact_folder) as stepwise:
        every = bulk.step([TEXT], all_logits=True)
        assert every.shape == (1, len(TEXT), 260)
        for position, token in enumerate(TEXT):
            logits = stepwise.step([[token]])
            np.testing.assert_allclose(logits[0], every[0, position], atol=2e-4)


def test_long_prompts_run_in_slices(exact_folder, monkeypatch):
    with load(exact_folder, batch=2) as whole, load(exact_folder, batch=2) as sliced:
        rows = [TEXT, TEXT[:37]]
        want = whole.step(rows), whole.step([TEXT[:3], TEXT[:20]], all_logits=True)
        monkeypatch.setattr(engine_module, "PREFILL_SLICE", 16)
        got = sliced.step(rows), sliced.step([TEXT[:3], TEXT[:20]], all_logits=True)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)
        assert np.isnan(got[1][0, 3:]).all()
        assert not np.isnan(got[1][0, :3]).any()


def test_unequal_sequences_do_not_touch_each_other(toy_folder):
    rows = [[TEXT[:90], TEXT[:5], []], [[7], [8], TEXT[:70]], [[], [9], [3]]]
    with load(toy_folder, batch=3) as together:
        alone = [together.sibling() for _ in range(3)]
        for step in rows:
            got = together.step(step)
            for sequence, tokens in enumerate(step):
                if len(tokens):
                    want = alone[sequence].step([tokens])[0]
                    np.testing.assert_allclose(got[sequence], want, atol=1e-4)
                else:
                    assert np.isnan(got[sequence]).all()
        assert together.cache.lengths.tolist() == [91, 7, 71]


def test_float16_model(tmp_path):
    half = write_engine(tmp_path / "half", ToyModel(dtype="float16"))
    full = write_engine(tmp_path / "full", ToyModel())
    with load(half) as engine, load(full) as reference:
        logits = engine.step([TEXT])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, reference.step([TEXT]), atol=0.2)


def test_four_threads_with_own_caches(toy_folder):
    with load(toy_folder) as engine:
        texts = [np.roll(TEXT, shift) for shift in range(4)]
        want = [engine.sibling().step([text]) for text in texts]
        got = [None] * 4

        def work(index):
            sibling = engine.sibling()
            for start in range(0, len(TEXT), 10):
                got[index] = sibling.step([texts[index][start : start + 10]])
            sibling.cache.reset()
            got[index] = sibling.step([texts[index]])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(np.stack(got), np.stack(want))


def test_context_exceeded_names_lengths_and_remedy(toy_folder):
    with load(toy_folder, max_tokens=20) as engine:
        engine.step([TEXT[:18]])
        error = refusal(ErrorCode.CONTEXT_EXCEEDED, engine.step, [TEXT[:3]])
        assert "21" in error.message
        assert "holds 20" in error.message
        assert "max_tokens=21" in error.hint
        error = refusal(ErrorCode.CONTEXT_EXCEEDED, engine.step, [[0] * MAX_CONTEXT])
        assert "shorten" in error.hint
        assert str(MAX_CONTEXT) in error.hint
        engine.step([TEXT[:2]])


@pytest.mark.parametrize("tokens", [[[1], [2]], [[1.5]], [["a"]], [1, 2], [[[1]]], [[-1]], [[260]]])
def test_bad_tokens(toy_folder, tokens):
    with load(toy_folder) as engine:
        refusal(ErrorCode.BAD_REQUEST, engine.step, tokens)


def test_no_tokens(toy_folder):
    with load(toy_folder) as engine:
        refusal(ErrorCode.EMPTY_PROMPT, engine.step, [[]])


@pytest.mark.parametrize(
    "arguments", [{"batch": 0}, {"max_tokens": 0}, {"max_tokens": MAX_CONTEXT + 1}, {"threads": 0}]
)
def test_bad_sizes(toy_folder, arguments):
    error = refusal(ErrorCode.BAD_REQUEST, gear_trt.load, toy_folder, **arguments)
    assert next(iter(arguments)) in error.message


def test_non_finite_activation_empties_the_cache(tmp_path):
    folder = with_infinite_keys(tmp_path / "engine")
    with load(folder) as engine:
        error = refusal(ErrorCode.NON_FINITE_ACTIVATION, engine.step, [TEXT[:5]])
        assert error.message.startswith("GearAttention: layer 1, KV head 1, token 0 of sequence 0")
        assert engine.cache.lengths.tolist() == [0]


def test_folder_without_manifest(tmp_path):
    refusal(ErrorCode.MISSING_FILE, load, tmp_path)


def test_folder_without_model(tmp_path):
    folder = write_engine(tmp_path / "engine")
    (folder / MODEL_FILE).unlink()
    error = refusal(ErrorCode.MISSING_FILE, load, folder)
    assert MODEL_FILE in error.message


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_truncated_model(tmp_path, size):
    folder = write_engine(tmp_path / "engine")
    content = (folder / MODEL_FILE).read_bytes()
    (folder / MODEL_FILE).write_bytes(content[:size])
    error = refusal(ErrorCode.DAMAGED_ENGINE, load, folder)
    assert "gear-export" in error.hint


def test_manifest_with_more_layers_than_the_graph(tmp_path):
    folder = write_engine(tmp_path / "engine")
    fields = json.loads((folder / MANIFEST_FILE).read_text())
    fields["layers"] = fields["layers"] * 2
    (folder / MANIFEST_FILE).write_text(json.dumps(fields))
    refusal(ErrorCode.DAMAGED_ENGINE, load, folder)


def test_manifest_with_another_config_than_the_graph(tmp_path):
    folder = write_engine(tmp_path / "engine")
    other = ToyModel(config=CompressionConfig.preset("k4v2"))
    fields = json.loads((folder / MANIFEST_FILE).read_text())
    fields["layers"] = [other.facts.model_dump()] * 2
    (folder / MANIFEST_FILE).write_text(json.dumps(fields))
    with load(folder) as engine:
        error = refusal(ErrorCode.DAMAGED_ENGINE, engine.step, [[1]])
        assert error.message.startswith("GearAttention layer 0: page_pool has shape")


def test_layout_of_another_version(tmp_path):
    folder = write_engine(tmp_path / "engine")
    model = onnx.load(folder / MODEL_FILE)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "layout_hash":
                attribute.s = b"0123456789abcdef"
    onnx.save(model, folder / MODEL_FILE)
    error = refusal(ErrorCode.LAYOUT_MISMATCH, load, folder)
    assert "0123456789abcdef" in error.message
    assert "export the model again" in error.hint


def test_folder_without_tokenizer_still_steps(tmp_path):
    folder = write_engine(tmp_path / "engine", tokenizer=False)
    with load(folder) as engine:
        assert engine.step([[1, 2]]).shape == (1, 260)
        error = refusal(ErrorCode.MISSING_FILE, engine.generate, "hello")
        assert "tokenizer" in error.message


def test_damaged_tokenizer(tmp_path):
    folder = write_engine(tmp_path / "engine")
    (folder / "tokenizer.json").write_text("{]")
    with load(folder) as engine:
        refusal(ErrorCode.DAMAGED_ENGINE, engine.generate, "hello")
