"""A decoder of Llama's architecture with random weights in FP16: one token a step, any cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

_NORM_EPSILON = 1e-5
_ROPE_THETA = 500_000.0


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder.

    Attributes:
        num_layers: Layers.
        width: Of the hidden state.
        num_heads: N.
        kv_heads: H.
        head_dim: D.
        ffn_width: Of the feed-forward part.
        vocab_size: V.
    """

    num_layers: int
    width: int
    num_heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int

    @property
    def activation_bytes(self) -> int:
        """Bytes per sequence that a step needs at most besides weights and cache.

        The logits are the most that is there at one time, with a few hidden states.
        """
        return 2 * max(self.vocab_size + 4 * self.width, 4 * (self.ffn_width + self.width))


LLAMA_3_8B = DecoderShape(32, 4096, 32, 8, 128, 14336, 128256)


class Cache(Protocol):
    """Keys and values of all layers.

    Attributes:
        past_B: [B] int32 tokens of every sequence so far, on the device.
    """

    past_B: Tensor

    def attend(
        self, layer: int, query_BSND: Tensor, key_BSHD: Tensor, value_BSHD: Tensor
    ) -> Tensor:
        """Keep the new token of every sequence; return its attention over all, [B, 1, N, D]."""

    def advance(self) -> None:
        """Count the new tokens: all layers have seen them."""


class Decoder:
    """The weights and the step.

    Args:
        shape: Sizes.
        max_tokens: Longest sequence.
        device: Where.
    """

    def __init__(self, shape: DecoderShape, max_tokens: int, device: torch.device) -> None:
        self.shape = shape

        def weight(rows: int, columns: int, gain: float = 1.0) -> Tensor:
            tensor = torch.empty((rows, columns), dtype=torch.float16, device=device)
            return tensor.normal_(std=gain * columns**-0.5)

        self._embedding = weight(shape.vocab_size, shape.width)
        self._layers = [_Layer(shape, weight) for _ in range(shape.num_layers)]
        self._norm_W = torch.ones(shape.width, dtype=torch.float16, device=device)
        self._head = weight(shape.vocab_size, shape.width)
        self._cos_TD, self._sin_TD = _rotary_tables(max_tokens, shape.head_dim, device)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        layers: list[Tensor] = [w for layer in self._layers for w in vars(layer).values()]
        weights = (self._embedding, *layers, self._norm_W, self._head)
        return sum(weight.nbytes for weight in weights)

    def step(self, tokens_B: Tensor, cache: Cache) -> None:
        """Decode the tokens, one of every sequence; the likeliest next ones take their place."""
        tokens_B.copy_(self.logits(tokens_B, cache).argmax(dim=-1))

    def logits(self, tokens_B: Tensor, cache: Cache) -> Tensor:
        """Decode the tokens and return [B, V] float16."""
        hidden_BW = self._embedding[tokens_B]
        turn = tuple(
            table.index_select(0, cache.past_B)[:, None, None]
            for table in (self._cos_TD, self._sin_TD)
        )
        for index, layer in enumerate(self._layers):
            self._attend(index, layer, hidden_BW, turn, cache)
            layer.feed_forward(hidden_BW)
        cache.advance()
        return linear(_normalized(hidden_BW, self._norm_W), self._head)

    def _attend(
        self, index: int, layer: _Layer, hidden_BW: Tensor, turn: tuple[Tensor, ...], cache: Cache
    ) -> None:
        num_heads, kv_heads = self.shape.num_heads, self.shape.kv_heads
        heads_BSND = linear(_normalized(hidden_BW, layer.attention_norm_W), layer.qkv).view(
            len(hidden_BW), 1, num_heads + 2 * kv_heads, self.shape.head_dim
        )
        turned = _rotated(heads_BSND[:, :, :-kv_heads], *turn)
        output = cache.attend(
            index, turned[:, :, :num_heads], turned[:, :, num_heads:], heads_BSND[:, :, -kv_heads:]
        )
        hidden_BW.addmm_(output.reshape(len(hidden_BW), -1), layer.output.T)


class _Layer:
    """Weights of one layer; every matrix is [outputs, inputs]."""

    def __init__(self, shape: DecoderShape, weight: _MakeWeight) -> None:
        gain = (2 * shape.num_layers) ** -0.5  # so that the sum over all layers stays in FP16
        heads_width = shape.num_heads * shape.head_dim
        self.qkv = weight(heads_width + 2 * shape.kv_heads * shape.head_dim, shape.width)
        self.output = weight(shape.width, heads_width, gain)
        self.gate_up = weight(2 * shape.ffn_width, shape.width)
        self.down = weight(shape.width, shape.ffn_width, gain)
        self.attention_norm_W = self.qkv.new_ones(shape.width)
        self.ffn_norm_W = self.qkv.new_ones(shape.width)

    def feed_forward(self, hidden_BW: Tensor) -> None:
        """Add SwiGLU to the hidden state."""
        gate, up = linear(_normalized(hidden_BW, self.ffn_norm_W), self.gate_up).chunk(2, dim=-1)
        hidden_BW.addmm_(silu(gate).mul_(up), self.down.T)


class _MakeWeight(Protocol):
    def __call__(self, rows: int, columns: int, gain: float = 1.0) -> Tensor: ...


def _normalized(hidden_BW: Tensor, weight_W: Tensor) -> Tensor:
    return rms_norm(hidden_BW, weight_W.shape, weight_W, _NORM_EPSILON)


def _rotary_tables(max_tokens: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of the half of the head that they are for: [T, D]."""
    pairs = torch.arange(0, head_dim, 2, device=device) / head_dim
    angles = torch.arange(max_tokens, device=device)[:, None] * _ROPE_THETA**-pairs
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).half(), torch.cat([-sin, sin], dim=-1).half()


def _rotated(heads_BSND: Tensor, cos_BSND: Tensor, sin_BSND: Tensor) -> Tensor:
    half = heads_BSND.shape[-1] // 2
    return torch.addcmul(heads_BSND * cos_BSND, heads_BSND.roll(half, dims=-1), sin_BSND)
