"""Rows of the case table through TensorRT's plugin: onShapeChange and enqueue, as an engine does.

The plugin object is driven by the tests' own host, so that no TensorRT is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_cases import Failure, run_rows, tolerance_of
from benchmarks.gpu_kernels import Guarded
from gear_trt.spec import CompressionConfig
from tests.cases import ATTENTION_CASES, AttentionCase, attention_call
from tests.plugins.checks import check_attention
from tests.tensorrt.host import (
    BF16,
    FLOAT,
    HALF,
    INT32,
    TENSORS,
    Host,
    Plugin,
    attributes,
    desc,
    dynamic_desc,
)
from tests.torch.op import as_tensor

Array = NDArray[Any]

ROWS = (
    "bits-4-4", "bits-3-2", "exact", "rank-2", "outliers-4", "dim-64", "dim-128", "dim-256",
    "heads-per-kv-head-4", "split", "batch", "prompt", "softcap", "window-20", "half", "brain",
    "paper",
)  # fmt: skip
"""Beginnings of the rows that are run: every kernel, all types, several sequences."""

_REPLAYED = AttentionCase("plugin-graph", past=(900, 333), new=(1, 1), kv_heads=2)
_TYPES = {torch.float32: FLOAT, torch.float16: HALF, torch.bfloat16: BF16, torch.int32: INT32}
_GARBAGE = 0xFF


class PluginCall:
    """A node with its tensors, ready to be enqueued; the workspace is full of garbage.

    Args:
        host: Who made the plugin.
        plugin: The node, attached to a context or not.
        tensors: By their names in the op table, on the plugin's device.

    Raises:
        AssertionError: The plugin refuses the tensors.
    """

    def __init__(self, host: Host, plugin: Plugin, tensors: Mapping[str, torch.Tensor]) -> None:
        self._host, self._plugin, self._tensors = host, plugin, dict(tensors)
        ordered = [tensors[tensor.name] for tensor in TENSORS]
        self._device = ordered[0].device
        shapes = [(_TYPES[tensor.dtype], _op_shape(tensor)) for tensor in ordered]
        profile = [dynamic_desc(*shape) for shape in shapes]
        self._descs = [desc(*shape) for shape in shapes]
        self._addresses = [tensor.data_ptr() for tensor in ordered]
        self._must(plugin.configure(profile))
        size = plugin.workspace(profile)
        self._workspace = Guarded(np.full(size, _GARBAGE, np.uint8), self._device)
        self._must(plugin.shape_change(self._descs))

    def enqueue(self) -> None:
        """Enqueue on the current stream.

        Raises:
            AssertionError: The plugin fails.
        """
        workspace = self._workspace.tensor.data_ptr()
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device).cuda_stream if on_gpu else 0
        self._must(self._plugin.enqueue(self._descs, self._addresses, workspace, stream))

    def finish(self) -> None:
        """Wait for what was enqueued.

        Raises:
            AssertionError: Something was written outside the workspace.
            ValueError: What the kernels noted.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._workspace.bring_back()
        self._host.raise_errors()

    def _must(self, succeeded: bool) -> None:
        if not succeeded:
            raise AssertionError("; ".join(self._host.take_log()))


class PluginKernels:
    """Runs every call by a plugin, and waits. Nodes are kept, as an engine does.

    Args:
        library: `libgear_trt_plugins.so`, or its emulation.
        device: A GPU; or the CPU, where the library is the emulation.
        is_attached: Whether plugins are attached to an execution context.
        in_place: Whether inputs and outputs of the state have one address.
    """

    def __init__(
        self,
        library: Path,
        device: torch.device,
        *,
        is_attached: bool = True,
        in_place: bool = True,
    ) -> None:
        self.host = Host(library)
        self._device = device
        self._is_attached = is_attached
        self._in_place = in_place
        self._nodes: dict[str, Plugin] = {}

    def attention(
        self,
        query_BSND: Array,
        key_BSHD: Array,
        value_BSHD: Array,
        *,
        page_pool: Array,
        residual_buffer: Array,
        config: CompressionConfig,
        out: Array | None = None,
        scale: float,
        softcap: float = 0.0,
        sliding_window: int = 0,
        layer: int = 0,
        **indices: Array,
    ) -> Array:
        """As `gear_trt.native.attention`; `indices` are page table, slots and lengths.

        Raises:
            AssertionError: The plugin failed, or something was written that must not be.
            ValueError: What the kernels noted.
        """
        out = np.empty(query_BSND.shape, query_BSND.dtype) if out is None else out
        state = {"page_pool": page_pool, "residual_buffer": residual_buffer}
        before = {name: array.tobytes() for name, array in state.items()}
        results = {"output": out, **{f"{name}_out": array for name, array in state.items()}}
        written = {name: Guarded(array, self._device) for name, array in results.items()}
        tensors = {name: guarded.tensor for name, guarded in written.items()}
        read = {"query": query_BSND, "key": key_BSHD, "value": value_BSHD, **indices}
        tensors |= {name: self._copy(array) for name, array in read.items()}
        for name, array in state.items():
            result = tensors[f"{name}_out"]
            tensors[name] = result if self._in_place else self._copy(array)
            if not self._in_place:
                result.view(torch.uint8).fill_(_GARBAGE)
        num_heads, head_dim = query_BSND.shape[2:]
        node = attributes(
            config, num_heads=num_heads, num_kv_heads=key_BSHD.shape[2], head_dim=head_dim,
            scale=scale, softcap=softcap, sliding_window=sliding_window, layer=layer,
        )  # fmt: skip
        call = PluginCall(self.host, self._plugin(node), tensors)
        call.enqueue()
        try:
            call.finish()
        finally:
            for guarded in written.values():
                guarded.bring_back()
        for name in () if self._in_place else state:
            if tensors[name].cpu().numpy().tobytes() != before[name]:
                raise AssertionError(f"{name} was written to")
        return out

    def _copy(self, array: Array) -> torch.Tensor:
        return as_tensor(array.copy()).to(self._device)

    def _plugin(self, node: dict[str, Any]) -> Plugin:
        key = repr(node)
        if key not in self._nodes:
            made = self.host.create(node)
            if made is None:
                raise AssertionError("; ".join(self.host.take_log()))
            self._nodes[key] = made.attach() if self._is_attached else made
        return self._nodes[key]


def run_table(library: Path, device: torch.device) -> list[Failure]:
    """Run the rows in place and to other addresses, and a graph; return those that failed.

    Args:
        library: As of `PluginKernels`.
        device: A GPU.
    """
    return run_rows(_rows(library, device))


def _rows(library: Path, device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    for in_place in (True, False):
        kernels = PluginKernels(library, device, in_place=in_place)
        for case in ATTENTION_CASES:
            if case.name.startswith(ROWS):
                check = partial(check_attention, kernels.attention, case, tolerance_of(case))
                yield f"plugin-{'in-place' if in_place else 'copied'}-{case}", check
    yield "plugin-graph", partial(check_graph, library, device)


def check_graph(library: Path, device: torch.device) -> None:
    """Whether a captured enqueue replays what it did.

    Raises:
        AssertionError: It does not, or cannot be captured.
    """
    host, given = Host(library), attention_call(_REPLAYED)
    arrays = {
        "query": given.query_BSND, "key": given.key_BSHD, "value": given.value_BSHD,
        "page_pool": given.before.page_pool, "residual_buffer": given.before.residual_buffer,
        "page_table": given.page_table, "slots": given.slots, "past_lengths": given.past_lengths,
        "new_lengths": given.new_lengths, "output": np.zeros_like(given.query_BSND),
    }  # fmt: skip
    tensors = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
    for tensor in TENSORS:
        if tensor.alias_of:
            tensors[tensor.name] = tensors[tensor.alias_of]
    made = host.create(
        attributes(
            _REPLAYED.config, num_heads=given.query_BSND.shape[2], num_kv_heads=_REPLAYED.kv_heads,
            head_dim=_REPLAYED.head_dim, scale=_REPLAYED.scale,
        )
    )  # fmt: skip
    if made is None:
        raise AssertionError("; ".join(host.take_log()))
    call = PluginCall(host, made.attach(), tensors)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call.enqueue()
    call.finish()
    want = tensors["output"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call.enqueue()
    tensors["output"].zero_()
    for _ in range(2):
        graph.replay()
    call.finish()
    if not torch.equal(tensors["output"], want):
        raise AssertionError("a replayed graph gives another result")


def _op_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Heads and channels are one axis of the op."""
    return tuple(tensor.flatten(2).shape if tensor.ndim == 4 else tensor.shape)
