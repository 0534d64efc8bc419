"""What the GPU backends need of a machine, whatever they are to run there."""

from __future__ import annotations

from gear_trt import cuda, driver
from gear_trt import tensorrt as plugins
from gear_trt.errors import ErrorCode, GearError
from gear_trt.tensorrt.library import import_tensorrt

CUDA_PROVIDER = "CUDAExecutionProvider"
_INSTALL_GPU = "pip install 'gear-trt[gpu]' (onnxruntime-gpu needs CUDA 13 and cuDNN 9)"


def require_gpu() -> driver.Gpu:
    """Return the GPU that the backends use: the first one.

    Raises:
        GearError: `NO_GPU`.
    """
    gpus = driver.find_gpus()
    if not gpus:
        raise GearError(
            ErrorCode.NO_GPU,
            "there is no NVIDIA GPU, or no driver for it",
            hint="run with `--backend onnxruntime`, which uses the CPU",
        )
    return gpus[0]


def require_torch() -> None:
    """Check that PyTorch, which holds the memory and the stream, can use the GPU.

    Raises:
        GearError: `MISSING_DEPENDENCY`.
    """
    import torch

    if not torch.cuda.is_available():
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            f"PyTorch {torch.__version__} does not find the GPU",
            hint="install one with CUDA that fits the driver: https://pytorch.org/get-started",
        )


def require_onnxruntime_cuda() -> None:
    """Check that ONNX Runtime's CUDA provider and its kernels can be used.

    Raises:
        GearError: `NO_GPU`, `MISSING_DEPENDENCY`, `MISSING_LIBRARY` or `LAYOUT_MISMATCH`.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    require_gpu()
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            "the installed onnxruntime has no CUDA provider",
            hint=_INSTALL_GPU,
        )
    cuda.build_info()
    require_torch()


def require_tensorrt() -> None:
    """Check that some TensorRT and the plugin library can be used.

    Raises:
        GearError: `NO_GPU`, `MISSING_DEPENDENCY`, `MISSING_LIBRARY` or `LAYOUT_MISMATCH`.
    """
    require_gpu()
    import_tensorrt()
    require_plugins()


def require_plugins() -> None:
    """Check that TensorRT's plugin library can be used.

    Raises:
        GearError: `MISSING_DEPENDENCY`, `MISSING_LIBRARY` or `LAYOUT_MISMATCH`.
    """
    plugins.build_info()
    require_torch()
