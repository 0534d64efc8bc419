"""The page pool of one layer, and which of its pages belong to which sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_GROWTH = 1.25
"""A full pool grows by a quarter: few copies, little that is not in use."""


class LayerPages:
    """Pages of one layer for B sequences.

    Pages are written once and never changed, so sequences that come from one another (beams) share
    those they have in common. A page that no sequence has is free.

    Attributes:
        pool: [num_pages, H, page_words] int32.
        table: [B, max_pages] int32 on the host, page ids of each sequence in order; −1 where it has
            none (yet, or any more).

    Args:
        batch: B, sequences.
        page_shape: [H, page_words].
        device: Where the pool lies.
    """

    def __init__(self, batch: int, page_shape: tuple[int, int], device: torch.device) -> None:
        self.pool = torch.empty((1, *page_shape), dtype=torch.int32, device=device)
        self.table: NDArray[np.int32] = np.full((batch, 1), -1, np.int32)
        self._device_table: torch.Tensor | None = None

    @property
    def device_table(self) -> torch.Tensor:
        """`table` on the pool's device."""
        if self._device_table is None:
            self._device_table = torch.from_numpy(self.table.copy()).to(self.pool.device)
        return self._device_table

    @property
    def in_use(self) -> int:
        """Pages that some sequence has."""
        return len(self._used())

    def reserve(self, first: Sequence[int], end: Sequence[int]) -> None:
        """Give every sequence pages of its own up to `end`, and take those before `first` away.

        Args:
            first: [B] pages before it are no longer seen by any query.
            end: [B] pages that each sequence needs.
        """
        columns = np.arange(max(self.table.shape[1], *end))
        table = np.full((len(self.table), len(columns)), -1, np.int32)
        table[:, : self.table.shape[1]] = self.table
        table[columns < np.asarray(first)[:, None]] = -1
        is_missing = (
            (columns >= np.asarray(first)[:, None])
            & (columns < np.asarray(end)[:, None])
            & (table < 0)
        )
        if table.shape == self.table.shape and (table == self.table).all() and not is_missing.any():
            return
        self._set(table)
        needed = self.in_use + int(is_missing.sum())
        if needed > len(self.pool):
            self._resize(max(needed, int(_GROWTH * len(self.pool))))
        elif 2 * needed < len(self.pool):
            self._resize(max(needed, 1))
        self.table[is_missing] = self._free()[: is_missing.sum()]

    def select(self, rows: Sequence[int]) -> None:
        """Make sequence i a copy of what sequence rows[i] was; pages are shared, not copied."""
        self._set(self.table[list(rows)])

    def _set(self, table: NDArray[np.int32]) -> None:
        self.table = table
        self._device_table = None

    def _used(self) -> NDArray[np.int32]:
        return np.unique(self.table[self.table >= 0])

    def _free(self) -> NDArray[np.int32]:
        return np.setdiff1d(np.arange(len(self.pool), dtype=np.int32), self._used())

    def _resize(self, capacity: int) -> None:
        """Move the pages in use to a pool of another size; both exist while they are copied."""
        used = self._used()
        pool = self.pool.new_empty((capacity, *self.pool.shape[1:]))
        indices = torch.from_numpy(used).to(self.pool.device)
        torch.index_select(self.pool, 0, indices, out=pool[: len(used)])
        is_page = self.table >= 0
        self.table[is_page] = np.searchsorted(used, self.table[is_page])
        self.pool = pool
