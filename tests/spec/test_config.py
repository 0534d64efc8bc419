import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import PRESETS, CompressionConfig


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name):
    assert CompressionConfig.preset(name).chunk == 64


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
