"""Who owns which page of a pool: reference counts, and an index of pages that can be used again."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from gear_trt.errors import ErrorCode, GearError


class PageAllocator:
    """Books of a pool whose pages are written once and then shared.

    A page is free, held by one or more sequences, or cached: held by none, but indexed by a key
    under which a later sequence may find it. Cached pages are evicted when free ones run out, those
    released first before all others.

    Attributes:
        num_pages: Pages of the pool.
        evictions: Cached pages given up so far.

    Args:
        num_pages: Pages of the pool.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.evictions = 0
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._page_of_key: dict[bytes, int] = {}
        self._key_of_page: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # longest unused first

    @property
    def available(self) -> int:
        """Pages that `allocate` can give: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def held(self) -> int:
        """Pages that some sequence holds."""
        return self.num_pages - self.available

    @property
    def cached(self) -> int:
        """Pages that no sequence holds, kept for later ones."""
        return len(self._cached)

    def allocate(self) -> int | None:
        """Return a page with one holder, or None where every page is held."""
        if not self._free:
            self._evict()
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Add a holder to a page that is held or cached."""
        self._cached.pop(page, None)
        self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take one holder from each page; what nobody holds is cached if indexed, else free.

        Args:
            pages: In the order in which they may be evicted: later parts of a text first, since
                they are found only through the earlier ones.
        """
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._key_of_page:
                self._cached[page] = None
            else:
                self._free.append(page)

    def take(self, key: bytes) -> int:
        """Return the page of a key that is `in` the books, with one holder more."""
        page = self._page_of_key[key]
        self.hold(page)
        return page

    def __contains__(self, key: bytes) -> bool:
        """Return whether some page has this key."""
        return key in self._page_of_key

    def publish(self, page: int, key: bytes) -> int:
        """Index a held page that is complete.

        Returns:
            The page to go on with: another one where the key is known, since equal keys mean that
            the same steps made it; `page` has lost its holder then.
        """
        if key in self:
            self.release([page])
            return self.take(key)
        self._page_of_key[key] = page
        self._key_of_page[page] = key
        return page

    def forget(self) -> None:
        """Evict every cached page."""
        while self._cached:
            self._evict()

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Check that every page is free, cached, or held as often as counted.

        Args:
            holders: The pages of every sequence.

        Raises:
            GearError: `BAD_CACHE_FILE`, naming the page.
        """
        found = Counter(page for pages in holders for page in pages)
        places = Counter([*self._free, *self._cached, *(p for p in found if found[p])])
        for page in range(self.num_pages):
            if found[page] != self._holders[page]:
                raise damaged(f"page {page} has {found[page]} holders, {self._holders[page]} noted")
            if places[page] != 1:
                raise damaged(f"page {page} is in {places[page]} of: free, cached, held")
        if self._page_of_key != {key: page for page, key in self._key_of_page.items()}:
            raise damaged("the index and the pages name different keys")
        if any(page in self._key_of_page for page in self._free):
            raise damaged("a free page is indexed")

    def _evict(self) -> None:
        if not self._cached:
            return
        page, _ = self._cached.popitem(last=False)
        del self._page_of_key[self._key_of_page.pop(page)]
        self._free.append(page)
        self.evictions += 1


def damaged(fault: str) -> GearError:
    """Return the error of books that do not add up, which only a defect can cause."""
    return GearError(
        ErrorCode.BAD_CACHE_FILE,
        f"the cache is damaged: {fault}",
        hint="this is a defect of gear_trt: restart, and report it with this message",
    )
