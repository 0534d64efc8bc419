"""The model that Triton's Python backend runs: text in, a stream of text out, one scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton brings it

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.text import encode_prompt
from gear_trt.serving.scheduler import Scheduler
from gear_trt.serving.ticket import Ticket, TokenEvent

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0
_POLL_SECONDS = 0.1
"""Between two looks at whether a client has cancelled; Triton does not tell."""


class GearModel:
    """What Triton calls; a subclass in the repository says where the engine folder is.

    Attributes:
        folder: The engine folder.
    """

    folder: ClassVar[Path]

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine.

        Args:
            args: Triton's; `model_config` is the model's config in JSON.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        self._scheduler = Scheduler(
            self.folder,
            max_cache_bytes=int(parameters["max_cache_bytes"]["string_value"]),
            max_batch=int(parameters["max_batch"]["string_value"]),
            backend=parameters["backend"]["string_value"],
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gear-responses")
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Submit requests; their responses follow from another thread."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                ticket = self._submit(request)
            except Exception as error:  # one bad request leaves the others alone
                _send_error(sender, error)
            else:
                asyncio.run_coroutine_threadsafe(_respond(ticket, sender), self._loop)

    def finalize(self) -> None:
        """Let the answers that have begun end, and free everything."""
        self._scheduler.close(drain_s=DRAIN_SECONDS)
        asyncio.run_coroutine_threadsafe(_others_end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, request: Any) -> Ticket:  # noqa: ANN401 - Triton's, untyped
        text = _text(request, "text_input") or ""
        chat = pb_utils.get_input_tensor_by_name(request, "chat")
        is_chat = chat is None or bool(chat.as_numpy().ravel()[0])
        prompt_ids = encode_prompt(self._scheduler.model.tokenizer, text, chat=is_chat)
        return self._scheduler.submit(prompt_ids, _options(request))


async def _respond(ticket: Ticket, sender: Any) -> None:  # noqa: ANN401
    watch = asyncio.create_task(_cancel_with_client(ticket, sender))
    try:
        async for event in ticket:
            if event.text or event.finish_reason is not None:
                sender.send(_response(event))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:  # whatever it is, the client waits for a last response
        ticket.cancel()
        _send_error(sender, error)
    finally:
        watch.cancel()


async def _cancel_with_client(ticket: Ticket, sender: Any) -> None:  # noqa: ANN401
    while not sender.is_cancelled():
        await asyncio.sleep(_POLL_SECONDS)
    ticket.cancel()


async def _others_end() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


def _options(request: Any) -> GenerationOptions:  # noqa: ANN401
    text = _text(request, "sampling_parameters")
    if text is None:
        return GenerationOptions()
    try:
        keywords = json.loads(text)
    except ValueError as error:
        raise _bad_parameters(str(error)) from None
    if not isinstance(keywords, dict):
        raise _bad_parameters(f"it is a {type(keywords).__name__}")
    return GenerationOptions.checked(keywords)


def _bad_parameters(reason: str) -> GearError:
    return GearError(
        ErrorCode.BAD_REQUEST,
        f"sampling_parameters is no JSON object: {reason}",
        hint='write it like {"max_new_tokens": 64, "temperature": 0.7}',
    )


def _text(request: Any, name: str) -> str | None:  # noqa: ANN401
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    try:
        return bytes(tensor.as_numpy().ravel()[0]).decode()
    except UnicodeDecodeError:
        raise GearError(
            ErrorCode.BAD_REQUEST, f"{name} is not UTF-8", hint="encode the text in UTF-8"
        ) from None


def _response(event: TokenEvent) -> Any:  # noqa: ANN401
    texts = {"text_output": event.text, "finish_reason": event.finish_reason or ""}
    counts = {
        "prompt_tokens": event.prompt_tokens,
        "generated_tokens": event.generated_tokens,
    }
    return pb_utils.InferenceResponse(
        output_tensors=[
            *(
                pb_utils.Tensor(name, np.array([text.encode()], np.object_))
                for name, text in texts.items()
            ),
            *(pb_utils.Tensor(name, np.array([count], np.int32)) for name, count in counts.items()),
        ]
    )


def _send_error(sender: Any, error: Exception) -> None:  # noqa: ANN401
    if isinstance(error, GearError):
        message = f"{error.message} ({error.hint})"
    else:
        logger.error("a request failed", exc_info=error)
        message = "the model failed; the log of the server has the cause"
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )
