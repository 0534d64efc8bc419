"""The plugin's enqueue: the case table, where its memory lies, what it reports."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.gpu_cases import TOLERANCE
from benchmarks.gpu_plugin import ROWS, PluginKernels, run_table
from gear_trt import tensorrt
from gear_trt.tensorrt import plugin
from tests.cases import ATTENTION_CASES, AttentionCase, attention_call
from tests.plugins.checks import check_attention, nmse, run_call, run_guarded

CPU = torch.device("cpu")
CASES = [case for case in ATTENTION_CASES if case.name.startswith(ROWS)]
PROMPT = AttentionCase("plugin-prompt", past=(70, 0), new=(40, 3), group=8, dtype="bfloat16")
MANY_SPLITS = AttentionCase("plugin-splits", past=(900, 333), new=(1, 1), kv_heads=2)


@pytest.fixture(params=["in-place", "copied"])
def kernels(request, emulated_library):
    return PluginKernels(emulated_library, CPU, in_place=request.param == "in-place")


@pytest.mark.parametrize("case", [*CASES[::4], MANY_SPLITS, PROMPT], ids=str)
def test_output_and_state_equal_the_reference(case, kernels):
    check_attention(kernels.attention, case, TOLERANCE[case.dtype])


@pytest.mark.parametrize("case", [MANY_SPLITS, CASES[0]], ids=str)
def test_a_plugin_that_is_attached_to_nothing_works(case, emulated_library):
    detached = PluginKernels(emulated_library, CPU, is_attached=False)
    check_attention(detached.attention, case, TOLERANCE[case.dtype])


def test_calls_leave_no_trace(emulated_library):
    """Counters of split sequences are zero again, and the workspace is never relied on."""
    kernels = PluginKernels(emulated_library, CPU)
    call = attention_call(MANY_SPLITS)
    outputs = [run_guarded(kernels.attention, MANY_SPLITS, call)[0] for _ in range(3)]
    assert nmse(outputs[0], call.output_BSND) <= TOLERANCE["float32"]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def faulty(**changes):
    """The case's call with something wrong in its data, and a state to run it on."""
    call = attention_call(MANY_SPLITS)
    return dataclasses.replace(call, **changes), call.before.copy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": np.array([0, 77], np.int32)}, "slot 77 of sequence 1 is outside"),
        ({"page_table": np.full((2, 14), 999, np.int32)}, "page 999 of sequence 0 is outside"),
    ],
    ids=["slot", "page"],
)
def test_what_the_data_shows_is_reported_once(changes, message, emulated_library):
    kernels = PluginKernels(emulated_library, CPU)
    call, state = faulty(**changes)
    with pytest.raises(ValueError, match=message):
        run_call(kernels.attention, MANY_SPLITS, call, state)
    kernels.host.raise_errors()


def test_a_value_that_is_not_finite_names_layer_head_and_token(emulated_library):
    kernels = PluginKernels(emulated_library, CPU)
    key = attention_call(MANY_SPLITS).key_BSHD.copy()
    key[1, 0, 1] = np.inf
    call, state = faulty(key_BSHD=key)
    with pytest.raises(ValueError, match="layer 5, KV head 1, token 333 of sequence 1"):
        run_call(kernels.attention, MANY_SPLITS, call, state, layer=5)


def test_the_package_reports_it_too(emulated_library, monkeypatch):
    kernels = PluginKernels(emulated_library, CPU)
    monkeypatch.setattr(kernels.host, "raise_errors", lambda: None)
    call, state = faulty(slots=np.array([-1, 0], np.int32))
    run_call(kernels.attention, MANY_SPLITS, call, state)
    monkeypatch.setenv(plugin.LIBRARY_VARIABLE, str(emulated_library))
    plugin._library.cache_clear()
    with pytest.raises(ValueError, match="slot -1 of sequence 0"):
        tensorrt.raise_errors()
    tensorrt.raise_errors()
    plugin._library.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_and_a_graph_on_a_gpu(cuda_library):
    assert run_table(cuda_library, torch.device("cuda")) == []
