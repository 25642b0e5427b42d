import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanwatt.data import Columns, read
from leanwatt.errors import DataError, StudyError
from leanwatt.question import Example, Likelihood, Prompt, Score, Split
from leanwatt.source import Source
from leanwatt.split import Item, assign, deal, groups, items, normalise, refuse_crossed
from leanwatt.survey import detectable_loss, summary

COLUMNS = Columns(("text",), "cause", closed=True)
WORDS = [f"word{number}" for number in range(400)]


def text(seed: int, length: int = 40) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


def tickets(count: int = 200, **columns: Sequence[str]) -> list[dict[str, str]]:
    rows = [{"text": text(n), "cause": "power" if n % 4 else "fiber cut"} for n in range(count)]
    return [{**row, **{name: values[n] for name, values in columns.items()}} for n, row in enumerate(rows)]


def written(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "tickets.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def sides(found: Sequence[Item]) -> dict[str, set[Split]]:
    held: dict[str, set[Split]] = defaultdict(set)
    for item in found:
        held[item.group].add(item.split)
    return held


def shares(found: Sequence[Item]) -> Counter[Split]:
    return Counter(item.split for item in found)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Link DOWN  at 07:12", "link down at 23:59", True),
        ("seen 3 times on 2026-01-31T10:00:00Z", "seen 41 times on 2025-12-01T09:30:11Z", True),
        ("a28 a56", "a28 a57", False),
        ("SITE-23 down", "SITE-24 down", False),
        ("R3-R4", "R3-R5", False),
    ],
)
def test_numbers_that_stand_free_are_ignored_and_names_are_not(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_splits_have_their_shares_and_their_classes(tmp_path: Path) -> None:
    source = Source(written(tmp_path, tickets()), stratify="cause", validation=0.15, test=0.25)
    found = items(source, COLUMNS)
    for split, expected in (("train", 120), ("validation", 30), ("test", 50)):
        assert abs(shares(found)[split] - expected) <= 1
    for split, expected in (("train", 30), ("validation", 7.5), ("test", 12.5)):
        rare = sum(item.target == "fiber cut" for item in found if item.split == split)
        assert abs(rare - expected) <= 1


def test_the_split_is_the_seeds_alone(tmp_path: Path) -> None:
    path = written(tmp_path, tickets())
    first = [item.split for item in items(Source(path), COLUMNS)]
    assert first == [item.split for item in items(Source(path, id=None), Columns(("text",), "cause"))]
    assert first != [item.split for item in items(Source(path, seed=1), COLUMNS)]


def test_a_bad_row_of_one_task_moves_no_other_row(tmp_path: Path) -> None:
    rows = tickets(note=["done"] * 200)
    rows[3]["note"] = ""
    source = Source(written(tmp_path, rows), skip_bad_rows=True)
    causes = {item.id: item.split for item in items(source, COLUMNS)}
    notes = {item.id: item.split for item in items(source, Columns(("text",), "note"))}
    assert set(causes) - set(notes) == {"row-4"}
    assert all(causes[name] == split for name, split in notes.items())


def test_equal_and_nearly_equal_texts_share_a_group(tmp_path: Path) -> None:
    rows = tickets()
    rows[1]["text"] = rows[0]["text"].upper()
    rows[2]["text"] = " ".join([*rows[0]["text"].split()[:-1], "other"])
    source = Source(written(tmp_path, rows))
    found = groups(read(source, COLUMNS))
    assert found.names[0] == found.names[1] == found.names[2] == "row-1"
    assert (found.duplicates, found.near_duplicates, found.largest_alike) == (1, 3, 3)
    off = groups(read(Source(source.path, near_duplicate=None), COLUMNS))
    assert off.names[0] == off.names[1] != off.names[2]
    assert (off.duplicates, off.near_duplicates) == (1, 0)


def test_groups_by_text_and_column_are_joined(tmp_path: Path) -> None:
    rows = tickets(site=[f"site{n}" for n in range(200)])
    rows[5]["site"] = rows[6]["site"]
    rows[7]["text"] = rows[6]["text"]
    found = groups(read(Source(written(tmp_path, rows), group="site"), COLUMNS))
    assert found.names[5] == found.names[6] == found.names[7] == "site6"
    assert found.names[8] == "site8"
    assert found.largest_alike == 2


@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=40, max_size=80),
    st.integers(0, 3),
)
def test_no_group_and_no_text_is_ever_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], seed: int
) -> None:
    rows = [{"text": text(t), "cause": "x", "site": f"s{g}"} for t, g in pairs]
    rows += [{"text": text(n + 100), "cause": "y", "site": f"t{n}"} for n in range(20)]
    source = Source(written(tmp_path_factory.mktemp("data"), rows), group="site", stratify="cause", seed=seed)
    found = items(source, COLUMNS)
    assert len(found) == len(rows)
    assert all(len(held) == 1 for held in sides(found).values())
    by_text, by_site = defaultdict(set), defaultdict(set)
    for row, item in zip(rows, found, strict=True):
        by_text[row["text"]].add(item.split)
        by_site[row["site"]].add(item.split)
    assert all(len(held) == 1 for held in [*by_text.values(), *by_site.values()])


def test_templates_are_not_taken_for_duplicates_silently(tmp_path: Path) -> None:
    template = text(0, 80)
    rows = [{"text": f"{template} SITE-{n}", "cause": "xy"[n % 2]} for n in range(100)]
    path = written(tmp_path, rows)
    with pytest.raises(DataError, match=r"100 of 100 rows are nearly equal .* set it to null"):
        items(Source(path), COLUMNS)
    assert len(items(Source(path, near_duplicate=None), COLUMNS)) == 100


def test_folds_test_every_row_once(tmp_path: Path) -> None:
    rows = tickets(100, site=[f"s{n // 3}" for n in range(100)])
    source = Source(written(tmp_path, rows), group="site", stratify="cause", folds=5, validation=0.2)
    tested: list[str] = []
    for fold in range(5):
        found = items(source, COLUMNS, fold)
        assert all(len(held) == 1 for held in sides(found).values())
        assert 17 <= shares(found)["test"] <= 23
        assert 17 <= shares(found)["validation"] <= 23
        tested += [item.id for item in found if item.split == "test"]
    assert sorted(tested) == sorted(f"row-{n}" for n in range(1, 101))
    with pytest.raises(StudyError, match="fold 5 was asked for"):
        items(source, COLUMNS, 5)


@given(st.lists(st.integers(1, 5), min_size=10, max_size=60), st.integers(0, 5))
def test_deal_gives_each_part_its_share(sizes: list[int], seed: int) -> None:
    starts = np.cumsum([0, *sizes])
    members = [list(range(start, start + size)) for start, size in zip(starts[:-1], sizes, strict=True)]
    parts = deal(members, [""] * int(starts[-1]), [0.25, 0.75], np.random.default_rng(seed))
    first = sum(size for size, part in zip(sizes, parts, strict=True) if part == 0)
    assert abs(first - 0.25 * sum(sizes)) <= 5


def test_a_published_split_is_honoured_and_its_leaks_are_counted(tmp_path: Path) -> None:
    rows = tickets(60, part=["Train"] * 40 + ["dev"] * 10 + ["TEST"] * 10)
    rows[59]["text"] = rows[0]["text"]
    found = assign(read(Source(written(tmp_path, rows), split="part"), COLUMNS))
    assert found.splits == ("train",) * 40 + ("validation",) * 10 + ("test",) * 10
    assert found.leaking == 1


def test_a_published_split_without_validation_gets_one_from_training(tmp_path: Path) -> None:
    source = Source(written(tmp_path, tickets(60, part=["train"] * 40 + ["test"] * 20)), split="part")
    found = items(source, COLUMNS)
    assert shares(found) == {"train": 31, "validation": 9, "test": 20}
    assert [item.split for item in found][40:] == ["test"] * 20


def test_time_splits_by_date(tmp_path: Path) -> None:
    days = [f"2026-{1 + n // 20:02d}-{1 + n % 20:02d}" for n in range(200)]
    path = written(tmp_path, tickets(day=days[::-1]))
    by_share = items(Source(path, time="day", validation=0.1, test=0.2), COLUMNS)
    assert [item.split for item in by_share] == ["test"] * 40 + ["validation"] * 20 + ["train"] * 140
    source = Source(path, time="day", validation_from="2026-08-01", test_from="2026-10-01")
    assert shares(items(source, COLUMNS)) == {"train": 140, "validation": 40, "test": 20}
    drawn = items(Source(path, time="day", test_from="2026-10", validation_by="group"), COLUMNS)
    assert [item.split for item in drawn][:20] == ["test"] * 20
    assert shares(drawn) == {"train": 150, "validation": 30, "test": 20}


@pytest.mark.parametrize("how", ["date", "group"])
def test_an_old_copy_of_a_test_ticket_is_left_out(tmp_path: Path, how: Any) -> None:
    rows = tickets(100, year=["2020"] * 80 + ["2022"] * 20)
    rows[0]["text"] = rows[99]["text"]
    days = iter(range(1, 29))
    for row in rows[40:68]:
        row["year"] = f"2021-01-{next(days):02d}"
    source = Source(written(tmp_path, rows), time="year", test_from="2022", validation_by=how)
    found = assign(read(source, COLUMNS))
    assert found.left_out == 1
    assert found.splits[0] is None
    assert found.splits[80:] == ("test",) * 20
    assert summary(source, COLUMNS).left_out == 1


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, tickets(30, year=["2020"] * 15 + ["2021"] * 15))
    with pytest.raises(DataError, match="no row lands in the test split"):
        items(Source(path, time="year", test_from="2030"), COLUMNS)


def example(body: str, split: Split) -> Example:
    return Example(body, "g", split, Score(Prompt("i", body, "l"), ("a", "b")), "a")


def test_tasks_that_hold_out_each_others_training_texts_are_refused() -> None:
    cause = [example("link down", "train"), example("no power", "test")]
    refuse_crossed({"root_cause": cause, "response": cause})
    # A leak inside one task is its published split's own, which `assign` counts.
    refuse_crossed({"root_cause": [*cause, example("link down", "test")]})
    with pytest.raises(StudyError, match=r"a text of root_cause .* in response it is held out"):
        refuse_crossed({"root_cause": cause, "response": [example("Link  down", "test")]})
    other = Example("x", "g", "validation", Likelihood("LINK DOWN"), "")
    with pytest.raises(StudyError):
        refuse_crossed({"root_cause": cause, "likelihood": [other]})


def test_the_summary_counts_everything(tmp_path: Path) -> None:
    rows = tickets(200, close_code=["C1" if n % 4 else "C2" for n in range(200)], note=["", *["x"] * 199])
    rows[1]["text"] = rows[0]["text"]
    rows[4]["cause"] = ""
    for row, cause in zip(rows[10:], ("rare", "rarer"), strict=False):
        row["cause"] = cause
    found = summary(Source(written(tmp_path, rows), skip_bad_rows=True), COLUMNS)
    assert found.rows == 199 == sum(found.splits.values())
    assert sum(sum(counts.values()) for counts in found.classes.values()) == 199
    assert found.classes["rare"] in [
        {"train": int(s == 0), "validation": int(s == 1), "test": int(s == 2)} for s in range(3)
    ]
    assert found.skipped == {"empty cause": 1}
    assert found.empty_cells == {"cause": 1, "note": 1}
    assert (found.duplicates, found.largest_alike) == (1, 2)
    assert found.words == {"median": 40, "p95": 40, "longest": 40}
    [suspect] = found.suspects
    assert (suspect.column, suspect.read) == ("close_code", False)
    assert suspect.accuracy > 0.95 > suspect.chance
    declared = Source(str(tmp_path / "tickets.csv"), skip_bad_rows=True, known_later=("close_code",))
    assert summary(declared, COLUMNS).suspects == ()
    told = "\n".join(found.lines())
    assert "Warning: 'close_code' alone predicts the label at 0.9" in told
    assert "the model does not read it" in told
    assert "Warning: 1 rows skipped: empty cause" in told
    assert "Empty cells: cause 1, note 1" in told


def test_a_class_that_training_lacks_and_leaking_groups_are_warned_of(tmp_path: Path) -> None:
    rows = tickets(40, part=["train"] * 20 + ["dev"] * 10 + ["test"] * 10)
    rows[39]["cause"], rows[38]["text"] = "new", rows[0]["text"]
    source = Source(written(tmp_path, rows), split="part", near_duplicate=None)
    told = "\n".join(summary(source, COLUMNS).lines())
    assert "Warning: 1 test rows have a class that no training row has" in told
    assert "Warning: 1 groups stand in more than one part" in told
    assert "nearly equal not looked for" in told


def test_copies_are_no_leak_and_an_unbalanced_label_is_none_either(tmp_path: Path) -> None:
    rows = [{"text": text(n // 4), "cause": "xy"[n // 4 % 2], "flag": "a"} for n in range(200)]
    assert summary(Source(written(tmp_path, rows)), COLUMNS).suspects == ()
    rows = [{"text": text(n), "cause": "x" if n else "y", "flag": "a"} for n in range(200)]
    assert summary(Source(written(tmp_path, rows)), COLUMNS).suspects == ()


def test_a_task_with_texts_for_answers_has_no_classes(tmp_path: Path) -> None:
    found = summary(Source(written(tmp_path, tickets())), Columns(("text",), "cause"))
    assert (found.classes, found.unseen, found.suspects) == ({}, {}, ())


@pytest.mark.parametrize("count", [100, 1000])
def test_the_detectable_loss_is_found_with_the_promised_power(count: int) -> None:
    loss = detectable_loss([1] * count, closed=True)
    generator, found = np.random.default_rng(0), 0
    better, worse = (0.10 - loss) / 2, (0.10 + loss) / 2
    for _ in range(2000):
        wins, losses, _ = generator.multinomial(count, [better, worse, 0.90])
        spread = ((wins + losses) / count - ((losses - wins) / count) ** 2) ** 0.5
        found += (losses - wins) / count > 1.645 * spread / count**0.5
    assert 0.75 < found / 2000 < 0.88


def test_groups_that_say_the_same_count_once() -> None:
    assert detectable_loss([10] * 50, closed=True) == pytest.approx(detectable_loss([1] * 50, closed=True))
    assert detectable_loss([1] * 900, closed=False) == pytest.approx(2.486 * 0.15 / 30, rel=1e-3)
