"""`stream` and `generate`: text as it comes, its ends, and continuing a conversation."""

import threading

import numpy as np
import pytest

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from tests.runtime.folders import END, MAX_CONTEXT, byte_tokenizer, scripted_engine

PROMPT = "Say it:"


@pytest.fixture
def scripted(toy_folder):
    """Make an engine that answers PROMPT as written down."""
    return lambda answer, **kwargs: scripted_engine(toy_folder, answer, prompt=PROMPT, **kwargs)


@pytest.fixture
def toy(toy_folder):
    with gear_trt.load(toy_folder, threads=1) as engine:
        yield engine


def stream(engine, **options):
    return list(engine.stream(PROMPT, chat=False, **options))


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def refusal(code, call, *args, **kwargs):
    with pytest.raises(GearError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is code
    return caught.value


def test_every_token_is_a_chunk_and_the_last_says_why(scripted):
    chunks = stream(scripted("Hello"))
    assert [chunk.text for chunk in chunks] == [*"Hello", ""]
    assert [chunk.generated_tokens for chunk in chunks] == [1, 2, 3, 4, 5, 6]
    assert [chunk.finish_reason for chunk in chunks] == [None] * 5 + ["stop"]
    assert chunks[-1].token == END
    assert chunks[0].prompt_tokens == len(PROMPT)
    assert chunks[0].tokens_per_second == 0
    assert all(chunk.tokens_per_second > 0 for chunk in chunks[1:])
    assert all(chunk.kv_bytes > 0 for chunk in chunks)


def test_generate_joins_the_chunks(scripted):
    result = scripted("Hello").generate(PROMPT, chat=False)
    assert str(result) == result.text == "Hello"
    assert len(result.token_ids) == result.generated_tokens == 6
    assert result.finish_reason == "stop"


def test_characters_are_never_split(scripted):
    answer = "né 😀 語"
    chunks = stream(scripted(answer))
    assert text_of(chunks) == answer
    assert [chunk.text for chunk in chunks if chunk.text] == list(answer)


def test_stop_string_ends_the_text_and_is_not_part_of_it(scripted):
    chunks = stream(scripted("one END two"), stop="END")
    assert text_of(chunks) == "one "
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].generated_tokens == len("one END")


def test_what_may_become_a_stop_string_is_held_back(scripted):
    chunks = stream(scripted("a<|b<|stop"), stop=["<|stop", "zzz"])
    texts = [chunk.text for chunk in chunks]
    assert texts == ["a", "", "", "<|b", "", "", "", "", "", ""]


def test_held_text_is_released_when_nothing_follows(scripted):
    assert text_of(stream(scripted("ends in <|"), stop="<|stop")) == "ends in <|"
    chunks = stream(scripted("ends in <|stop"), stop="<|stop", max_new_tokens=10)
    assert text_of(chunks) == "ends in <|"


def test_max_new_tokens(scripted):
    chunks = stream(scripted("Hello"), max_new_tokens=3)
    assert text_of(chunks) == "Hel"
    assert chunks[-1].finish_reason == "length"


def test_generation_ends_when_the_context_is_full(scripted):
    engine = scripted("x" * 100, max_tokens=len(PROMPT) + 9)
    chunks = stream(engine, max_new_tokens=50)
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].generated_tokens == 10, "the last token needs no room in the cache"


def test_end_of_text_tokens_can_be_replaced(scripted):
    engine = scripted("ab")
    assert stream(engine, eos_token_id=(), max_new_tokens=5)[-1].finish_reason == "length"
    token = engine.tokenizer("b").input_ids
    chunks = stream(engine, eos_token_id=token)
    assert text_of(chunks) == "a"
    assert chunks[-1].finish_reason == "stop"


def test_cancelled_before_it_starts(scripted):
    cancel = threading.Event()
    cancel.set()
    engine = scripted("Hello")
    (chunk,) = stream(engine, cancel=cancel)
    assert chunk.finish_reason == "cancelled"
    assert chunk.token is None
    assert engine.cache.lengths.tolist() == [0]


def test_cancelled_on_the_way_releases_held_text(scripted):
    cancel = threading.Event()
    chunks = []
    for chunk in scripted("ab<|cd").stream(PROMPT, chat=False, cancel=cancel, stop="<|stop"):
        chunks.append(chunk)
        if chunk.generated_tokens == 4:
            cancel.set()
    assert text_of(chunks) == "ab<|"
    assert chunks[-1].finish_reason == "cancelled"


def test_cancel_is_seen_between_slices_of_a_long_prompt(toy_folder):
    prompt = 60 * "long "
    engine = scripted_engine(toy_folder, "Hello", prompt=prompt)
    cancel = threading.Event()
    run = engine._graph.run

    def run_and_cancel(*arguments):
        cancel.set()
        return run(*arguments)

    engine._graph.run = run_and_cancel
    *_, last = engine.stream(prompt, chat=False, cancel=cancel)
    assert last.finish_reason == "cancelled"
    assert engine.cache.lengths.tolist() == [68]


def test_greedy_is_repeatable_and_so_is_a_seed(toy):
    first = toy.generate(PROMPT, max_new_tokens=20, eos_token_id=())
    assert toy.generate(PROMPT, max_new_tokens=20, eos_token_id=()).token_ids == first.token_ids
    options = {"max_new_tokens": 20, "temperature": 1.5, "eos_token_id": ()}
    draws = [toy.generate(PROMPT, seed=seed, **options).token_ids for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != first.token_ids


def test_greedy_takes_the_most_likely_token_of_step(toy):
    result = toy.generate(PROMPT, chat=False, max_new_tokens=80, eos_token_id=())
    by_hand = toy.sibling()
    logits = by_hand.step([toy.tokenizer(PROMPT).input_ids])
    for token in result.token_ids:
        assert token == logits[0].argmax()
        logits = by_hand.step([[token]])


def test_second_call_starts_fresh_unless_told(toy):
    first = toy.generate(PROMPT, chat=False, max_new_tokens=5, eos_token_id=())
    again = toy.generate(PROMPT, chat=False, max_new_tokens=5, eos_token_id=())
    assert again.token_ids == first.token_ids
    assert toy.cache.lengths.tolist() == [len(PROMPT) + 4]


def test_reused_cache_skips_what_it_holds(scripted):
    engine = scripted("Hello")
    stream(engine, max_new_tokens=3)
    runs = engine._graph.runs
    chunks = list(engine.stream(PROMPT + "Hel", chat=False, reuse_cache=True))
    assert text_of(chunks) == "lo"
    assert engine._graph.runs - runs == 3
    assert chunks[0].prompt_tokens == len(PROMPT) + 3


def test_conversation_goes_on_in_the_tokens_that_were_generated(toy_folder):
    """The tokenizer would write the same answer in other tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["ab"])
    engine = scripted_engine(toy_folder, "ab", prompt="<|user|>Hi<|assistant|>")
    engine._model.tokenizer = tokenizer
    question = [{"role": "user", "content": "Hi"}]
    answer = engine.generate(question, max_new_tokens=3)
    assert answer.text == "ab"
    assert tokenizer("ab").input_ids != list(answer.token_ids[:2])
    held = engine.cache.tokens_held()
    follow_up = [
        *question,
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "Why?"},
    ]
    runs = engine._graph.runs
    again = engine.generate(follow_up, reuse_cache=True, max_new_tokens=1)
    assert engine.cache.tokens_held()[: len(held)] == held
    assert engine._graph.runs == runs + 1
    assert again.prompt_tokens == len(held) + len(["<|user|>", *"Why?", "<|assistant|>"])


@pytest.mark.parametrize("prompt", ["Say other things", PROMPT, "S"])
def test_cache_of_another_text_is_not_reused(toy, prompt):
    stream(toy, max_new_tokens=3)
    reused = toy.generate(prompt, chat=False, reuse_cache=True, max_new_tokens=5)
    assert reused.token_ids == toy.generate(prompt, chat=False, max_new_tokens=5).token_ids


def test_saved_prompt_is_reused(toy, tmp_path):
    prompt = "A long instruction. " * 8
    toy.step([toy.tokenizer(prompt).input_ids])
    toy.cache.save(tmp_path / "prompt")
    want = toy.sibling()
    want.step([toy.tokenizer(prompt).input_ids])
    options = {"chat": False, "reuse_cache": True, "max_new_tokens": 6, "eos_token_id": ()}
    expected = want.generate(prompt + "Go", **options).token_ids
    other = toy.sibling()
    other.cache.load(tmp_path / "prompt")
    assert other.generate(prompt + "Go", **options).token_ids == expected


def test_two_generations_must_not_share_a_cache(scripted):
    engine = scripted("Hello")
    first = engine.stream(PROMPT, chat=False)
    next(first)
    next(engine.stream(PROMPT + "x", chat=False))
    error = refusal(ErrorCode.BAD_REQUEST, next, first)
    assert "sibling" in error.hint


def test_chat_template(toy):
    plain = toy.tokenizer("<|user|>Hi<|assistant|>").input_ids
    assert toy.generate("Hi", max_new_tokens=1).prompt_tokens == len(plain) == 4
    assert toy.generate("Hi", chat=False, max_new_tokens=1).prompt_tokens == 2
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
    ]
    assert toy.generate(messages, max_new_tokens=1).prompt_tokens == 6


@pytest.mark.parametrize("prompt", ["", [], [{"role": "user", "content": ""}]])
@pytest.mark.parametrize("chat", [True, False])
def test_empty_prompt(toy, prompt, chat):
    refusal(ErrorCode.EMPTY_PROMPT, toy.stream, prompt, chat=chat)


@pytest.mark.parametrize("message", [{"content": "Hi"}, {"role": None, "content": "Hi"}])
def test_messages_that_the_template_refuses(toy, message):
    refusal(ErrorCode.BAD_REQUEST, toy.stream, [message])


def test_too_long_prompt_is_refused_at_once(toy):
    error = refusal(ErrorCode.CONTEXT_EXCEEDED, toy.stream, "x" * 500, chat=False)
    assert "500" in error.message
    assert str(MAX_CONTEXT) in error.message


def test_bad_options_are_refused_at_once(toy):
    error = refusal(ErrorCode.BAD_REQUEST, toy.stream, PROMPT, temperature=-1, max_tokens=3)
    assert "temperature" in error.message
    assert "max_tokens" in error.message
    assert "max_new_tokens" in error.hint


def test_text_needs_a_batch_of_one(toy):
    refusal(ErrorCode.BAD_REQUEST, toy.sibling(batch=2).stream, PROMPT)


def test_logits_that_are_not_finite(scripted):
    engine = scripted("Hello")
    engine._graph.run = lambda tokens_BS, _: np.full((*tokens_BS.shape, 260), np.nan, np.float32)
    refusal(ErrorCode.NON_FINITE_ACTIVATION, engine.generate, PROMPT, chat=False)
