"""Between text and tokens: chat templates, incremental detokenizing, stop strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

from gear_trt.errors import ErrorCode, GearError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
"""A conversation: `{"role": ..., "content": ...}` per message, as chat templates take it."""

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an engine folder.

    Raises:
        GearError: `MISSING_FILE` where the folder has none, `DAMAGED_ENGINE` where it is damaged.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{folder} has no tokenizer ({TOKENIZER_FILE}), so it cannot read or write text",
            hint="copy the model's tokenizer files into the folder, or pass token ids to step()",
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust parser raises bare Exception
        reason, *_ = str(error).split("\n")
        raise GearError(
            ErrorCode.DAMAGED_ENGINE,
            f"the tokenizer in {folder} does not load: {reason}",
            hint="copy the model's tokenizer files into the folder again",
        ) from error


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    *,
    chat: bool,
    held: Sequence[int] = (),
) -> list[int]:
    """Return the token ids of a prompt.

    Args:
        tokenizer: The engine's tokenizer.
        prompt: Text, or the messages of a conversation.
        chat: Wrap text as a user's message where the tokenizer has a chat template.
        held: Tokens to go on from where the prompt starts with their text. A model writes its
            answers in other tokens than the tokenizer would, so only their text can be compared.

    Raises:
        GearError: `EMPTY_PROMPT`; `BAD_REQUEST` for messages that the template refuses.
    """
    is_plain = isinstance(prompt, str) and not (chat and tokenizer.chat_template)
    text = prompt if isinstance(prompt, str) and is_plain else _render(tokenizer, prompt)
    if not text:
        raise GearError(
            ErrorCode.EMPTY_PROMPT,
            "the prompt is empty",
            hint="pass some text, for instance `-p 'Hello'`",
        )
    held_text = str(tokenizer.decode(list(held), clean_up_tokenization_spaces=False))
    if held_text and text.startswith(held_text):
        rest = text.removeprefix(held_text)
        return [*held, *tokenizer(rest, add_special_tokens=False).input_ids]
    return list(tokenizer(text, add_special_tokens=is_plain).input_ids)


def _render(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> str:
    """Return the text that the chat template makes of a prompt; empty for an empty one."""
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if tokenizer.chat_template is None:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            "this model's tokenizer has no chat template for messages",
            hint="pass the prompt as one string",
        )
    if not any(message.get("content") for message in messages):
        return ""
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, KeyError, TypeError) as error:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"the chat template refuses the messages: {error}",
            hint="give every message a role and a content, in the order the model expects",
        ) from None
    return str(text)


class TextStream:
    """Text of a growing answer: whole characters only, and never part of a stop string.

    Attributes:
        stopped: Whether a stop string was found; nothing follows it.

    Args:
        tokenizer: The engine's tokenizer.
        prompt_ids: Tokens before the answer: they decide whether it starts with a space.
        stop: Strings that end the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, prompt_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that `token` makes certain; the rest waits for the next one."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - self._open_length())

    def flush(self) -> str:
        """Return what was held back, once no token follows."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _open_length(self) -> int:
        """Length of the longest end of the held text that may become a stop string."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, len(stop))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
