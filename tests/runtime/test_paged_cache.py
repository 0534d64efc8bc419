"""Sharing, forking and evicting never change what a sequence computes."""

import numpy as np
import pytest

from gear_trt.errors import ErrorCode
from gear_trt.runtime.footprint import buffer_bytes, page_bytes
from gear_trt.runtime.paged_cache import PagedCache
from gear_trt.runtime.paged_engine import PagedEngine
from gear_trt.runtime.token_plan import TokenPlan
from tests.runtime.paged import OTHER, TEXT, new_cache, open_sequence, refusal, run


def last_logits(engine, tokens, **plan):
    return run(engine, open_sequence(engine, tokens, **plan))


@pytest.fixture
def engine(any_model):
    return PagedEngine(any_model, new_cache(any_model, num_pages=40, slots=4))


@pytest.fixture
def fresh(any_model):
    """Logits after some tokens, computed by an engine that holds nothing else."""

    def compute(tokens, **plan):
        cache = new_cache(any_model, num_pages=40, slots=1)
        return last_logits(PagedEngine(any_model, cache), tokens, **plan)

    return compute


@pytest.mark.parametrize("common", [10, 131, 132, 133, 196, 260, 300])
def test_a_shared_prefix_changes_no_bit(engine, fresh, common):
    run(engine, open_sequence(engine, TEXT[:300]))
    tokens = [*TEXT[:common], *OTHER[:40]]
    sequence = open_sequence(engine, tokens)
    shared = engine.cache.extend(sequence)
    chunk, sinks = engine.cache.chunk, engine.cache.sinks
    pages = max(common - sinks, 0) // chunk
    assert shared == (pages and sinks + pages * chunk)
    np.testing.assert_array_equal(run(engine, sequence), fresh(tokens))


@pytest.mark.parametrize("mark", [140, 195, 200, 259, 299])
def test_a_mark_shares_to_the_token_and_changes_no_bit(engine, fresh, mark):
    run(engine, open_sequence(engine, [*TEXT[:mark], *OTHER[:30]], mark=mark))
    tokens = [*TEXT[:mark], *OTHER[100:150]]
    sequence = open_sequence(engine, tokens, mark=mark)
    assert engine.cache.extend(sequence) == mark
    np.testing.assert_array_equal(run(engine, sequence), fresh(tokens, mark=mark))


def test_the_last_token_is_left_to_run(engine, fresh):
    whole = engine.cache.sinks + 3 * engine.cache.chunk
    run(engine, open_sequence(engine, TEXT[:whole]))
    sequence = open_sequence(engine, TEXT[:whole])
    assert engine.cache.extend(sequence) == whole - engine.cache.chunk
    np.testing.assert_array_equal(run(engine, sequence), fresh(TEXT[:whole]))


def test_an_answer_computed_again_changes_no_bit(engine, fresh):
    """As after pre-emption: 100 tokens of prompt, the rest token by token."""
    want = fresh(TEXT[:300], prompt=100)
    first = open_sequence(engine, TEXT[:300], prompt=100)
    run(engine, first, until=290)
    engine.cache.close(first)
    again = open_sequence(engine, TEXT[:300], prompt=100)
    assert engine.cache.extend(again) > 250
    np.testing.assert_array_equal(run(engine, again), want)


def test_forks_share_pages_and_go_their_own_ways(engine, fresh):
    ours, theirs = [*TEXT[:200], *OTHER[:70]], [*TEXT[:200], *OTHER[200:270]]
    sequence = open_sequence(engine, ours, prompt=200)
    run(engine, sequence, until=200)
    held = engine.cache.allocator.held
    plan = TokenPlan(theirs, prompt_tokens=200, config=engine.cache.layers[0].config)
    copy = engine.cache.fork(sequence, plan)
    assert engine.cache.allocator.held == held
    got = run(engine, copy), run(engine, sequence)
    np.testing.assert_array_equal(got[0], fresh(theirs, prompt=200))
    np.testing.assert_array_equal(got[1], fresh(ours, prompt=200))
    engine.cache.close(sequence)
    engine.cache.close(copy)
    assert engine.cache.nbytes == 0
    engine.cache.check()


def test_batch_mates_change_no_bit(engine, fresh):
    texts = [TEXT[:250], OTHER[:90], TEXT[50:300], OTHER[90:93]]
    sequences = [open_sequence(engine, text) for text in texts]
    logits = {}
    while any(sequence.is_prefilling for sequence in sequences):
        rows = [sequence for sequence in sequences if sequence.is_prefilling]
        assert all(map(engine.cache.reserve, rows))
        logits.update(zip(map(id, rows), engine.step(rows), strict=True))
    for text, sequence in zip(texts, sequences, strict=True):
        np.testing.assert_array_equal(logits[id(sequence)], fresh(text))


# Room


def test_cached_pages_give_way_deepest_first(small):
    engine, cache = small(pages=6, slots=2)
    first = open_sequence(engine, TEXT[:260])
    run(engine, first)
    cache.close(first)
    assert (cache.allocator.held, cache.allocator.cached) == (0, 5)
    assert cache.cached_bytes == 5 * sum(map(page_bytes, cache.layers))
    run(engine, open_sequence(engine, OTHER[:132]))
    cache.check()
    again = open_sequence(engine, TEXT[:260])
    assert cache.extend(again) == 4 + 2 * 64  # the last two pages made room


def test_a_sequence_of_max_tokens_fits_alone(small):
    engine, cache = small(pages=4, slots=1)
    assert cache.max_tokens == 4 + 3 * 64 + 63
    run(engine, open_sequence(engine, TEXT[: cache.max_tokens]))
    assert cache.allocator.available == 0


def test_without_room_for_the_sinks_nothing_is_shared(small):
    engine, cache = small(pages=1, slots=2)
    first = open_sequence(engine, TEXT[:70])
    run(engine, first)
    cache.close(first)
    assert (cache.allocator.held, cache.allocator.cached) == (0, 0)
    assert cache.extend(open_sequence(engine, TEXT[:70])) == 0


def test_reserve_says_when_no_page_is_left(small):
    engine, cache = small(pages=1, slots=2)
    assert cache.reserve(open_sequence(engine, TEXT[:70]))
    assert not cache.reserve(open_sequence(engine, OTHER[:70]))
    cache.check()


def test_buffer_rows_are_given_until_all_are_taken(small):
    engine, cache = small(slots=2)
    first, _ = open_sequence(engine, TEXT), open_sequence(engine, TEXT)
    assert open_sequence(engine, TEXT) is None
    assert cache.fork(first, first.plan) is None
    cache.close(first)
    assert cache.free_slots == 1


def test_the_budget_bounds_what_is_allocated(toy_model):
    layers = toy_model.manifest.layers
    page, row = sum(map(page_bytes, layers)), buffer_bytes(layers)
    cache = PagedCache.within(layers, max_bytes=3 * row + 5 * page + page - 1, slots=3)
    assert cache.allocator.num_pages == 5
    assert cache.allocated_bytes == 3 * row + 5 * page
    error = refusal(
        ErrorCode.BAD_REQUEST, lambda: PagedCache.within(layers, max_bytes=3 * row, slots=3)
    )
    assert str(3 * row + 2 * page) in error.hint


def test_bytes_in_use(small):
    engine, cache = small()
    assert (cache.nbytes, cache.fp16_bytes) == (0, 0)
    run(engine, open_sequence(engine, TEXT[:140]))
    page, row = sum(map(page_bytes, cache.layers)), buffer_bytes(cache.layers)
    assert cache.nbytes == row + 3 * page  # two of tokens, one of sinks
    assert cache.fp16_bytes == 140 * 2 * 2 * 2 * 32 * 2
    sharing = open_sequence(engine, TEXT[:141])
    cache.extend(sharing)
    assert cache.nbytes == 2 * row + 3 * page


# Damage


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda cache, one: one.pages.pop(), "page"),
        (lambda cache, one: cache._free_slots.append(one.slot), "two owners"),
        (lambda cache, one: cache._free_slots.clear(), "lost"),
        (lambda cache, one: setattr(one, "length", 500), "lacks pages"),
        (lambda cache, one: cache.residual_buffers[1].__setitem__(..., np.inf), "not finite"),
    ],
)
def test_check_names_the_fault(small, damage, fault):
    engine, cache = small()
    sequence = open_sequence(engine, TEXT[:140])
    run(engine, sequence)
    damage(cache, sequence)
    assert fault in refusal(ErrorCode.BAD_CACHE_FILE, cache.check).message
