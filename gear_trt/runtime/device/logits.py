"""Logits of a prompt, which mostly nobody wants to see but for those of the last tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gear_trt.runtime.device.queue import Queue


class DeviceLogits:
    """Logits that stay on the device until they are looked at; used like a numpy array.

    Attributes:
        shape: (B, S, vocab_size).

    Args:
        logits_BSV: [B, S, vocab_size] float on the device.
        queue: The device.
    """

    def __init__(self, logits_BSV: Tensor, queue: Queue) -> None:
        self._logits_BSV = logits_BSV
        self._queue = queue
        self.shape: tuple[int, ...] = tuple(logits_BSV.shape)

    def __getitem__(self, where: tuple[NDArray[np.integer], NDArray[np.integer]]) -> NDArray[Any]:
        """Return the logits of single tokens.

        Args:
            where: Row and column of each.

        Returns:
            [tokens, vocab_size].
        """
        with self._queue.active():
            rows, columns = (
                torch.from_numpy(indices.astype(np.int64)).to(self._queue.device)
                for indices in where
            )
            return self._download(self._logits_BSV[rows, columns])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: ANN401 - numpy's protocol
        """Return all of them on the host."""
        with self._queue.active():
            return np.asarray(self._download(self._logits_BSV), dtype)

    def _download(self, logits: Tensor) -> NDArray[Any]:
        has_numpy_type = logits.dtype != torch.bfloat16
        return self._queue.download(logits if has_numpy_type else logits.float())
