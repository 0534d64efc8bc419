"""Incremental text with stop strings, against the obvious way of cutting the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from gear_trt.runtime.text import TextStream
from tests.runtime.folders import byte_tokenizer

TOKENIZER = byte_tokenizer()
LETTERS = st.text("ab<é😀", max_size=12)


def cut(text, stops):
    """Text before the first stop string that a reader of one byte after another would meet."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        return text
    read = text[: min(ends)]
    return read[: min(read.find(stop) for stop in stops if stop in read)]


@given(LETTERS, st.lists(LETTERS.filter(bool), max_size=3))
def test_pieces_make_up_the_text_before_the_stop_string(text, stops):
    stream = TextStream(TOKENIZER, prompt_ids=[1], stop=stops)
    pieces = []
    for token in TOKENIZER(text).input_ids if text else []:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.flush())
    assert "".join(pieces) == cut(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


@given(LETTERS, st.lists(LETTERS.filter(bool), max_size=3))
def test_held_text_is_what_may_still_become_a_stop_string(text, stops):
    stream = TextStream(TOKENIZER, prompt_ids=[], stop=stops)
    shown = ""
    for end, char in enumerate(text, start=1):
        for token in TOKENIZER(char).input_ids:
            shown += stream.push(token)
        if stream.stopped:
            return
        tails = (text[start:end] for start in range(end))
        held = next((tail for tail in tails if any(s.startswith(tail) for s in stops)), "")
        assert shown + held == text[:end]
