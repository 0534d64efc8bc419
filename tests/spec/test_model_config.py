"""Configs of single layers: flags, files, what overrides what, and every wrong one."""

import re
from pathlib import Path

import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.spec.config_file import ConfigFile, choose_config, config_text
from gear_trt.spec.model_config import LayerRule, check_shared, layer_ranges

REPOSITORY = Path(__file__).parents[2]
BASE = CompressionConfig.preset("k4v4")


def with_flags(*texts, base=BASE):
    return ModelConfig.of(base, [LayerRule.parse(text) for text in texts])


def changed(**fields):
    return CompressionConfig.preset("k4v4", **fields)


def refusal(call, *args, **kwargs):
    with pytest.raises(GearError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is ErrorCode.BAD_CONFIG
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        ([], [BASE] * 4),
        (["1:key_bits=8"], [BASE, changed(key_bits=8), BASE, BASE]),
        (["3:bits=2"], [BASE, BASE, BASE, changed(key_bits=2, value_bits=2)]),
        (
            ["0:key_bits=8", "0-3:value_bits=8,rank=2"],
            [changed(key_bits=8, value_bits=8, rank=2)] + [changed(value_bits=8, rank=2)] * 3,
        ),
        (
            ["2-3:outliers=2", "0-1:outliers=4"],
            [changed(outliers=4)] * 2 + [changed(outliers=2)] * 2,
        ),
        (["0-0:rotate_keys=0"], [changed(rotate_keys=0)] + [BASE] * 3),
    ],
)
def test_flags_change_the_layers_that_they_name(flags, layers):
    assert with_flags(*flags).of_layers(4) == tuple(layers)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("0", "--layer 0: no field is set"),
        ("0:", "--layer 0:: no field is set"),
        ("0:key_bits", "no field is set"),
        (":key_bits=8", "'' names no layers"),
        ("3-1:key_bits=8", "'3-1' names no layers"),
        ("-1:key_bits=8", "'-1' names no layers"),
        ("first:key_bits=8", "'first' names no layers"),
        ("0:keybits=8", "unknown field 'keybits'"),
        ("0:key_bits=many", "key_bits is 'many', which is no integer"),
        ("0:key_bits=8,key_bits=4", "key_bits is set twice"),
        ("0:bits=8,key_bits=4", "key_bits is set twice"),
        ("0:chunk=128", "chunk must be the same in all layers"),
        ("0:sinks=0", "sinks must be the same in all layers"),
        ("0:key_bits=5", "--layer 0:key_bits=5 is not valid: key_bits: Input should be 2, 3"),
        ("0:bits=16", "--layer 0:bits=16 is not valid"),
    ],
)
def test_wrong_flags(text, part):
    assert part in refusal(with_flags, text).message


def test_a_layer_that_the_model_does_not_have():
    config = with_flags("2-4:bits=8")
    assert len(config.of_layers(5)) == 5
    error = refusal(config.of_layers, 4)
    assert error.message == "a config is set for layer 4, and the model has layers 0 to 3"


def test_a_field_of_a_layer_that_is_set_twice():
    error = refusal(with_flags, "0-3:bits=8", "2-5:value_bits=2")
    assert error.message == (
        "value_bits of layer 2 is set twice: by --layer 0-3:bits=8 and by --layer 2-5:value_bits=2"
    )


def test_layers_share_what_places_tokens():
    check_shared([BASE, changed(key_bits=8)])
    for field in ("chunk", "sinks"):
        with pytest.raises(ValueError, match=f"layers differ in {field}"):
            check_shared([BASE, changed(**{field: 64 if field == "sinks" else 128})])


def test_ranges_are_written_as_people_do():
    assert layer_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert layer_ranges([]) == ""


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "gear.toml"
        path.write_text(text)
        return path

    return write


WHOLE = """
preset = "k2v2"
sinks = 8
rotate_values = false

[layers.0]
bits = 8

[layers."1-2"]
value_bits = 4
rank = 2
"""


def test_a_file_says_all_that_flags_can(file):
    config = choose_config(ConfigFile.read(file(WHOLE)), fields={})
    base = CompressionConfig.preset("k2v2", sinks=8, rotate_values=0)
    assert config.of_layers(4) == (
        base.model_copy(update={"key_bits": 8, "value_bits": 8}),
        *[base.model_copy(update={"value_bits": 4, "rank": 2})] * 2,
        base,
    )


def test_flags_override_the_file(file):
    config = choose_config(
        ConfigFile.read(file(WHOLE)),
        preset="k3v2",
        fields={"sinks": 2},
        rules=[LayerRule.parse("0-1:value_bits=3")],
    )
    base = CompressionConfig.preset("k3v2", sinks=2, rotate_values=0)
    assert config.of_layers(3) == (
        base.model_copy(update={"key_bits": 8, "value_bits": 3}),
        base.model_copy(update={"value_bits": 3, "rank": 2}),
        base.model_copy(update={"value_bits": 4, "rank": 2}),
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("preset = ", "it is no TOML: Invalid value (at end of document)"),
        ("sinks = 1\nsinks = 2", "it is no TOML: Cannot overwrite a value"),
        ("preset = 4", "preset is no name"),
        ("bit = 4", "unknown key 'bit'"),
        ("rank = 'two'", "rank is 'two', which is no integer"),
        ("rank = 2.0", "rank is 2.0, which is no integer"),
        ("layers = 3", "layers is no table"),
        ("[layers]\n0 = 8", "0 in layers is no table"),
        ("[layers.0]\nsinks = 2", "sinks must be the same in all layers"),
        ("[layers.0]\nkey_bits = 5", '[layers."0"] of '),
        ("[layers.0]\nkey_bits = true", "Input should be 2, 3"),
        ("[layers.x]\nkey_bits = 8", "'x' names no layers"),
        ('[layers.0]\nbits = 8\n[layers."0-1"]\nbits = 4', "key_bits of layer 0 is set twice"),
        ("rank = 9", "rank: Input should be less than or equal to 8"),
    ],
)
def test_wrong_files(file, text, part):
    def choose():
        return choose_config(ConfigFile.read(file(text)), fields={})

    assert part in refusal(choose).message


def test_the_example_of_the_documentation(file):
    text = (REPOSITORY / "docs" / "config.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    config = choose_config(ConfigFile.read(file(example)), fields={})
    bits = [(item.key_bits, item.value_bits, item.rank) for item in config.of_layers(5)]
    assert bits == [(8, 8, 0), *[(3, 4, 2)] * 3, (3, 2, 0)]
    assert {item.sinks for item in config.of_layers(5)} == {8}


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(GearError) as caught:
        ConfigFile.read(tmp_path / "none.toml")
    assert caught.value.code is ErrorCode.MISSING_FILE


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "gear.toml").write_bytes(b"\xff\xfe\x00")
    assert "it is no TOML" in refusal(ConfigFile.read, tmp_path / "gear.toml").message


@pytest.mark.parametrize(
    "flags", [(), ("0:bits=8",), ("0:bits=8", "2-4:rank=2,value_bits=2", "7:outliers=2")]
)
def test_what_is_written_as_toml_is_read_as_it_was(flags, tmp_path):
    config = with_flags(*flags, base=CompressionConfig.preset("paper-2bit"))
    path = tmp_path / "gear.toml"
    path.write_text(config_text(config, "how it came about,\nin two lines"))
    assert choose_config(ConfigFile.read(path), fields={}) == config
    assert path.read_text().startswith("# how it came about,\n# in two lines\n")


def test_configs_of_layers_come_back():
    four, three, two = (CompressionConfig.preset(name) for name in ("k4v4", "k3v2", "k2v2"))
    config = ModelConfig.of_each([three, four, four, two, two, four])
    assert config.base == four
    assert config.special == ((range(1), three), (range(3, 5), two))
    assert config.of_layers(6) == (three, four, four, two, two, four)
