"""The books of a page pool: nothing is lost, nothing has two owners, old pages go first."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.pages import PageAllocator

NUM_PAGES = 6


def test_pages_are_given_until_all_are_held():
    books = PageAllocator(2)
    assert {books.allocate(), books.allocate()} == {0, 1}
    assert books.allocate() is None
    books.release([1])
    assert books.allocate() == 1


def test_a_published_page_outlives_its_holder_until_it_is_needed():
    books = PageAllocator(2)
    page = books.publish(books.allocate(), b"key")
    books.release([page])
    assert (books.held, books.cached, books.available) == (0, 1, 2)
    assert books.take(b"key") == page
    books.release([page])
    books.allocate()
    assert b"key" in books
    books.allocate()
    assert b"key" not in books
    assert books.evictions == 1


def test_the_longest_unused_page_is_evicted_first():
    books = PageAllocator(3)
    pages = [books.publish(books.allocate(), key) for key in (b"a", b"b", b"c")]
    books.release([pages[2], pages[1], pages[0]])
    books.release([books.take(b"c")])
    books.allocate()
    assert [key in books for key in (b"a", b"b", b"c")] == [True, False, True]


def test_equal_pages_become_one():
    books = PageAllocator(3)
    first = books.publish(books.allocate(), b"key")
    second = books.allocate()
    assert books.publish(second, b"key") == first
    books.release([first])
    assert books.held == 1
    books.check([[first]])


def test_forget_leaves_what_is_held():
    books = PageAllocator(3)
    held, cached = (books.publish(books.allocate(), key) for key in (b"held", b"cached"))
    books.release([cached])
    books.forget()
    assert (b"held" in books, b"cached" in books) == (True, False)
    books.check([[held]])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda books: books._holders.__setitem__(0, 2), "page 0 has 1 holders, 2 noted"),
        (lambda books: books._free.pop(), "is in 0 of"),
        (lambda books: books._free.append(0), "page 0 is in 2 of"),
        (lambda books: books._key_of_page.clear(), "different keys"),
        (lambda books: books._cached.clear(), "page 1 is in 0 of"),
    ],
)
def test_check_names_the_fault(damage, fault):
    books = PageAllocator(4)
    held, cached = (books.publish(books.allocate(), key) for key in (b"held", b"cached"))
    books.release([cached])
    books.check([[held]])
    damage(books)
    with pytest.raises(GearError, match=fault) as caught:
        books.check([[held]])
    assert caught.value.code is ErrorCode.BAD_CACHE_FILE


class Books(RuleBasedStateMachine):
    """Sequences that take, share, publish and give back pages in any order."""

    def __init__(self):
        super().__init__()
        self.books = PageAllocator(NUM_PAGES)
        self.sequences = []

    @rule()
    def open(self):
        self.sequences.append([])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def grow(self, data):
        page = self.books.allocate()
        held = set().union(*self.sequences)
        assert (page is None) == (len(held) == NUM_PAGES)
        if page is not None:
            assert page not in held
            data.draw(st.sampled_from(self.sequences)).append(page)

    @precondition(lambda self: any(self.sequences))
    @rule(data=st.data(), key=st.binary(min_size=1, max_size=1))
    def publish(self, data, key):
        sequence = data.draw(st.sampled_from([one for one in self.sequences if one]))
        if sequence[-1] not in self.books._key_of_page:
            sequence[-1] = self.books.publish(sequence[-1], key)
            assert key in self.books

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def share(self, data):
        keys = sorted(self.books._page_of_key)
        if keys:
            page = self.books.take(data.draw(st.sampled_from(keys)))
            data.draw(st.sampled_from(self.sequences)).append(page)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data):
        copy = list(data.draw(st.sampled_from(self.sequences)))
        for page in copy:
            self.books.hold(page)
        self.sequences.append(copy)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def close(self, data):
        index = data.draw(st.integers(0, len(self.sequences) - 1))
        self.books.release(reversed(self.sequences.pop(index)))

    @rule()
    def forget(self):
        self.books.forget()

    @invariant()
    def nothing_is_lost(self):
        self.books.check(self.sequences)
        assert self.books.held == len(set().union(*self.sequences))

    def teardown(self):
        for sequence in self.sequences:
            self.books.release(sequence)
        assert self.books.available == NUM_PAGES
        self.books.check([])


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30)
