"""TensorRT's Python module as far as the runtime uses it, over ONNX Runtime's CPU engine.

An engine's file is a folder's `model.onnx`. What a context is given are shapes and addresses, as
the real one is; it runs the graph on the memory that it finds there.
"""

from enum import IntEnum
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort

from gear_trt.runtime.onnxruntime import session_options
from gear_trt.spec import GEAR_ATTENTION, graph
from gear_trt.spec.ops import DOMAIN
from tests.runtime.device import QUEUES

__version__ = "11.4.0.106"

NUMPY = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}  # fmt: skip


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    INFO = 3


class ILogger:
    pass


class Registry:
    """A plugin registry that takes every library."""

    def __init__(self):
        self.all_creators = []

    def load_library(self, plugin_path):
        self.all_creators.append(SimpleNamespace(name=GEAR_ATTENTION.name, plugin_namespace=DOMAIN))
        return plugin_path


class Runtime:
    def __init__(self, logger):
        self._logger = logger
        self._registry = Registry()

    def get_plugin_registry(self):
        return self._registry

    def deserialize_cuda_engine(self, serialized):
        if not self._registry.all_creators:
            self._logger.log(Severity.ERROR, "no creator for GearAttention\nand more")
            return None
        try:
            return Engine(serialized)
        except Exception as error:
            self._logger.log(Severity.ERROR, str(error))
            self._logger.log(Severity.ERROR, "deserialization failed")
            return None


class Engine:
    """Two profiles: prompts of up to 2 sequences and 48 tokens, steps of up to 4 sequences."""

    num_optimization_profiles = 2
    largest = ((2, 48), (4, 1))
    max_pages, max_pool_pages, max_slots = 8, 24, 8

    def __init__(self, serialized):
        self.session = ort.InferenceSession(serialized, session_options(1))
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.dtypes = {value.name: NUMPY[value.type] for value in values}
        self.sizes = {value.name: value.shape for value in values}
        self.contexts = []

    def get_tensor_profile_shape(self, name, profile):
        batch, tokens = self.largest[profile]
        largest = {
            graph.INPUT_IDS: (batch, tokens),
            graph.PAGE_TABLE: (batch, self.max_pages),
        }.get(name)
        if largest is None:
            first = self.max_pool_pages if name.startswith("page_pool") else self.max_slots
            largest = (first, *self.sizes[name][1:])
        return [tuple(1 for _ in largest), largest, largest]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(
            name={"float32": "FLOAT", "float16": "HALF"}[self.dtypes[name].__name__]
        )

    def get_device_memory_size_for_profile_v2(self, profile):
        return 1000 * (1 + profile)

    def create_execution_context(self, strategy):
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    """Runs the graph where it is told that everything lies."""

    def __init__(self, engine):
        self.engine = engine
        self.profile = None
        self.scratch = None
        self.shapes = {}
        self.addresses = {}
        self.runs = []

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return True

    def set_device_memory(self, memory, size):
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.scratch = memory

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        if name not in (graph.INPUT_IDS, graph.PAGE_TABLE):
            return True
        largest = self.engine.get_tensor_profile_shape(name, self.profile)[2]
        return all(size <= limit for size, limit in zip(shape, largest, strict=True))

    def set_tensor_address(self, name, memory):
        assert name in self.engine.dtypes
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream):
        assert self.scratch
        batch, tokens = self.shapes[graph.INPUT_IDS]
        self.runs.append((batch, tokens))
        binding = self.engine.session.io_binding()
        for value in self.engine.session.get_inputs():
            binding.bind_input(*self._place(value.name, self.shapes[value.name]))
        for value in self.engine.session.get_outputs():
            owner = value.name.replace("_out.", ".")
            shape = self.shapes.get(owner) or (batch, tokens, self.engine.sizes[value.name][2])
            binding.bind_output(*self._place(value.name, shape))
        QUEUES[stream].do(lambda: self.engine.session.run_with_iobinding(binding))
        return True

    def _place(self, name, shape):
        return name, "cpu", 0, self.engine.dtypes[name], shape, self.addresses[name]
