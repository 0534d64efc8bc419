"""A model and the caches that it is judged with, from what a user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from gear_trt.bench.grid import parse_config
from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval import candidate
from gear_trt.eval.candidate import Candidate
from gear_trt.eval.checkpoint import Checkpoint
from gear_trt.eval.engine import EngineSubject
from gear_trt.eval.key_scales import KeyScales
from gear_trt.eval.peers import Setting, make_peer
from gear_trt.eval.steps import Steps
from gear_trt.eval.subject import NetworkSubject, Subject
from gear_trt.runtime.manifest import MANIFEST_FILE
from gear_trt.spec import DEFAULT_PRESET, ModelConfig
from gear_trt.spec.config_file import ConfigFile, choose_config

FILE_SUFFIX = ".toml"
EXACT = "uncompressed"


@dataclass(frozen=True)
class Contest:
    """What is judged.

    Attributes:
        subject: The model.
        tokenizer: Its own.
        caches: What it decodes over, one after the other; all are of the subject's kind.
    """

    subject: Subject[Any]
    tokenizer: Any
    caches: list[Any]

    def decoders(self) -> Iterator[tuple[str, Steps]]:
        """Yield the uncompressed cache and then each of the others, by name."""
        yield EXACT, self.subject.exact()
        for cache in self.caches:
            yield cache.name, self.subject.with_cache(cache)


def is_engine(path: Path) -> bool:
    """Whether a path is an engine folder."""
    return (path / MANIFEST_FILE).is_file()


def open_engine(
    folder: Path, *, configs: Sequence[str], scale_keys: bool, capacity: int | None, threads: int
) -> Contest:
    """Open an engine folder, which has one cache.

    Args:
        folder: The engine folder.
        configs: Must be empty.
        scale_keys: Must be true: the engine has its scales, or none.
        capacity: Tokens that a sequence can hold; None means the model's longest context.
        threads: CPU threads.

    Raises:
        GearError: `BAD_REQUEST`, and those of `gear_trt.load`.
    """
    if configs:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{folder} is an engine folder, which has one cache: {configs[0]} cannot be added",
            hint="pass the GGUF file or Hugging Face folder to compare caches",
        )
    if not scale_keys:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{folder} is an engine folder, whose graph has its key scales or has none",
            hint="export with `gear-export --no-scale-keys`, or pass the GGUF file or Hugging Face "
            "folder",
        )
    subject = EngineSubject(folder, capacity=capacity, threads=threads)
    return Contest(subject, subject.tokenizer, [subject.cache])


def open_network(path: Path, *, configs: Sequence[str], scale_keys: bool, threads: int) -> Contest:
    """Load a checkpoint.

    Args:
        path: A `.gguf` file, a folder with one, or a Hugging Face folder.
        configs: Presets with overrides, or TOML files; the default preset where there is none.
        scale_keys: Measure scales of key channels, and use them in all caches of ours.
        threads: CPU threads of torch.

    Raises:
        GearError: Those of `Checkpoint`, `UNKNOWN_PRESET`, `BAD_CONFIG`, `BAD_REQUEST`.
    """
    chosen = [(name, _config(name)) for name in configs or (DEFAULT_PRESET,)]
    torch.set_num_threads(threads)
    checkpoint = Checkpoint(path)
    subject = NetworkSubject(checkpoint.name, checkpoint.network())
    config = subject.model.config
    scales = KeyScales(subject.model, scale_keys=scale_keys)
    caches = [
        candidate.gear(name, compression, config, scales.of(compression))
        for name, compression in chosen
    ]
    return Contest(subject, checkpoint.tokenizer(), caches)


def with_peers(contest: Contest, names: Sequence[str], calibration_BT: NDArray[Any]) -> Contest:
    """Return a contest with peers after its caches; they have the largest of their buffers.

    Args:
        contest: Of a transformers model.
        names: Keys of `PEERS`.
        calibration_BT: [B, T] token ids for formats with fixed scales.

    Raises:
        GearError: `BAD_REQUEST` for an engine, `MISSING_DEPENDENCY`.
    """
    if not names:
        return contest
    subject = network_of(contest)
    buffer = max(cache.buffer for cache in contest.caches)
    setting = Setting(subject.model, torch.from_numpy(calibration_BT), buffer)
    peers: list[Candidate] = [make_peer(name, setting) for name in names]
    return Contest(subject, contest.tokenizer, [*contest.caches, *peers])


def network_of(contest: Contest) -> NetworkSubject:
    """Return the transformers model of a contest.

    Raises:
        GearError: `BAD_REQUEST` for an engine.
    """
    if isinstance(contest.subject, NetworkSubject):
        return contest.subject
    raise GearError(
        ErrorCode.BAD_REQUEST,
        "an engine folder runs over its own cache only",
        hint="pass the GGUF file or Hugging Face folder that the engine comes from",
    )


def _config(name: str) -> ModelConfig:
    if name.endswith(FILE_SUFFIX):
        return choose_config(ConfigFile.read(Path(name)), fields={})
    return ModelConfig(parse_config(name).config)
