"""What attention layers together do with the caches: each cache one layer's, and nothing else's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from gear_trt.export.passes.sites import KvSite, NearMiss

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})


def check_claims(main: ir.Graph, found: Sequence[KvSite | NearMiss]) -> list[KvSite | NearMiss]:
    """Return what was found, with near misses for caches that do not belong to one layer alone.

    Args:
        main: The graph.
        found: Attention layers in order.
    """
    checked = list(_without_shared(found))
    if all(isinstance(item, KvSite) for item in checked):
        checked.extend(_other_readers(main, [item for item in checked if isinstance(item, KvSite)]))
    return checked


def _without_shared(found: Sequence[KvSite | NearMiss]) -> Iterator[KvSite | NearMiss]:
    owners: dict[ir.Value, int] = {}
    for layer, item in enumerate(found):
        if isinstance(item, NearMiss):
            yield item
            continue
        owner = next((owners[cache] for cache in item.caches if cache in owners), None)
        if owner is None:
            owners |= dict.fromkeys(item.caches, layer)
            yield item
        else:
            reason = f"it reads the keys and values of layer {owner} (KV shared between layers)"
            yield NearMiss(item.form, item.node, reason)


def _other_readers(main: ir.Graph, sites: Sequence[KvSite]) -> Iterator[NearMiss]:
    """Look from the logits back for caches whose content is read past the layers' outputs."""
    outputs = {site.output for site in sites}
    owned = {cache for site in sites for cache in site.caches}
    caches = {value for value in main.inputs if _is_cache(value)}
    reported: set[ir.Value] = set()
    seen: set[ir.Value] = set()
    presents = {value for value in main.outputs if _is_cache(value)}
    waiting = [value for value in main.outputs if value not in presents]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in seen or value in outputs or node is None or node.op_type == "Shape":
            continue
        seen.add(value)
        if node.op_type in _CONTROL_FLOW:
            reason = f"control flow: {node.op_type} node {node.name} depends on the text"
            yield NearMiss(node.op_type, node, reason)
        for item in node.inputs:
            if item is None:
                continue
            if item in caches and item not in reported:
                reported.add(item)
                yield NearMiss(node.op_type, node, _reason(item, item in owned))
            waiting.append(item)


def _is_cache(value: ir.Value) -> bool:
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    return is_float and value.shape is not None and len(value.shape) >= 4


def _reason(cache: ir.Value, is_owned: bool) -> str:
    if is_owned:
        return f"cache {cache.name} is read outside of its attention layer too"
    return f"input {cache.name} is read by no attention layer that is known"
