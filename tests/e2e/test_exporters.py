"""The real model by other exporters than our own: after routing all give the same tokens.

dynamo and optimum take minutes, and optimum an environment of its own, so those two run where
GEAR_OPTIMUM_PYTHON names its Python; `python -m benchmarks.exporters` records all of them.
"""

import os

import pytest

from benchmarks import exporters

pytestmark = pytest.mark.slow

NEW_TOKENS = 64
needs_optimum = pytest.mark.skipif(
    exporters.OPTIMUM_PYTHON not in os.environ,
    reason=f"{exporters.OPTIMUM_PYTHON} names no Python that has optimum",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exporters")


@pytest.fixture(scope="module")
def own_tokens(export):
    return exporters.greedy(export("exact"), NEW_TOKENS)


@pytest.mark.parametrize(
    ("exporter", "form"),
    [
        ("genai", "GroupQueryAttention"),
        ("torchscript", "MatMul + Softmax"),
        pytest.param("dynamo", "Attention", marks=needs_optimum),
        pytest.param("optimum", "MatMul + Softmax", marks=needs_optimum),
    ],
)
def test_every_exporter_leads_to_the_same_tokens(checkpoint, folder, own_tokens, exporter, form):
    model = exporters.EXPORTERS[exporter](checkpoint, folder / exporter)
    report = exporters.route(model, folder / f"{exporter}-engine", checkpoint.folder)
    assert [site.form for site in report.sites] == [form] * 30
    assert exporters.greedy(folder / f"{exporter}-engine", NEW_TOKENS) == own_tokens
