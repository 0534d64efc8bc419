"""What the process that builds a TensorRT engine reads and writes: JSON, an object per line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.tensorrt_plan import Profile, TensorRTOptions


class BuildRequest(BaseModel):
    """What the process reads.

    Attributes:
        model: The ONNX file.
        engine: Where the engine goes.
        layers: Where the inspector's JSON goes, on a machine that can load the engine.
        log: Where TensorRT's log goes, the engine's layers included.
        plugin_library: Put into the engine, where the options say so.
        options: Of the build.
        profiles: Shapes of the inputs.
    """

    model: Path
    engine: Path
    layers: Path
    log: Path
    plugin_library: Path
    options: TensorRTOptions
    profiles: tuple[Profile, ...]


class Step(BaseModel):
    """The build goes on.

    Attributes:
        phase: What TensorRT does.
        done: Part of the whole that is done, 0 to 1.
    """

    kind: Literal["step"] = "step"
    phase: str
    done: float


class Built(BaseModel):
    """The engine is written.

    Attributes:
        version: Of the TensorRT that built it.
        compute_capabilities: GPUs that it was built for.
        plugin_layers: Plugin layers of all profiles, by TensorRT's list of the engine's layers;
            None where it names none.
        seconds: Wall time of parsing and building.
        cpu_seconds: CPU time of all threads of the process.
        peak_memory_bytes: Largest resident size of the process.
    """

    kind: Literal["built"] = "built"
    version: str
    compute_capabilities: tuple[str, ...]
    plugin_layers: int | None
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int


class Failed(BaseModel):
    """The build ended with an error that the user can act on: the fields of a `GearError`."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str
    hint: str
    detail: str | None

    @classmethod
    def of(cls, error: GearError) -> Self:
        """Describe an error."""
        fields = {"message": error.message, "hint": error.hint, "detail": error.detail}
        return cls(code=error.code.name, **fields)

    def error(self) -> GearError:
        """Return the error that was described."""
        return GearError(ErrorCode[self.code], self.message, hint=self.hint, detail=self.detail)


class Blocked(BaseModel):
    """The build ended with an error of the operating system: the fields of an `OSError`."""

    kind: Literal["blocked"] = "blocked"
    errno: int | None
    reason: str | None
    path: str | None

    @classmethod
    def of(cls, error: OSError) -> Self:
        """Describe an error."""
        return cls(errno=error.errno, reason=error.strerror, path=error.filename)

    def error(self) -> OSError:
        """Return the error that was described."""
        return OSError(self.errno, self.reason, self.path)


Event = Step | Built | Failed | Blocked
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
