"""What a builder and an execution context ask of a plugin, but for enqueue."""

import itertools
import shutil

import pytest

from gear_trt import c_api, cuda
from gear_trt.spec import GEAR_ATTENTION, CompressionConfig, page_layout
from tests.cases import ATTENTION_CASES
from tests.tensorrt.host import (
    ACTIVATIONS,
    BUILD,
    DATA_TYPES,
    FIELD_CHAR,
    FIELD_FLOAT32,
    FIELD_INT32,
    FIELD_INT64,
    FLOAT,
    HALF,
    INT8,
    INT32,
    LINEAR,
    NUM_INPUTS,
    RUNTIME,
    TENSOR_FORMATS,
    TENSORS,
    VERBOSE,
    Host,
    Value,
    attributes,
    desc,
    dynamic_desc,
)

CONFIG = CompressionConfig()
REQUIRED = [a.name for a in GEAR_ATTENTION.attributes if a.default is None]
SIZES = {"B": 4, "S": 16, "num_pages": 64, "slots": 5, "max_pages": 9}


def shapes(config=CONFIG, *, sizes=SIZES, num_heads=8, num_kv_heads=2, head_dim=64):
    """Shapes of all tensors of a node with `attributes(config)`."""
    variables = {
        **config.model_dump(), **sizes, "num_heads": num_heads, "num_kv_heads": num_kv_heads,
        "head_dim": head_dim, "page_words": page_layout(config, head_dim).page_words,
    }  # fmt: skip
    return [tuple(eval(axis, variables) for axis in tensor.shape) for tensor in TENSORS]


def types(config=CONFIG, activation=HALF):
    """Data types of all tensors."""
    buffer = FLOAT if config.buffer_dtype == "float32" else HALF
    return [{"T": activation, "R": buffer, "int32": INT32}[tensor.dtype] for tensor in TENSORS]


def profile(config=CONFIG, activation=HALF, **options):
    made = zip(types(config, activation), shapes(config, **options), strict=True)
    return [dynamic_desc(*tensor) for tensor in made]


def tensors(config=CONFIG, activation=HALF, **options):
    made = zip(types(config, activation), shapes(config, **options), strict=True)
    return [desc(*tensor) for tensor in made]


@pytest.fixture
def plugin(host):
    made = host.create(attributes())
    assert made is not None
    host.take_log()
    return made


# --- Attributes -----------------------------------------------------------------------------------


def test_fields_are_the_attributes_of_the_op(host):
    kinds = {FIELD_INT32: "int", FIELD_FLOAT32: "float", FIELD_CHAR: "string"}
    names = host.field_names()
    assert {name: kinds[value.type] for name, value in names.items()} == {
        attribute.name: attribute.kind for attribute in GEAR_ATTENTION.attributes
    }
    assert not any(value.data for value in names.values())


def test_what_is_serialized_makes_an_equal_plugin(host):
    node = attributes(
        CompressionConfig.preset("paper-2bit"), head_dim=128, layer=11, softcap=30.0,
        sliding_window=4096, scale=0.0625,
    )  # fmt: skip
    first = host.create(node)
    saved = first.serialized()
    assert saved == {name: Value.of(value) for name, value in node.items()}
    again = host.create(saved, RUNTIME)
    assert again.serialized() == saved
    assert again.clone().serialized() == saved
    assert again.attach().serialized() == saved


def test_a_clone_outlives_its_original(host):
    first = host.create(attributes(layer=6))
    clone = first.clone()
    saved = first.serialized()
    del first
    assert clone.serialized() == saved
    assert clone.identity == ("GearAttention", "1", "gear")


def test_attributes_with_defaults_may_be_missing(host):
    node = attributes(softcap=0.0, sliding_window=0)
    short = {name: node[name] for name in REQUIRED}
    assert host.create(short).serialized() == host.create(node).serialized()


@pytest.mark.parametrize("phase", [BUILD, RUNTIME])
@pytest.mark.parametrize("name", REQUIRED)
def test_an_attribute_without_a_default_must_be_there(host, name, phase):
    node = attributes()
    del node[name]
    assert host.create(node, phase) is None
    (line,) = host.take_log()
    assert line.startswith(f"GearAttention: attribute {name} is missing")


def test_integers_may_have_64_bits_and_texts_a_terminator(host):
    node = attributes()
    wide = {
        **node,
        "layer": Value(FIELD_INT64, (3).to_bytes(8, "little"), 1),
        "layout_hash": Value(FIELD_CHAR, node["layout_hash"].encode() + b"\0", 17),
    }
    assert host.create(wide).serialized() == host.create(node).serialized()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key_bits": 5}, "key_bits is 5, must be one of 2, 3, 4, 8, 16, 32"),
        ({"head_dim": 72}, "head_dim is 72, must be a multiple of 16"),
        ({"head_dim": 512}, "head_dim is 512, must be in 16..256"),
        ({"num_heads": 7}, "num_heads is 7, must be a multiple of num_kv_heads 2"),
        ({"scale": float("nan")}, "scale is not finite"),
        ({"layout_hash": "abc"}, "made for layout_hash abc, this library has"),
        ({"plugin_version": "2"}, "made for plugin_version 2, this library has 1"),
        ({"plugin_namespace": "other"}, "made for plugin_namespace other, this library has gear"),
        ({"key_bit": 4}, "unknown attribute key_bit"),
        ({"rank": 1.0}, "attribute rank has field type 1 and length 1, expected one INT32"),
        ({"scale": 1}, "attribute scale has field type 5 and length 1, expected one FLOAT32"),
        ({"layout_hash": 1}, "attribute layout_hash has field type 5 and length 1, expected CHAR"),
        (
            {"rank": Value(FIELD_INT32, bytes(8), 2)},
            "attribute rank has field type 5 and length 2, expected one INT32",
        ),
        (
            {"layer": Value(FIELD_INT64, (2**40).to_bytes(8, "little"), 1)},
            "attribute layer is 1099511627776, which is no 32-bit number",
        ),
    ],
)
def test_bad_attributes_give_nothing_and_a_logged_reason(host, changes, reason):
    assert host.create(attributes(**changes)) is None
    (line,) = host.take_log()
    assert line.startswith(f"GearAttention: {reason}")


@pytest.mark.parametrize("version", [100900, 110400, 10701])
def test_the_loggers_of_all_versions_are_found(emulated_library, version, tmp_path):
    """TensorRT 10 has other tables of virtual functions. 10701 is TensorRT-RTX 1.7.1."""
    copy = shutil.copy(emulated_library, tmp_path)  # a library has one logger
    host = Host(copy, version)
    assert host.create(attributes(rank=9)) is None
    assert host.take_log() == ["GearAttention: rank is 9, must be in 0..8"]


def test_nothing_at_all_gives_nothing_and_a_logged_reason(host):
    assert host.create({}) is None
    assert "layout_hash is missing" in host.take_log()[0]


# --- Build ----------------------------------------------------------------------------------------


def test_interfaces(plugin):
    assert plugin.build_interface == 2
    assert plugin.num_outputs == len(GEAR_ATTENTION.outputs)
    for name, value in attributes().items():
        if isinstance(value, int):
            assert f"{name}={value}" in plugin.metadata.split()


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("preset", ["k4v4", "exact"])
def test_output_types_follow_the_query_and_the_config(host, preset, activation):
    config = CompressionConfig.preset(preset)
    expected = types(config, activation)
    made = host.create(attributes(config))
    assert made.output_types(expected[:NUM_INPUTS]) == expected[NUM_INPUTS:]


@pytest.mark.parametrize(
    ("index", "given", "reason"),
    [
        (0, INT8, "query has type INT8, expected FLOAT, HALF or BF16"),
        (1, FLOAT, "key has type FLOAT, expected HALF"),
        (3, HALF, "page_pool has type HALF, expected INT32"),
        (4, FLOAT, "residual_buffer has type FLOAT, expected HALF"),
        (8, 8, "new_lengths has type INT64, expected INT32"),
    ],
)
def test_wrong_input_types_are_named(host, plugin, index, given, reason):
    asked = types()[:NUM_INPUTS]
    asked[index] = given
    assert plugin.output_types(asked) is None
    assert host.take_log() == [f"GearAttention layer 3: {reason}"]


def test_a_missing_input_is_noticed(host, plugin):
    assert plugin.output_types(types()[: NUM_INPUTS - 1]) is None
    assert host.take_log() == [
        "GearAttention layer 3: has 8 inputs and 3 outputs, expected 9 and 3"
    ]


def test_output_shapes_are_those_of_query_and_state(plugin):
    """Sizes are expressions that only the builder knows; their addresses are handed on."""
    given = [
        [100 * index + axis + 1 for axis in range(len(tensor.shape))]
        for index, tensor in enumerate(GEAR_ATTENTION.inputs)
    ]
    assert plugin.output_shapes(given) == [given[0], given[3], given[4]]


def test_wrong_ranks_are_named(host, plugin):
    given = [[1] * len(tensor.shape) for tensor in GEAR_ATTENTION.inputs]
    given[4] = [1, 1, 1]
    assert plugin.output_shapes(given) is None
    assert host.take_log() == [
        "GearAttention layer 3: residual_buffer has 3 axes, expected [slots, 2, 2, 68, 64]"
    ]


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("preset", ["k4v4", "exact"])
def test_supported_formats_are_exactly_those_of_the_op(host, preset, activation):
    """Every tensor with every type and format, where those before it are right."""
    config = CompressionConfig.preset(preset)
    made = host.create(attributes(config))
    expected = types(config, activation)
    for position, tensor in enumerate(TENSORS):
        supported = set()
        descs = profile(config, activation)
        for later in descs[position + 1 :]:
            later.desc.type = later.desc.format = -1  # not decided yet
        for data_type, tensor_format in itertools.product(DATA_TYPES, TENSOR_FORMATS):
            descs[position].desc.type = data_type
            descs[position].desc.format = tensor_format
            if made.supports(position, descs):
                supported.add((data_type, tensor_format))
        allowed = {*ACTIVATIONS.values()} if position == 0 else {expected[position]}
        assert supported == {(data_type, LINEAR) for data_type in allowed}, tensor.name
    assert host.take_log() == []  # a builder tries out: nothing of it is an error


def test_what_is_tried_in_vain_is_in_the_verbose_log(host, plugin):
    descs = profile()
    descs[2].desc.format = 5
    assert not plugin.supports(2, descs)
    assert host.take_log(VERBOSE) == [
        "GearAttention layer 3: value has tensor format 5, expected LINEAR"
    ]


def test_a_profile_is_accepted(host, plugin):
    assert plugin.configure(profile())
    assert plugin.configure(profile(activation=FLOAT))
    assert host.take_log() == []


@pytest.mark.parametrize(
    ("index", "shape", "reason"),
    [
        (0, (4, 16, 500), "query has shape [4, 16, 500], expected [B, S, 512]"),
        (1, (4, 8, 128), "key has shape [4, 8, 128], expected [4, 16, 128]"),
        (3, (64, 2, 7), "page_pool has shape [64, 2, 7], expected [num_pages, 2, {words}]"),
        (5, (4,), "page_table has shape [4], expected [4, max_pages]"),
        (6, (3,), "slots has shape [3], expected [4]"),
        (10, (32, 2, 1), "page_pool_out has shape [32, 2, 1], expected [64, 2, {words}]"),
    ],
)
def test_wrong_shapes_are_named(host, plugin, index, shape, reason):
    words = page_layout(CONFIG, 64).page_words
    expected = [f"GearAttention layer 3: {reason.format(words=words)}"]
    descs = profile()
    descs[index] = dynamic_desc(types()[index], shape)
    assert not plugin.configure(descs)
    assert host.take_log() == expected
    assert plugin.workspace(descs) == 0
    assert host.take_log() == expected
    descs = tensors()
    descs[index] = desc(types()[index], shape)
    assert not plugin.shape_change(descs)
    assert host.take_log() == expected


def test_state_is_aliased_where_it_is_asked_for(plugin, monkeypatch):
    monkeypatch.delenv("GEAR_TENSORRT_ALIASES", raising=False)
    assert [plugin.aliased_input(output) for output in range(3)] == [-1, -1, -1]
    monkeypatch.setenv("GEAR_TENSORRT_ALIASES", "1")
    names = [tensor.name for tensor in GEAR_ATTENTION.inputs]
    assert [plugin.aliased_input(output) for output in range(3)] == [
        names.index(tensor.alias_of) if tensor.alias_of else -1 for tensor in GEAR_ATTENTION.outputs
    ]
    assert plugin.aliased_input(3) == plugin.aliased_input(-1) == -1


@pytest.mark.parametrize("case", ATTENTION_CASES[::7], ids=str)
def test_the_workspace_is_enough_for_every_call_of_the_profile(case, emulated, emulated_host):
    """For smaller calls too, which may need more: prompts are prefilled without any."""
    num_heads, head_dim = case.group * case.kv_heads, case.head_dim
    heads = {"num_heads": num_heads, "num_kv_heads": case.kv_heads, "head_dim": head_dim}
    made = emulated_host.create(attributes(case.config, **heads))
    largest = 0
    for batch, seq_len in ((1, 1), (1, 8), (1, 40), (2, 300), (16, 1), (16, 300)):
        sizes = {**SIZES, "B": batch, "S": seq_len}
        activation = ACTIVATIONS[case.dtype]
        size = made.workspace(profile(case.config, activation, sizes=sizes, **heads))
        shape = c_api.AttentionShape(
            config=case.config, dtype=case.dtype, batch=batch, seq_len=seq_len, **heads,
            num_pages=64, num_slots=5, max_pages=9,
        )  # fmt: skip
        call = c_api.attention_call(shape, {}, scale=1.0)
        assert cuda.workspace_bytes(call) > 0
        largest = max(largest, cuda.workspace_bytes(call))
        assert size >= largest


# --- Run time -------------------------------------------------------------------------------------


def test_shapes_may_change(host, plugin):
    attached = plugin.attach()
    for batch in (1, 4, 2):
        assert attached.shape_change(tensors(sizes={**SIZES, "B": batch}))
    assert host.take_log() == []


def test_enqueue_without_a_shape_is_refused(host, plugin):
    assert not plugin.enqueue(tensors(), [0] * len(TENSORS), 0, 0)
    assert host.take_log() == [
        "GearAttention layer 3: enqueue without a shape: onShapeChange failed or was not called"
    ]


def test_a_refused_shape_does_not_leave_the_last_one(host, plugin):
    assert plugin.shape_change(tensors())
    wrong = tensors()
    wrong[0] = desc(HALF, (1, 1, 1))
    assert not plugin.shape_change(wrong)
    host.take_log()
    assert not plugin.enqueue(tensors(), [0] * len(TENSORS), 0, 0)
    assert "enqueue without a shape" in host.take_log()[0]


def test_a_missing_workspace_is_refused(emulated_host):
    made = emulated_host.create(attributes())
    assert made.shape_change(tensors())
    assert not made.enqueue(tensors(), [4096] * len(TENSORS), 0, 0)
    assert emulated_host.take_log() == ["GearAttention layer 3: workspace is null"]
