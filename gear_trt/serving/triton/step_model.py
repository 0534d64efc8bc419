"""The config of a TensorRT engine in a model repository: one step of the graph, state in Triton.

Triton's TensorRT backend runs single steps. A sequence of requests keeps its pools and buffers in
Triton; its client keeps the page table and chooses the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from gear_trt.runtime.footprint import buffer_shape
from gear_trt.runtime.manifest import (
    DECODE_PROFILE,
    ENGINE_FILE,
    MODEL_FILE,
    PREFILL_PROFILE,
    LayerFacts,
    Manifest,
    TensorRTFacts,
)
from gear_trt.spec import graph, page_layout

_TYPES = {
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.FLOAT: "FP32",
}
_BUFFER_TYPES = {"float16": "FP16", "float32": "FP32"}

_CONFIG = """\
name: "{name}"
backend: "tensorrt"
default_model_filename: "{file}"
max_batch_size: 0
input [
{inputs}
]
output [
{outputs}
]
sequence_batching {{
  direct {{ }}
  state [
{states}
  ]
}}
instance_group [ {{ count: 1 kind: KIND_GPU profile: [ "{prefill}", "{decode}" ] }} ]
"""

_STATE = """\
    {{
      input_name: "{input}" output_name: "{output}" data_type: TYPE_{type} dims: [ {dims} ]
      use_same_buffer_for_input_output: true
      initial_state {{ name: "empty" data_type: TYPE_{type} dims: [ {dims} ] zero_data: true }}
    }}"""


def step_config(engine: Path, manifest: Manifest, facts: TensorRTFacts, *, name: str) -> str:
    """Return the text of `config.pbtxt`.

    Args:
        engine: The engine folder.
        manifest: Its manifest.
        facts: Its TensorRT engine.
        name: The model's.
    """
    inputs = [
        (graph.INPUT_IDS, "INT64", (-1, -1)),
        (graph.PAGE_TABLE, "INT32", (-1, -1)),
        (graph.SLOTS, "INT32", (-1,)),
        (graph.PAST_LENGTHS, "INT32", (-1,)),
        (graph.NEW_LENGTHS, "INT32", (-1,)),
    ]
    logits = (graph.LOGITS, _logits_type(engine), (-1, -1, manifest.model.vocab_size))
    return _CONFIG.format(
        name=name,
        file=ENGINE_FILE,
        inputs=_tensors(inputs),
        outputs=_tensors([logits]),
        states=",\n".join(_states(manifest.layers, facts)),
        prefill=PREFILL_PROFILE,
        decode=DECODE_PROFILE,
    )


def _states(layers: Sequence[LayerFacts], facts: TensorRTFacts) -> Iterable[str]:
    for index, layer in enumerate(layers):
        words = page_layout(layer.config, layer.head_dim).page_words
        yield _STATE.format(
            input=graph.page_pool_input(index),
            output=graph.page_pool_output(index),
            type="INT32",
            dims=_dims((facts.limits.num_pages, layer.num_kv_heads, words)),
        )
        yield _STATE.format(
            input=graph.residual_buffer_input(index),
            output=graph.residual_buffer_output(index),
            type=_BUFFER_TYPES[np.dtype(layer.config.buffer_dtype).name],
            dims=_dims((facts.limits.slots, *buffer_shape(layer))),
        )


def _logits_type(engine: Path) -> str:
    model = onnx.load(engine / MODEL_FILE, load_external_data=False)
    output = next(one for one in model.graph.output if one.name == graph.LOGITS)
    return _TYPES[output.type.tensor_type.elem_type]


def _tensors(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    return ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_{type_} dims: [ {_dims(shape)} ] }}'
        for name, type_, shape in tensors
    )


def _dims(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
