import numpy as np
import pytest

from leanwatt.near import PERMUTATIONS, RECALL, Forest, _bands, near_pairs

WORDS = [f"word{number}" for number in range(400)]


def text(seed: int, length: int = 40) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


def test_near_pairs_links_what_an_exhaustive_search_links() -> None:
    generator = np.random.default_rng(0)
    texts = [text(n, 60) for n in range(60)]
    for place in range(60):
        words = texts[place].split()
        words[generator.integers(60)] = "changed"
        texts.append(" ".join(words))
    found = {frozenset(pair) for pair in near_pairs(tuple(texts), 0.9)}
    runs = [{tuple(t.split()[i : i + 3]) for i in range(len(t.split()) - 2)} for t in texts]
    slow = {
        frozenset((one, other))
        for one in range(120)
        for other in range(one)
        if len(runs[one] & runs[other]) / len(runs[one] | runs[other]) >= 0.9
    }
    assert found <= slow
    assert len(slow) >= 55
    assert len(found) >= 0.97 * len(slow)


def test_a_large_cluster_is_linked_as_one() -> None:
    template = text(0, 60).split()
    texts = [" ".join([*template[:place], "changed", *template[place + 1 :]]) for place in range(60)]
    texts += [" ".join([*template, f"SITE-{n}"]) for n in range(400)]
    runs = [{tuple(t.split()[i : i + 3]) for i in range(len(t.split()) - 2)} for t in texts]
    forest, slow = Forest(len(texts)), Forest(len(texts))
    for one, other in near_pairs(tuple(texts), 0.9):
        forest.join(one, other)
    for one in range(len(texts)):
        for other in range(one):
            if len(runs[one] & runs[other]) / len(runs[one] | runs[other]) >= 0.9:
                slow.join(one, other)
    assert slow.largest() > 400
    assert forest.largest() >= 0.99 * slow.largest()


def test_short_and_single_texts_and_the_switch() -> None:
    assert near_pairs(("a b", "a b c"), 0.9) == ()
    assert near_pairs((text(0),), 0.9) == ()
    assert near_pairs((text(0), text(0) + " x"), None) == ()
    assert near_pairs((text(0), text(0) + " x"), 0.9) == ((0, 1),)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.95, 1.0])
def test_bands_keep_the_promised_recall(threshold: float) -> None:
    count, length = _bands(threshold)
    assert count * length <= PERMUTATIONS
    assert 1 - (1 - threshold**length) ** count >= RECALL


def test_a_forest_is_known_by_its_first_member() -> None:
    forest = Forest(6)
    forest.join(5, 3)
    forest.join(3, 1)
    forest.join(0, 2)
    assert [forest.root(place) for place in range(6)] == [0, 1, 0, 1, 4, 1]
    assert forest.largest() == 3
