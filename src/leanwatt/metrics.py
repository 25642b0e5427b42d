"""Every figure of quality, from graded rows, with the spread that a resampling of groups gives it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from leanwatt.errors import DataError, UnknownNameError, not_among

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Rows = pd.DataFrame | Iterable[Mapping[str, Any]]
    Metric = Callable[[pd.DataFrame, NDArray[np.float32]], Floats]

BINS = 15
"""Of the calibration error."""
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the tickets that a model may answer when it can pass the others on."""


@dataclass(frozen=True)
class Interval:
    """What a figure would be between, had other groups been drawn."""

    low: float
    high: float


def figures(rows: "Rows") -> dict[str, float]:
    """Every metric that the columns of the rows allow, each from 0 to 1, except bits_per_byte.

    From `target` and `chosen`: accuracy, macro_f1. From `confidence` and `correct`: ece; accuracy, where there are no
    classes. From `hypothesis` and `reference`: chrf, bleu. From `nats` and `bytes`: byte_probability, bits_per_byte.
    From columns of the same name, their mean: score, rouge_l, rouge_2, token_f1, exact, copied, slots, slot_*, chance,
    harness_*, and the shares `truncated` and `unmatched`. Raises DataError without rows.
    """
    frame = _frame(rows)
    return {name: value(name, frame) for name in names(frame)}


def names(rows: "Rows") -> list[str]:
    """The metrics that apply to these rows."""
    frame = _frame(rows)
    known = set(frame.columns[frame.notna().any()])
    found = [name for name, needed in _NEEDED.items() if any(columns <= known for columns in needed)]
    return found + [name for name in frame.columns if name in known and _is_mean(str(name))]


def value(metric: str, rows: "Rows") -> float:
    """One metric over all rows. Raises UnknownNameError for one that the rows do not allow."""
    import numpy as np

    frame = _frame(rows)
    return float(bootstrap(metric, frame, np.ones((1, len(frame)), dtype=np.float32))[0])


def per_class(rows: "Rows") -> "pd.DataFrame":
    """Precision, recall, F1, support and errors of every class that is a target; index: the class.

    `said` is what its tickets were most often taken for, the first by name at a draw, and `said_times` how often; empty
    for an answer that is no class, and where all are right.
    """
    import numpy as np
    import pandas as pd

    frame = _frame(rows)
    classes, hits, chosen, support = _confusion(frame, np.ones((1, len(frame)), dtype=np.float32))
    columns = {
        "precision": hits[0] / np.maximum(chosen[0], 1),
        "recall": hits[0] / support[0],
        "f1": 2 * hits[0] / (chosen[0] + support[0]),
        "support": support[0].astype(int),
        "errors": (support[0] - hits[0]).astype(int),
    }
    found = pd.DataFrame(columns, index=pd.Index(classes, name="class"))
    pairs = pd.DataFrame({"class": frame["target"].astype(str), "said": frame["chosen"].fillna("").astype(str)})
    wrong = pairs[pairs["class"] != pairs["said"]].value_counts().reset_index(name="said_times")
    most = wrong.sort_values(["said_times", "said"], ascending=[False, True]).drop_duplicates("class")
    return found.join(most.set_index("class")).fillna({"said": "", "said_times": 0}).astype({"said_times": int})


def risk(rows: "Rows") -> dict[float, float]:
    """What is wrong among the most confident answers: share answered (`COVERAGES`) -> share of these that is wrong.

    The rest goes to a person. Answers of equal confidence are taken in the order of the rows. Empty where answers come
    without a confidence.
    """
    frame = _frame(rows)
    if not {"confidence", "correct"} <= set(frame.columns) or frame["confidence"].isna().any():
        return {}
    wrong = ~frame.sort_values("confidence", ascending=False, kind="stable")["correct"].to_numpy(dtype=bool)
    counts = {coverage: max(1, round(coverage * len(wrong))) for coverage in COVERAGES}
    return {coverage: float(wrong[:count].mean()) for coverage, count in counts.items()}


def resamples(groups: Sequence[str], times: int = 2000, seed: int = 0) -> "NDArray[np.float32]":
    """How often each row is drawn in each resample, (times, rows): whole groups are drawn, with replacement.

    Use one matrix for all variants of a study: a comparison is then paired.
    """
    import numpy as np

    members, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=times)
    return drawn.astype(np.float32)[:, place]


def bootstrap(metric: str, rows: "Rows", counts: "NDArray[np.float32]") -> "Floats":
    """The metric in each resample, (times,); `counts` is (times, rows).

    Every metric is exact in every resample: corpus metrics are summed from the statistics of each sentence. The bins of
    ece are those of the rows as they are. NaN where a resample holds no row that the metric can be computed from.
    """
    frame = _frame(rows)
    if metric not in names(frame):
        raise UnknownNameError(not_among("the metrics of these rows", metric, map(str, names(frame))))
    return _METRICS.get(metric, partial(_mean, metric))(frame, counts)


def interval(samples: "Floats", level: float = 0.95) -> Interval:
    """The middle share `level` of the samples. Raises DataError if there is no finite one."""
    import numpy as np

    if not np.isfinite(samples).any():
        raise DataError("interval: no resample gave a figure; the metric applies to too few rows.")
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


_NEEDED: dict[str, tuple[set[str], ...]] = {
    "accuracy": ({"target", "chosen"}, {"correct"}),
    "macro_f1": ({"target", "chosen"},),
    "ece": ({"confidence", "correct"},),
    "chrf": ({"hypothesis", "reference"},),
    "bleu": ({"hypothesis", "reference"},),
    "byte_probability": ({"nats", "bytes"},),
    "bits_per_byte": ({"nats", "bytes"},),
}
"""Metric -> the columns it is computed from: one of these sets is enough."""
_MEANS = {
    *("score", "rouge_l", "rouge_2", "token_f1", "exact", "copied"),
    *("slots", "chance", "truncated", "unmatched"),
}


def _is_mean(name: str) -> bool:
    return name in _MEANS or name.startswith(("slot_", "harness_"))


def _frame(rows: "Rows") -> "pd.DataFrame":
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if frame.empty:
        raise DataError("metrics: got no rows; grade at least one example.")
    return frame


def _mean(column: str, frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    """Weighted mean over the rows that have the figure."""
    import numpy as np

    figure = frame[column].astype(float).to_numpy()
    known = np.isfinite(figure)
    weights = counts[:, known].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(weights @ figure[known] / weights.sum(axis=1))


def _accuracy(frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    import numpy as np

    has_classes = {"target", "chosen"} <= set(frame.columns)
    hits = frame["target"] == frame["chosen"] if has_classes else frame["correct"].astype(bool)
    right = hits.to_numpy(dtype=np.float32)
    return np.asarray((counts @ right).astype(np.float64) / counts.sum(axis=1, dtype=np.float64))


def _macro_f1(frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    """Mean F1 of the classes that are a target in the resample.

    An answer that is no class counts as a miss of its target; it does not add a class with F1 0 to the mean.
    """
    import numpy as np

    _, hits, chosen, support = _confusion(frame, counts)
    there = support > 0
    scores = np.where(there, 2 * hits / np.maximum(chosen + support, 1), 0)
    return np.asarray(scores.sum(axis=1) / there.sum(axis=1))


def _confusion(frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> tuple[Any, Any, Any, Any]:
    """Classes, and per resample and class (times, classes): hits, times chosen, support."""
    import numpy as np

    targets, picks = frame["target"].to_numpy(dtype=str), frame["chosen"].fillna("").to_numpy(dtype=str)
    classes = np.unique(targets)
    is_target = (targets[:, None] == classes).astype(np.float32)
    is_chosen = (picks[:, None] == classes).astype(np.float32)
    # float32 counts exactly: whole numbers far below 2 ** 24. Shares are then taken in float64.
    sums = [(counts @ flags).astype(np.float64) for flags in (is_target * is_chosen, is_chosen, is_target)]
    return classes, *sums


def _ece(frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    """Expected calibration error over bins of equal numbers of rows (Nguyen and O'Connor 2015)."""
    import numpy as np

    confidence = frame["confidence"].astype(float).to_numpy()
    known = np.flatnonzero(np.isfinite(confidence))
    gap = frame["correct"].astype(float).to_numpy() - confidence
    order = known[np.argsort(confidence[known], kind="stable")]
    total = np.zeros(len(counts))
    for members in np.array_split(order, min(BINS, len(order))):
        total += np.abs(counts[:, members].astype(np.float64) @ gap[members])
    with np.errstate(invalid="ignore"):
        return np.asarray(total / counts[:, known].sum(axis=1, dtype=np.float64))


def _corpus(name: str, frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    """ChrF (Popovic 2015) or BLEU (Papineni 2002) by sacrebleu, from 0 to 1, from the sentences' summed statistics."""
    import numpy as np
    from sacrebleu.metrics import BLEU, CHRF

    scorer = CHRF() if name == "chrf" else BLEU(force=True)
    # What sacrebleu's own significance tests sum; a test holds it against the public corpus_score.
    parts = scorer._extract_corpus_statistics(frame["hypothesis"].tolist(), [frame["reference"].tolist()])
    sums = counts.astype(np.float64) @ np.asarray(parts, dtype=np.float64)
    scores = [scorer._compute_score_from_stats([round(number) for number in row]).score for row in sums]
    return np.asarray(scores) / 100


def _nats_per_byte(frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    """Sums over the texts of a resample, so that a long text counts for its length."""
    import numpy as np

    drawn = counts.astype(np.float64)
    nats, size = frame["nats"].to_numpy(dtype=np.float64), frame["bytes"].to_numpy(dtype=np.float64)
    return np.asarray((drawn @ nats) / (drawn @ size))


def _byte_probability(frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    import numpy as np

    return np.asarray(np.exp(-_nats_per_byte(frame, counts)))


def _bits_per_byte(frame: "pd.DataFrame", counts: "NDArray[np.float32]") -> "Floats":
    import numpy as np

    return np.asarray(_nats_per_byte(frame, counts) / np.log(2))


_METRICS: dict[str, "Metric"] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "ece": _ece,
    "chrf": partial(_corpus, "chrf"),
    "bleu": partial(_corpus, "bleu"),
    "byte_probability": _byte_probability,
    "bits_per_byte": _bits_per_byte,
}
