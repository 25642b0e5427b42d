"""Exports: whole or not at all, checked on tickets against the original, with a card that the hub can read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from invented import world
from offered import FORM, PROMISE, offer_of

from leanwatt import catalog
from leanwatt.bill import Terms
from leanwatt.card import card
from leanwatt.errors import StoreError, StudyError
from leanwatt.export import export, forms
from leanwatt.offer import Offer
from leanwatt.ranking import Ranking
from leanwatt.recipe import Choice

TICKETS = [f"site {place} {what} lost then alarm" for place in "ABCDE" for what in ("power", "link")]


@dataclass(frozen=True)
class Winner:
    ranking: Ranking
    offer: Offer


@pytest.fixture
def winner(saved: Callable[[str], Path], tmp_path: Path) -> Winner:
    """A tiny model in the place of an invented study's best variant."""
    here = world()
    trial = next(trial for trial in here.trials() if here.name(trial) == "gptq")
    artifact = shutil.copytree(saved("llama"), tmp_path / "artifact")
    (artifact / "costs.json").write_text("[]", encoding="utf-8")
    (artifact / "openvino-0-0").mkdir()
    return Winner(here.ranking([trial.label]), offer_of(artifact, trial=trial))


def answers(folder: Path, engine: str) -> list[object]:
    with catalog.build(Choice("engine", engine)).open(folder, 1) as session:
        found = session.answer([question for ticket in TICKETS for question in FORM.about(ticket).values()])
    return [answer.text for answer in found]


def test_plain_files_answer_as_the_original(winner: Winner, tmp_path: Path) -> None:
    folder = export(winner.ranking, winner.offer, tmp_path / "out", "huggingface", TICKETS)
    assert answers(folder, "transformers") == answers(winner.offer.artifact, "transformers")
    assert not (folder / "costs.json").exists()
    assert not list(folder.glob("openvino-*"))
    assert Offer.read(folder) == replace(winner.offer, artifact=folder)
    assert "16 of 16 answers are those of the saved model" in (folder / "README.md").read_text(encoding="utf-8")


def test_an_engines_form_needs_no_original_weights(winner: Winner, tmp_path: Path) -> None:
    folder = export(winner.ranking, winner.offer, tmp_path / "out", "openvino", TICKETS)
    assert not list(folder.glob("*.safetensors"))
    [form] = folder.glob("openvino-*")
    assert (form / "model.xml").is_file()
    before = {path: path.stat().st_mtime_ns for path in form.iterdir()}
    assert answers(folder, "openvino") == answers(winner.offer.artifact, "openvino")
    assert {path: path.stat().st_mtime_ns for path in form.iterdir()} == before, "nothing is converted again"
    offer = Offer.read(folder)
    assert offer.trial.engine == winner.offer.trial.engine
    assert offer.promise == PROMISE, "the study's own engine: its promise holds"
    assert f"`{form.name}/model.xml`" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_other_engines_forms_are_written_reloaded_and_checked(form: str, winner: Winner, tmp_path: Path) -> None:
    if form == "gguf":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    engine = {"onnx": "onnxruntime", "gguf": "llama_cpp"}[form]
    folder = export(winner.ranking, winner.offer, tmp_path / "out", form, TICKETS)
    assert list(folder.glob(f"{engine}-*/*.{form}"))
    assert not list(folder.glob("*.safetensors"))
    assert answers(folder, engine) == answers(winner.offer.artifact, engine)
    assert Offer.read(folder).trial.engine == Choice("engine", engine)


def test_a_form_that_computes_something_else_is_not_called_done(
    winner: Winner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alike before and after the original weights are gone, and garbage both times."""
    from leanwatt.engine._asking import Asking

    def garbage(self: Asking, prompts: object) -> object:
        first, second = sound(self, prompts)
        return -first, -second

    sound = Asking.probe
    export(winner.ranking, winner.offer, tmp_path / "sound", "openvino", TICKETS)
    monkeypatch.setattr(Asking, "probe", garbage)
    with pytest.raises(StoreError, match="it computes something else"):
        export(winner.ranking, winner.offer, tmp_path / "out", "openvino", TICKETS)
    assert not (tmp_path / "out").exists()


def test_another_engine_keeps_no_promise(winner: Winner, tmp_path: Path) -> None:
    trial = replace(winner.offer.trial, engine=Choice("engine", "transformers"))
    mine = winner.ranking.entry(winner.offer.trial.label)
    ranking = replace(winner.ranking, entries=(*winner.ranking.entries, replace(mine, label=trial.label)))
    read = Offer.read(export(ranking, replace(winner.offer, trial=trial), tmp_path / "out", "openvino", TICKETS))
    assert read.trial.engine == Choice("engine", "openvino")
    assert read.promise.joules is None


def test_what_cannot_be_exported_is_said(winner: Winner, tmp_path: Path) -> None:
    def tried(form: str, tickets: list[str] = TICKETS) -> None:
        export(winner.ranking, winner.offer, tmp_path / "out", form, tickets)

    with pytest.raises(StudyError, match="Did you mean 'openvino'"):
        tried("openvin")
    with pytest.raises(StudyError, match="runs the saved model itself"):
        tried("transformers")
    with pytest.raises(StudyError, match="no validation ticket"):
        tried("huggingface", [])
    assert not (tmp_path / "out").exists(), "nothing half done is left"
    (tmp_path / "out").touch()
    with pytest.raises(StudyError, match="not empty"):
        tried("huggingface")
    assert {"huggingface", "openvino", "onnx", "gguf"} <= set(forms())


def test_a_copy_that_answers_otherwise_is_not_called_done(
    winner: Winner, tmp_path: Path, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt import export as module

    def damaged(_: Path, target: Path) -> None:
        shutil.copytree(saved("gpt2"), target)

    monkeypatch.setattr(module, "_copy", damaged)
    for form, words in (("huggingface", "the copy does not answer"), ("openvino", "does not answer as engine")):
        with pytest.raises(StoreError, match=words):
            export(winner.ranking, winner.offer, tmp_path / "out", form, TICKETS)
        assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said(winner: Winner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(StoreError, match="No space left"):
        export(winner.ranking, winner.offer, tmp_path / "out", "huggingface", TICKETS)


def test_the_card_is_read_by_the_hub(winner: Winner) -> None:
    from huggingface_hub import ModelCard

    found = ModelCard(card(winner.ranking, winner.offer.trial, "Made here."))
    assert found.data.library_name == "transformers"
    results = found.data.eval_results
    assert results is not None
    names = {result.metric_name for result in results}
    assert {"macro_f1 of root_cause (validation)", "macro_f1 of root_cause (test)"} <= names
    entry = winner.ranking.entry(winner.offer.trial.label)
    values = {result.metric_name: result.metric_value for result in results}
    assert values["macro_f1 of root_cause (validation)"] == round(entry.tasks["root_cause"].quality.value, 4)
    for heading in ("## Intended use", "## Quality", "## Energy", "## Where this comes from"):
        assert heading in found.text
    assert found.data.get("co2_eq_emissions") is None, "no country was given, and none is guessed"


def test_emissions_are_those_of_the_bill(winner: Winner) -> None:
    from huggingface_hub import ModelCard

    terms = Terms.parse({"country": "FR", "year": 2023})
    assert terms is not None
    assert terms.intensity is not None
    ranking = replace(winner.ranking, terms=terms)
    found = ModelCard(card(ranking, winner.offer.trial, "Made here."))
    making = ranking.entry(winner.offer.trial.label).making
    assert making is not None
    assert making.joules is not None
    emissions = found.data["co2_eq_emissions"]
    assert emissions["emissions"] == pytest.approx(making.joules / 3.6e6 * terms.intensity.grams_per_kwh, rel=1e-3)
    assert emissions["geographical_location"] == "France"
    assert "g of CO2 equivalent" in found.text


def test_provenance_is_plain_json(winner: Winner, tmp_path: Path) -> None:
    folder = export(winner.ranking, winner.offer, tmp_path / "out", "huggingface", TICKETS)
    found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert found["questions"]["root_cause"]["prompt"]["lead"] == "Root cause:"
    assert len(found["prompt_digest"]) == 16
