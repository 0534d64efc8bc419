"""Our peers: ONNX Runtime's own GroupQueryAttention, with every cache that its CPU kernel has.

Each runs in its fastest form: past and present are one buffer, bound once. The quantized caches of
ONNX Runtime are symmetric with fixed scales, which here come from the very tokens that are cached:
the best calibration there can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gear_trt.bench.binding import BoundCall, open_session
from gear_trt.bench.candidate import Facts
from gear_trt.bench.graphs import OUTPUT, TOKENS
from gear_trt.bench.grid import Point
from gear_trt.bench.rounds import Timed
from gear_trt.bench.tokens import FloatArray, Tokens

PER_TENSOR = "per_tensor"
PER_CHANNEL = "per_channel"
CACHES = ("past_key", "past_value")
PRESENTS = ("present_key", "present_value")
SCALES = ("k_scale", "v_scale")
OP = "GroupQueryAttention"
DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Storage:
    """How a cache holds an element.

    Attributes:
        bits: Bits per element: 32 and 16 are floats, 8 and 4 signed integers.
        granularity: What shares a scale: `PER_TENSOR` or `PER_CHANNEL`; None for floats.
    """

    bits: int
    granularity: str | None = None

    @property
    def dtype(self) -> str:
        """Element type of the cache array; two 4-bit codes share a byte."""
        return {32: "float32", 16: "float16", 8: "int8", 4: "uint8"}[self.bits]

    @property
    def activation_dtype(self) -> str:
        """Element type of query, key, value and output: a float cache has that of its tokens."""
        return "float16" if self.bits == 16 else "float32"

    def array_dim(self, head_dim: int) -> int:
        """Length of the last axis of the cache array."""
        return head_dim * self.bits // 8 if self.bits == 4 else head_dim

    def __str__(self) -> str:
        """Return the name that rows give it."""
        name = f"fp{self.bits}" if self.granularity is None else f"int{self.bits}"
        return f"{name} {self.granularity}" if self.granularity else name


PEERS: dict[str, tuple[Storage, ...]] = {
    "ort-fp32": (Storage(32),),
    "ort-fp16": (Storage(16),),
    "ort-int8": (Storage(8, PER_TENSOR), Storage(8, PER_CHANNEL)),
    "ort-int4": (Storage(4, PER_TENSOR), Storage(4, PER_CHANNEL)),
}
"""Peers by name; where there are two forms, both run and the faster one stands for the peer."""


def state_bytes(point: Point, storage: Storage) -> int:
    """Bytes of one copy of the cache that a point needs."""
    heads = point.heads
    elements = 2 * point.batch * heads.num_kv_heads * point.tokens * heads.head_dim
    return elements * storage.bits // 8


class GroupQueryAttention:
    """Implements `Candidate`.

    Args:
        tokens: What the cache is filled with and called on.
        point: Where it is timed.
        name: Key of `PEERS`.
        storage: How its cache holds elements.
        copies: Independent copies of the filled cache.
    """

    def __init__(
        self, tokens: Tokens, point: Point, name: str, storage: Storage, *, copies: int = 1
    ) -> None:
        self.facts = Facts(name=name, engine="onnxruntime", host="onnxruntime", cache=str(storage))
        elements = 2 * point.heads.num_kv_heads * point.heads.head_dim
        self.bytes_per_token = elements * storage.bits / 8
        self.read_bytes = int(self.bytes_per_token * point.batch * point.context)
        self._shape = tokens.query_BSND.shape
        session = open_session(_model(point, storage), threads=point.threads)
        scales = [_scales(array, storage) for array in (tokens.keys_BTHD, tokens.values_BTHD)]
        filled = [
            _filled_cache(array, point, storage, scale)
            for array, scale in zip(tokens.past, scales, strict=True)
        ]
        dtype = storage.activation_dtype
        self._output = np.zeros((point.batch, point.new_tokens, _width(point)), dtype)
        fixed: dict[str, NDArray[Any]] = {
            name: np.ascontiguousarray(array, dtype).reshape(point.batch, point.new_tokens, -1)
            for name, array in zip(TOKENS, (tokens.query_BSND, *tokens.new), strict=True)
        }
        fixed["seqlens_k"] = np.full(point.batch, point.tokens - 1, np.int32)
        fixed["total_sequence_length"] = np.array(point.tokens, np.int32)
        if storage.granularity is not None:
            fixed |= dict(zip(SCALES, scales, strict=True))
        copied = [filled] + [[cache.copy() for cache in filled] for _ in range(copies - 1)]
        self._calls = [
            BoundCall(
                session,
                {**fixed, **dict(zip(CACHES, caches, strict=True))},
                {OUTPUT: self._output, **dict(zip(PRESENTS, caches, strict=True))},
            )
            for caches in copied
        ]

    def output(self) -> NDArray[np.floating]:
        """See `Candidate.output`."""
        self._calls[0]()
        return self._output.reshape(self._shape)

    def timed(self) -> Sequence[Timed]:
        """See `Candidate.timed`."""
        return [Timed(self._timed_name, lambda copy: self._calls[copy](), len(self._calls))]

    def seconds(self, times: dict[str, list[float]]) -> list[float]:
        """See `Candidate.seconds`."""
        return times[self._timed_name]

    def compression_share(self, times: dict[str, list[float]]) -> None:
        """See `Candidate.compression_share`: the op does not tell."""

    @property
    def _timed_name(self) -> str:
        return f"{self.facts.name} {self.facts.cache}"


def quantize(x_BHTD: FloatArray, scale: FloatArray, storage: Storage) -> NDArray[Any]:
    """Quantize as the op does: round half to even, saturate; 4-bit codes go low nibble first.

    Args:
        x_BHTD: [B, H, T, D] float32.
        scale: [1], or [1, H, 1, D].
        storage: 8 or 4 bits.

    Returns:
        [B, H, T, D] int8, or [B, H, T, D / 2] uint8.
    """
    limit = 2 ** (storage.bits - 1)
    codes: NDArray[np.int8] = np.clip(np.rint(x_BHTD / scale), -limit, limit - 1).astype(np.int8)
    if storage.bits == 8:
        return codes
    nibbles = (codes + 8).astype(np.uint8)
    return np.asarray(nibbles[..., ::2] | nibbles[..., 1::2] << 4)


def _scales(x_BTHD: FloatArray, storage: Storage) -> FloatArray:
    """Symmetric scales whose largest code is that of the largest magnitude."""
    axes = (0, 1) if storage.granularity == PER_CHANNEL else None
    largest = np.abs(x_BTHD).max(axis=axes) / (2 ** (storage.bits - 1) - 1)
    shape = (1, *largest.shape[:1], 1, *largest.shape[1:]) if largest.ndim else (1,)
    return np.asarray(largest, np.float32).reshape(shape)


def _filled_cache(
    past_BTHD: FloatArray, point: Point, storage: Storage, scale: FloatArray
) -> NDArray[Any]:
    """Return a cache [B, H, T + S, D] of which the past is filled."""
    heads = point.heads
    shape = (point.batch, heads.num_kv_heads, point.tokens, storage.array_dim(heads.head_dim))
    cache = np.zeros(shape, storage.dtype)
    past_BHTD = past_BTHD.swapaxes(1, 2)
    is_float = storage.granularity is None
    cache[:, :, : point.context] = past_BHTD if is_float else quantize(past_BHTD, scale, storage)
    return cache


def _width(point: Point) -> int:
    return point.heads.num_heads * point.heads.head_dim


def _model(point: Point, storage: Storage) -> onnx.ModelProto:
    """Return one node whose every tensor is a graph input or output."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(storage.activation_dtype))
    cached = helper.np_dtype_to_tensor_dtype(np.dtype(storage.dtype))
    heads = point.heads
    cache_shape = ("B", heads.num_kv_heads, "capacity", storage.array_dim(heads.head_dim))
    inputs = {
        **dict.fromkeys(TOKENS, (element, ("B", "S", None))),
        **dict.fromkeys(CACHES, (cached, cache_shape)),
        "seqlens_k": (TensorProto.INT32, ("B",)),
        "total_sequence_length": (TensorProto.INT32, ()),
    }
    outputs = {
        OUTPUT: (element, ("B", "S", None)),
        **dict.fromkeys(PRESENTS, (cached, cache_shape)),
    }
    attributes: dict[str, Any] = {}
    unused: list[str] = []
    if storage.granularity is not None:
        scale_shape = (1, heads.num_kv_heads, 1, heads.head_dim)
        per_channel = storage.granularity == PER_CHANNEL
        shape = scale_shape if per_channel else (1,)
        unused = [""] * 5  # rotary caches, position ids, bias, head sinks
        attributes["kv_cache_bit_width"] = storage.bits
        for name, side in zip(SCALES, ("k", "v"), strict=True):
            attributes[f"{side}_quant_type"] = storage.granularity.upper()
            inputs[name] = (TensorProto.FLOAT, shape)
    names = list(inputs)
    node = helper.make_node(
        OP,
        [*names[:7], *unused, *names[7:]],
        list(outputs),
        name=OP,
        domain=DOMAIN,
        num_heads=heads.num_heads,
        kv_num_heads=heads.num_kv_heads,
        scale=heads.head_dim**-0.5,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        OP,
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
