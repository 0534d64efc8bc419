import itertools
from pathlib import Path

import numpy as np
import pytest

from gear_trt.spec import PRESETS, CompressionConfig, bits_per_element, page_layout
from gear_trt.spec import layout as spec
from gear_trt.spec.codegen import generated_files, main

REPOSITORY = Path(__file__).parents[2]


def configs():
    for bits, metadata, rank, factor, outliers, chunk in itertools.product(
        (2, 3, 4, 8), (8, 16), (0, 1, 3), (4, 8, 16), (0, 2, 4), (64, 128)
    ):
        yield CompressionConfig(
            key_bits=bits,
            value_bits=bits,
            metadata_bits=metadata,
            rank=rank,
            factor_bits=factor,
            outliers=outliers,
            chunk=chunk,
        )
    yield from (CompressionConfig.preset(name) for name in PRESETS)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
def test_fields_are_aligned_and_do_not_overlap(head_dim):
    for config in configs():
        layout = page_layout(config, head_dim)
        end = 0
        for field in layout.fields.values():
            if not field.count:
                continue
            assert field.offset * 4 % spec.FIELD_ALIGNMENT_BYTES == 0
            assert field.offset >= end
            assert field.words * 32 >= field.bits * field.count
            end = field.offset + field.words
        assert layout.page_words >= end
        assert layout.page_bytes % spec.PAGE_ALIGNMENT_BYTES == 0


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_code_planes_start_on_cache_lines(head_dim):
    for config in configs():
        for name, field in page_layout(config, head_dim).fields.items():
            if field.count and "codes" in name and head_dim % 64 == 0:
                assert field.offset * 4 % 64 == 0


def test_the_code_order_is_a_bijection():
    shapes = [(64, 64), (64, 80), (80, 64), (128, 96), (96, 128), (64, 16)]
    for (lanes, quads), bits in itertools.product(shapes, (1, 2, 4, 8)):
        lane, quad = np.indices((lanes, quads))
        variables = {"lane": lane, "quad": quad, "lanes": lanes, "bits": bits}
        variables["unit"] = eval(spec.CODE_UNIT, {}, variables)
        word, shift = (eval(text, {}, variables) for text in (spec.CODE_WORD, spec.CODE_SHIFT))
        assert shift.max() + bits <= 32
        assert np.unique(32 * word + shift).size == lanes * quads
        assert word.max() == lanes * quads * bits // 32 - 1


def test_presets_cost_what_the_docs_say():
    assert bits_per_element(CompressionConfig.preset("exact"), 64) == 32
    assert bits_per_element(CompressionConfig.preset("fp16"), 64) == 16
    assert bits_per_element(CompressionConfig.preset("k4v4"), 64) <= 4.6
    assert bits_per_element(CompressionConfig.preset("k2v2"), 64) <= 2.6


@pytest.mark.parametrize("head_dim", [0, 8, 72, 272])
def test_unsupported_head_dims_are_refused(head_dim):
    with pytest.raises(ValueError, match="head_dim"):
        page_layout(CompressionConfig(), head_dim)


def test_the_layout_hash_covers_fields_and_op(monkeypatch):
    before = spec.layout_hash()
    monkeypatch.setattr(spec, "FIELDS", spec.FIELDS[:-1])
    assert spec.layout_hash() != before


def test_generated_files_are_committed_and_current(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["--check"]) == 0


def test_check_reports_drift(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 1
    assert "spec.h is stale" in capsys.readouterr().err
    assert main([]) == 0
    assert {path for path in generated_files() if (tmp_path / path).is_file()} == set(
        generated_files()
    )
    assert main(["--check"]) == 0
