"""Small helpers to find nodes of a graph and to add some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gear_trt.spec import GEAR_ATTENTION

HEADS_FIRST: tuple[int, ...] = (0, 1, 2, 3)
"""Axes of [B, N, S, D]."""
HEADS_LAST = (0, 2, 1, 3)
"""Permutation between [B, N, S, D] and [B, S, N, D], either way."""


def integers(main: ir.Graph, numbers: int | list[int]) -> ir.Value:
    """Return the int64 initializer with these numbers, made once per graph."""
    array = np.array(numbers, np.int64)
    name = "gear_int64." + ".".join(["scalar"] * (array.ndim == 0) + [str(n) for n in array.flat])
    known = main.initializers.get(name)
    return known or ir.tape.Tape(main).initializer(ir.tensor(array, name=name))


def typed(
    value: ir.Value, dtype: ir.DataType, shape: ir.Shape | Sequence[int | str] | None
) -> ir.Value:
    """Set the type of a value, and its shape if it is known, and return it."""
    value.dtype = dtype
    if shape is not None:
        value.shape = ir.Shape(list(shape))
    return value


def attention_nodes(main: ir.Graph) -> list[ir.Node]:
    """Return the `GearAttention` nodes of a routed graph, in its order."""
    return [node for node in main if node.op_type == GEAR_ATTENTION.name]
