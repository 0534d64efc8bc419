"""What `find_kv` finds: attention layers with a KV cache, and near misses with their reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir
from numpy.typing import NDArray

from gear_trt.spec.layout import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM

Array = NDArray[Any]
Item = TypeVar("Item")

SYMBOLIC_OP = "UnroutedAttention"
"""Op of our own exporter: attention of the new tokens alone, to be routed."""


class MismatchError(Exception):
    """An attention layer that `GearAttention` cannot stand for; the message says why."""


@dataclass(frozen=True)
class AttentionFacts:
    """What `GearAttention` must know of one layer; names as in `GEAR_ATTENTION`."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float = 0.0
    sliding_window: int = 0


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding that the attention op applies itself.

    Attributes:
        cos_cache: [positions, rotated channels / 2].
        sin_cache: As `cos_cache`.
        interleaved: Whether pairs are neighbours, rather than half a head apart.
    """

    cos_cache: ir.Value
    sin_cache: ir.Value
    interleaved: int


@dataclass(frozen=True)
class HeadTensor:
    """Queries, keys or values of the new tokens.

    Attributes:
        tensor: [B, S, N·D] where `perm` is None.
        perm: Axes of `tensor`, as numbers of those of [B, N, S, D].
    """

    tensor: ir.Value
    perm: tuple[int, ...] | None = None

    def laid_out(self, array_BNSD: Array) -> Array:
        """Return an array [B, N, S, D] in the layout of the tensor."""
        if self.perm is not None:
            return array_BNSD.transpose(self.perm)
        batch, _, new, _ = array_BNSD.shape
        return array_BNSD.swapaxes(1, 2).reshape(batch, new, -1)


@dataclass(frozen=True)
class KvSite:
    """One attention layer that can be routed.

    Attributes:
        form: How the source graph writes it.
        node: The node that computes `output`.
        facts: Heads, scale, window.
        query: Of the new tokens; [B, S, (N + 2·H)·D] where `key` and `value` are None.
        key: Of the new tokens.
        value: As `key`.
        output: [B, N, S, D] where `heads_first`, otherwise [B, S, N·D].
        heads_first: Layout of `output`.
        dtype: Type of the four: float32, float16 or bfloat16.
        caches: Graph inputs that hold past keys and values; none in a graph of our own exporter.
        rotary: What is still to be done to query and key, or None.
        capacity: Tokens that the old cache held, None where nothing limited it.
    """

    form: str
    node: ir.Node
    facts: AttentionFacts
    query: HeadTensor
    key: HeadTensor | None
    value: HeadTensor | None
    output: ir.Value
    heads_first: bool
    dtype: ir.DataType
    caches: tuple[ir.Value, ...] = ()
    rotary: Rotary | None = None
    capacity: int | None = None


@dataclass(frozen=True)
class NearMiss:
    """An attention layer that cannot be routed, and the check that failed."""

    form: str
    node: ir.Node
    reason: str


@dataclass(frozen=True)
class SearchContext:
    """What matchers know besides the node.

    Attributes:
        graph: The graph that is searched.
        max_context: Longest sequence, tokens: how far masks are looked at.
    """

    graph: ir.Graph
    max_context: int


Matcher = Callable[[ir.Node, SearchContext], KvSite | None]
"""Returns the site that ends in a node, None where it is no attention at all.

Raises `MismatchError` where it is one that cannot be routed."""


def check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Refuse heads that the op cannot hold.

    Raises:
        MismatchError: With the reason.
    """
    if head_dim % HEAD_DIM_MULTIPLE or not 0 < head_dim <= MAX_HEAD_DIM:
        raise MismatchError(
            f"head_dim is {head_dim}, which is no multiple of {HEAD_DIM_MULTIPLE} up to "
            f"{MAX_HEAD_DIM}"
        )
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise MismatchError(f"{num_heads} query heads are no multiple of {num_kv_heads} KV heads")


def float_type(value: ir.Value) -> ir.DataType:
    """Return the type of activations or of a cache.

    Raises:
        MismatchError: It is not one that the op takes.
    """
    dtype = present(value.dtype)
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        raise MismatchError(f"activations are {dtype}, not float32, float16 or bfloat16")
    return dtype


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input of a node, None where it has none there."""
    return node.inputs[index] if index < len(node.inputs) else None


def present(value: Item | None) -> Item:
    """Return what the IR types as optional and a sound graph always has.

    Raises:
        MismatchError: It is missing.
    """
    if value is None:
        raise MismatchError("the graph is not sound: an input, type or shape is missing")
    return value


def fixed_dim(value: ir.Value, axis: int, meaning: str) -> int:
    """Return a dimension that has to be a number.

    Args:
        value: The tensor.
        axis: Which dimension.
        meaning: What it counts, for the message.

    Raises:
        MismatchError: The graph does not fix it.
    """
    if value.shape is not None and -len(value.shape) <= axis < len(value.shape):
        size = value.shape[axis]
        if isinstance(size, int):
            return size
    raise MismatchError(f"{meaning} is not known: {value.name} has shape {value.shape}")
