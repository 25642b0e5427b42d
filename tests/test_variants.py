"""Making variants: shared prefixes are made once and charged, half a folder is never served, keys follow content."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from leanwatt import catalog
from leanwatt.contracts import Step
from leanwatt.errors import RefusedError, StoreError
from leanwatt.ledger import Ledger
from leanwatt.measurement import Counter, Provenance, Reading
from leanwatt.model import load
from leanwatt.recipe import Choice, Fidelity, Recipe, Variant
from leanwatt.variants import COSTS, Base, Maker, local_base, read_costs, stage_keys

DEPTH = Choice("prune", "depth")
HALF = Choice("prune", "magnitude", {"sparsity": 0.5})
EIGHT = Choice("quantize", "round_to_nearest", {"bits": 8})
FOUR = Choice("quantize", "round_to_nearest", {"bits": 4})
FULL = Choice("finetune", "full")


def ticking() -> Callable[[], Reading]:
    """Ten joules between any two readings."""
    times = iter(range(1, 10_000))

    def read() -> Reading:
        now = float(next(times))
        counter = Counter(10 * now, 10 * now, 10 * now, Provenance.MEASURED, "rapl", "package", now)
        return Reading(now, now, {"package-0": counter})

    return read


@dataclass
class Workshop:
    """Makes variants in one folder and remembers what it was asked."""

    folder: Path
    base: Base
    examples: list[Any]
    asked: int = 0
    ledger: Ledger = field(default_factory=lambda: Ledger(ticking()))

    def make(self, *steps: Choice, **changes: Any) -> Path:
        self.ledger = Ledger(ticking())
        variant = replace(Variant(Recipe(self.base.name, steps), "data"), **changes)
        maker = Maker(variant, self.base, self.folder, self.ledger, lambda _text, _share: None)
        return maker.make(self._examples)

    def _examples(self) -> list[Any]:
        self.asked += 1
        return self.examples

    @property
    def spent(self) -> list[tuple[str, bool]]:
        return [(each.stage, each.reused) for each in self.ledger.measurements if not each.within]


@pytest.fixture
def workshop(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> Workshop:
    (tmp_path / "variants").mkdir()
    return Workshop(tmp_path / "variants", local_base(str(saved("llama")), None), list(context.train))


def test_a_variant_is_made_stage_by_stage(workshop: Workshop) -> None:
    made = workshop.make(DEPTH, HALF, EIGHT)
    assert workshop.spent == [("load", False), ("prune", False), ("prune", False), ("quantize", False)]
    assert load(made).history == [
        "prune depth, blocks [0] gone" if "[0]" in load(made).history[0] else "prune depth, blocks [1] gone",
        "prune magnitude 0.5",
        "quantize round_to_nearest 8 bits, group 64",
    ]
    assert made.parent == workshop.folder
    assert sorted(path.name for path in workshop.folder.iterdir()) == sorted(
        stage_keys(Variant(Recipe(workshop.base.name, (DEPTH, HALF, EIGHT)), "data"), workshop.base)
    )


def test_a_shared_prefix_is_made_once_and_charged_to_both(workshop: Workshop) -> None:
    workshop.make(DEPTH, HALF, EIGHT)
    first = [each.total.joules for each in workshop.ledger.measurements if each.stage == "prune"]
    other = workshop.make(DEPTH, HALF, FOUR)
    assert workshop.spent == [("prune", True), ("prune", True), ("load", False), ("quantize", False)]
    assert [each.total.joules for each in workshop.ledger.measurements if each.stage == "prune"] == first
    assert load(other).codes.popitem()[1].bits == 4
    assert len(list(workshop.folder.iterdir())) == 1 + 2 + 2


def test_what_is_there_costs_nothing_but_what_it_cost(workshop: Workshop) -> None:
    first = workshop.make(DEPTH, EIGHT)
    before = {path: path.stat().st_mtime_ns for path in workshop.folder.rglob("*")}
    asked = workshop.asked
    assert workshop.make(DEPTH, EIGHT) == first
    assert workshop.spent == [("prune", True), ("quantize", True)]
    assert workshop.asked == asked, "examples are read only where they are needed"
    assert {path: path.stat().st_mtime_ns for path in workshop.folder.rglob("*")} == before


def test_a_prefix_of_something_made_is_there_already(workshop: Workshop) -> None:
    workshop.make(DEPTH, EIGHT)
    workshop.make(DEPTH)
    assert workshop.spent == [("prune", True)]
    workshop.make()
    assert workshop.spent == []


def test_the_untouched_base_is_a_variant(workshop: Workshop) -> None:
    made = workshop.make()
    assert load(made).history == []
    assert workshop.spent == [("load", False)]
    assert read_costs(made) == []


def test_costs_are_kept_beside_the_stage(workshop: Workshop) -> None:
    made = workshop.make(DEPTH)
    part, cost = read_costs(made)
    assert (cost.stage, cost.reused, cost.within) == ("prune", False, "")
    assert (part.stage, part.within) == ("calibrate", "prune")
    assert part.total.joules is not None and cost.total.joules is not None
    assert 0 < part.total.joules < cost.total.joules


@pytest.mark.parametrize("half", ["no costs", "draft"])
def test_half_a_folder_is_never_served(half: str, workshop: Workshop) -> None:
    variant = Variant(Recipe(workshop.base.name, (DEPTH,)), "data")
    key = stage_keys(variant, workshop.base)[-1]
    if half == "draft":
        (workshop.folder / f".{key}.4711").mkdir()
        (workshop.folder / f".{key}.4711" / COSTS).write_text("[]")
    else:
        workshop.make(DEPTH)
        (workshop.folder / key / COSTS).unlink()
        (workshop.folder / key / "model.safetensors").write_bytes(b"half")
    made = workshop.make(DEPTH)
    assert ("prune", False) in workshop.spent
    assert len(load(made).history) == 1
    assert (made / COSTS).is_file()


def test_a_failed_stage_leaves_its_joules_and_no_folder(workshop: Workshop) -> None:
    odd = Choice("prune", "magnitude", {"pattern": "3:5"})
    with pytest.raises(RefusedError, match="groups of 5"):
        workshop.make(FULL, odd)
    assert workshop.spent == [("load", False), ("finetune", False), ("prune", False)]
    assert len([path for path in workshop.folder.iterdir() if not path.name.startswith(".")]) == 2
    workshop.make(FULL)
    assert workshop.spent == [("finetune", True)]


def test_what_is_refused_beforehand_costs_nothing(workshop: Workshop) -> None:
    with pytest.raises(RefusedError, match="put prune before"):
        workshop.make(FULL, EIGHT, HALF)
    assert workshop.spent == []
    assert not list(workshop.folder.iterdir())


WIDTH = Choice("prune", "width", {"keep": 0.5})
DISTILL = Choice("finetune", "distill", {"batch": 8})


class Spy:
    """Notes the parent that each step is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parents: list[Path | None] = []
        real = catalog.build

        def build(choice: Choice) -> Any:
            step = real(choice)
            return replace_apply(step, self.parents) if choice.room in ("finetune", "prune", "quantize") else step

        monkeypatch.setattr(catalog, "build", build)


def replace_apply(step: Any, parents: list[Path | None]) -> Any:
    class Noting(Step):
        def foresee(self, outlook: Any) -> None:
            step.foresee(outlook)

        def apply(self, model: Any, context: Any) -> Any:
            parents.append(context.parent)
            return step.apply(model, context)

    return Noting()


def test_the_parent_is_the_model_before_the_first_pruning(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (FULL, WIDTH, HALF, DISTILL, EIGHT)
    keys = stage_keys(Variant(Recipe(workshop.base.name, steps), "data"), workshop.base)
    spy = Spy(monkeypatch)
    made = workshop.make(*steps)
    tuned = workshop.folder / keys[1]
    assert spy.parents == [None, None, tuned, tuned, tuned]
    assert load(made).history[3].startswith("finetune distill: ")
    assert load(tuned).history[-1].startswith("finetune full")
    spy.parents.clear()
    workshop.make(FULL, EIGHT)
    assert spy.parents == [None]


def test_a_parent_that_is_gone_is_made_again(workshop: Workshop) -> None:
    keys = stage_keys(Variant(Recipe(workshop.base.name, (FULL, WIDTH)), "data"), workshop.base)
    workshop.make(FULL, WIDTH)
    shutil.rmtree(workshop.folder / keys[1])
    made = workshop.make(FULL, WIDTH, DISTILL)
    expected = [("load", False), ("finetune", False), ("prune", True), ("load", False), ("finetune", False)]
    assert workshop.spent == expected, "what has not gone is taken"
    assert (workshop.folder / keys[1] / COSTS).is_file()
    assert load(made).history[-1].startswith("finetune distill")


def test_another_parent_is_another_repair(saved: Callable[[str], Path]) -> None:
    def key(*steps: Choice) -> str:
        base = Base("base", str(saved("llama")), "content")
        return stage_keys(Variant(Recipe("base", steps), "data"), base)[-1]

    assert key(FULL, WIDTH, DISTILL) != key(WIDTH, FULL, DISTILL) != key(WIDTH, DISTILL)


def test_a_full_disk_while_saving_leaves_no_half_folder(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.make()
    real = Path.write_text

    def full(path: Path, *arguments: Any, **settings: Any) -> int:
        if path.name == COSTS:
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match="No space left"):
            workshop.make(EIGHT)
    assert len([path for path in workshop.folder.iterdir() if not path.name.startswith(".")]) == 1
    assert load(workshop.make(EIGHT)).codes


def test_another_worker_may_be_quicker(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.model import Model

    made = workshop.make(DEPTH)
    marker = made / "made-by-the-other"
    kept = made.with_name("kept")
    made.rename(kept)
    real = Model.save

    def slow(model: Model, folder: Path) -> None:
        real(model, folder)
        if made.name in folder.name:
            kept.rename(made)
            marker.touch()

    monkeypatch.setattr(Model, "save", slow)
    assert workshop.make(DEPTH) == made
    assert marker.exists()


def keys(saved_: Path, *steps: Choice, **changes: Any) -> list[str]:
    base = local_base(str(saved_), None)
    return stage_keys(replace(Variant(Recipe("any", steps), "data"), **changes), base)


def test_keys_follow_what_a_stage_depends_on(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("llama")
    plain, reading = keys(folder, HALF, EIGHT), keys(folder, FULL, EIGHT)
    assert len(plain) == 3
    assert plain[0] == reading[0]
    changes: list[dict[str, Any]] = [{"data": "e"}, {"seed": 1}, {"fold": 1}, {"fidelity": Fidelity(steps=5)}]
    for change in changes:
        assert keys(folder, HALF, EIGHT, **change) == plain, "no step reads data"
        other = keys(folder, FULL, EIGHT, **change)
        assert other[0] == reading[0]
        assert other[1] != reading[1]
        assert other[2] != reading[2], "what follows depends on it too"
    assert keys(folder, FULL, EIGHT, fidelity=Fidelity(examples=5)) == reading, "it grades less, it makes the same"
    assert keys(folder, HALF, FOUR)[:2] == plain[:2]
    assert keys(folder, HALF, FOUR)[2] != plain[2]
    assert keys(folder, EIGHT, HALF)[1:] != plain[1:]
    monkeypatch.setattr(catalog.find("prune", "magnitude"), "version", 99)
    assert keys(folder, HALF, EIGHT)[0] == plain[0]
    assert not set(keys(folder, HALF, EIGHT)[1:]) & set(plain)


def test_the_base_is_known_by_its_content_wherever_it_lies(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved("llama")
    shutil.copytree(folder, tmp_path / "moved")
    assert keys(tmp_path / "moved", FULL) == keys(folder, FULL)
    (tmp_path / "moved" / ".cache").write_text("not part of it")
    assert keys(tmp_path / "moved", FULL) == keys(folder, FULL)
    config = tmp_path / "moved" / "config.json"
    config.write_text(config.read_text().replace("256", "128"))
    assert keys(tmp_path / "moved", FULL)[0] != keys(folder, FULL)[0]


def test_large_files_are_known_by_their_ends_and_size(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    big, found = tmp_path / "big" / "model.safetensors", set[str]()
    for place in (None, 5, (65 << 20) - 5):
        with big.open("wb") as file:
            file.truncate(65 << 20)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        found.add(local_base(str(big.parent), None).key)
    with big.open("wb") as file:
        file.truncate(66 << 20)
    found.add(local_base(str(big.parent), None).key)
    assert len(found) == 4


def test_a_base_of_a_hub_is_known_by_name_and_revision() -> None:
    found = {local_base(*pair).key for pair in (("org/a", None), ("org/a", "v1"), ("org/b", None))}
    assert len(found) == 3
    assert local_base("org/a", "v1").place == "org/a"


def test_a_new_prompt_makes_everything_anew(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(saved("llama"), HALF)
    monkeypatch.setattr("leanwatt.variants.PROMPT_VERSION", 99)
    assert not set(keys(saved("llama"), HALF)) & set(before)
