"""What compressing each layer costs the model: KL divergence, measured one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from gear_trt.eval.candidate import Decoder, gear
from gear_trt.eval.divergence import Yardstick
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.tune.options import SIDES, LayerOption, Side, SideOption

Report = Callable[[str, float], None]
"""Takes what is done, and which part of it is done, 0 to 1."""

ANCHORS: Mapping[Side, SideOption] = {
    "key": SideOption("key", bits=3, variant=0),
    "value": SideOption("value", bits=2, variant=0),
}
"""What is measured of each side; the other options follow by their error in the attention's output.
The fewest bits whose divergence still grows with the squared error."""


def measure(
    model: PreTrainedModel, yardstick: Yardstick, base: CompressionConfig, report: Report
) -> list[dict[Side, float]]:
    """Return the KL divergence of every layer's anchors, each compressed alone.

    Args:
        model: Its attention implementation is changed.
        yardstick: The uncompressed cache's outcome of the text.
        base: Config whose other fields the anchors keep.
        report: Told when a layer is done.
    """
    exact = {"key_bits": 16, "value_bits": 16, "rotate_keys": 0, "rotate_values": 0}
    untouched = CompressionConfig(**{**base.model_dump(), **exact, "rank": 0, "outliers": 0})
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    losses: list[dict[Side, float]] = []
    for index in range(count):
        losses.append({})
        for side in SIDES:
            alone = ModelConfig(untouched, ((range(index, index + 1), ANCHORS[side].config(base)),))
            candidate = gear(f"{side} of layer {index}", alone, model.config)
            losses[-1][side] = yardstick.judge(Decoder(model, candidate)).kl.mean
        report(f"layer {index + 1} of {count}", (index + 1) / count)
    return losses


def expected_losses(
    anchors: Mapping[Side, float],
    errors: Mapping[SideOption, float],
    options: Sequence[LayerOption],
) -> list[float]:
    """Return what each option of a layer is expected to add to the model's KL divergence.

    Both grow with the squared error of the attention's output, so that the ratio of two options of
    one side and layer is that of their errors; the sides add up.

    Args:
        anchors: Measured KL divergence of the layer's anchors.
        errors: Squared errors of the layer's attention, relative.
        options: Pairs to judge.
    """

    def loss(option: SideOption) -> float:
        anchor = errors[ANCHORS[option.side]]
        return anchors[option.side] * errors[option] / anchor if anchor else 0.0

    return [loss(option.key) + loss(option.value) for option in options]
