"""Our candidate of the operator benchmark: GearAttention over filled pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt import native
from gear_trt.bench.binding import BoundCall, open_session
from gear_trt.bench.candidate import Facts
from gear_trt.bench.graphs import OUTPUT, TOKENS, one_node_model
from gear_trt.bench.grid import NamedConfig, Point
from gear_trt.bench.rounds import Timed
from gear_trt.bench.tokens import Tokens
from gear_trt.reference.cache import num_pages
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.footprint import buffer_bytes, page_bytes
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import CompressionConfig, graph

FILL_SLICE = 4096
"""Tokens per call while a cache is filled: bounds the memory of their queries."""

C_ABI = "c-abi"
ONNX_RUNTIME = "onnxruntime"


def layer_facts(point: Point, config: CompressionConfig) -> LayerFacts:
    """Return the facts of the layer that a point describes."""
    heads = point.heads
    return LayerFacts(
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        config=config,
    )


def state_bytes(point: Point, config: CompressionConfig) -> int:
    """Bytes of one copy of the cache that a point needs."""
    layer = layer_facts(point, config)
    pages = num_pages(_room(point, config), config)
    return point.batch * (pages * page_bytes(layer) + buffer_bytes([layer]))


class GearAttention:
    """Implements `Candidate`.

    A decode call that fills a chunk also compresses a page. Such calls are timed apart, and their
    extra cost counts for one call in `chunk`.

    Args:
        tokens: What the cache is filled with and called on.
        point: Where it is timed.
        name: Name of the candidate.
        named: The compression config.
        host: `ONNX_RUNTIME` calls the custom op, `C_ABI` the library itself.
        instruction_set: Which kernels; None leaves the machine's choice.
        copies: Independent copies of the filled cache.
    """

    def __init__(
        self,
        tokens: Tokens,
        point: Point,
        name: str,
        named: NamedConfig,
        *,
        host: str = ONNX_RUNTIME,
        instruction_set: str | None = None,
        copies: int = 1,
    ) -> None:
        self._query = tokens.query_BSND
        self._point = point
        self._config = named.config
        self._layer = layer_facts(point, named.config)
        self._instruction_set = instruction_set or native.instruction_set()
        self.facts = Facts(
            name=name,
            engine="gear",
            host=host,
            cache=named.name,
            config=named.config.model_dump(),
            instruction_set=self._instruction_set,
        )
        self._caches = _filled_caches(tokens, point, named.config, copies)
        self._new = tuple(np.ascontiguousarray(array) for array in tokens.new)
        self._output_BSND = np.zeros(tokens.query_BSND.shape, np.float32)
        bind = self._bind_op() if host == ONNX_RUNTIME else self._bind_library
        past = point.context
        self._plain = [bind(cache, past) for cache in self._caches]
        self._filling = (
            [bind(cache, _chunk_filling_length(past, named.config)) for cache in self._caches]
            if point.new_tokens == 1
            else []
        )

    @property
    def bytes_per_token(self) -> float:
        """See `Candidate.bytes_per_token`: of compressed tokens."""
        return page_bytes(self._layer) / self._config.chunk

    @property
    def read_bytes(self) -> int:
        """See `Candidate.read_bytes`: whole pages, and the rows of the residual buffer in use."""
        config, point = self._config, self._point
        pages = num_pages(point.context, config)
        rows = point.context - pages * config.chunk
        row = point.heads.num_kv_heads * 2 * point.heads.head_dim
        row_bytes = row * np.dtype(config.buffer_dtype).itemsize
        return point.batch * (pages * page_bytes(self._layer) + rows * row_bytes)

    def output(self) -> NDArray[np.floating]:
        """See `Candidate.output`."""
        self._run(self._plain, 0)
        return self._output_BSND

    def timed(self) -> Sequence[Timed]:
        """See `Candidate.timed`."""
        kinds = [(self.facts.name, self._plain)]
        if self._filling:
            kinds.append((self._filling_name, self._filling))
        return [Timed(name, partial(self._run, calls), len(calls)) for name, calls in kinds]

    def seconds(self, times: dict[str, list[float]]) -> list[float]:
        """See `Candidate.seconds`: one call in `chunk` compresses."""
        plain = times[self.facts.name]
        if not self._filling:
            return plain
        filling = times[self._filling_name]
        return [
            time + max(full - time, 0.0) / self._config.chunk
            for time, full in zip(plain, filling, strict=True)
        ]

    def compression_share(self, times: dict[str, list[float]]) -> float | None:
        """See `Candidate.compression_share`."""
        if not self._filling:
            return None
        total = self.seconds(times)
        return median(
            1 - plain / time for plain, time in zip(times[self.facts.name], total, strict=True)
        )

    @property
    def _filling_name(self) -> str:
        return f"{self.facts.name}, page full"

    def _run(self, calls: Sequence[Callable[[], object]], copy: int) -> None:
        native.use_instruction_set(self._instruction_set)
        calls[copy]()

    def _bind_op(self) -> Callable[[GearCache, int], Callable[[], object]]:
        session = open_session(one_node_model(self._layer), threads=self._point.threads)

        def bind(cache: GearCache, past: int) -> BoundCall:
            batch, new = self._point.batch, self._point.new_tokens
            state = {
                graph.page_pool_input(0): cache.page_pools[0],
                graph.residual_buffer_input(0): cache.residual_buffers[0],
            }
            inputs = {
                **{
                    name: array.reshape(batch, new, -1)
                    for name, array in zip(TOKENS, (self._query, *self._new), strict=True)
                },
                **state,
                graph.PAGE_TABLE: cache.page_table,
                graph.SLOTS: cache.slots,
                **_lengths(batch, past, new),
            }
            outputs = {
                OUTPUT: self._output_BSND.reshape(batch, new, -1),
                graph.page_pool_output(0): cache.page_pools[0],
                graph.residual_buffer_output(0): cache.residual_buffers[0],
            }
            return BoundCall(session, inputs, outputs)

        return bind

    def _bind_library(self, cache: GearCache, past: int) -> Callable[[], object]:
        lengths = _lengths(self._point.batch, past, self._point.new_tokens)
        return lambda: _attend(
            self._config,
            cache,
            (self._query, *self._new),
            lengths,
            threads=self._point.threads,
            out=self._output_BSND,
        )


def _filled_caches(
    tokens: Tokens, point: Point, config: CompressionConfig, copies: int
) -> list[GearCache]:
    """Fill one cache through the kernels and copy its memory."""
    caches = [_empty_cache(point, config) for _ in range(copies)]
    first = caches[0]
    past_keys, past_values = tokens.past
    for start in range(0, point.context, FILL_SLICE):
        keys, values = (
            np.ascontiguousarray(array[:, start : start + FILL_SLICE])
            for array in (past_keys, past_values)
        )
        # A window of one token and a query per KV head: nothing but the append takes time.
        _attend(
            config,
            first,
            (keys, keys, values),
            _lengths(point.batch, start, keys.shape[1]),
            threads=point.threads,
            sliding_window=1,
        )
    for cache in caches[1:]:
        cache.page_pools[0][...] = first.page_pools[0]
        cache.residual_buffers[0][...] = first.residual_buffers[0]
    return caches


def _empty_cache(point: Point, config: CompressionConfig) -> GearCache:
    layer = layer_facts(point, config)
    return GearCache([layer], batch=point.batch, max_tokens=_room(point, config))


def _room(point: Point, config: CompressionConfig) -> int:
    """A chunk more than the tokens of a sequence: room for the call that fills one."""
    return point.tokens + config.sinks + config.chunk


def _chunk_filling_length(context: int, config: CompressionConfig) -> int:
    """Longest past, at most `context`, whose next token fills a chunk."""
    first = config.sinks + config.chunk - 1
    return first + max((context - first) // config.chunk, 0) * config.chunk


def _lengths(batch: int, past: int, new: int) -> dict[str, NDArray[np.int32]]:
    return {
        graph.PAST_LENGTHS: np.full(batch, past, np.int32),
        graph.NEW_LENGTHS: np.full(batch, new, np.int32),
    }


def _attend(
    config: CompressionConfig,
    cache: GearCache,
    tokens: tuple[NDArray[Any], ...],
    lengths: dict[str, NDArray[np.int32]],
    *,
    threads: int,
    sliding_window: int = 0,
    out: NDArray[np.float32] | None = None,
) -> None:
    native.attention(
        *tokens,
        page_pool=cache.page_pools[0],
        residual_buffer=cache.residual_buffers[0],
        page_table=cache.page_table,
        slots=cache.slots,
        config=config,
        scale=tokens[0].shape[-1] ** -0.5,
        sliding_window=sliding_window,
        num_threads=threads,
        out=out,
        past_lengths=lengths[graph.PAST_LENGTHS],
        new_lengths=lengths[graph.NEW_LENGTHS],
    )
