"""Padded batches: which columns of a call are tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NewTokens:
    """The tokens of one call.

    Attributes:
        past: Tokens of each sequence before the call.
        counts: Tokens of each sequence in the call.
        order: [B, S] columns of the call, those that are tokens first and in order; None where they
            already are.
    """

    past: tuple[int, ...]
    counts: tuple[int, ...]
    order: Tensor | None

    def pack(self, tensor_BSHD: Tensor) -> Tensor:
        """Move the tokens of every sequence to its first columns."""
        return tensor_BSHD if self.order is None else _take(tensor_BSHD, self.order)

    def unpack(self, tensor_BSHD: Tensor) -> Tensor:
        """Move every token back to its column."""
        return tensor_BSHD if self.order is None else _take(tensor_BSHD, self.order.argsort())


class Padding:
    """What the mask function hands to the attention function instead of a mask.

    Args:
        mask_BT: [B, T] bool, True where a column, of the past or of the call, is a token.
    """

    def __init__(self, mask_BT: Tensor) -> None:
        self._mask_BT = mask_BT
        self._split: NewTokens | None = None

    def split(self, seq_len: int) -> NewTokens:
        """Return the tokens among the last `seq_len` columns; waits for the device once."""
        if self._split is None:
            new_BS = self._mask_BT[:, -seq_len:]
            sums = torch.stack([self._mask_BT.sum(1), new_BS.sum(1)]).tolist()
            counts = tuple(sums[1])
            self._split = NewTokens(
                past=tuple(total - new for total, new in zip(*sums, strict=True)),
                counts=counts,
                order=None if min(counts) == seq_len else _tokens_first(new_BS),
            )
        return self._split


def _tokens_first(is_token_BS: Tensor) -> Tensor:
    return (~is_token_BS).to(torch.int8).argsort(dim=1, stable=True)


def _take(tensor_BSHD: Tensor, columns_BS: Tensor) -> Tensor:
    return tensor_BSHD.take_along_dim(columns_BS[:, :, None, None], dim=1)
