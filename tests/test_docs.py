"""The documentation is true of the code: generated pages are current, keys explained, examples work, links lead on."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from leanwatt import catalog, study
from leanwatt.recipe import Choice, Fidelity
from leanwatt.source import Source

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def generated() -> str:
    spec = importlib.util.spec_from_file_location("generate_methods", ROOT / "docs" / "generate_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.page())


def test_the_page_of_methods_is_what_the_script_prints() -> None:
    again = "python docs/generate_methods.py > docs/methods.md"
    assert text("docs/methods.md") == generated() + "\n", f"the docstrings have changed: {again}"


def rows(section: str) -> dict[str, list[str]]:
    """The table of one section of docs/study.md: key -> its other cells."""
    body = text("docs/study.md").split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {key.strip("`"): rest for key, *rest in cells}


def test_every_key_of_a_study_is_explained_with_its_default() -> None:
    found = rows("Keys")
    assert list(found) == list(dict.fromkeys(found))
    assert set(found) == set(study._KEYS)
    small = {"name": "a", "tasks": [{"root_cause": {"data": "t.csv", "text": "a", "label": "b"}}]}
    given = {key: yaml.safe_load(default.strip("`")) for key, (default, *_) in found.items() if default != "required"}
    assert found.keys() - given.keys() == small.keys()
    assert study.Study.parse({**small, **given}) == study.Study.parse(small)


def test_every_example_of_a_key_is_a_study() -> None:
    full = {"name": "a", "tasks": [{"root_cause": {"data": "t.csv", "text": "a", "label": "b"}}]}
    for key, (_, _, example) in rows("Keys").items():
        if example.startswith("`"):
            value = yaml.safe_load(example.strip("`").replace("\\|", "|"))
            for choice in study.Study.parse({**full, key: value}).choices():
                assert catalog.build(choice)


@pytest.mark.parametrize("key", [field.name for field in fields(Source)])
def test_every_setting_of_data_is_explained_with_an_example(key: str) -> None:
    found = rows("`tasks`")
    assert set(found) == {field.name for field in fields(Source)}
    default, _, example = found[key]
    field = next(field for field in fields(Source) if field.name == key)
    if default.startswith("`"):
        written = yaml.safe_load(default.strip("`"))
        assert (tuple(written) if isinstance(written, list) else written) == field.default
    needed = {
        "test_from": {"time": "t"},
        "validation_from": {"time": "t", "test_from": "2022-01-01"},
        "validation_by": {"time": "t"},
    }
    setting = {key: yaml.safe_load(example.strip("`"))}
    assert Source.parse({"path": "tickets.csv", **needed.get(key, {}), **setting})


def test_the_protocols_are_as_they_are_explained() -> None:
    found = rows("`protocol`")
    assert list(found) == [field.name for field in fields(study.Protocol) if field.name != "name"]
    for key, (ranked, quick, _) in found.items():
        for name, cell in (("ranked", ranked), ("quick", quick)):
            assert yaml.safe_load(cell.strip("`")) == getattr(study.PROTOCOLS[name], key)


def test_what_holds_numbers_names_all_of_them() -> None:
    found = rows("Keys")
    for key, names in (("budget", ("kwh", "hours", "trials")), ("load", ("tickets_per_day", "always_on"))):
        assert all(f"`{name}`" in found[key][1] for name in names)
        study.Study.parse({"name": "a", "tasks": ["root_cause"], key: dict.fromkeys(names, 1)})
    assert all(f"`{field.name}`" in found["fidelity"][1] for field in fields(Fidelity))


def test_indented_studies_can_be_read() -> None:
    blocks = re.findall(r"(?:^    .*\n)+", text("docs/study.md"), re.MULTILINE)
    whole, also = [yaml.safe_load(block) for block in blocks]
    assert len(study.Study.parse(whole).recipes) == 4
    assert len(study.Study.parse({**whole, **also}).also) == 2


@pytest.fixture
def chance(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pruner of CONTRIBUTING.md, as if its file lay in the room."""
    import leanwatt.prune

    [source] = re.findall(r"```python\n(.*?)```", text("CONTRIBUTING.md"), re.DOTALL)
    room = tmp_path_factory.mktemp("prune")
    (room / "chance.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(leanwatt.prune, "__path__", [*leanwatt.prune.__path__, str(room)])
    yield
    sys.modules.pop("leanwatt.prune.chance", None)


def test_the_pruner_of_the_guide_works(
    chance: None, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    from leanwatt.model import linears, load, weight_of

    assert "chance" in catalog.names("prune")
    about, settings = catalog.documentation("prune", "chance")
    assert about.startswith("Chance")
    assert list(settings) == ["sparsity"]
    assert catalog.find("prune", "chance").reads_data
    model = catalog.build(Choice("prune", "chance", {"sparsity": 0.5})).apply(load(saved("llama")), context)
    model.save(tmp_path / "variant")
    again = load(tmp_path / "variant")
    for name, layer in linears(again.module).items():
        assert float((weight_of(layer) == 0).float().mean()) == pytest.approx(0.5, abs=0.01), name
    assert again.masks.keys() == linears(again.module).keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_a_decision_has_its_number_and_three_parts(page: Path) -> None:
    place = DECISIONS.index(page) + 1
    assert page.name.startswith(f"{place:04}-")
    body = page.read_text(encoding="utf-8")
    assert body.startswith(f"# {place}. ")
    assert re.findall(r"^## (.+)$", body, re.MULTILINE) == ["Context", "Decision", "Consequences"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Paths with a folder in them, as written in code marks; those that a run makes aside."""
    found = re.findall(
        r"`((?:src/leanwatt|tests|docs|benchmarks|examples)/[\w./-]+)`", page.read_text(encoding="utf-8")
    )
    made = {"src/leanwatt/prune/chance.py", "docs/decisions/"}
    for name in set(found) - made:
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_pictures_are_small_and_shown() -> None:
    """`python docs/pictures.py` takes them."""
    shown = "".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "README.md"])
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    assert len(pictures) >= 6
    for picture in pictures:
        assert picture.read_bytes()[8:12] == b"WEBP", picture.name
        assert picture.stat().st_size < 150_000, f"{picture.name}: {picture.stat().st_size} bytes"
        assert f"pictures/{picture.name})" in shown, f"{picture.name}: no page shows it"
