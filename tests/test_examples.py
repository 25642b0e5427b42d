"""Every study that ships parses, all its choices build, and every link of the documentation leads somewhere."""

import re
from pathlib import Path

import pytest

from leanwatt import catalog
from leanwatt.errors import MissingExtraError
from leanwatt.study import Study

ROOT = Path(__file__).parents[1]
STUDIES = sorted(ROOT.glob("examples/*/*.yaml"))
SKIPPED = {".venv", "build", "dist", "runs", "node_modules", ".git", "shared"}
PAGES = sorted(path for path in ROOT.rglob("*.md") if not SKIPPED & set(path.relative_to(ROOT).parts[:-1]))
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    lines = re.findall(r"^#+\s+(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


def test_there_are_studies_and_pages() -> None:
    assert {path.parent.name for path in STUDIES} >= {"tickets", "microwave", "cloud_incidents", "banking77", "teleqna"}
    assert PAGES


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_study_parses_and_all_it_names_can_be_built(path: Path) -> None:
    study = Study.read(path)
    for choice in study.choices():
        try:
            assert catalog.build(choice) is not None
        except MissingExtraError as error:
            pytest.skip(str(error))
    trials = study.trials("data", 1)
    labels = [trial.label for trial in trials if not trial.is_baseline]
    assert labels
    assert study.reference == "first" or study.reference in labels, "the reference must be a trial"
    assert len({trial.id for trial in trials}) == len(trials)
    assert study.baselines, "an example shows what a language model must beat"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_study_says_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert ROOT in target.resolve().parents or target.resolve() == ROOT, f"{page.name}: {link} leaves the project"
        if anchor and target.suffix == ".md":
            assert anchor in headings(target), f"{page.name}: {link}"


def test_links_are_found_in_the_first_place() -> None:
    assert LINK.findall("see [the map](docs/map.md#here) and ![x](<a.png>)") == ["docs/map.md#here", "a.png"]
    assert not LINK.findall(CODE.sub("", "`[not](a.md)` and ```\n[nor](b.md)\n```"))
