"""How much two texts share: word tokens, ROUGE, token F1, and whether a fact is named."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Runs of letters and digits, folded to lower case: for ASCII the words of rouge_score, and it reads any script."""
    return _WORD.findall(text.casefold())


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004; rouge_score, no stemming)."""
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


def rouge_n(answer: str, reference: str, size: int) -> float:
    """F-measure of the runs of `size` words that both hold, 0 to 1 (Lin 2004; rouge_score, no stemming)."""
    there, wanted = _runs(answer, size), _runs(reference, size)
    common = (there & wanted).total()
    return 2 * common / (there.total() + wanted.total()) if common else 0.0


def token_f1(answer: str, reference: str) -> float:
    """F1 of the two bags of words, 0 to 1 (as in SQuAD, articles kept): the same as ROUGE-1."""
    return rouge_n(answer, reference, 1)


def _runs(text: str, size: int) -> Counter[tuple[str, ...]]:
    found = words(text)
    return Counter(tuple(found[start : start + size]) for start in range(len(found) - size + 1))


def names(answer: str, fact: str) -> bool:
    """The words of the fact stand in the answer, in order and side by side."""
    there, wanted = words(answer), words(fact)
    return any(there[start : start + len(wanted)] == wanted for start in range(len(there) - len(wanted) + 1))


def matched(answer: str, options: Sequence[str]) -> str | None:
    """The option that an answer names: its first line word for word, else the one longest option that it holds."""
    first = words(answer.strip().split("\n")[0])
    same = [option for option in options if words(option) == first]
    if same:
        return same[0]
    held = [option for option in options if words(option) and names(" ".join(first), option)]
    longest = [option for option in held if not any(option != other and names(other, option) for other in held)]
    return longest[0] if len(longest) == 1 else None


class _Words:
    """The tokenizer that rouge_score is given."""

    def tokenize(self, text: str) -> list[str]:
        """See `words`."""
        return words(text)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())
