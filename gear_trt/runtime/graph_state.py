"""Which inputs and outputs of a graph a cache's state is."""

from __future__ import annotations

from collections.abc import Iterator

from gear_trt.runtime.backend import CacheMemory
from gear_trt.runtime.memory import StateArray
from gear_trt.spec import graph


def state_names(cache: CacheMemory) -> Iterator[tuple[tuple[str, str], StateArray]]:
    """Yield the input's and the output's name of every array of a cache's state, and the array."""
    for layer, pool in enumerate(cache.page_pools):
        yield (graph.page_pool_input(layer), graph.page_pool_output(layer)), pool
    for layer, rows in enumerate(cache.residual_buffers):
        yield (graph.residual_buffer_input(layer), graph.residual_buffer_output(layer)), rows
