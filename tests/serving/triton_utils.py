"""A stand-in for `triton_python_backend_utils`, which only exists inside Triton."""

import sys
import threading
from types import ModuleType

import numpy as np

FINAL = 1


class Tensor:
    def __init__(self, name, array):
        self.name = name
        self.array = array

    def as_numpy(self):
        return self.array


class TritonError:
    def __init__(self, message):
        self.message = message


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.outputs = {tensor.name: tensor.as_numpy()[0] for tensor in output_tensors}
        self.error = error


class Sender:
    """Collects responses; `done` is set with the final flag, after which none may come."""

    def __init__(self):
        self.responses = []
        self.done = threading.Event()
        self.client_left = False

    def send(self, response=None, flags=0):
        assert not self.done.is_set()
        if response is not None:
            self.responses.append(response)
        if flags & FINAL:
            self.done.set()

    def is_cancelled(self):
        return self.client_left


class Request:
    def __init__(self, **inputs):
        self.inputs = {name: Tensor(name, np.array([value])) for name, value in inputs.items()}
        for name, value in inputs.items():
            if isinstance(value, bytes):
                self.inputs[name] = Tensor(name, np.array([value], np.object_))
        self.sender = Sender()

    def get_response_sender(self):
        return self.sender


def install(monkeypatch):
    module = ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor
    module.TritonError = TritonError
    module.InferenceResponse = InferenceResponse
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, module.__name__, module)
