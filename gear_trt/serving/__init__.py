"""Many requests over one model: a scheduler with continuous batching on a paged cache."""

from gear_trt.runtime.options import GenerationOptions
from gear_trt.serving.scheduler import Scheduler, SchedulerStats
from gear_trt.serving.ticket import FinishReason, Ticket, TokenEvent

__all__ = [
    "FinishReason",
    "GenerationOptions",
    "Scheduler",
    "SchedulerStats",
    "Ticket",
    "TokenEvent",
]
