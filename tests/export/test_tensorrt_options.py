"""Options of TensorRT builds, and the command line for those who build elsewhere."""

import shlex

import onnx
import pytest
from typer.testing import CliRunner

from gear_trt.cli.export import app
from gear_trt.cli.main import app as gear
from gear_trt.errors import ErrorCode, ExitStatus, GearError
from gear_trt.export import TensorRTOptions, export_model, trtexec_command
from gear_trt.export.build.tensorrt_plan import engine_limits, profiles
from gear_trt.runtime.manifest import DECODE_PROFILE, MODEL_FILE, PREFILL_PROFILE, Manifest
from gear_trt.spec import CompressionConfig
from gear_trt.tensorrt.library import Flavour
from tests.export import text_graphs as text

TENSORRT, RTX = Flavour.TENSORRT, Flavour.RTX


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "model.onnx"
    onnx.save(text.written_out(), path)
    return path


@pytest.fixture(scope="module")
def folder(source):
    export_model(source, source.parent / "out", config=CompressionConfig(), max_context=512)
    return source.parent / "out"


def shapes_of(model):
    """Sizes of a graph's inputs; None where they are free."""
    return {
        value.name: [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(model, load_external_data=False).graph.input
    }


def test_profiles_have_the_shapes_of_the_graph(folder):
    manifest = Manifest.read(folder)
    options = TensorRTOptions(flavour=RTX, max_batch=4, max_new_tokens=100)
    both = profiles(manifest, engine_limits(manifest, options))
    for profile in both:
        assert profile.keys() == shapes_of(folder / MODEL_FILE).keys()
        for name, sizes in shapes_of(folder / MODEL_FILE).items():
            item = profile[name]
            for fixed, axes in zip(
                sizes, zip(item.smallest, item.usual, item.largest, strict=True), strict=True
            ):
                assert list(axes) == sorted(axes)
                assert axes[0] == (fixed or 1)
                assert fixed in (None, axes[2])
    assert both[PREFILL_PROFILE]["input_ids"].largest == (4, 100)
    assert both[DECODE_PROFILE]["input_ids"].largest == (4, 1)
    assert both[DECODE_PROFILE]["page_pool.0"].largest[0] == 4 * 7  # (512 - 4) // 64 each


def command_of(folder, **options):
    program, *flags = shlex.split(trtexec_command(folder, TensorRTOptions(**options)))
    return program, flags


def test_the_command_for_trtexec(folder):
    program, flags = command_of(folder, flavour=TENSORRT, max_batch=2, max_new_tokens=32)
    assert program == "trtexec"
    start = flags.index("--profile=0")
    assert flags[:start] == [
        "--onnx=model.onnx", "--saveEngine=model.engine", "--skipInference",
        "--profilingVerbosity=detailed", "--preview=+aliasedPluginIO1003",
        "--dynamicPlugins=libgear_trt_plugins.so", "--stronglyTyped",
    ]  # fmt: skip
    state = "page_pool.0:14x2x{words},residual_buffer.0:2x2x2x68x16"
    words = shapes_of(folder / MODEL_FILE)["page_pool.0"][2]
    batch = "slots:2,past_lengths:2,new_lengths:2"
    largest = f"input_ids:2x32,page_table:2x7,{batch},{state.format(words=words)}"
    assert flags[start + 3] == f"--maxShapes={largest}"
    assert flags[start + 4] == "--profile=1"
    assert flags[start + 7] == f"--maxShapes={largest.replace('ids:2x32', 'ids:2x1')}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"flavour": TENSORRT, "embed_plugin": True},
         ["--setPluginsToSerialize=libgear_trt_plugins.so", "--versionCompatible"]),
        ({"flavour": TENSORRT, "hardware_compatible": True},
         ["--hardwareCompatibilityLevel=ampere+"]),
        ({"flavour": TENSORRT, "timing_cache": "a b"}, ["--timingCacheFile=a b"]),
        ({"flavour": TENSORRT, "refit": True, "weight_streaming": True, "builder_level": 0},
         ["--refit", "--allowWeightStreaming", "--builderOptimizationLevel=0"]),
        ({"flavour": RTX, "compute_capabilities": ("8.6", "12.0")},
         ["--computeCapabilities=86,120"]),
        ({"flavour": RTX, "compute_capabilities": ("current",)}, ["--useGpu"]),
    ],
)  # fmt: skip
def test_every_option_has_its_flag(folder, options, expected):
    program, flags = command_of(folder, **options)
    assert program == {TENSORRT: "trtexec", RTX: "tensorrt_rtx"}[options["flavour"]]
    _, plain = command_of(folder, flavour=options["flavour"])
    assert [flag for flag in flags if flag not in plain] == expected


def test_layers_that_differ_are_written_one_by_one(folder, tmp_path):
    manifest = Manifest.read(folder)
    (layer,) = manifest.layers
    wide = layer.model_copy(update={"config": CompressionConfig(key_bits=8)})
    for layers, expected in [((layer, layer), ["page_pool.*"]),
                             ((layer, wide), ["page_pool.0", "page_pool.1"])]:  # fmt: skip
        manifest.model_copy(update={"layers": layers}).write(tmp_path)
        _, flags = command_of(tmp_path, flavour=TENSORRT)
        shapes = next(flag for flag in flags if flag.startswith("--maxShapes=")).split(",")
        names = [shape.split(":")[0] for shape in shapes]
        assert names[5:] == [*expected, "residual_buffer.*"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": TENSORRT, "compute_capabilities": ("8.6",)}, "builds for the GPU at hand"),
        ({"flavour": RTX, "version_compatible": True}, "has no version-compatible option"),
        ({"flavour": RTX, "hardware_compatible": True}, "has no hardware-compatible option"),
        ({"flavour": RTX, "timing_cache": "cache"}, "has no timing-cache option"),
    ],
)
def test_options_of_the_other_one_are_refused(folder, options, message):
    with pytest.raises(GearError, match=message) as caught:
        trtexec_command(folder, TensorRTOptions(**options))
    assert caught.value.code is ErrorCode.BAD_CONFIG


def gear_export(*arguments):
    context = ("--max-context", text.CONTEXT)
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *context)])


def test_the_command_is_printed_last(source, tmp_path):
    flags = ("--print-trtexec", "--max-batch", 5, "--builder-level", 0)
    result = gear_export(source, "-o", tmp_path / "out", *flags)
    assert result.exit_code == ExitStatus.OK
    options = TensorRTOptions(flavour=TENSORRT, max_batch=5, builder_level=0)
    assert result.stdout.splitlines()[-1] == trtexec_command(tmp_path / "out", options)
    assert f"to be run in {tmp_path / 'out'}, beside libgear_trt_plugins.so" in result.stderr
    assert not (tmp_path / "out" / "model.engine").exists()


def test_a_flag_that_needs_a_build(source, tmp_path):
    for flags in (["--refit"], ["--compute-capability", "8.6"], ["--builder-level", 0]):
        result = gear_export(source, "-o", tmp_path / "out", *flags)
        assert result.exit_code == ErrorCode.BAD_CONFIG.exit_status
        assert f"error[E102]: {flags[0]} needs --tensorrt" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_builds_nothing(source):
    result = gear_export(source, "--dry-run", "--tensorrt", "tensorrt-rtx")
    assert result.exit_code == ExitStatus.USAGE


def test_flags_of_the_other_one_are_refused_before_the_export(source, tmp_path):
    flags = ("--tensorrt", "tensorrt-rtx", "--print-trtexec", "--hardware-compatible")
    result = gear_export(source, "-o", tmp_path / "out", *flags)
    assert result.exit_code == ErrorCode.BAD_CONFIG.exit_status
    assert not (tmp_path / "out").exists()


def test_gear_build_needs_an_engine_folder(folder, tmp_path):
    result = CliRunner().invoke(gear, ["build", str(tmp_path), "--tensorrt", "tensorrt"])
    assert result.exit_code == ErrorCode.MISSING_FILE.exit_status
    assert f"{tmp_path} is not an engine folder: it has no gear.json" in result.stderr
    (tmp_path / "gear.json").write_bytes((folder / "gear.json").read_bytes())
    (tmp_path / "report.json").write_text('{"schema": "gear.export/1", "source": 7}')
    result = CliRunner().invoke(gear, ["build", str(tmp_path), "--tensorrt", "tensorrt"])
    assert result.exit_code == ErrorCode.DAMAGED_ENGINE.exit_status
    assert f"cannot read {tmp_path / 'report.json'}: " in result.stderr


def test_gear_build_takes_what_is_installed(folder, monkeypatch):
    monkeypatch.setattr("gear_trt.tensorrt.library._module_name", lambda product: None)
    result = CliRunner().invoke(gear, ["build", str(folder)])
    assert result.exit_code == ExitStatus.ENVIRONMENT
    assert "error[E601]: neither tensorrt nor tensorrt-rtx is installed" in result.stderr


def test_tensorrt_that_is_not_installed(source, tmp_path, monkeypatch):
    monkeypatch.setattr("gear_trt.tensorrt.library._module_name", lambda product: None)
    result = gear_export(source, "-o", tmp_path / "out", "--tensorrt", "tensorrt")
    assert result.exit_code == ExitStatus.ENVIRONMENT
    assert "error[E601]: tensorrt is not installed" in result.stderr
    assert "hint: pip install 'gear-trt[gpu]'" in result.stderr
    assert not (tmp_path / "out").exists()
