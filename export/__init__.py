"""Any decoder to an engine folder: source → passes → build."""

from gear_trt.export.build.tensorrt_plan import TensorRTOptions
from gear_trt.export.build.trtexec import trtexec_command
from gear_trt.export.pipeline import add_tensorrt, export_model, inspect_model
from gear_trt.export.report import ExportReport

__all__ = [
    "ExportReport",
    "TensorRTOptions",
    "add_tensorrt",
    "export_model",
    "inspect_model",
    "trtexec_command",
]
