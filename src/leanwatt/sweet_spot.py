"""The least cost among what is good enough, how sure that is, and what to put to the test next."""

from collections.abc import Callable, Sequence

from leanwatt.compare import LEVEL, holm, told_apart
from leanwatt.ranking import Entry, Ranking, Ratio, SweetSpot, Verdict

RatioOf = Callable[[str, str], Ratio | None]
SIXTEEN_BITS = ("bfloat16", "float16", "bf16", "fp16", "f16")


def candidates(ranking: Ranking) -> tuple[str, ...]:
    """Non-inferior on every task and certainly cheaper than the reference; cheapest first, baselines too."""
    good = [entry for entry in ranking.entries if entry.word == "non-inferior" and entry.saves == "yes"]
    return tuple(entry.label for entry in good)


def next_candidates(ranking: Ranking) -> tuple[str, ...]:
    """Whom the test split is still to judge: the reference, the candidate in turn, the best language model, baselines.

    Empty once the verdict stands. Confirm these, rank again, and ask again.
    """
    if ranking.sweet_spot is None or not ranking.order_of_candidates:
        return ()
    turn = [_judged(ranking, order) for order in _sequences(ranking)]
    plain = [e.label for e in ranking.entries if e.is_baseline and e.status == "done"]
    wanted = [ranking.reference, *(label for label, verdict in turn if verdict == "not yet confirmed"), *plain]
    return tuple(label for label in dict.fromkeys(wanted) if ranking.entry(label).confirmation is None)


def sweet_spot(ranking: Ranking, ratio_of: RatioOf) -> SweetSpot | None:
    """The answer, from the table alone; None where the reference has no cost or quality to compare with."""
    reference = ranking.entry(ranking.reference)
    if not reference.is_complete:
        return None
    whole, models = _sequences(ranking)
    label, verdict = _judged(ranking, whole)
    chosen = ranking.entry(label)
    plain = _uncompressed(ranking, chosen)
    return SweetSpot(
        label=label,
        verdict=verdict,
        tied=_tied(label, ranking.order_of_candidates, ratio_of),
        best_model=_judged(ranking, models)[0] if chosen.is_baseline else None,
        uncompressed=plain.label if plain else None,
        uncompressed_bits=_bits(plain) if plain else "",
        to_uncompressed=ratio_of(label, plain.label) if plain and plain is not chosen else None,
        to_reference=ratio_of(label, reference.label) if chosen is not reference else None,
    )


def _sequences(ranking: Ranking) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The order of all candidates, and that of the language models among them."""
    order = ranking.order_of_candidates
    return order, tuple(label for label in order if not ranking.entry(label).is_baseline)


def _judged(ranking: Ranking, order: Sequence[str]) -> tuple[str, Verdict]:
    """Go through the candidates until one holds on the test split, corrected for how many were tried."""
    if not order:
        return ranking.reference, "nothing saves"
    tried: dict[str, float] = {}
    for label in order:
        confirmation = ranking.entry(label).confirmation
        if confirmation is None or confirmation.p is None:
            return label, "not yet confirmed"
        tried[label] = confirmation.p
        if holm(tried)[label] <= LEVEL:
            return label, "confirmed" if ranking.folds == 1 else "cross-validated"
    return ranking.reference, "not confirmed"


def _tied(label: str, order: Sequence[str], ratio_of: RatioOf) -> tuple[str, ...]:
    if label not in order:
        return ()
    apart = told_apart({other: ratio_of(other, label) for other in order if other != label})
    return tuple(other for other, is_apart in apart.items() if not is_apart)


def _uncompressed(ranking: Ranking, chosen: Entry) -> Entry | None:
    """Cheapest engine that runs the model neither pruned nor quantized, at the same batch; at 16 bits if there is one.

    A baseline has no batch: any will do. A model that was not fine-tuned answers at other lengths, so it stands in
    only where the reference was not fine-tuned either.
    """
    tuned = _is_tuned(ranking.entry(ranking.reference))
    found = [
        entry
        for entry in ranking.entries
        if entry.is_complete
        and not entry.is_baseline
        and not any(step.startswith(("prune:", "quantize:")) for step in entry.steps)
        and _is_tuned(entry) == tuned
        and (chosen.is_baseline or entry.batch == chosen.batch)
    ]
    half = [entry for entry in found if _bits(entry) == "16-bit"]
    return next(iter(half or found), None)


def _is_tuned(entry: Entry) -> bool:
    return any(step.startswith("finetune:") for step in entry.steps)


def _bits(entry: Entry) -> str:
    """By the weights that really ran."""
    return "16-bit" if str(entry.facts.get("weight_dtype")) in SIXTEEN_BITS else "uncompressed"
