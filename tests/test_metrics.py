import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from leanwatt import metrics
from leanwatt.errors import DataError, UnknownNameError

CLASSES = ["power", "fiber", "radio"]


def graded(count: int = 60, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    target = generator.choice(CLASSES, count, p=[0.6, 0.3, 0.1])
    chosen = np.where(generator.random(count) < 0.7, target, generator.choice([*CLASSES, "", "elsewhere"], count))
    return pd.DataFrame(
        {
            "id": [f"row-{n}" for n in range(count)],
            "group": [f"g{n // 3}" for n in range(count)],
            "target": target,
            "chosen": chosen,
            "correct": target == chosen,
            "confidence": generator.random(count),
            "unmatched": chosen == "",
            "truncated": False,
        }
    )


def written(count: int = 12, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    words = ["replaced", "the", "fan", "at", "site", "north", "router", "restarted"]
    frame = pd.DataFrame(
        {
            "group": [f"g{n // 2}" for n in range(count)],
            "hypothesis": [" ".join(generator.choice(words, 9)) for _ in range(count)],
            "reference": [" ".join(generator.choice(words, 8)) for _ in range(count)],
            "rouge_l": generator.random(count),
            "slot_place": [None, *generator.integers(0, 2, count - 1)],
        }
    )
    frame.loc[3, "hypothesis"] = ""
    return frame


def repeated(frame: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
    return frame.loc[np.repeat(np.arange(len(frame)), counts.astype(int))]


def slow_f1(frame: pd.DataFrame) -> float:
    labels = sorted(set(frame["target"]))
    return float(f1_score(frame["target"], frame["chosen"], labels=labels, average="macro", zero_division=0))


def test_figures_are_those_of_scikit_learn() -> None:
    frame = graded()
    found = metrics.figures(frame)
    assert found["accuracy"] == pytest.approx(accuracy_score(frame["target"], frame["chosen"]))
    assert found["macro_f1"] == pytest.approx(slow_f1(frame))
    assert found["unmatched"] == pytest.approx((frame["chosen"] == "").mean())
    assert found["truncated"] == 0
    assert set(found) == {"accuracy", "macro_f1", "ece", "unmatched", "truncated"}
    assert metrics.figures(frame.to_dict("records")) == found


def test_per_class_is_that_of_scikit_learn() -> None:
    frame = graded()
    found = metrics.per_class(frame)
    labels = list(found.index)
    assert labels == sorted(CLASSES)
    expected = precision_recall_fscore_support(frame["target"], frame["chosen"], labels=labels, zero_division=0)
    for column, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(found[column], values)


def test_per_class_counts_errors_and_names_the_most_frequent_confusion() -> None:
    said = {"fibre": ["fibre", "power", "link", "power"], "link": ["link"], "power": ["link", "fibre", None, "power"]}
    rows = [{"target": target, "chosen": chosen} for target, all_said in said.items() for chosen in all_said]
    found = metrics.per_class([*rows, {"target": "card", "chosen": None}])[["support", "errors", "said", "said_times"]]
    assert found.T.to_dict("list") == {
        "card": [1, 1, "", 1],
        "fibre": [4, 3, "power", 2],
        "link": [1, 0, "", 0],
        "power": [4, 3, "", 1],
    }


@given(st.integers(0, 10_000))
def test_macro_f1_of_every_resample_is_that_of_repeated_rows(seed: int) -> None:
    frame = graded(30, seed)
    counts = metrics.resamples(frame["group"], times=5, seed=seed)
    for fast, drawn in zip(metrics.bootstrap("macro_f1", frame, counts), counts, strict=True):
        assert fast == pytest.approx(slow_f1(repeated(frame, drawn)))


@pytest.mark.parametrize(("name", "scorer"), [("chrf", CHRF()), ("bleu", BLEU(force=True))])
def test_corpus_metrics_are_those_of_sacrebleu_in_every_resample(name: str, scorer: CHRF | BLEU) -> None:
    frame = written()
    counts = metrics.resamples(frame["group"], times=20)
    found = metrics.bootstrap(name, frame, counts)
    assert len(set(found.round(6))) > 10
    for fast, drawn in zip(found, counts, strict=True):
        rows = repeated(frame, drawn)
        slow = scorer.corpus_score(rows["hypothesis"].tolist(), [rows["reference"].tolist()]).score
        assert fast == pytest.approx(slow / 100)
    whole = scorer.corpus_score(frame["hypothesis"].tolist(), [frame["reference"].tolist()]).score
    assert metrics.value(name, frame) == pytest.approx(whole / 100)


def test_means_leave_unknown_values_out() -> None:
    frame = written()
    assert metrics.value("slot_place", frame) == pytest.approx(frame["slot_place"].astype(float).mean())
    counts = metrics.resamples(frame["group"], times=50)
    for fast, drawn in zip(metrics.bootstrap("slot_place", frame, counts), counts, strict=True):
        assert fast == pytest.approx(repeated(frame, drawn)["slot_place"].astype(float).mean())
    only_unknown = np.eye(1, len(frame), dtype=np.float32)
    assert np.isnan(metrics.bootstrap("slot_place", frame, only_unknown)[0])


def test_calibration_error_by_hand() -> None:
    rows = [{"confidence": 0.9, "correct": place < 8} for place in range(10)]
    assert metrics.value("ece", rows[:1]) == pytest.approx(0.1)
    sure = [{"confidence": 1.0 if place % 2 else 0.6, "correct": True} for place in range(300)]
    assert metrics.value("ece", sure) == pytest.approx(0.2)


def test_calibration_error_is_near_zero_for_a_calibrated_model() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(20_000)
    frame = pd.DataFrame({"confidence": confidence, "correct": generator.random(20_000) < confidence})
    assert metrics.value("ece", frame) < 0.02
    assert metrics.value("ece", frame.assign(confidence=confidence**3)) > 0.1


def test_calibration_error_of_a_resample_keeps_the_bins_of_the_rows() -> None:
    frame = graded(300)
    counts = metrics.resamples(frame["group"], times=3)
    bins = np.array_split(np.argsort(frame["confidence"].to_numpy(), kind="stable"), 15)
    for fast, drawn in zip(metrics.bootstrap("ece", frame, counts), counts, strict=True):
        gap = 0.0
        for members in bins:
            weights = drawn[members]
            right = (weights * frame["correct"].to_numpy()[members]).sum()
            gap += abs(right - (weights * frame["confidence"].to_numpy()[members]).sum())
        assert fast == pytest.approx(gap / drawn.sum())


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(0, 100))
def test_resamples_draw_whole_groups(groups: list[str], seed: int) -> None:
    counts = metrics.resamples(groups, times=20, seed=seed)
    assert counts.shape == (20, len(groups))
    first = {group: groups.index(group) for group in groups}
    for place, group in enumerate(groups):
        np.testing.assert_array_equal(counts[:, place], counts[:, first[group]])
    drawn = counts[:, sorted(first.values())].sum(axis=1)
    np.testing.assert_array_equal(drawn, len(first))
    np.testing.assert_array_equal(counts, metrics.resamples(groups, times=20, seed=seed))


def test_the_interval_is_wider_where_rows_come_in_groups() -> None:
    frame = pd.DataFrame({"rouge_l": np.repeat([0.0, 1.0], 50)})
    alone = metrics.bootstrap("rouge_l", frame, metrics.resamples([str(n) for n in range(100)]))
    grouped = metrics.bootstrap("rouge_l", frame, metrics.resamples([str(n // 10) for n in range(100)]))
    narrow, wide = metrics.interval(alone), metrics.interval(grouped)
    assert narrow.low == pytest.approx(0.4, abs=0.02)
    assert narrow.high == pytest.approx(0.6, abs=0.02)
    assert wide.low == pytest.approx(0.2, abs=0.02)
    assert wide.high == pytest.approx(0.8, abs=0.02)
    assert metrics.interval(alone, level=0.5).high < narrow.high


def test_one_matrix_pairs_two_variants() -> None:
    frame = graded(90)
    counts = metrics.resamples(frame["group"])
    same = metrics.bootstrap("accuracy", frame, counts) - metrics.bootstrap("accuracy", frame.copy(), counts)
    assert np.abs(same).max() == 0


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(DataError, match="got no rows"):
        metrics.figures([])
    with pytest.raises(UnknownNameError, match="Did you mean 'macro_f1'"):
        metrics.value("macro_f", graded())
    with pytest.raises(DataError, match="no resample gave a figure"):
        metrics.interval(np.array([np.nan]))


def test_a_column_without_any_value_is_no_metric() -> None:
    frame = graded().assign(confidence=None, slot_place=None)
    assert "ece" not in metrics.names(frame)
    assert "slot_place" not in metrics.names(frame)


def test_risk_falls_on_the_most_confident_first():
    rows = [{"confidence": 1 - i / 10, "correct": i not in (4, 8, 9)} for i in range(10)]
    assert metrics.risk(rows) == {1.0: 0.3, 0.9: 2 / 9, 0.8: 1 / 8, 0.7: 1 / 7, 0.6: 1 / 6, 0.5: 0.2}
    assert metrics.risk([{"confidence": None, "correct": True}]) == {}
    assert metrics.risk([{"correct": True}]) == {}


def texts(count: int = 20, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    size = generator.integers(5, 500, count)
    groups = [f"g{n // 2}" for n in range(count)]
    return pd.DataFrame({"group": groups, "nats": size * generator.uniform(0.5, 2, count), "bytes": size})


def test_the_probability_of_a_byte_is_that_of_all_texts_together() -> None:
    frame = texts()
    found = metrics.figures(frame)
    whole = frame["nats"].sum() / frame["bytes"].sum()
    assert set(found) == {"byte_probability", "bits_per_byte"}
    assert found["byte_probability"] == pytest.approx(np.exp(-whole))
    assert found["bits_per_byte"] == pytest.approx(whole / np.log(2))
    assert found["byte_probability"] == pytest.approx(2 ** -found["bits_per_byte"])
    counts = metrics.resamples(frame["group"].tolist(), times=5)
    drawn = metrics.bootstrap("byte_probability", frame, counts)
    for row, sample in zip(counts, drawn, strict=True):
        again = repeated(frame, row)
        assert sample == pytest.approx(np.exp(-again["nats"].sum() / again["bytes"].sum()))


def test_right_or_wrong_without_classes_has_an_accuracy_and_no_f1() -> None:
    rows = [{"correct": place < 7, "confidence": 0.7, "chance": 0.25} for place in range(10)]
    found = metrics.figures(rows)
    assert set(found) == {"accuracy", "ece", "chance"}
    assert (found["accuracy"], found["chance"]) == pytest.approx((0.7, 0.25))


def test_figures_of_the_harness_are_means() -> None:
    found = metrics.figures([{"score": 1.0, "harness_acc_norm": 0.0}, {"score": 0.0, "harness_acc_norm": 0.0}])
    assert found == {"score": 0.5, "harness_acc_norm": 0.0}
