"""The library inside the registries of TensorRT and TensorRT-RTX, on machines without a GPU too."""

import shutil

import numpy as np
import pytest

from gear_trt import tensorrt
from gear_trt.driver import count_gpus
from gear_trt.spec import GEAR_ATTENTION, CompressionConfig
from gear_trt.tensorrt import plugin
from tests.tensorrt.host import attributes

MODULES = ("tensorrt_lean_bindings", "tensorrt_rtx_bindings")


_loggers = []
"""TensorRT keeps the addresses of loggers as long as the process lives."""


class TensorRT:
    """A TensorRT that has loaded a copy of the library."""

    def __init__(self, module):
        self.module = module

        class Logger(module.ILogger):
            def __init__(self):
                super().__init__()
                self.lines = []

            def log(self, severity, message):
                self.lines.append(message)

        self.logger = Logger()
        _loggers.append(self.logger)
        # Without a GPU the lean runtime cannot be made, and what its bindings return crashes later.
        self.has_logger = module.__name__ == "tensorrt_rtx_bindings" or count_gpus() > 0
        self.runtime = module.Runtime(self.logger) if self.has_logger else None
        self.registry = module.get_plugin_registry()

    @property
    def creator(self):
        return self.registry.get_creator("GearAttention", "1", "gear")

    def fields(self, values):
        """What the registry wants, and the arrays that it points into."""
        types = {
            str: self.module.PluginFieldType.CHAR,
            int: self.module.PluginFieldType.INT32,
            float: self.module.PluginFieldType.FLOAT32,
        }
        arrays = [
            np.frombuffer(value.encode(), np.int8)
            if isinstance(value, str)
            else np.array([value], np.float32 if isinstance(value, float) else np.int32)
            for value in values.values()
        ]
        fields = [
            self.module.PluginField(name, array, types[type(value)])
            for (name, value), array in zip(values.items(), arrays, strict=True)
        ]
        return self.module.PluginFieldCollection(fields), arrays

    def create(self, values, phase="BUILD"):
        fields, arrays = self.fields(values)
        made = self.creator.create_plugin("node", fields, getattr(self.module.TensorRTPhase, phase))
        del arrays
        return made

    def capability(self, made, name):
        return made.get_capability_interface(getattr(self.module.PluginCapabilityType, name))


@pytest.fixture(scope="module", params=MODULES)
def trt(request, cuda_library, tmp_path_factory):
    """Each has a copy of its own: a library logs to the TensorRT that loaded it last."""
    module = pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    copy = tmp_path_factory.mktemp("library") / cuda_library.name
    shutil.copy(cuda_library, copy)
    made = TensorRT(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugin.LIBRARY_VARIABLE, str(copy))
        plugin._library.cache_clear()
        tensorrt.load(made.registry)
        tensorrt.load(made.registry)  # nothing happens
        yield made
    plugin._library.cache_clear()


def test_there_is_one_creator(trt):
    names = [creator.name for creator in trt.registry.all_creators]
    assert names.count("GearAttention") == 1
    assert isinstance(trt.creator, trt.module.IPluginCreatorV3One)
    assert (trt.creator.plugin_version, trt.creator.plugin_namespace) == ("1", "gear")


def test_fields_are_the_attributes_of_the_op(trt):
    kinds = {
        trt.module.PluginFieldType.INT32: "int",
        trt.module.PluginFieldType.FLOAT32: "float",
        trt.module.PluginFieldType.CHAR: "string",
    }
    found = {field.name: kinds[field.type] for field in trt.creator.field_names}
    assert found == {attribute.name: attribute.kind for attribute in GEAR_ATTENTION.attributes}


@pytest.mark.parametrize("phase", ["BUILD", "RUNTIME"])
def test_a_plugin_has_every_interface(trt, phase):
    made = trt.create(attributes(), phase)
    core = trt.capability(made, "CORE")
    assert (core.plugin_name, core.plugin_version) == ("GearAttention", "1")
    assert core.plugin_namespace == "gear"
    build = trt.capability(made, "BUILD")
    assert isinstance(build, trt.module.IPluginV3OneBuildV2)
    assert build.num_outputs == len(GEAR_ATTENTION.outputs)
    assert "key_bits=4 " in build.metadata_string
    assert isinstance(trt.capability(made, "RUNTIME"), trt.module.IPluginV3OneRuntime)


def test_attributes_arrive(trt):
    made = trt.create(attributes(CompressionConfig.preset("k3v2"), layer=7, scale=0.5))
    text = trt.capability(made, "BUILD").metadata_string
    assert "layer=7 scale=0.500000" in text
    assert "key_bits=3 value_bits=2" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key_bits": 5}, "key_bits is 5, must be one of 2, 3, 4, 8, 16, 32"),
        ({"layout_hash": "0123"}, "made for layout_hash 0123, this library has"),
        ({"scale": 1}, "attribute scale has field type 5 and length 1, expected one FLOAT32"),
    ],
)
def test_bad_attributes_give_nothing_and_a_logged_reason(trt, changes, reason, capfd):
    trt.logger.lines.clear()
    assert trt.create(attributes(**changes)) is None
    said = "\n".join([*trt.logger.lines, capfd.readouterr().err])
    assert f"GearAttention: {reason}" in said


def test_reasons_go_to_tensorrts_own_logger(trt, capfd):
    if not trt.has_logger:
        pytest.skip("the lean runtime needs a GPU, and without it TensorRT has no logger")
    trt.logger.lines.clear()
    assert trt.create(attributes(head_dim=8)) is None
    assert "GearAttention: head_dim is 8, must be in 16..256" in trt.logger.lines
    assert "head_dim" not in capfd.readouterr().err
