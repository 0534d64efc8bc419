"""The C++ sample: built with CMake, run to its errors, and over a TensorRT that is not one."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fake_driver import environment

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "05_cpp_runtime"
HERE = Path(__file__).parent

without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def compile_cpp(source, target, *options):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    includes = (SAMPLE, ROOT / "plugins", ROOT / "plugins" / "include")
    command = [compiler, "-std=c++17", "-Wall", *(f"-I{path}" for path in includes), *options]
    subprocess.run([*command, source, "-o", target, "-ldl"], check=True)
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The sample, built as its README says."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}") or shutil.which("cmake")
    if cmake is None:
        pytest.skip("the sample needs cmake: pip install cmake")
    build = tmp_path_factory.mktemp("cpp_runtime")
    for command in ([cmake, "-S", SAMPLE, "-B", build], [cmake, "--build", build]):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    return build / "gear_decode"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A TensorRT that is not one, an engine that it knows, and a plugin library without faults."""
    folder = tmp_path_factory.mktemp("fake")
    compile_cpp(HERE / "fake_tensorrt.cpp", folder / "libnvinfer.so.11", "-shared", "-fPIC")
    plugin = folder / "plugin.cpp"
    plugin.write_text('extern "C" int gear_tensorrt_status(char*, unsigned long) { return 0; }')
    compile_cpp(plugin, folder / "libgear_trt_plugins.so", "-shared", "-fPIC")
    (folder / "model.engine").write_text("an engine")
    (folder / "damaged.engine").write_text("another thing")
    return folder


def decode(program, files, *, env=None, **options):
    words = {
        "tensorrt": files / "libnvinfer.so.11",
        "plugin": files / "libgear_trt_plugins.so",
        "engine": files / "model.engine",
        "tokens": "1,2,3",
        **options,
    }
    arguments = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, env=env, check=False
    )


def expected_tokens(prompt, count):
    """What the fake model says: each token is the sum of all before it, modulo 100."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sum(tokens) % 100)
    return tokens[len(prompt) :]


@without_a_gpu
def test_without_a_gpu_it_says_so(program, files):
    run = decode(program, files)
    assert run.returncode == 1
    assert run.stderr == "gear_decode: there is no NVIDIA GPU, or no driver for it\n"
    assert run.stdout == ""


@without_a_gpu
def test_it_decodes_greedily(program, files):
    prompt = list(range(7, 19))
    run = decode(program, files, env=environment(), tokens=",".join(map(str, prompt)), new=9)
    assert run.returncode == 0, run.stderr
    assert [int(word) for word in run.stdout.split()] == expected_tokens(prompt, 9)
    prompts = ["profile 0: 5 tokens, 1 pages"] * 2 + ["profile 0: 2 tokens, 1 pages"]
    assert run.stderr.splitlines() == [*prompts, *["profile 1: 1 tokens, 1 pages"] * 8]


@without_a_gpu
def test_the_last_token_of_a_prompt_may_be_alone(program, files):
    run = decode(program, files, env=environment(), tokens="1,2,3,4,5,6", new=1)
    assert [int(word) for word in run.stdout.split()] == [21]
    assert run.stderr.splitlines()[1].startswith("profile 1: 1 tokens")


@without_a_gpu
def test_it_stops_at_the_end_token(program, files):
    prompt = [1, 2, 3]
    tokens = expected_tokens(prompt, 20)
    run = decode(program, files, env=environment(), new=20, eos=tokens[4])
    assert [int(word) for word in run.stdout.split()] == tokens[:4]


@without_a_gpu
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tensorrt": "/no/libnvinfer.so.11"}, "no TensorRT: /no/libnvinfer.so.11: cannot open"),
        ({"plugin": "/no/other.so"}, "TensorRT refuses the plugin library /no/other.so"),
        ({"engine": "/no/engine"}, "cannot open the engine /no/engine"),
        ({"engine": "damaged.engine"}, "built by another version, or for another GPU"),
        ({"new": 5000}, "5003 tokens are more than the engine holds"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(program, files, options, text):
    options = {
        name: files / value if value == "damaged.engine" else value
        for name, value in options.items()
    }
    run = decode(program, files, env=environment(), **options)
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("gear_decode: ")
    assert text in line


@without_a_gpu
def test_another_major_version_is_refused(program, files):
    run = decode(program, files, env=environment(FAKE_TENSORRT_VERSION="101600"))
    assert run.returncode == 1
    assert "is TensorRT 10, this program was built for TensorRT 11" in run.stderr


@pytest.mark.parametrize("tokens", ["", "1,x", "-4"])
def test_wrong_tokens(program, files, tokens):
    run = decode(program, files, tokens=tokens)
    assert run.returncode == 2
    assert "usage: gear_decode" in run.stderr


def test_wrong_options(program):
    for words in ([], ["--tokens"], ["tokens", "1"]):
        run = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert "usage: gear_decode" in run.stderr


# --- The declarations of TensorRT -----------------------------------------------------------------


def test_they_fit_the_real_tensorrt_rtx(tmp_path):
    package = importlib.util.find_spec("tensorrt_rtx_libs")
    if package is None:
        pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13-libs")
    (folder,) = package.submodule_search_locations
    probe = compile_cpp(HERE / "abi_probe.cpp", tmp_path / "abi_probe")
    library = Path(folder) / "libtensorrt_rtx.so.1"
    run = subprocess.run([probe, library], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == [
        "engine: (nil)",
        "TensorRT refuses the plugin library /no/such/library.so",
    ]
    assert "engine" in run.stderr  # TensorRT's own words, through our logger


def test_they_fit_the_official_headers(tmp_path):
    """Set TENSORRT_ROOT to a folder with TensorRT's `include`, and CUDA_HOME to CUDA's."""
    if "TENSORRT_ROOT" not in os.environ:
        pytest.skip("TENSORRT_ROOT is not set")
    include = Path(os.environ["TENSORRT_ROOT"]) / "include"
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    header = (SAMPLE / "tensorrt_abi.h").read_text()
    classes = re.split(r"\nclass I(\w+)", header)[1:]
    pattern = re.compile(r"(\w+)\([^)]*\) (?:const )?noexcept \{[^}]*?call<(\d+)")
    entries = [
        (f"apiv::V{name}", function, int(entry))
        for name, body in zip(classes[::2], classes[1::2], strict=True)
        for function, entry in pattern.findall(body)
    ]
    assert len(entries) == 13
    source = tmp_path / "entries.cpp"
    source.write_text(
        "#include <NvInferRuntime.h>\n#include <cstdio>\n#include <cstring>\n"
        "template <typename F> long entry(F f) { long w[2]; memcpy(w, &f, sizeof(w)); "
        "return (w[0] - 1) / 8; }\nint main() {\n"
        + "".join(
            f'std::printf("%ld\\n", entry(&nvinfer1::{owner}::{function}));\n'
            for owner, function, _ in entries
        )
        + "}\n"
    )
    program = compile_cpp(source, tmp_path / "entries", f"-isystem{include}", f"-isystem{cuda}")
    found = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert [int(word) for word in found] == [entry for *_, entry in entries]
