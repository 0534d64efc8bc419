"""`gear::attention` on the CPU: results, what torch asks of an op, refusals."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import gear_trt.torch as gear_torch
from gear_trt import native
from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import CompressionConfig
from gear_trt.spec.layout import CONFIG_VARIABLES
from gear_trt.torch import device
from tests.cases import ATTENTION_CASES, AttentionCase, attention_call
from tests.plugins.checks import TOLERANCE, assert_states_equal, nmse
from tests.plugins.test_attention import run
from tests.torch.op import arguments, as_array

CASE = AttentionCase("torch", past=(130, 60, 9), new=(2, 70, 3), kv_heads=2)
ROWS = [
    case
    for case in ATTENTION_CASES
    if case.name.startswith(("batch", "half", "brain", "soft", "new"))
]


@pytest.fixture
def inputs():
    call = attention_call(CASE)
    return arguments(CASE, call, call.before.copy())


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_output_and_state_equal_the_reference(case):
    call = attention_call(case)
    state = call.before.copy()
    output = gear_torch.attention(**arguments(case, call, state))
    assert nmse(as_array(output), call.output_BSND) <= TOLERANCE[case.dtype]
    assert_states_equal(state, call.after, case, call)


def test_it_is_the_library_that_computes(inputs):
    call = attention_call(CASE)
    output = gear_torch.attention(**inputs)
    np.testing.assert_array_equal(output.numpy(), run(CASE, call, call.before.copy()))


def test_torch_finds_nothing_wrong_with_the_op(inputs):
    config = [getattr(CASE.config, name) for name in CONFIG_VARIABLES]
    for side in ("key_BSHD", "value_BSHD"):
        inputs[side].nan_to_num_()  # torch compares inputs with copies, and no NaN equals another
    inputs["residual_buffer"].nan_to_num_()
    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    attributes = (config, CASE.scale, 2.0, 70, 3)
    checks = torch.library.opcheck(torch.ops.gear.attention.default, (*tensors, *attributes))
    assert set(checks.values()) == {"SUCCESS"}


def test_compiled_code_keeps_the_state_in_place(inputs):
    call = attention_call(CASE)
    pool = inputs["page_pool"]
    compiled = torch.compile(gear_torch.attention, backend="aot_eager", fullgraph=True)
    output = compiled(**inputs)
    assert nmse(output.numpy(), call.output_BSND) <= TOLERANCE["float32"]
    np.testing.assert_array_equal(pool.numpy(), gear_state(CASE, call).page_pool)


def gear_state(case, call):
    state = call.before.copy()
    run(case, call, state)
    return state


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("key_BSHD", lambda x: x[..., :32], r"key is torch.float32 \(3, 70, 2, 32\), must be"),
        ("key_BSHD", lambda x: x[0], "key has 3 axes, must have 4"),
        ("query_BSND", lambda x: x.double(), "query is torch.float64 .* must be torch.float32"),
        ("page_pool", lambda x: x[..., :-1], r"page_pool is torch.int32 .* must be"),
        ("residual_buffer", lambda x: x.float(), "residual_buffer is torch.float32"),
        ("slots", lambda x: x.long(), r"slots is torch.int64 \(3,\), must be torch.int32"),
        ("query_BSND", lambda x: x.mT.contiguous().mT, "query must be contiguous"),
        ("key_BSHD", lambda x: x * torch.inf, "layer 5, KV head 0, token 130 .* not finite"),
        ("slots", lambda x: x + 9, "slot .* is outside the residual buffer's"),
    ],
)  # fmt: skip
def test_refusals_leave_the_state_alone(inputs, name, change, message):
    before = inputs["page_pool"].clone()
    changed = {**inputs, name: change(inputs[name])}
    with pytest.raises(ValueError, match=message):
        gear_torch.attention(**changed, layer=5)
    assert torch.equal(inputs["page_pool"], before)


def test_a_config_that_is_not_valid_is_refused(inputs):
    fields = {**CompressionConfig().model_dump(), "rank": 9}
    with pytest.raises(GearError, match="rank: Input should be less than or equal to 8") as caught:
        gear_torch.attention(**{**inputs, "config": CompressionConfig.model_construct(**fields)})
    assert caught.value.code is ErrorCode.BAD_CONFIG


def test_it_uses_the_threads_of_torch(inputs, monkeypatch):
    seen = []
    monkeypatch.setattr(native, "run_attention", lambda call: seen.append(call.num_threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    gear_torch.attention(**inputs)
    assert seen == [3]


def test_importing_gear_trt_imports_no_torch():
    code = "import sys, gear_trt, gear_trt.native; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_workspace_is_made_while_a_graph_is_captured(monkeypatch):
    """Its zeros would be written by the graph alone (tests/torch/test_gpu.py captures one)."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device._refuse_capture(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="the first call of its size on a stream"):
        device._workspace(torch.device("cuda", 0), stream=1, size=1)
