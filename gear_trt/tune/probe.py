"""How far every option moves the output of every layer's attention, in one pass over a text.

Each layer sees the keys, values and queries of the uncompressed model. What it attends to then goes
through our own pages, scaled as in an engine, by the kernels that decode them, once per option.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from gear_trt.eval.key_scales import KeyScales
from gear_trt.eval.steps import SLICE
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.torch.cache import ATTENTION_NAME, layer_windows
from gear_trt.torch.layer import GearLayer
from gear_trt.torch.padding import NewTokens
from gear_trt.tune.options import SideOption

Key = TypeVar("Key", bound=Hashable)
Report = Callable[[str, float], None]
"""Takes what is done, and which part of it is done, 0 to 1."""


class ProbeLayer(GearLayer, Generic[Key]):  # type: ignore[no-untyped-call]
    """A layer that attends to uncompressed tokens and compares every option with that.

    Attributes:
        errors: Squared error of the output, over the squared output, by option.

    Args:
        index: Which layer of the model it is.
        sliding_window: As in `GearLayer`.
        configs: Of every option, by what tells it from others.
        scales: Of its key channels [H, D], by option; None for all 1.
        report: Told when the layer is done.
    """

    def __init__(
        self,
        index: int,
        sliding_window: int,
        configs: Mapping[Key, CompressionConfig],
        scales: Mapping[Key, Tensor | None],
        report: Callable[[], None],
    ) -> None:
        super().__init__(index, CompressionConfig.preset("exact"), sliding_window)
        self.errors: dict[Key, float] = {}
        self._configs = configs
        self._scales = scales
        self._report = report

    def attend(
        self,
        query_BSND: Tensor,
        key_BSHD: Tensor,
        value_BSHD: Tensor,
        new: NewTokens,
        *,
        scale: float,
        softcap: float,
    ) -> Tensor:
        """Attend to a whole text exactly (`GearLayer.attend`); fill in `errors`."""

        def replay(option: Key) -> Tensor:
            config, scales_HD = self._configs[option], self._scales[option]
            layer = GearLayer(self.index, config, self.sliding_window, scales_HD)
            layer.lazy_initialization(key_BSHD.transpose(1, 2), value_BSHD.transpose(1, 2))
            outputs = []
            for start in range(0, query_BSND.shape[1], SLICE):
                query, key, value = (
                    tensor[:, start : start + SLICE]
                    for tensor in (query_BSND, key_BSHD, value_BSHD)
                )
                counts = (query.shape[1],) * len(query)
                tokens = NewTokens(past=tuple(layer.lengths), counts=counts, order=None)
                outputs.append(
                    layer.attend(query, key, value, tokens, scale=scale, softcap=softcap)
                )
            return torch.cat(outputs, dim=1)

        exact = super().attend(query_BSND, key_BSHD, value_BSHD, new, scale=scale, softcap=softcap)
        energy = float(exact.double().square().sum())
        for option in self._configs:
            error = float((replay(option) - exact).double().square().sum())
            self.errors[option] = error / energy if energy else 0.0
        self._report()
        return exact


@torch.inference_mode()
def probe(
    model: PreTrainedModel,
    tokens_BT: Tensor,
    base: CompressionConfig,
    options: Sequence[SideOption],
    scales: KeyScales,
    report: Report,
) -> list[dict[SideOption, float]]:
    """Run a text through a model and return the errors of every option, per layer.

    Args:
        model: Its attention implementation is set to ours.
        tokens_BT: [B, T] token ids.
        base: Config whose other fields the options keep.
        options: What to try.
        scales: Of keys.
        report: Told when a layer is done.
    """
    configs = {option: option.config(base) for option in options}
    # not inside of the pass below: measuring is one of its own
    measured = {option: scales.of(ModelConfig(config)) for option, config in configs.items()}
    model.set_attn_implementation(ATTENTION_NAME)
    windows = layer_windows(model.config)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        report(f"layer {done} of {len(windows)}", done / len(windows))

    layers = [
        ProbeLayer(
            index,
            window,
            configs,
            {option: of_layers[index] for option, of_layers in measured.items()},
            tell,
        )
        for index, window in enumerate(windows)
    ]
    model.base_model(tokens_BT, past_key_values=Cache(layers=[*layers]))
    return [layer.errors for layer in layers]
