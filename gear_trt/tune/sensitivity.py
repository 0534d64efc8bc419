"""What compressing each layer costs the model: KL divergence, measured one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from gear_trt.eval.candidate import Decoder, gear
from gear_trt.eval.divergence import Yardstick
from gear_trt.eval.key_scales import KeyScales
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.tune.options import LayerOption, SideOption, uncompressed

Report = Callable[[str, float], None]
"""Takes what is done, and which part of it is done, 0 to 1."""

ANCHOR = LayerOption(SideOption("key", bits=3, variant=0), SideOption("value", bits=2, variant=0))
"""What is measured of each layer; its other options follow by their error in the attention's
output. The fewest bits whose divergence still grows with the squared error."""


def measure(
    model: PreTrainedModel,
    yardstick: Yardstick,
    base: CompressionConfig,
    scales: KeyScales,
    report: Report,
) -> list[float]:
    """Return the KL divergence of every layer's anchor, compressed alone.

    Args:
        model: Its attention implementation is changed.
        yardstick: The uncompressed cache's outcome of the text.
        base: Config whose other fields the anchors keep.
        scales: Of keys.
        report: Told when a layer is done.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    losses = []
    for index in range(count):
        alone = ((range(index, index + 1), ANCHOR.config(base)),)
        compression = ModelConfig(uncompressed(base), alone)
        candidate = gear("one layer", compression, model.config, scales.of(compression))
        losses.append(yardstick.judge(Decoder(model, candidate)).kl.mean)
        report(f"layer {index + 1} of {count}", (index + 1) / count)
    return losses


def expected_losses(
    anchor_loss: float, errors: Mapping[SideOption, float], options: Sequence[LayerOption]
) -> list[float]:
    """Return what each option of a layer is expected to add to the model's KL divergence.

    The divergence grows with the squared error of the attention's output, to which both sides add.

    Args:
        anchor_loss: Measured KL divergence of the layer's anchor.
        errors: Squared errors of the layer's attention, relative, of one side compressed.
        options: Pairs to judge.
    """

    def error(option: LayerOption) -> float:
        return errors[option.key] + errors[option.value]

    gain = anchor_loss / error(ANCHOR) if error(ANCHOR) else 0.0
    return [gain * error(option) for option in options]
