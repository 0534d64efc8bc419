"""From a model's files to a config for each of its layers."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.candidate import head_dim
from gear_trt.eval.checkpoint import Checkpoint
from gear_trt.eval.text import read_sequences
from gear_trt.export.source.source import find_model_file
from gear_trt.runtime.manifest import TuningFacts
from gear_trt.spec import CompressionConfig
from gear_trt.tune.options import check_base
from gear_trt.tune.target import MIN_TOKENS, TuningTarget
from gear_trt.tune.text import SEQUENCES, write_tokens
from gear_trt.tune.tuning import Progress, Tuner, Tuning, check_bits

ONNX_SUFFIX = ".onnx"


def open_tunable(path: Path) -> Checkpoint:
    """Return a model that can be tuned.

    Args:
        path: A `.gguf` file, a folder with one, or a Hugging Face folder.

    Raises:
        GearError: `MISSING_FILE`, or `UNSUPPORTED_MODEL` for an ONNX file.
    """
    file = find_model_file(path)
    if file is not None and file.suffix == ONNX_SUFFIX:
        raise GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"{file} cannot be tuned: its layers are measured by transformers, which runs no ONNX "
            "files",
            hint="run `gear tune` on the Hugging Face folder or the GGUF file that it comes from, "
            "and export it with --config",
        )
    return Checkpoint(path)


def tune_checkpoint(
    checkpoint: Checkpoint,
    base: CompressionConfig,
    target: TuningTarget,
    *,
    scale_keys: bool,
    progress: Progress,
) -> Tuning:
    """Load a model, measure its layers and choose a config for each; the model is dropped again.

    Args:
        checkpoint: See `open_tunable`.
        base: Config that all layers share but for bits, group size, rank and outliers.
        target: What they shall reach, and on what.
        scale_keys: Tune for a cache whose key channels are scaled.
        progress: Told what is done.

    Raises:
        GearError: `BAD_REQUEST` for a base that compresses nothing, a text that is too short or a
            target that no choice reaches; `UNSUPPORTED_MODEL` for a context that is too short;
            those of `Checkpoint` and `Tuner`.
        OSError: The text cannot be read.
    """
    check_base(base)
    ids = None
    if target.text is not None:
        tokenizer = checkpoint.tokenizer()
        ids = read_sequences(target.text, tokenizer, sequences=SEQUENCES, context=target.tokens)
    progress("loading", checkpoint.name, 0.0)
    network = checkpoint.network()
    if target.bits is not None:
        check_bits(target.bits, base, head_dim(network.config))
    tokens = min(target.tokens, _max_context(network))
    if ids is None:
        progress("writing", "the text to measure on", 0.0)
        ids = write_tokens(network, tokens)
    ids = ids[:, : tokens + 1]
    return _reach(Tuner(network, ids, base, progress, scale_keys=scale_keys), target)


def tuning_facts(tuning: Tuning, target: TuningTarget) -> TuningFacts:
    """Return what an engine folder says of its tuning."""
    return TuningFacts(
        target_bits=target.bits,
        target_kl=target.kl,
        text=None if target.text is None else target.text.name,
        tokens=tuning.tokens,
        kl=tuning.kl.mean,
        kl_error=tuning.kl.error,
    )


def _max_context(network: PreTrainedModel) -> int:
    longest: int = network.config.get_text_config(decoder=True).max_position_embeddings
    if longest < MIN_TOKENS:
        raise GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"a model whose context is {longest} tokens is not tuned: they fill too few pages",
            hint=f"tuning needs {MIN_TOKENS}; choose one config for all layers",
        )
    return longest


def _reach(tuner: Tuner, target: TuningTarget) -> Tuning:
    if target.bits is not None:
        return tuner.within_bits(target.bits)
    if target.kl is not None:
        return tuner.below_kl(target.kl)
    raise ValueError("no target")
