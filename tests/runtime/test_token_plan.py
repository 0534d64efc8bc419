"""Steps follow from a sequence's own tokens, and keys tell apart what has other bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gear_trt.runtime.token_plan import TokenPlan
from gear_trt.spec import CompressionConfig

CONFIG = CompressionConfig.preset("k4v4")  # 4 sinks, pages of 64
TOKENS = list(range(1000))


def new_plan(prompt, *, mark=0, tokens=TOKENS):
    return TokenPlan(tokens, prompt_tokens=prompt, config=CONFIG, mark=mark)


def ends(plan, *, until):
    length, found = 0, []
    while length < until:
        length = plan.step_end(length)
        found.append(length)
    return found


@pytest.mark.parametrize(
    ("prompt", "mark", "want"),
    [
        (1, 0, [1, 2, 3]),
        (3, 0, [3, 4, 5]),
        (68, 0, [68, 69, 70]),
        (69, 0, [68, 69, 70]),
        (200, 0, [68, 132, 196, 200, 201]),
        (200, 100, [68, 100, 132, 196, 200, 201]),
        (200, 198, [68, 132, 196, 198, 200, 201]),
        (200, 132, [68, 132, 196, 200, 201]),  # at a page's end
        (200, 50, [68, 132, 196, 200, 201]),  # before the first page's end
        (200, 200, [68, 132, 196, 200, 201]),  # nothing follows
        (200, 999, [68, 132, 196, 200, 201]),
    ],
)
def test_steps(prompt, mark, want):
    assert ends(new_plan(prompt, mark=mark), until=want[-1]) == want


@given(prompt=st.integers(1, 500), mark=st.integers(0, 500))
def test_no_step_reaches_from_one_page_into_the_next(prompt, mark):
    plan, length = new_plan(prompt, mark=mark), 0
    while length < 600:
        end = plan.step_end(length)
        assert length < end <= plan.page_end(length)
        assert plan.is_prefilling(length) == (length < prompt)
        assert plan.is_prefilling(length) or end == length + 1
        assert plan.page_start(length) <= length
        length = end


def chain(plan, pages):
    keys = [plan.sink_key()]
    for index in range(pages):
        keys.append(plan.page_key(keys[-1], 4 + 64 * index))
    return keys


def test_prompts_share_keys_as_far_as_their_tokens_agree():
    other = [*TOKENS[:150], -1, *TOKENS[151:]]
    ours, theirs = chain(new_plan(400), 4), chain(new_plan(300, tokens=other), 4)
    assert ours[:3] == theirs[:3]
    assert not set(ours[3:]) & set(theirs)


def test_what_follows_does_not_change_a_key():
    assert chain(new_plan(200), 3) == chain(new_plan(900), 3)
    assert chain(new_plan(200), 3) == chain(new_plan(200, tokens=TOKENS[:196]), 3)


def test_an_answer_and_a_prompt_of_the_same_tokens_differ():
    """One came token by token, the other in a slice: their bytes differ slightly."""
    prompt, answer = chain(new_plan(400), 4), chain(new_plan(140), 4)
    assert prompt[:3] == answer[:3]
    assert not set(prompt[3:]) & set(answer)


def test_a_mark_changes_its_page_and_those_after():
    plain, marked = chain(new_plan(400), 4), chain(new_plan(400, mark=140), 4)
    assert plain[:3] == marked[:3]
    assert not set(plain[3:]) & set(marked)
    assert new_plan(400, mark=141).page_key(plain[2], 132) != marked[3]


def test_sinks_of_a_short_prompt_are_their_own():
    assert new_plan(68).sink_key() == new_plan(500).sink_key()
    assert new_plan(67).sink_key() != new_plan(68).sink_key()
    assert new_plan(3).sink_key() != new_plan(5).sink_key()


def test_rows_of_a_mark_depend_on_where_it_is():
    parent = b"parent"
    key = new_plan(400, mark=150).rows_key(parent, 132, 140)
    assert key == new_plan(300, mark=150).rows_key(parent, 132, 140)
    assert key != new_plan(400, mark=151).rows_key(parent, 132, 140)
    assert key != new_plan(400, mark=150).rows_key(parent, 132, 141)
