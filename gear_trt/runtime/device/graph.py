"""A step on a device: cut to what the compiled graph takes, padded, captured and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gear_trt.runtime.backend import UNLIMITED, CacheMemory
from gear_trt.runtime.device.inputs import StepInputs, StepShape
from gear_trt.runtime.device.logits import DeviceLogits
from gear_trt.runtime.device.queue import Queue
from gear_trt.runtime.memory import no_room_for_step
from gear_trt.spec import graph

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """The largest run that a program takes.

    Attributes:
        batch: Rows.
        seq_len: Columns of the tokens.
        max_pages: Columns of the page table.
    """

    batch: int = UNLIMITED
    seq_len: int = UNLIMITED
    max_pages: int = UNLIMITED


class Program(Protocol):
    """A compiled graph that is bound to the state of one cache.

    Attributes:
        limits: The largest run that it takes.
    """

    limits: Limits

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Queue a run.

        Args:
            tensors: Every input that is no state, and the logits to write, by name in the graph.

        Raises:
            GearError: The graph and the cache do not fit.
        """
        ...


@dataclass(frozen=True)
class Programs:
    """What a backend has made of its graph for one cache.

    Attributes:
        prefill: Runs of any length.
        decode: Runs of one token per sequence, which can be captured; None where `prefill` does
            these as well.
        logits_dtype: Element type of the logits.
        vocab_size: Their width.
        raise_faults: Waits for the device and raises what its kernels met, as `BoundGraph.run`.
    """

    prefill: Program
    decode: Program | None
    logits_dtype: torch.dtype
    vocab_size: int
    raise_faults: Callable[[], None]


@dataclass(frozen=True)
class _Tile:
    """A part of a step."""

    rows: slice
    columns: slice


@dataclass(eq=False)
class _Run:
    """Memory of runs of one shape, and their replay once they are captured."""

    inputs: StepInputs
    logits_BSV: Tensor
    replay: Callable[[], None] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.inputs.tensors, graph.LOGITS: self.logits_BSV}


class DeviceGraph:
    """Implements `BoundGraph` over programs whose tensors lie on a device.

    A decode step is padded with idle rows to a power of two, and so are the columns of its page
    table, so that few shapes occur. The first run of a shape is an ordinary one; the next, if no
    other shape comes between, is captured in a CUDA graph, and that is replayed from then on. All
    shapes of one batch write their logits to the same place.

    Args:
        programs: The compiled graph.
        cache: Its state.
        queue: The device.
    """

    def __init__(self, programs: Programs, cache: CacheMemory, queue: Queue) -> None:
        self._programs = programs
        self._cache = cache
        self._queue = queue
        self._decode_runs: dict[StepShape, _Run] = {}
        self._decode_logits: dict[int, Tensor] = {}  # by batch
        self._newest: _Run | None = None  # what the decode program ran last
        self._captures = True

    def run(
        self, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]
    ) -> NDArray[np.floating] | DeviceLogits:
        """See `BoundGraph.run`; also raises `OUT_OF_MEMORY`."""
        with self._queue.active():
            try:
                logits = DeviceLogits(self._run(tokens_BS, new_lengths), self._queue)
            except torch.OutOfMemoryError:
                raise no_room_for_step("the GPU") from None
            is_decode = tokens_BS.shape[1] == 1
            result = np.asarray(logits) if is_decode else logits
            self._programs.raise_faults()
        return result

    def _run(self, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]) -> Tensor:
        prefill, decode = self._programs.prefill, self._programs.decode
        program = prefill if decode is None or tokens_BS.shape[1] > 1 else decode
        run = partial(self._decode if program is decode else self._prefill, program)
        tiles = list(_tiles(tokens_BS.shape, program.limits))
        if len(tiles) == 1:
            return run(self._values(tiles[0], tokens_BS, new_lengths))
        logits_BSV = self._empty_logits(*tokens_BS.shape)
        for tile in tiles:
            logits_BSV[tile.rows, tile.columns] = run(self._values(tile, tokens_BS, new_lengths))
        return logits_BSV

    def _values(
        self, tile: _Tile, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]
    ) -> dict[str, NDArray[np.integer]]:
        """What the inputs of a part of the step are, once those before it have run."""
        rows, columns = tile.rows, tile.columns
        before = np.minimum(new_lengths[rows], columns.start)
        width = columns.stop - columns.start
        return {
            graph.INPUT_IDS: tokens_BS[rows, columns],
            graph.PAGE_TABLE: self._cache.page_table[rows],
            graph.SLOTS: self._cache.slots[rows],
            graph.PAST_LENGTHS: self._cache.lengths[rows] + before,
            graph.NEW_LENGTHS: np.minimum(new_lengths[rows] - before, width),
        }

    def _prefill(self, program: Program, values: dict[str, NDArray[np.integer]]) -> Tensor:
        shape = _shape_of(values)
        logits_BSV = self._empty_logits(shape.batch, shape.seq_len)
        run = _Run(StepInputs(shape, self._queue), logits_BSV)
        run.inputs.send(values)
        program.run(run.tensors)
        return run.logits_BSV

    def _decode(self, program: Program, values: dict[str, NDArray[np.integer]]) -> Tensor:
        exact = _shape_of(values)
        shape = replace(
            exact,
            batch=min(_power_of_two(exact.batch), program.limits.batch),
            max_pages=min(_power_of_two(exact.max_pages), program.limits.max_pages),
        )
        if shape not in self._decode_runs:
            self._decode_runs[shape] = self._new_decode_run(shape)
        run = self._decode_runs[shape]
        run.inputs.send(values)
        self._replay(run, program)
        return run.logits_BSV[: exact.batch]

    def _replay(self, run: _Run, program: Program) -> None:
        # Only right after a run of the same shape has the program nothing to do that a graph
        # cannot hold.
        if run.replay is None and self._newest is run and self._captures:
            try:
                run.replay = self._queue.capture(lambda: program.run(run.tensors))
            except RuntimeError as error:
                self._captures = False
                log.warning("decoding goes on without CUDA graphs: %s", error)
        if run.replay is None:
            program.run(run.tensors)
            self._newest = run
        else:
            run.replay()

    def _new_decode_run(self, shape: StepShape) -> _Run:
        if shape.batch not in self._decode_logits:
            self._decode_logits[shape.batch] = self._empty_logits(shape.batch, shape.seq_len)
        return _Run(StepInputs(shape, self._queue), self._decode_logits[shape.batch])

    def _empty_logits(self, batch: int, seq_len: int) -> Tensor:
        return torch.empty(
            (batch, seq_len, self._programs.vocab_size),
            dtype=self._programs.logits_dtype,
            device=self._queue.device,
        )


def _shape_of(values: Mapping[str, NDArray[np.integer]]) -> StepShape:
    batch, seq_len = values[graph.INPUT_IDS].shape
    return StepShape(batch, seq_len, values[graph.PAGE_TABLE].shape[1])


def _tiles(shape: tuple[int, ...], limits: Limits) -> Iterator[_Tile]:
    """Cut a step into parts; those of the same rows come in the order of their columns."""
    batch, width = shape
    for row in range(0, batch, limits.batch):
        for column in range(0, width, limits.seq_len):
            yield _Tile(
                slice(row, min(row + limits.batch, batch)),
                slice(column, min(column + limits.seq_len, width)),
            )


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
