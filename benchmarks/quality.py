"""What compression costs: engines decode real text token by token, beside the FP32 cache.

Teacher-forced: every engine reads the same text, one token a call, so that each token meets the
cache as a decoder would. The yardstick is the `exact` engine (FP32 cache) on the same tokens.

    python -m benchmarks.quality ENGINE --text FILE [--tokens 2305] [--presets k4v4 k3v2]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import gear_trt
from benchmarks.records import append_rows
from benchmarks.variants import write_variant
from gear_trt.spec import CompressionConfig, bits_per_element

YARDSTICK = "exact"
PRESETS = ("k4v4", "k4v2", "k3v2", "k2v2", "paper-4bit", "paper-2bit", "fp16")
SLICE = 128
"""Tokens whose yardstick logits are held in memory at once."""


@dataclass
class Score:
    """Sums over the scored tokens of one engine."""

    divergences: list[float] = field(default_factory=list)
    agreements: int = 0
    log_likelihood: float = 0.0
    exact_log_likelihood: float = 0.0

    def add(self, exact: NDArray[np.float64], other: NDArray[np.float64], target: int) -> None:
        """Score one next-token distribution, both [vocab_size] log-probabilities."""
        self.divergences.append(float(np.exp(exact) @ (exact - other)))
        self.agreements += int(exact.argmax() == other.argmax())
        self.log_likelihood += float(other[target])
        self.exact_log_likelihood += float(exact[target])

    def row(self) -> dict[str, float]:
        """Return mean KL with its standard error, top-1 agreement and perplexities."""
        tokens = len(self.divergences)
        divergences = np.array(self.divergences)
        return {
            "tokens": tokens,
            "kl": float(divergences.mean()),
            "kl_standard_error": float(divergences.std() / math.sqrt(tokens)),
            "kl_max": float(divergences.max()),
            "top1_agreement": self.agreements / tokens,
            "perplexity_exact": math.exp(-self.exact_log_likelihood / tokens),
            "perplexity_ratio": math.exp(
                (self.exact_log_likelihood - self.log_likelihood) / tokens
            ),
        }


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def decode(engine: gear_trt.Engine, tokens: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Yield [vocab_size] log-probabilities after each token, one token a call."""
    for token in tokens:
        yield log_softmax(engine.step([[int(token)]])[0])


def evaluate(
    engines: dict[str, gear_trt.Engine], yardstick: gear_trt.Engine, tokens: NDArray[np.int64]
) -> dict[str, Score]:
    """Run every engine over the text and compare each with the yardstick."""
    scores = {name: Score() for name in engines}
    for engine in (yardstick, *engines.values()):
        engine.cache.reset()
    starts = range(0, len(tokens) - 1, SLICE)
    for start in track(starts, description="decoding", console=Console(stderr=True)):
        part = tokens[start : min(start + SLICE, len(tokens) - 1)]
        exact = list(decode(yardstick, part))
        for name, engine in engines.items():
            for offset, other in enumerate(decode(engine, part)):
                scores[name].add(exact[offset], other, int(tokens[start + offset + 1]))
    return scores


def main() -> None:
    """Evaluate every preset in one pass, print a table and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path, help="engine folder of any preset")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2305)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.engine.parent) as folder:  # same disk: links
        run(arguments.engine, arguments.text, arguments.tokens, arguments.presets, Path(folder))


def run(engine: Path, text: Path, count: int, presets: list[str], folder: Path) -> None:
    """Evaluate `presets` on the first `count` tokens of a text file."""
    engines = {}
    for name in (YARDSTICK, *presets):
        write_variant(engine, folder / name, CompressionConfig.preset(name))
        engines[name] = gear_trt.load(folder / name, max_tokens=count)
    yardstick = engines.pop(YARDSTICK)
    tokens = np.array(yardstick.tokenizer.encode(text.read_text()[: 8 * count])[:count])
    rows = []
    for name, score in evaluate(engines, yardstick, tokens).items():
        layer = engines[name].manifest.layers[0]
        rows.append(
            {
                "benchmark": "quality",
                "model": engines[name].manifest.model.source,
                "text": text.name,
                "preset": name,
                "config": layer.config.model_dump(),
                "bits_per_element": bits_per_element(layer.config, layer.head_dim),
                **score.row(),
            }
        )
    print_table(rows)
    append_rows("quality", rows)


def print_table(rows: list[dict[str, object]]) -> None:
    """Print one line per preset."""
    table = Table("preset", "bits", "KL", "± SE", "ppl ratio", "top-1 %")
    for row in rows:
        table.add_row(
            str(row["preset"]),
            f"{row['bits_per_element']:.2f}",
            f"{row['kl']:.5f}",
            f"{row['kl_standard_error']:.5f}",
            f"{row['perplexity_ratio']:.4f}",
            f"{100 * float(str(row['top1_agreement'])):.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
