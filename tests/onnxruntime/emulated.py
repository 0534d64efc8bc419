"""ONNX Runtime's CUDA backend over the emulated GPU, whose provider is the CPU's."""

from gear_trt import cuda
from gear_trt.runtime.engine import Engine
from gear_trt.runtime.manifest import Manifest
from gear_trt.runtime.model import Model
from gear_trt.runtime.onnxruntime import open_session, session_options
from gear_trt.runtime.onnxruntime_cuda import OnnxRuntimeCudaBackend
from tests.runtime.device import HostQueue


class EmulatedQueue(HostQueue):
    """The emulated GPU has one stream."""

    def __init__(self):
        super().__init__()
        self.handle = 0


def emulated_backend(folder):
    options = session_options(1, cuda.library_path())
    path, session = open_session(folder, options, ["CPUExecutionProvider"])
    vocab_size = Manifest.read(folder).model.vocab_size
    return OnnxRuntimeCudaBackend(path, session, EmulatedQueue(), vocab_size=vocab_size)


def emulated_model(folder):
    """A model whose kernels are those of the library that the fixture `emulated` has built."""
    return Model(folder, Manifest.read(folder), emulated_backend(folder))


def emulated_engine(folder, **sizes):
    """An engine over `emulated_model`."""
    return Engine(emulated_model(folder), **sizes)
