"""In which steps a sequence is computed, and the keys of the pages that come of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from gear_trt.reference.cache import num_pages
from gear_trt.spec import CompressionConfig


class TokenPlan:
    """The steps of one sequence: a function of its own tokens and of nothing else.

    The prompt runs in slices that end where pages end, the answer token by token. So a slice sees
    everything before it compressed, and its own tokens exactly. The key of a page is a hash of all
    that made it: the tokens up to its end and the steps that they came in. On the CPU equal keys
    mean equal bytes, whoever computed them; on a GPU the last bits of a step also depend on how
    many other sequences it has.

    Attributes:
        tokens: Prompt and answer so far.
        prompt_tokens: Tokens of the prompt.
        mark: Position inside the prompt and inside a page where a slice ends as well, since other
            prompts go on from there; 0 for none.

    Args:
        tokens: Prompt and answer; the answer may grow.
        prompt_tokens: Tokens of the prompt.
        config: Where pages end.
        mark: Position where a slice should end; left out where it would not cut a page of a prompt
            that fills one before.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        prompt_tokens: int,
        config: CompressionConfig,
        mark: int = 0,
    ) -> None:
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens
        self._config = config
        cuts_page = num_pages(mark, config) > 0 and self.page_start(mark) < mark < prompt_tokens
        self.mark = mark if cuts_page else 0

    def page_start(self, length: int) -> int:
        """Return where the page of the token at `length` starts; 0 in the first slice."""
        pages = num_pages(length, self._config)
        return pages and self._config.sinks + pages * self._config.chunk

    def page_end(self, length: int) -> int:
        """Return where the page of the token at `length` ends."""
        return self._config.sinks + (num_pages(length, self._config) + 1) * self._config.chunk

    def is_prefilling(self, length: int) -> bool:
        """Whether the token at `length` is the prompt's."""
        return length < self.prompt_tokens

    def step_end(self, length: int) -> int:
        """Return where the step that starts at `length` ends."""
        if not self.is_prefilling(length):
            return length + 1
        end = min(self.page_end(length), self.prompt_tokens)
        return self.mark if length < self.mark < end else end

    def sink_key(self) -> bytes:
        """Return the key of the sink rows."""
        # The first slice reaches to the first page's end, and kernels depend on its size.
        first = min(self.prompt_tokens, self.page_end(0))
        return self._key(b"sinks", b"", 0, self._config.sinks, first)

    def page_key(self, parent: bytes, length: int) -> bytes:
        """Return the key of the page of the token at `length`.

        Args:
            parent: Key of the page before, or of the sinks.
            length: A position.
        """
        end = self.page_end(length)
        start = end - self._config.chunk
        prompt = min(max(self.prompt_tokens - start, 0), self._config.chunk)
        mark = self.mark - start if start < self.mark < end else 0
        return self._key(b"page", parent, start, end, prompt, mark)

    def rows_key(self, parent: bytes, start: int, end: int) -> bytes:
        """Return the key of buffer rows between a page's end and the mark.

        Args:
            parent: Key of the rows or the page before.
            start: Position of the first row.
            end: Position after the last row.
        """
        return self._key(b"rows", parent, start, end, self.mark - self.page_start(start))

    def _key(self, kind: bytes, parent: bytes, start: int, end: int, *steps: int) -> bytes:
        content = np.array([*steps, *self.tokens[start:end]], np.int64).tobytes()
        return hashlib.blake2b(kind + parent + content, digest_size=16).digest()
