"""Studies side by side: each keeps its own ranking."""

from pathlib import Path

import pytest
from invented import Truth, world

from leanwatt import verbs
from leanwatt.beside import NEVER, beside, read, text
from leanwatt.errors import StoreError
from leanwatt.report import report
from leanwatt.verdict import sentence


def written(folder: Path, **truths: Truth) -> Path:
    report(world(**truths).ranking(), folder / "report")
    return folder


def test_a_ranking_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table = world().ranking()
    report(table, tmp_path / "report")
    assert sentence(read(tmp_path)) == sentence(table)
    assert read(tmp_path / "report" / "ranking.json") == read(tmp_path)
    assert [entry.cost for entry in read(tmp_path).entries] == [entry.cost for entry in table.entries]


def test_each_study_has_its_line_and_its_own_winner(tmp_path: Path) -> None:
    places = [written(tmp_path / "one"), written(tmp_path / "two", gptq=Truth(cost=3.0))]
    rankings = verbs.compare(places)
    grid = beside(places, rankings)
    assert [row[4] for row in grid.rows] == ["gptq(bits=4)", "full(precision=fp32)"]
    assert all(row[1] == "Test CPU <1>" and row[3] == "J (measured)" for row in grid.rows)
    said = text(places, rankings)
    assert said.endswith(NEVER)
    for ranking in rankings:
        assert sentence(ranking) in said


@pytest.mark.parametrize("content", [None, "{", '{"study": 1}'])
def test_what_is_no_ranking_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "ranking.json").write_text(content)
    with pytest.raises(StoreError, match="finished study" if content is None else "leanwatt report"):
        verbs.compare([tmp_path])


def test_all_of_them_make_one_page(tmp_path: Path) -> None:
    places = [written(tmp_path / "one"), written(tmp_path / "two", gptq=Truth(cost=3.0))]
    rankings = verbs.compare(places, tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert NEVER in page and page.count('class="lead"') == 2 and page.count('class="plot"') == 4
    assert all(sentence(ranking)[:25] in page for ranking in rankings)
    assert "Test CPU &lt;1&gt;" in page and "Test CPU <1>" not in page
    with pytest.raises(StoreError, match="--page"):
        verbs.compare(places, tmp_path / "no" / "both.html")
