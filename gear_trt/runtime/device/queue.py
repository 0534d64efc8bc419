"""Work that a device does in order, and the memory that goes to it and comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor


class Queue(Protocol):
    """A device and its stream.

    Attributes:
        device: Where tensors lie.
        handle: The stream as a `cudaStream_t`; 0 where there is none.
    """

    device: torch.device
    handle: int

    def active(self) -> AbstractContextManager[None]:
        """Queue what torch does inside on this stream, after all that is under way elsewhere.

        Threads take turns: what one queues is not mixed with what another does.
        """
        ...

    def host_bytes(self, size: int) -> Tensor:
        """Return [size] uint8 of host memory from which copies need not wait."""
        ...

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """Wait for the stream and return a tensor's elements on the host."""
        ...

    def wait(self) -> None:
        """Wait for the stream."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues without doing it; return what does all of it at once.

        Raises:
            RuntimeError: Some of it cannot be recorded.
        """
        ...


class CudaQueue:
    """A stream of its own on one GPU.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.handle: int = self._stream.cuda_stream
        self._turn = threading.RLock()

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Queue.active`."""
        with self._turn:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
                yield

    def host_bytes(self, size: int) -> Tensor:
        """See `Queue.host_bytes`."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """See `Queue.download`."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        self._stream.synchronize()
        return host.numpy()

    def wait(self) -> None:
        """See `Queue.wait`."""
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Queue.capture`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay
