"""Is a tuned config better than uniform ones of its size, on text that it was not tuned on?

    python -m benchmarks.tune MODEL --text FILE [--against k3v2 k4v4] [--tokens 512]

The model is tuned on text that it writes itself, once for all sizes; then it is judged on another
one beside the uniform configs, all of them with key scales. Rows are appended to
`results/tune.jsonl` at the end, so that none of them comes from a changed checkout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.records import append_rows
from gear_trt.bench.grid import parse_config
from gear_trt.eval.candidate import Candidate, gear, head_dim
from gear_trt.eval.checkpoint import Checkpoint
from gear_trt.eval.judge import judge
from gear_trt.eval.key_scales import KeyScales
from gear_trt.eval.subject import NetworkSubject
from gear_trt.eval.text import read_sequences
from gear_trt.spec import DEFAULT_PRESET, CompressionConfig, ModelConfig, bits_per_element
from gear_trt.tune.text import write_tokens
from gear_trt.tune.tuning import Tuner

AGAINST = ("k4v4", "k4v4+value_bits=3", "k3v2", "k3v2+group_size=64", "k2v2")
console = Console(stderr=True)


def main() -> None:
    """Tune to the size of every uniform config, and judge both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--against", nargs="+", default=AGAINST)
    parser.add_argument("--tokens", type=int, default=512, help="of each sequence to tune on")
    parser.add_argument("--sequences", type=int, default=2, help="to judge on")
    parser.add_argument("--context", type=int, default=512, help="tokens of each of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # torch's threads spin while they wait: on busy machines less is more
    checkpoint = Checkpoint(arguments.model)
    model = checkpoint.network()
    text_BT = read_sequences(
        arguments.text,
        checkpoint.tokenizer(),
        sequences=arguments.sequences,
        context=arguments.context,
    )
    base = CompressionConfig.preset(DEFAULT_PRESET)
    tuner = Tuner(model, write_tokens(model, arguments.tokens), base, _say, scale_keys=True)
    scales = KeyScales(model)
    candidates: list[Candidate] = []
    for name in arguments.against:
        uniform = parse_config(name).config
        tuned = tuner.within_bits(bits_per_element(uniform, head_dim(model.config)))
        pair = {name: ModelConfig(uniform), f"tuned to the size of {name}": tuned.config}
        candidates += [
            gear(label, compression, model.config, scales.of(compression))
            for label, compression in pair.items()
        ]
    subject = NetworkSubject(checkpoint.name, model)
    rows = []
    for row in judge(subject, candidates, text_BT, _say, text_name=arguments.text.name):
        rows.append(row.model_dump())
        console.print(f"{row.candidate}: {row.bits_per_element:.3f} bits, KL {row.kl:.5f}")
    append_rows("tune", rows)


def _say(stage: str, detail: str, done: float) -> None:
    console.print(f"{100 * done:3.0f} % {stage}, {detail}", highlight=False)


if __name__ == "__main__":
    main()
