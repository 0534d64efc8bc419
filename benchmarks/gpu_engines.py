"""One engine folder decoded by every backend of this machine, beside ONNX Runtime on the CPU.

python -m benchmarks.gpu_engines [FOLDER]    # an engine folder; without one, a decoder of
                                             # SmolLM2's shape with random weights

All backends are fed with the tokens that the CPU chose, so that one token that falls otherwise (two
logits may be all but equal) does not decide about those after it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_outcomes import CANNOT, Outcome, report
from gear_trt.runtime.choice import BackendName
from gear_trt.runtime.engine import Engine, load
from gear_trt.tensorrt.library import Flavour

PROMPT_TOKENS, NEW_TOKENS = 300, 64
TOLERANCE = 1e-3
"""Largest NMSE of the logits: the CPU rounds queries to bytes, GPUs round them to FP16."""
LEAST_EQUAL = 0.9
"""Of the tokens that are the likeliest ones on the CPU, the part that must be so on a GPU."""

Open = Callable[[Path], Engine]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class DecodingOutcome(Outcome):
    """How exact and how fast one backend was.

    Attributes:
        equal: Likeliest tokens that are those of the CPU, of `NEW_TOKENS`.
        nmse: Of all logits against those of the CPU.
        tokens_per_second: Of the decode steps; the first ones, which compile and capture, included.
    """

    kind = "engine"

    equal: int | None = None
    nmse: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Decoding:
    """Logits of a decoding.

    Attributes:
        tokens: The prompt, then each token that was fed.
        logits: [1 + NEW_TOKENS, vocab_size], of the last token of the prompt and of each fed one.
        seconds: Of the steps after the prompt.
    """

    tokens: list[int]
    logits: FloatArray
    seconds: float


def gpu_backends() -> dict[str, Open]:
    """Return how to open a folder with each GPU backend; TensorRT builds its engine first."""
    return {
        BackendName.ONNXRUNTIME_CUDA: partial(_load, backend=BackendName.ONNXRUNTIME_CUDA),
        **{flavour: partial(_build, flavour=flavour) for flavour in Flavour},
    }


def run_backends(
    folder: Path, backends: Mapping[str, Open], *, prompt_tokens: int = PROMPT_TOKENS
) -> list[DecodingOutcome]:
    """Decode with the CPU, then with every backend; one that cannot run says why.

    Args:
        folder: An engine folder.
        backends: How to open it, by the backend's name.
        prompt_tokens: Tokens of the prompt.
    """
    with _load(folder, BackendName.ONNXRUNTIME) as engine:
        vocab_size = engine.manifest.model.vocab_size
        prompt = np.random.default_rng(0).integers(0, vocab_size, prompt_tokens).tolist()
        reference = decode(engine, prompt)
    return [
        _outcome(name, folder, open_engine, reference) for name, open_engine in backends.items()
    ]


def decode(engine: Engine, prompt: list[int], fed: list[int] | None = None) -> Decoding:
    """Run a prompt, then single tokens: those in `fed`, or the likeliest ones."""
    logits = [engine.step([prompt])[0]]
    tokens = list(prompt)
    started = time.perf_counter()
    for index in range(NEW_TOKENS):
        tokens.append(int(logits[-1].argmax()) if fed is None else fed[index])
        logits.append(engine.step([tokens[-1:]])[0])
    return Decoding(tokens, np.stack(logits), time.perf_counter() - started)


def _outcome(name: str, folder: Path, open_engine: Open, reference: Decoding) -> DecodingOutcome:
    prompt = reference.tokens[:-NEW_TOKENS]
    try:
        with open_engine(folder) as engine:
            found = decode(engine, prompt, reference.tokens[-NEW_TOKENS:])
    except Exception as error:  # one backend's fault must not hide what the others do
        return DecodingOutcome.of_failure(name, error, CANNOT)
    return _compared(name, found, reference)


def _compared(name: str, found: Decoding, reference: Decoding) -> DecodingOutcome:
    from tests.plugins.checks import nmse

    error = float(nmse(found.logits, reference.logits))
    same = found.logits.argmax(axis=1) == reference.logits.argmax(axis=1)
    equal, speed = int(same[:-1].sum()), NEW_TOKENS / found.seconds
    is_right = error <= TOLERANCE and equal >= LEAST_EQUAL * NEW_TOKENS
    text = f"{equal} of {NEW_TOKENS} tokens as on the CPU, NMSE {error:.1e}, {speed:.0f} tokens/s"
    return DecodingOutcome(name, "ran" if is_right else "failed", text, equal, error, speed)


def _load(folder: Path, backend: BackendName) -> Engine:
    return load(folder, max_tokens=PROMPT_TOKENS + NEW_TOKENS, backend=backend)


def _build(folder: Path, flavour: Flavour) -> Engine:
    from gear_trt.export.build.tensorrt import build_engine
    from gear_trt.export.build.tensorrt_plan import CURRENT_GPU, TensorRTOptions

    targets = (CURRENT_GPU,) if flavour is Flavour.RTX else ()
    build_engine(folder, TensorRTOptions(flavour=flavour, compute_capabilities=targets))
    return _load(folder, BackendName.TENSORRT)


@contextmanager
def random_decoder() -> Iterator[Path]:
    """Yield an engine folder of SmolLM2's shape with random weights; it is removed afterwards."""
    from tests.graphs import ToyModel
    from tests.runtime.folders import write_engine

    toy = ToyModel(
        num_layers=30, width=576, vocab_size=49152, num_heads=9, num_kv_heads=3, head_dim=64
    )
    with TemporaryDirectory(prefix="gear-gpu-check") as folder:
        yield write_engine(Path(folder) / "engine", toy)


def main() -> int:
    """Print what came of every backend; see `ExitStatus` for what is returned."""
    with random_decoder() if len(sys.argv) == 1 else _given(Path(sys.argv[1])) as folder:
        outcomes = run_backends(folder, gpu_backends())
    return report(outcomes)


@contextmanager
def _given(folder: Path) -> Iterator[Path]:
    yield folder


if __name__ == "__main__":
    sys.exit(main())
