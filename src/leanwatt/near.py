"""Which texts are nearly equal: MinHash proposes pairs, an exact overlap decides."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERMUTATIONS = 128

RECALL = 0.99
"""Least chance that a pair exactly at the threshold falls into a common bucket."""

WINDOW = 20
"""Neighbours in a bucket that a text is compared with. Bounds the work where thousands of texts follow one template."""


class Forest:
    """Disjoint sets of rows, each known by its first row."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, place: int) -> int:
        """The first row of the set."""
        while self._parent[place] != place:
            self._parent[place] = self._parent[self._parent[place]]
            place = self._parent[place]
        return place

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        first, last = sorted((self.root(one), self.root(other)))
        self._parent[last] = first

    def largest(self) -> int:
        """Rows in the largest set."""
        return max(Counter(self.root(place) for place in range(len(self._parent))).values())


@lru_cache(maxsize=4)
def near_pairs(texts: tuple[str, ...], threshold: float | None) -> tuple[tuple[int, int], ...]:
    """Pairs of distinct texts with a Jaccard overlap of at least `threshold` of their three-word runs.

    MinHash with locality-sensitive hashing (Broder 1997; datasketch) proposes pairs; each is checked exactly, so none
    is wrong, and about one in a hundred at the very threshold is missed. A pair whose texts are joined already is left
    out: the result links every cluster, it does not list all its pairs. 15,000 texts of 60 words take 2 to 10 seconds.
    """
    if threshold is None or len(texts) < 2:
        return ()
    import numpy as np
    from datasketch import MinHash

    runs = [_runs(text) for text in texts]
    words = ([run.encode() for run in sorted(found)] for found in runs)
    sketches = np.stack([sketch.hashvalues for sketch in MinHash.generator(words, num_perm=PERMUTATIONS)])
    joined, pairs = Forest(len(texts)), []
    for one, other in _proposals(sketches, threshold):
        if joined.root(one) != joined.root(other) and _overlap(runs[one], runs[other]) >= threshold:
            joined.join(one, other)
            pairs.append((min(one, other), max(one, other)))
    return tuple(pairs)


def _proposals(sketches: "NDArray[np.uint64]", threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs in a common bucket whose sketches (texts, permutations) agree nearly often enough; without repeats."""
    import numpy as np

    count, length = _bands(threshold)
    # Three standard deviations of the estimate below the threshold.
    enough = threshold - 3 * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    seen: set[int] = set()
    for band in range(count):
        rolled = np.roll(sketches, -band * length, axis=1)
        # What follows the band's own values sorts similar texts side by side within a bucket.
        order = np.lexsort(rolled[:, : length + 16].T[::-1])
        ordered = rolled[order]
        starts = (ordered[1:, :length] != ordered[:-1, :length]).any(axis=1)
        bucket = np.concatenate([[0], np.cumsum(starts)])
        for shift in range(1, min(WINDOW, len(order) - 1) + 1):
            [same] = np.nonzero(bucket[shift:] == bucket[:-shift])
            same = same[(ordered[same] == ordered[same + shift]).mean(axis=1) >= enough]
            for one, other in zip(order[same].tolist(), order[same + shift].tolist(), strict=True):
                code = min(one, other) * len(order) + max(one, other)
                if code not in seen:
                    seen.add(code)
                    yield one, other


def _bands(threshold: float) -> tuple[int, int]:
    """Number of bands and their length: the longest bands, so the fewest proposals, that still keep RECALL."""
    lengths = range(PERMUTATIONS // 2, 1, -1)
    enough = (length for length in lengths if 1 - (1 - threshold**length) ** (PERMUTATIONS // length) >= RECALL)
    length = next(enough)
    return PERMUTATIONS // length, length


def _runs(text: str) -> frozenset[str]:
    words = text.split()
    return frozenset(" ".join(words[start : start + 3]) for start in range(max(1, len(words) - 2)))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
