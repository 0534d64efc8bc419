"""The op of the CUDA provider: its host code runs here on the emulated GPU, whose provider is the
CPU's; `libgear_cuda.so` itself is looked at as far as no GPU is needed."""

import ctypes

import numpy as np
import onnxruntime as ort
import pytest

from gear_trt import native
from gear_trt.bench.graphs import one_node_model
from gear_trt.spec import CompressionConfig, graph
from tests.cases import ATTENTION_CASES, attention_call
from tests.cuda.build import CUDA_BUILD, emulated_build
from tests.onnxruntime.op import D, Op, layer, open_session
from tests.onnxruntime.test_attention_op import check_steps, run_case
from tests.plugins.checks import TOLERANCE, assert_states_equal, nmse

K4V4 = CompressionConfig.preset("k4v4")


@pytest.fixture(scope="module")
def emulated():
    return emulated_build() / "libgear_emulated.so"


def noted(library):
    """What `gear_cuda_onnxruntime_status` says, None where it finds nothing."""
    error = ctypes.create_string_buffer(512)
    status = ctypes.CDLL(str(library)).gear_cuda_onnxruntime_status
    status.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
    return error.value.decode() if status(None, error, len(error)) else None


@pytest.mark.parametrize(
    ("preset", "dtype"), [("k4v4", "float32"), ("paper-2bit", "float16"), ("exact", "float16")]
)
def test_prefill_then_chunked_prefill_then_decode(preset, dtype, emulated):
    op = Op(CompressionConfig.preset(preset), dtype=dtype, library=emulated)
    check_steps(op, [[70], [63], *[[1]] * 3])
    assert op.state.page_pool.any(), "the steps must fill pages"
    assert noted(emulated) is None


@pytest.mark.parametrize("row", ["k4v4-new-1", "k4v4-new-40", "exact-new-40"])
def test_bfloat16_activations(row, emulated):
    case = next(case for case in ATTENTION_CASES if case.name == f"brain-{row}")
    call = attention_call(case)
    state = call.before.copy()
    output = run_case(case, call, state, emulated)
    assert nmse(output, call.output_BSND) <= TOLERANCE["bfloat16"]
    assert_states_equal(state, call.after, case, call)
    assert noted(emulated) is None


def test_sequences_of_unequal_lengths(emulated):
    op = Op(K4V4, batch=3, library=emulated)
    check_steps(op, [[5, 80, 0], [66, 0, 1], [1, 1, 1], [1, 1, 0]])


def test_two_layers_share_a_workspace(emulated):
    """What one leaves in it must not matter to the other: they take turns here."""
    first, second = Op(K4V4, batch=2, library=emulated), Op(K4V4, batch=2, library=emulated)
    for new_lengths in ([70, 3], [1, 1], [1, 64], [1, 1]):
        for op in (first, second):
            check_steps(op, [new_lengths])


def test_unbound_state_is_copied_and_the_inputs_stay(emulated):
    op = Op(K4V4, library=emulated)
    new_lengths = np.array([70], np.int32)
    tokens = op.new_tokens(70)
    names = ["output", graph.page_pool_output(0), graph.residual_buffer_output(0)]
    got, pool, rows = op.session.run(names, op.feeds(tokens, new_lengths))
    assert not op.state.page_pool.any()
    assert not op.state.residual_buffer.any()
    np.testing.assert_allclose(got, op.run_reference(tokens, new_lengths), atol=2e-3)
    np.testing.assert_array_equal(rows, op.reference.residual_buffer)
    assert pool.any()


def test_what_the_device_met_is_told_once(emulated):
    op = Op(K4V4, library=emulated)
    tokens = op.new_tokens(3)
    tokens["key"][0, 1, D + 5] = np.inf
    op.session.run_with_iobinding(op.bind(tokens, np.array([3], np.int32)))
    text = noted(emulated)
    assert "layer 0, KV head 1, token 1" in text
    assert "is not finite" in text
    assert noted(emulated) is None


def test_what_the_host_knows_is_refused(emulated):
    op = Op(K4V4, library=emulated)
    feeds = op.feeds(op.new_tokens(3), np.array([3], np.int32))
    feeds[graph.SLOTS] = np.zeros(2, np.int32)
    with pytest.raises(Exception, match=r"layer 0: slots has shape \[2\], expected \[1\]"):
        op.session.run(None, feeds)


# --- libgear_cuda.so ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built():
    library = CUDA_BUILD / "cuda" / "libgear_cuda.so"
    if not library.is_file():
        pytest.skip("libgear_cuda.so was not built: run `make cuda`")
    return library


def test_it_registers_and_has_no_kernel_for_cpus(built):
    assert noted(built) is None
    with pytest.raises(Exception, match="ep:'CPUExecutionProvider'"):
        open_session(one_node_model(layer(K4V4)), library=built)


def test_the_cpu_library_works_in_the_same_process(built):
    test_it_registers_and_has_no_kernel_for_cpus(built)
    check_steps(Op(K4V4), [[70], [1]])
    test_it_registers_and_has_no_kernel_for_cpus(built)
    check_steps(Op(K4V4), [[70], [1]])


@pytest.mark.parametrize("cuda_first", [False, True])
def test_onnxruntime_takes_one_of_the_two_in_a_session(cuda_first, built):
    """The fact that docs/adr/0016 rests on: a domain may come from one library only."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    libraries = [native.library_path(), built]
    for library in reversed(libraries) if cuda_first else libraries:
        options.register_custom_ops_library(str(library))
    model = one_node_model(layer(K4V4)).SerializeToString()
    with pytest.raises(Exception, match="Domain already set in registry"):
        ort.InferenceSession(model, options)
