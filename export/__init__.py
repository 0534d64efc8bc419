"""Any decoder to an engine folder: source → passes → build."""

from gear_trt.export.pipeline import export_model, inspect_model
from gear_trt.export.report import ExportReport

__all__ = ["ExportReport", "export_model", "inspect_model"]
