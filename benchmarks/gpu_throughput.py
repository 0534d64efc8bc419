"""Decoding with a whole model: how many sequences a memory holds, and what tokens/s they reach.

The lengths are those of GEAR's throughput table (arXiv 2403.05527: 1000 tokens in, 500 out). Its
model is LLaMA2-7B with 8-bit weights on a V100, and its time includes the prompts; here it is
Llama 3's shape, whose keys and values are a fourth as large, with FP16 weights, and only decoding
is timed: the middle of the generation, whose mean context is that of the whole, over as many steps
as fill a page of every sequence. Caches are allocated for whole sequences.

Weights are random, and all sequences and layers have one history: neither changes the time. What
compression costs in quality is said by the NMSE of attention to that history; for what it costs on
real models see docs/quality.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_caches import HalfCache, PackedCache
from benchmarks.gpu_decoder import LLAMA_3_8B, Decoder, DecoderShape
from benchmarks.gpu_history import (
    Step,
    exact_attention,
    nmse,
    random_history,
    random_step,
)
from benchmarks.gpu_shapes import Shape
from benchmarks.gpu_timing import Machine, time_steps
from gear_trt.spec import CompressionConfig
from gear_trt.torch import raise_errors

Row = dict[str, Any]
OurCache = HalfCache | PackedCache
MakeCache = Callable[[DecoderShape, int, int, torch.device], OurCache]
"""From a decoder's shape, B, tokens and a device."""

FP16 = "sdpa-flash"
PRESETS = ("k4v4", "k2v2", "paper-4bit", "paper-2bit")
CACHES: dict[str, MakeCache] = {
    FP16: HalfCache,
    **{name: partial(PackedCache, CompressionConfig.preset(name)) for name in PRESETS},
}

LARGEST, COMMON = "largest", "common"
"""Which batch a row has: the largest of its cache, or that of the FP16 cache."""

_CARD_BYTES = 24 * 2**30
_OUTSIDE_BYTES = 4 * 2**30
"""Of a whole card, what is left to CUDA: its context, kernels and graphs."""
_RESERVE_BYTES = 2**29
"""Workspaces of ours and of cuBLAS, and what is lost between allocations."""


@dataclass(frozen=True)
class Load:
    """What every sequence goes through.

    Attributes:
        prompt: Tokens in.
        generated: Tokens out.
        steps: How many of them are timed, in the middle.
    """

    prompt: int
    generated: int
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens that a sequence has in the end."""
        return self.prompt + self.generated

    @property
    def start(self) -> int:
        """Tokens before the first timed step."""
        return self.prompt + (self.generated - self.steps) // 2


PAPER_LOAD = Load(prompt=1000, generated=500, steps=64)


def budgets(card_bytes: int) -> dict[str, int]:
    """Return bytes for weights, cache and activations by name: a 24 GB card, and all of this one.

    Args:
        card_bytes: Memory of this card.
    """
    whole = card_bytes - _OUTSIDE_BYTES
    smaller = {"24 GiB": _CARD_BYTES} if whole > _CARD_BYTES else {}
    return {**smaller, "card": whole}


def largest_batch(name: str, decoder: Decoder, load: Load, limit: int) -> int:
    """Sequences whose cache and activations fit beside the weights, by their bytes.

    Args:
        name: Of a cache.
        decoder: Whose weights and activations; on `meta` it takes nothing itself.
        load: Whose tokens.
        limit: Bytes of memory.
    """
    cache = CACHES[name](decoder.shape, 1, load.tokens, torch.device("meta"))
    free = limit - decoder.nbytes - _RESERVE_BYTES
    return max(free // (cache.nbytes + decoder.shape.activation_bytes), 0)


def gpu_throughput_rows(machine: Machine) -> Iterator[Row]:
    """Measure Llama 3's 8B shape in the memories of this GPU."""
    card_bytes = torch.cuda.get_device_properties(machine.device).total_memory
    return throughput_rows(machine, LLAMA_3_8B, PAPER_LOAD, budgets(card_bytes))


def throughput_rows(
    machine: Machine, shape: DecoderShape, load: Load, memories: Mapping[str, int]
) -> Iterator[Row]:
    """Measure every cache at its largest batch and at that of FP16, memory by memory.

    Args:
        machine: Where.
        shape: Sizes of the decoder.
        load: Lengths.
        memories: Bytes by name; those that do not hold the weights and an FP16 cache of one
            sequence are left out, and that is said.
    """
    trial = _Trial(machine, Decoder(shape, load.tokens, machine.device), load)
    for memory, limit in memories.items():
        common = trial.largest_batch(FP16, limit)
        if not common:
            print(f"throughput: not measured in {memory}: no FP16 cache fits beside the weights")
            continue
        yield from _rows_in(trial, memory, limit, common)


def _rows_in(trial: _Trial, memory: str, limit: int, common: int) -> Iterator[Row]:
    place = {"memory": memory, "limit_bytes": limit}
    baseline = trial.row(FP16, common)
    for name in CACHES:
        largest = baseline if name == FP16 else trial.row(name, trial.largest_batch(name, limit))
        yield {**_compared(largest, baseline), **place, "which_batch": LARGEST}
    for name in PRESETS:
        yield {**_compared(trial.row(name, common), baseline), **place, "which_batch": COMMON}


def _compared(row: Row, baseline: Row) -> Row:
    """Add how many times the tokens/s and how many times less memory than with an FP16 cache."""
    if "failure" in row or "failure" in baseline:
        return row
    return {
        **row,
        "best_fp16": FP16,
        "ratio": row["tokens_per_second"] / baseline["tokens_per_second"],
        "memory_ratio": baseline["peak_bytes"] / row["peak_bytes"],
    }


class _Trial:
    """One decoder, which decodes with one cache after the other."""

    def __init__(self, machine: Machine, decoder: Decoder, load: Load) -> None:
        self._device, self._decoder, self._load = machine.device, decoder, load
        self._history = random_history(self._one_layer(1), load.start, machine.device)

    def largest_batch(self, name: str, limit: int) -> int:
        """Sequences that a memory of so many bytes holds."""
        return largest_batch(name, self._decoder, self._load, limit)

    def row(self, name: str, batch: int) -> Row:
        """Allocate, decode, and say how fast that was and how much memory it took."""
        shape, load = self._decoder.shape, self._load
        row = {
            "kind": "throughput",
            "config": name,
            "batch": batch,
            "context": load.start + load.steps // 2,
            "group": shape.num_heads // shape.kv_heads,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "layers": shape.num_layers,
            "prompt": load.prompt,
            "generated": load.generated,
            "steps": load.steps,
        }
        _start_counting(self._device)
        try:
            return {**row, **self._measured(name, batch)}
        except RuntimeError as failure:  # most likely out of memory, under one of its names
            return {**row, "failure": f"{type(failure).__name__}: {failure}"}

    def _measured(self, name: str, batch: int) -> Row:
        load, device = self._load, self._device
        cache = CACHES[name](self._decoder.shape, batch, load.tokens, device)
        cache.fill(self._history)
        error = self._error(cache, batch)
        tokens_B = torch.arange(batch, device=device) % self._decoder.shape.vocab_size
        times = time_steps(
            device,
            lambda: self._decoder.step(tokens_B, cache),
            lambda: cache.rewind(load.start),
            load.steps,
            is_replayable=cache.is_replayable,
        )
        raise_errors(device)
        held = self._decoder.nbytes + cache.nbytes
        return {
            "tokens_per_second": 1e3 * batch * load.steps / sum(times),
            "ms": sum(times) / load.steps,
            "ms_longest": max(times),
            "peak_bytes": _peak_bytes(device) or held,
            "weight_bytes": self._decoder.nbytes,
            "cache_bytes": cache.nbytes,
            "nmse": error,
        }

    def _error(self, cache: OurCache, batch: int) -> float:
        """NMSE of one step's attention to the history, against FP32; all sequences have one."""
        step = random_step(self._one_layer(batch), self._device)
        first = Step(*(tensor[:1] for tensor in vars(step).values()))
        output = cache.attend(0, step.query_BSND, step.key_BSHD, step.value_BSHD)
        return nmse(output[:1], exact_attention(self._history, first))

    def _one_layer(self, batch: int) -> Shape:
        shape = self._decoder.shape
        group = shape.num_heads // shape.kv_heads
        return Shape(batch, self._load.start, group, shape.kv_heads, shape.head_dim)


def _start_counting(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int | None:
    """Most bytes that tensors took; None on a CPU, which does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
