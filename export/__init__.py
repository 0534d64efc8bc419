"""Any decoder to an engine folder: source → passes → build."""

from gear_trt.export.build.tensorrt_plan import TensorRTOptions
from gear_trt.export.build.trtexec import trtexec_command
from gear_trt.export.pipeline import add_tensorrt, export_model, inspect_model
from gear_trt.export.report import ExportReport
from gear_trt.tune.target import TuningTarget

__all__ = [
    "ExportReport",
    "TensorRTOptions",
    "TuningTarget",
    "add_tensorrt",
    "export_model",
    "inspect_model",
    "trtexec_command",
]
