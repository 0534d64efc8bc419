import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import PRESETS, CompressionConfig, bits_per_element


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name):
    assert CompressionConfig.preset(name).buffer_dtype in ("float16", "float32")


@pytest.mark.parametrize(
    ("name", "bits"),
    [("near-lossless", 4.55), ("balanced", 4.05), ("small", 3.05), ("tiny", 2.8)],
)
def test_named_presets_keep_their_size(name, bits):
    for head_dim in (64, 128):
        assert bits_per_element(CompressionConfig.preset(name), head_dim) <= bits


@pytest.mark.parametrize("name", ["paper-4bit", "paper-2bit"])
def test_the_papers_recipe_has_nothing_of_ours(name):
    config = CompressionConfig.preset(name)
    assert (config.sinks, config.rotate_keys, config.rotate_values, config.fit_ranges) == (0,) * 4
    assert (config.metadata_bits, config.factor_bits) == (16, 16)


def test_preset_fields_can_be_replaced():
    config = CompressionConfig.preset("k4v4", value_bits=3)
    assert (config.key_bits, config.value_bits) == (4, 3)


def test_unknown_preset_names_the_choices():
    with pytest.raises(GearError, match="choose one of: exact, fp16, k4v4") as caught:
        CompressionConfig.preset("k5v5")
    assert caught.value.code is ErrorCode.UNKNOWN_PRESET


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_bits": 5}, "key_bits"),
        ({"group_size": 48}, "group_size"),
        ({"rank": 9}, "rank"),
        ({"outliers": 1}, "outliers"),
        ({"bits": 4}, "bits"),
        ({"key_bits": 16}, "rotate_keys=1 with key_bits=16"),
        ({"key_bits": 32, "rotate_keys": 0}, "both sides"),
        (
            {"key_bits": 16, "value_bits": 16, "rotate_keys": 0, "rotate_values": 0, "rank": 2},
            "no side has any",
        ),
    ],
)
def test_bad_fields_are_named(fields, reason):
    with pytest.raises(GearError, match=reason) as caught:
        CompressionConfig.checked(fields)
    assert caught.value.code is ErrorCode.BAD_CONFIG


def test_a_config_cannot_change():
    with pytest.raises(ValueError, match="frozen"):
        CompressionConfig().key_bits = 2


@pytest.mark.parametrize(
    ("name", "changes", "matter"),
    [
        ("k4v4", {}, True),
        ("k4v4", {"rotate_keys": 0}, False),
        ("k4v4", {"key_bits": 16, "rotate_keys": 0}, False),
        ("exact", {}, False),
        ("paper-4bit", {}, False),
    ],
)
def test_scales_of_keys_matter_to_rotated_codes(name, changes, matter):
    config = CompressionConfig.preset(name, **changes)
    assert config.scales_keys is matter
    assert "scales_keys" not in config.model_dump()
