"""Every cell of the table of exporters and model families, and the page that shows it."""

import functools

import numpy as np
import pytest
import torch

import gear_trt
from gear_trt.errors import GearError
from gear_trt.export import export_model
from gear_trt.spec import CompressionConfig
from tests.export import decoders, exporters, families
from tests.export.conftest import EXACT
from tests.export.support import CELLS, PAGE, ROUTED, TOLERANCES, page

PROMPTS = (41, 9, 26)
"""Tokens of the first call; the second call adds unequal parts, then tokens come one by one."""
SECOND = (19, 30, 1)
STEPS = 3
TOKENS = np.random.default_rng(0).integers(3, families.VOCABULARY, (3, 64))

SCALED = CompressionConfig.preset("k4v4")
HALF_PRECISION = 5e-3
"""What logits may differ by where keys and values wait in FP16 for their page to be full."""

make = functools.cache(families.make)


def export(family, form, folder):
    """Return the file or folder that an exporter makes of a family."""
    network = families.make(family) if form.endswith("eager") else make(family)
    if form.endswith("eager"):
        network.set_attn_implementation("eager")
    if family == "Mixtral":
        network.set_experts_implementation("batched_mm")
    if form == "folder":
        return decoders.save_checkpoint(network, folder / "model")
    if form == "genai":
        return exporters.save_genai(decoders.save_checkpoint(network, folder / "model"), folder)
    path = folder / "model.onnx"
    if form.startswith("torchscript"):
        return exporters.save_torchscript(network, path)
    if form == "merged":
        return exporters.save_merged(network, path)
    if form == "static":
        return exporters.save_static(network, path, opset=23)
    return exporters.save_dynamo(network, path, opset=18 if form == "eager" else 23)


@functools.cache
def expected_logits(family, form):
    """Logits of every prompt alone, [3, 64, V]."""
    network = make(family)
    if (family, form) == ("Mistral", "genai"):  # whose builder leaves the window out on CPUs
        network = families.make(family, sliding_window=None)
    with torch.no_grad():
        return np.concatenate([network(torch.from_numpy(row[None])).logits for row in TOKENS])


def parts():
    """[(first, last)] of every sequence, call by call."""
    ends = np.cumsum([PROMPTS, SECOND, *[(1, 1, 1)] * STEPS], axis=0)
    return zip(np.concatenate(([[0, 0, 0]], ends[:-1])), ends, strict=True)


@pytest.mark.parametrize(("family", "form"), CELLS)
def test_cell(family, form, tmp_path, needs_library):
    source, cell = export(family, form, tmp_path), CELLS[family, form]
    options = {"config": EXACT, "max_context": families.CONTEXT}
    if cell != ROUTED:
        with pytest.raises(GearError) as caught:
            export_model(source, tmp_path / "engine", **options)
        assert cell in f"{caught.value.message}\n{caught.value.detail}"
        return
    export_model(source, tmp_path / "engine", **options)
    expected_BTV = expected_logits(family, form)
    tolerance = TOLERANCES.get((family, form), 1e-4)
    with gear_trt.load(tmp_path / "engine", batch=3, threads=1) as engine:
        for first, last in parts():
            tokens = [
                list(row[start:end]) for row, start, end in zip(TOKENS, first, last, strict=True)
            ]
            logits_BV = engine.step(tokens)
            np.testing.assert_allclose(
                logits_BV, expected_BTV[np.arange(3), last - 1], atol=tolerance
            )
    # Scales of keys are measured in every form, and cancel wherever nothing is compressed yet.
    report = export_model(source, tmp_path / "scaled", config=SCALED, max_context=families.CONTEXT)
    assert report.scaled_layers == len(report.sites)
    with gear_trt.load(tmp_path / "scaled", batch=3, threads=1) as engine:
        logits_BV = engine.step([list(row[:end]) for row, end in zip(TOKENS, PROMPTS, strict=True)])
    last_B = np.array(PROMPTS) - 1
    np.testing.assert_allclose(
        logits_BV, expected_BTV[np.arange(3), last_B], atol=tolerance + HALF_PRECISION
    )


def test_there_are_enough_green_cells():
    assert sum(cell == ROUTED for cell in CELLS.values()) >= 40


def test_the_page_is_what_the_table_says():
    assert PAGE.read_text() == page(), "run python -m tests.export.support"
