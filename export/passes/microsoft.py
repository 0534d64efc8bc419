"""Meaning of `com.microsoft` ops that trial runs come across, as ONNX's evaluator takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[Any]


class MultiHeadAttention(OpRun):
    """Attention with as many key heads as query heads, in the layouts that exporters use.

    Bias inputs and packed layouts are left out: `forms.multi_head` refuses them first.
    """

    op_domain = "com.microsoft"

    def _run(  # type: ignore[no-untyped-def] # noqa: ANN202 - the op's signature
        self,
        query_BSM: Array,
        key: Array,
        value: Array,
        bias: None = None,
        key_padding_mask: Array | None = None,
        attention_bias: Array | None = None,
        past_key_BNPD: Array | None = None,
        past_value_BNPD: Array | None = None,
        *_: Array,
        num_heads: int,
        scale: float | None = None,
        unidirectional: int | None = None,
        mask_filter_value: float | None = None,
    ):
        del bias, mask_filter_value
        query_BNSD = _heads_first(query_BSM, num_heads)
        key_BNTD, value_BNTD = (_heads_first(array, num_heads) for array in (key, value))
        if past_key_BNPD is not None and past_value_BNPD is not None:
            key_BNTD = np.concatenate((past_key_BNPD, key_BNTD), axis=2)
            value_BNTD = np.concatenate((past_value_BNPD, value_BNTD), axis=2)
        scores_BNST = query_BNSD @ key_BNTD.swapaxes(2, 3)
        scores_BNST = scores_BNST * (scale or query_BNSD.shape[3] ** -0.5)
        if attention_bias is not None:
            scores_BNST = scores_BNST + attention_bias
        if key_padding_mask is not None:
            hidden_BT = key_padding_mask == 0
            scores_BNST = np.where(hidden_BT[:, None, None], -np.inf, scores_BNST)
        if unidirectional:
            new, total = scores_BNST.shape[2:]
            later_ST = ~np.tri(new, total, total - new, dtype=bool)
            scores_BNST = np.where(later_ST, -np.inf, scores_BNST)
        weights_BNST = np.exp(scores_BNST - scores_BNST.max(-1, keepdims=True))
        weights_BNST = weights_BNST / weights_BNST.sum(-1, keepdims=True)
        output_BNSD = weights_BNST @ value_BNTD
        output_BSM = output_BNSD.swapaxes(1, 2).reshape(query_BSM.shape).astype(query_BSM.dtype)
        return output_BSM, key_BNTD, value_BNTD


def _heads_first(array: Array, num_heads: int) -> Array:
    """[B, S, N·D] to [B, N, S, D]; what has that layout already stays."""
    if array.ndim == 4:
        return array
    batch, tokens, width = array.shape
    return array.reshape(batch, tokens, num_heads, width // num_heads).swapaxes(1, 2)


OPS: list[type[OpRun]] = [MultiHeadAttention]
