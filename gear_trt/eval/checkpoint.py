"""The model that is judged, as transformers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.candidate import DENSE_ATTENTION
from gear_trt.export.source.huggingface import load_network, load_tokenizer
from gear_trt.export.source.source import find_model_file

GGUF_SUFFIX = ".gguf"


class Checkpoint:
    """A model's files.

    Attributes:
        name: What rows call it.

    Args:
        path: A `.gguf` file, a folder with one, or a Hugging Face folder.

    Raises:
        GearError: `MISSING_FILE`, or `UNSUPPORTED_MODEL` for an ONNX file.
    """

    def __init__(self, path: Path) -> None:
        file = find_model_file(path)
        if file is not None and file.suffix != GGUF_SUFFIX:
            raise GearError(
                ErrorCode.UNSUPPORTED_MODEL,
                f"{path} is no model that transformers runs",
                hint="pass the Hugging Face folder or the GGUF file that it comes from, or the "
                "engine folder that `gear-export` made of it",
            )
        self._folder = path if file is None else file.parent
        self._gguf_file = None if file is None else file.name
        self.name = self._gguf_file or path.resolve().name

    def network(self) -> Any:  # noqa: ANN401 - untyped
        """Load the model, with dense attention.

        Raises:
            GearError: `DAMAGED_MODEL`, `UNSUPPORTED_MODEL`, `MISSING_DEPENDENCY`.
        """
        network: Any = load_network(self._folder, self._gguf_file, attention=DENSE_ATTENTION)
        return network.eval()

    def tokenizer(self) -> Any:  # noqa: ANN401 - of many classes
        """Load the tokenizer.

        Raises:
            GearError: `MISSING_FILE`.
        """
        return load_tokenizer(self._folder, self._gguf_file)
