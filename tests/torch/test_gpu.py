"""What only a GPU can show of `gear_trt.torch`: the op on CUDA tensors, graphs, generation."""

import copy
import dataclasses

import pytest
import torch

import gear_trt.torch as gear_torch
from benchmarks.gpu_cases import TOLERANCE
from gear_trt.spec import CompressionConfig
from gear_trt.spec.layout import CONFIG_VARIABLES
from gear_trt.torch import GearCache, measure_key_scales
from tests.cases import AttentionCase, attention_call
from tests.plugins.checks import nmse
from tests.torch.networks import SUPPORTED, network, tokens
from tests.torch.op import arguments, as_array

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CASE = AttentionCase("torch", past=(130, 60, 9), new=(2, 70, 3), kv_heads=2)
STEP = dataclasses.replace(CASE, name="step", new=(2, 1, 3))
"""No page becomes full, so that the call leaves what it reads as it is, and can be made again."""


@pytest.fixture
def inputs():
    call = attention_call(CASE)
    return arguments(CASE, call, call.before, "cuda")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_op_on_a_gpu_equals_the_reference(dtype):
    case = dataclasses.replace(CASE, dtype=dtype)
    call = attention_call(case)
    output = gear_torch.attention(**arguments(case, call, call.before, "cuda"))
    gear_torch.raise_errors(torch.device("cuda"))
    assert nmse(as_array(output), call.output_BSND) <= TOLERANCE[dtype]


def test_torch_finds_nothing_wrong_with_the_op(inputs):
    for name in ("key_BSHD", "value_BSHD", "residual_buffer"):
        inputs[name].nan_to_num_()
    config = [getattr(CASE.config, name) for name in CONFIG_VARIABLES]
    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    attributes = (config, CASE.scale, 0.0, 0, 0)
    checks = torch.library.opcheck(torch.ops.gear.attention.default, (*tensors, *attributes))
    assert set(checks.values()) == {"SUCCESS"}


def test_graphs_replay_what_was_captured():
    call = attention_call(STEP)
    inputs = arguments(STEP, call, call.before, "cuda")
    want = gear_torch.attention(**inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gear_torch.attention(**inputs)
    graphs = []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            graphs.append((graph, gear_torch.attention(**inputs)))
    for graph, output in reversed(graphs):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(output, want)


def test_the_first_call_on_a_stream_is_not_captured(inputs):
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match="the first call of its size on a stream"),
        torch.cuda.graph(graph, stream=torch.cuda.Stream()),
    ):
        gear_torch.attention(**inputs)


def test_what_the_data_shows_is_reported_afterwards(inputs):
    inputs["key_BSHD"][0, 0, 0] = (
        torch.inf
    )  # of one head: which of two would be named, nobody knows
    gear_torch.attention(**inputs, layer=5)
    with pytest.raises(ValueError, match="layer 5, KV head 0, token 130 of sequence 0"):
        gear_torch.raise_errors(torch.device("cuda"))


def test_tensors_of_two_devices_are_refused(inputs):
    with pytest.raises(ValueError, match="page_table is on cpu, the others on cuda:0"):
        gear_torch.attention(**{**inputs, "page_table": inputs["page_table"].cpu()})


@pytest.mark.parametrize("preset", ["fp16", "k4v4"])
@pytest.mark.parametrize("family", SUPPORTED)
def test_generate_over_pages_on_the_gpu(family, preset):
    """Logits of a prompt and 40 steps, fed with the same tokens as on the CPU."""
    model = network(family)
    model.set_attn_implementation("gear")
    on_gpu = copy.deepcopy(model).cuda()
    ids = tokens(2, 200)
    logits = []
    for place in (model, on_gpu):
        cache = GearCache(place.config, CompressionConfig.preset(preset))
        parts = ids.to(place.device).split([160, *[1] * 40], dim=1)
        with torch.no_grad():
            steps = [place(part, past_key_values=cache).logits for part in parts]
        logits.append(torch.cat(steps, dim=1).cpu().numpy())
    gear_torch.raise_errors(torch.device("cuda"))
    assert nmse(logits[1], logits[0]) < 1e-4


def test_key_scales_on_the_gpu():
    """Measured there they are those of the CPU, and a cache takes them from either."""
    model = network("llama")
    on_gpu = copy.deepcopy(model).cuda()
    here, there = (measure_key_scales(place) for place in (model, on_gpu))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=0)
    on_gpu.set_attn_implementation("gear")
    ids = tokens(2, 200).cuda()
    logits = []
    for scales in (here, [scale.cuda() for scale in here]):
        cache = GearCache(on_gpu.config, "k4v4", scales)
        with torch.no_grad():
            steps = [on_gpu(part, past_key_values=cache).logits for part in ids.split(100, dim=1)]
        logits.append(torch.cat(steps, dim=1))
    gear_torch.raise_errors(torch.device("cuda"))
    assert torch.equal(*logits)
