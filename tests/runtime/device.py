"""A device that every machine has: torch tensors on the CPU, and ONNX Runtime's CPU engine behind
the interface that GPUs are driven through."""

from contextlib import nullcontext

import torch

from gear_trt.runtime.device.graph import Limits, Programs
from gear_trt.runtime.manifest import Manifest
from gear_trt.runtime.onnxruntime import logits_dtype, open_session, session_options
from gear_trt.runtime.onnxruntime_cuda import OrtProgram


class HostQueue:
    """A `Queue` on the CPU. What it captures is checked at every replay: nothing may have moved."""

    def __init__(self):
        self.device = torch.device("cpu")
        self.handle = 0
        self.captures = 0
        self.replays = 0
        self.can_capture = True
        self.recording = False

    def active(self):
        return nullcontext()

    def host_bytes(self, size):
        return torch.full((size,), 0x7F, dtype=torch.uint8)  # nobody may rely on zeros

    def download(self, tensor):
        return tensor.clone().numpy()

    def wait(self):
        """There is nothing to wait for."""

    def capture(self, work):
        if not self.can_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captures += 1
        self.recording = True
        try:
            work()
        finally:
            self.recording = False
        recorded = self.recorded

        def replay():
            self.replays += 1
            recorded()

        return replay


class RecordingProgram:
    """An ONNX Runtime program with the limits of a TensorRT profile, which a queue can capture.

    While the queue records, nothing runs; the addresses of that moment are what a replay uses.
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
        if self._queue.recording:
            held = dict(tensors)
            addresses = {name: tensor.data_ptr() for name, tensor in held.items()}

            def recorded():
                assert addresses == {name: tensor.data_ptr() for name, tensor in held.items()}
                self._program.run(held)

            self._queue.recorded = recorded
            return
        self.shapes.append((batch, seq_len, tensors["page_table"].shape[1]))
        self._program.run(tensors)


def host_programs(folder, cache, queue, *, prefill=None, decode=None, faults=None):
    """The programs of a folder's graph over a cache: one for prompts, one for decoding."""
    manifest = Manifest.read(folder)
    _, session = open_session(folder, session_options(1), ["CPUExecutionProvider"])
    programs = [
        limits and RecordingProgram(OrtProgram(session, cache, queue), queue, limits)
        for limits in (prefill or Limits(), decode)
    ]
    return Programs(
        *programs,
        getattr(torch, logits_dtype(session)),
        manifest.model.vocab_size,
        faults or (lambda: None),
    )
