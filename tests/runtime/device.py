"""A device that every machine has: torch tensors on the CPU, and ONNX Runtime's CPU engine behind
the interface that GPUs are driven through."""

from contextlib import contextmanager
from functools import partial

import torch

from gear_trt.runtime.backend import GPU_PACE, CacheLimits
from gear_trt.runtime.device.graph import DeviceGraph, Limits, Programs
from gear_trt.runtime.manifest import Manifest
from gear_trt.runtime.memory import DeviceMemory
from gear_trt.runtime.model import Model
from gear_trt.runtime.onnxruntime import (
    HOST_DTYPES,
    logits_dtype,
    open_session,
    session_options,
)
from gear_trt.runtime.onnxruntime_cuda import OrtProgram

QUEUES = {}
"""Every `HostQueue` by its handle, which stands for a `cudaStream_t`."""


class HostQueue:
    """A `Queue` on the CPU. While it captures, what is done on it is kept for replays instead."""

    def __init__(self):
        self.device = torch.device("cpu")
        self.handle = len(QUEUES) + 1
        self.downloads = []
        self.captures = 0
        self.replays = 0
        self.can_capture = True
        self.is_active = False
        self._recorded = None
        QUEUES[self.handle] = self

    @contextmanager
    def active(self):
        before, self.is_active = self.is_active, True
        try:
            yield
        finally:
            self.is_active = before

    def host_bytes(self, size):
        return torch.full((size,), 0x7F, dtype=torch.uint8)  # nobody may rely on zeros

    def download(self, tensor):
        self.downloads.append(tuple(tensor.shape))
        return tensor.clone().numpy()

    def wait(self):
        """There is nothing to wait for."""

    def do(self, work):
        """Do what a kernel would, now or when a replay comes."""
        if self._recorded is None:
            work()
        else:
            self._recorded.append(work)

    def capture(self, work):
        if not self.can_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captures += 1
        self._recorded = recorded = []
        try:
            work()
        finally:
            self._recorded = None
        assert recorded

        def replay():
            self.replays += 1
            for each in recorded:
                each()

        return replay


class LimitedProgram:
    """An ONNX Runtime program with the limits of a TensorRT profile, which a queue can capture.

    A replay uses the tensors of its capture: nothing may have moved since.
    """

    def __init__(self, program, queue, limits):
        self.limits = limits
        self.shapes = []
        self._program = program
        self._queue = queue

    def run(self, tensors):
        batch, seq_len = tensors["input_ids"].shape
        assert batch <= self.limits.batch
        assert seq_len <= self.limits.seq_len
        held = dict(tensors)
        self.shapes.append((batch, seq_len, tensors["page_table"].shape[1]))
        self._queue.do(lambda: self._program.run(held))


def host_programs(folder, cache, queue, *, prefill=None, decode=None, faults=None):
    """The programs of a folder's graph over a cache: one for prompts, one for decoding."""
    manifest = Manifest.read(folder)
    _, session = open_session(folder, session_options(1), ["CPUExecutionProvider"])
    programs = [
        limits and LimitedProgram(OrtProgram(session, cache, queue), queue, limits)
        for limits in (prefill or Limits(), decode)
    ]
    return Programs(
        *programs,
        getattr(torch, logits_dtype(session, manifest.model.vocab_size, HOST_DTYPES)),
        manifest.model.vocab_size,
        faults or (lambda: None),
    )


class DeviceBackend:
    """A backend over the CPU engine, driven as a GPU is."""

    cache_limits = CacheLimits()
    pace = GPU_PACE

    def __init__(self, folder, **programs):
        self.queue = HostQueue()
        self.memory = DeviceMemory(self.queue)
        self._folder = folder
        self._programs = programs

    def bind(self, cache):
        self.programs = host_programs(self._folder, cache, self.queue, **self._programs)
        return DeviceGraph(self.programs, cache, self.queue)


def device_model(folder, **programs):
    """A model whose caches lie on the device."""
    return Model(folder, Manifest.read(folder), DeviceBackend(folder, **programs))


OPEN = {
    "host": partial(Model.open, threads=1),
    "device": partial(device_model, decode=Limits(batch=4, seq_len=1)),
}
"""How to open an engine folder, by where its caches shall lie."""
