"""Makes a graph compute in float32 what it computes in bfloat16, as ONNX Runtime's CPU needs it."""

from __future__ import annotations

import onnx_ir as ir

NARROW, WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen(main: ir.Graph) -> None:
    """Replace bfloat16 by float32 in a graph and the bodies inside it.

    Weights stay as they are stored, and are cast when they are read.

    Args:
        main: A valid graph; its inputs may have any type.
    """
    nodes = list(ir.traversal.RecursiveGraphIterator(main))
    for node in nodes:
        for attribute in list(node.attributes.values()):
            node.attributes.update(_widened(attribute))
        for output in node.outputs:
            if output.dtype == NARROW:
                output.dtype = WIDE
    for weight in list(main.initializers.values()):
        if weight.dtype == NARROW:
            _cast(main, weight)


def _widened(attribute: ir.Attr) -> dict[str, ir.Attr]:
    """Return what replaces an attribute that names bfloat16, or holds it."""
    name = attribute.name
    if attribute.type == ir.AttributeType.INT and name in ("to", "dtype", "output_dtype"):
        return {name: ir.AttrInt64(name, WIDE)} if attribute.as_int() == NARROW else {}
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == NARROW:
        array = attribute.as_tensor().numpy().astype(WIDE.numpy())
        return {name: ir.AttrTensor(name, ir.tensor(array))}
    return {}


def _cast(main: ir.Graph, weight: ir.Value) -> None:
    """Put a cast between a weight and its readers."""
    readers = list(weight.uses())
    wide = ir.val(f"{weight.name}.{WIDE.name}", WIDE, weight.shape)
    cast = ir.node("Cast", [weight], {"to": ir.AttrInt64("to", WIDE)}, outputs=[wide])
    main.insert_before(main[0], cast)
    for node, index in readers:
        node.replace_input_with(index, wide)
