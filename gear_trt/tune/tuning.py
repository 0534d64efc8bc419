"""Tune a model: measure its layers on a text, then choose a config for each of them.

    loss of a layer's option = KL of the layer's anchor · error of the option / error of the anchor

Errors are those of the attention's output. Divergences of single layers nearly add up; what is
chosen is measured as a whole at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.candidate import Decoder, exact, gear, head_dim
from gear_trt.eval.divergence import Estimate, Yardstick
from gear_trt.eval.key_scales import KeyScales
from gear_trt.spec import CompressionConfig, ModelConfig, bits_per_element, page_layout
from gear_trt.tune.options import layer_options, side_options
from gear_trt.tune.probe import probe
from gear_trt.tune.sensitivity import expected_losses, measure
from gear_trt.tune.solve import Choice, Frontier

Progress = Callable[[str, str, float], None]
"""Takes the stage, what happens in it, and which part of the whole is done, 0 to 1."""

AIM, CLOSE = 0.98, 0.93
"""Parts of a target divergence: what the next config is to reach, and what is near enough."""
LEAST = 1e-9
"""Divergences below it are rounding."""
ROUNDS = 4
"""Configs measured as a whole for a target divergence."""
_PROBED, _MEASURED = 0.25, 0.9
"""Parts of the time that are over after these stages."""


@dataclass(frozen=True)
class Tuning:
    """What was chosen.

    Attributes:
        layers: Config of every layer.
        bits_per_element: Mean of all layers, padding and corrections included.
        expected_kl: Sum of what each layer was expected to cost.
        kl: Measured KL divergence, of all layers together, on the text that was tuned on.
        tokens: Scored tokens of that text.
        has_key_scales: Whether channels of keys were scaled, of one layer at least.
    """

    layers: tuple[CompressionConfig, ...]
    bits_per_element: float
    expected_kl: float
    kl: Estimate
    tokens: int
    has_key_scales: bool

    @property
    def config(self) -> ModelConfig:
        """The most frequent config, and what other layers have instead."""
        return ModelConfig.of_each(self.layers)


class Tuner:
    """A model whose layers have been measured; targets are then a matter of seconds.

    Args:
        model: Its attention implementation is changed.
        tokens_BT: [B, T] token ids to measure on; the last column is only a target.
        base: Config that all layers share but for bits, group size, rank and outliers.
        progress: Told what is done.
        scale_keys: Scale the channels of keys, wherever their config gains from it.

    Raises:
        GearError: `UNSUPPORTED_MODEL` where attention is not plain causal attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens_BT: NDArray[np.int64],
        base: CompressionConfig,
        progress: Progress,
        *,
        scale_keys: bool,
    ) -> None:
        self._model = model
        self._head_dim = head_dim(model.config)
        self._progress = progress
        options = list(layer_options())
        self._configs = [option.config(base) for option in options]
        self._scales = KeyScales(model, scale_keys=scale_keys)
        progress("uncompressed", "", 0.0)
        self._yardstick = Yardstick(Decoder(model, exact()), tokens_BT)
        progress("attention", "", 0.0)
        errors = probe(
            model,
            torch.from_numpy(tokens_BT[:, :-1]),
            base,
            side_options(),
            self._scales,
            lambda what, done: progress("attention", what, _PROBED * done),
        )
        anchors = measure(
            model,
            self._yardstick,
            base,
            self._scales,
            lambda what, done: progress(
                "sensitivity", what, _PROBED + (_MEASURED - _PROBED) * done
            ),
        )
        costs = [page_layout(config, self._head_dim).page_bytes for config in self._configs]
        self._choices = [
            [Choice(*both) for both in zip(costs, expected_losses(*layer, options), strict=True)]
            for layer in zip(anchors, errors, strict=True)
        ]
        self._frontier = Frontier(self._choices)

    def within_bits(self, bits: float) -> Tuning:
        """Choose the config of least expected divergence.

        Args:
            bits: Most bits per element, mean of all layers.

        Raises:
            GearError: `BAD_REQUEST` where every choice takes more.
        """
        base = self._configs[0]
        budget = bits * 2 * base.chunk * self._head_dim / 8 * len(self._choices)
        picks = self._frontier.within(budget)
        if picks is None:
            raise _too_few(bits, least_bits(base, self._head_dim))
        return self._judge(picks)

    def below_kl(self, kl: float) -> Tuning:
        """Choose the smallest config whose measured divergence is at most `kl`.

        What layers cost together is not quite the sum of what they cost alone, so the sum that is
        asked for follows what is measured.

        Raises:
            GearError: `BAD_REQUEST` where every choice loses more.
        """
        best: Tuning | None = None
        last: list[int] | None = None
        limit = kl
        for _ in range(ROUNDS):
            picks = self._frontier.below(limit)
            if picks is None or picks == last:
                break
            last = picks
            tuning = self._judge(picks)
            is_enough = tuning.kl.mean <= kl
            if is_enough and (best is None or tuning.bits_per_element < best.bits_per_element):
                best = tuning
            if is_enough and tuning.kl.mean >= CLOSE * kl:
                break
            limit *= AIM * kl / max(tuning.kl.mean, LEAST)
        if best is None:
            raise _unreachable(f"a KL divergence of {kl}", "ask for a larger one")
        return best

    def _judge(self, picks: Sequence[int]) -> Tuning:
        layers = tuple(self._configs[pick] for pick in picks)
        compression = ModelConfig.of_each(layers)
        bits = sum(bits_per_element(config, self._head_dim) for config in layers) / len(layers)
        self._progress("verifying", f"{bits:.3f} bits per element", _MEASURED)
        key_scales = self._scales.of(compression)
        candidate = gear("tuned", compression, self._model.config, key_scales)
        scores = self._yardstick.judge(Decoder(self._model, candidate))
        return Tuning(
            layers=layers,
            bits_per_element=bits,
            expected_kl=sum(
                choices[pick].loss for choices, pick in zip(self._choices, picks, strict=True)
            ),
            kl=scores.kl,
            tokens=scores.divergence_BT.size,
            has_key_scales=any(scales_HD is not None for scales_HD in key_scales),
        )


def check_bits(bits: float, base: CompressionConfig, head_dim: int) -> None:
    """Refuse what `Tuner.within_bits` would refuse, before anything is measured.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    least = least_bits(base, head_dim)
    if bits < least:
        raise _too_few(bits, least)


def least_bits(base: CompressionConfig, head_dim: int) -> float:
    """Return the bits per element of the smallest choice."""
    return min(bits_per_element(option.config(base), head_dim) for option in layer_options())


def _too_few(bits: float, least: float) -> GearError:
    enough = math.ceil(1000 * least) / 1000
    return _unreachable(f"{bits:g} bits per element", f"ask for {enough:g} bits or more")


def _unreachable(target: str, hint: str) -> GearError:
    return GearError(ErrorCode.BAD_REQUEST, f"no choice of configs reaches {target}", hint=hint)
