"""The real model by every exporter: do all engines give the same greedy tokens?

    python -m benchmarks.exporters

writes a row per exporter to `results/exporters.jsonl`. optimum pins an older transformers, so it
lives in an environment of its own: `GEAR_OPTIMUM_PYTHON` names its Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

import gear_trt
from benchmarks.demo import model_path
from benchmarks.records import append_rows
from gear_trt.export import ExportReport, export_model
from gear_trt.spec import CompressionConfig

OPTIMUM_PYTHON = "GEAR_OPTIMUM_PYTHON"
CONTEXT = 512
NEW_TOKENS = 96
PROMPTS = ("The capital of France is", "Explain why the sky is blue.", "def fibonacci(n):")

_DYNAMO_OPSET, _TORCHSCRIPT_OPSET = 23, 18
_BATCH, _NEW, _PAST = 2, 3, 5


@dataclass(frozen=True)
class Checkpoint:
    """A model that was read from a GGUF file, in memory and as a folder of safetensors."""

    network: PreTrainedModel
    folder: Path


Exporter = Callable[[Checkpoint, Path], Path]
"""Writes a model into a folder and returns the ONNX file."""


def save_checkpoint(gguf: Path, folder: Path) -> Checkpoint:
    """Save a GGUF model as the float32 checkpoint that other exporters read."""
    network = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    del network.config.quantization_config  # it says GGUF, and cannot be saved
    network.hf_quantizer = None
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    _write_old_rope_theta(folder / "config.json")
    return Checkpoint(network, folder)


def genai(checkpoint: Checkpoint, folder: Path) -> Path:
    """onnxruntime-genai's builder."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    cache = str(folder / "cache")
    arguments = (None, str(checkpoint.folder), str(folder), "fp32", "cpu", cache)
    create_model(*arguments, **parse_extra_options(*arguments, []))
    return folder / "model.onnx"


def dynamo(checkpoint: Checkpoint, folder: Path) -> Path:
    """torch.onnx with torch.export, attention by SDPA."""
    dynamic = torch.export.Dim.DYNAMIC
    rows = {0: dynamic, 1: dynamic}
    caches = tuple({0: dynamic, 2: dynamic} for _ in _names(checkpoint.network))
    checkpoint.network.set_attn_implementation("sdpa")
    return _torch_export(
        checkpoint.network,
        folder,
        dynamo=True,
        opset_version=_DYNAMO_OPSET,
        dynamic_shapes=(rows, rows, rows, caches),
        verbose=False,
    )


def torchscript(checkpoint: Checkpoint, folder: Path) -> Path:
    """torch.onnx with torch.jit, attention written out: what optimum uses."""
    names = _names(checkpoint.network)
    axes = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "position_ids", "logits")}
    axes["attention_mask"] = {0: "batch", 1: "total"}
    axes |= {f"past_key_values.{name}": {0: "batch", 2: "past"} for name in names}
    axes |= {f"present.{name}": {0: "batch", 2: "total"} for name in names}
    checkpoint.network.set_attn_implementation("eager")
    return _torch_export(
        checkpoint.network,
        folder,
        dynamo=False,
        opset_version=_TORCHSCRIPT_OPSET,
        dynamic_axes=axes,
    )


def optimum(checkpoint: Checkpoint, folder: Path) -> Path:
    """optimum-cli, in the environment that `GEAR_OPTIMUM_PYTHON` names."""
    python = os.environ[OPTIMUM_PYTHON]
    command = [python, "-m", "optimum.exporters.onnx", "--model", str(checkpoint.folder)]
    subprocess.run(  # noqa: S603 - a program that the caller names
        [*command, "--task", "text-generation-with-past", "--dtype", "fp32", str(folder)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    written = json.loads((folder / "config.json").read_text())
    theta = checkpoint.network.config.rope_parameters["rope_theta"]
    if written.get("rope_theta") != theta:
        raise RuntimeError(f"optimum exported with rope_theta {written.get('rope_theta')}")
    return folder / "model.onnx"


EXPORTERS: Mapping[str, Exporter] = {
    "genai": genai,
    "dynamo": dynamo,
    "torchscript": torchscript,
    "optimum": optimum,
}


def route(model: Path, engine: Path, tokenizer: Path) -> ExportReport:
    """Export a foreign model to an engine with a lossless cache."""
    return export_model(
        model,
        engine,
        config=CompressionConfig.preset("exact"),
        max_context=CONTEXT,
        tokenizer=tokenizer,
    )


def greedy(engine: Path, new_tokens: int) -> list[list[int]]:
    """Return the most likely tokens after each of `PROMPTS`, ends of texts ignored."""
    answers = []
    with gear_trt.load(engine, max_tokens=CONTEXT, threads=1) as llm:
        for prompt in PROMPTS:
            result = llm.generate(prompt, max_new_tokens=new_tokens, eos_token_id=())
            answers.append(list(result.token_ids))
    return answers


class _WithCache(torch.nn.Module):
    """A decoder whose cache is flat tensors."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(config=self.network.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        outputs = self.network(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = outputs.past_key_values.layers
        return outputs.logits, *(item for layer in layers for item in (layer.keys, layer.values))


def _names(network: PreTrainedModel) -> list[str]:
    layers = range(network.config.num_hidden_layers)
    return [f"{layer}.{side}" for layer in layers for side in ("key", "value")]


def _torch_export(network: PreTrainedModel, folder: Path, **options: Any) -> Path:  # noqa: ANN401
    folder.mkdir()
    config, names = network.config, _names(network)
    cache = (_BATCH, config.num_key_value_heads, _PAST, config.head_dim)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        torch.onnx.export(
            _WithCache(network).eval(),
            (
                torch.zeros(_BATCH, _NEW, dtype=torch.int64),
                torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64),
                torch.arange(_PAST, _PAST + _NEW).repeat(_BATCH, 1),
                *(torch.randn(cache) for _ in names),
            ),
            folder / "model.onnx",
            input_names=["input_ids", "attention_mask", "position_ids"]
            + [f"past_key_values.{name}" for name in names],
            output_names=["logits", *(f"present.{name}" for name in names)],
            **options,
        )
    return folder / "model.onnx"


def _write_old_rope_theta(path: Path) -> None:
    """Say rope_theta where transformers 4 looks for it; it takes 10000 where nothing is said."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config, indent=2))


def _measure(name: str, checkpoint: Checkpoint, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    started = time.perf_counter()
    model = EXPORTERS[name](checkpoint, folder / name)
    exported = time.perf_counter()
    report = route(model, folder / f"{name}-engine", checkpoint.folder)
    routed = time.perf_counter()
    row = {
        "exporter": name,
        "form": report.sites[0].form,
        "layers": len(report.sites),
        "nodes_before": report.nodes_before,
        "nodes_after": report.nodes_after,
        "model_bytes": sum(file.stat().st_size for file in model.parent.glob("*.onnx*")),
        "export_seconds": round(exported - started, 1),
        "route_seconds": round(routed - exported, 1),
    }
    return row, greedy(folder / f"{name}-engine", NEW_TOKENS)


def main() -> None:
    """Export with every exporter that is installed, and append a row for each."""
    names = [name for name in EXPORTERS if name != "optimum" or OPTIMUM_PYTHON in os.environ]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        checkpoint = save_checkpoint(model_path(), folder / "checkpoint")
        results = {name: _measure(name, checkpoint, folder) for name in names}
    first = results[names[0]][1]
    rows = [
        {
            **row,
            "tokens": sum(map(len, tokens)),
            "tokens_equal": int(np.equal(tokens, first).sum()),
        }
        for row, tokens in results.values()
    ]
    for row in rows:
        print(row)
    append_rows("exporters", rows)


if __name__ == "__main__":
    main()
