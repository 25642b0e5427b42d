"""One suite for every method file of every room: the shape that catalog and documentation rely on."""

import dataclasses
import sys
from pathlib import Path

import pytest

from leanwatt import catalog

METHODS = [(room, name) for room in catalog.ROOMS for name in catalog.names(room)]


@pytest.mark.parametrize(("room", "name"), METHODS)
def test_is_one_final_frozen_dataclass_with_docs(room: str, name: str) -> None:
    cls = catalog.find(room, name)
    assert getattr(cls, "__final__", False), "mark it @final"
    assert cls.__dataclass_params__.frozen
    assert sys.modules[cls.__module__].__doc__
    about, settings = catalog.documentation(room, name)
    assert len(about.splitlines()[0]) > 20
    for field in dataclasses.fields(cls):
        if not field.name.startswith("_") and field.init:
            assert settings[field.name].split(": ", 1)[-1].strip(), f"{room}.{name}.{field.name} has no docstring"


def test_unknown_names_say_what_there_is() -> None:
    from leanwatt.errors import StudyError, UnknownNameError
    from leanwatt.recipe import Choice

    with pytest.raises(UnknownNameError, match="Did you mean 'magnitude'"):
        catalog.find("prune", "magnitud")
    with pytest.raises(UnknownNameError, match="rooms"):
        catalog.find("prunes", "magnitude")
    with pytest.raises(StudyError, match="Did you mean 'sparsity'"):
        catalog.build(Choice("prune", "magnitude", {"sparsitty": 0.5}))
    with pytest.raises(StudyError, match=r"round_to_nearest.bits: .*got 5"):
        catalog.build(Choice("quantize", "round_to_nearest", {"bits": 5}))
    with pytest.raises(StudyError, match=r"less than 1 \(got 1.5\)"):
        catalog.build(Choice("prune", "magnitude", {"sparsity": 1.5}))
    with pytest.raises(StudyError, match="either sparsity or pattern"):
        catalog.build(Choice("prune", "magnitude"))
    with pytest.raises(StudyError, match="required"):
        catalog.build(Choice("prune", "width"))


def test_a_new_method_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder beside the room, so that tests in other processes do not see it."""
    import leanwatt.prune
    from leanwatt.recipe import Choice

    monkeypatch.setattr(leanwatt.prune, "__path__", [*leanwatt.prune.__path__, str(tmp_path)])
    (tmp_path / "demonstration.py").write_text(
        '"""A pruner that keeps everything: only for this test."""\n'
        "from dataclasses import dataclass\nfrom typing import final\n"
        "from leanwatt.contracts import Step\n\n@final\n@dataclass(frozen=True)\nclass Demonstration(Step):\n"
        "    share: float = 0.5\n    def apply(self, model, context):\n        return model\n"
    )
    try:
        assert catalog.build(Choice("prune", "demonstration", {"share": 0.25})).share == 0.25
    finally:
        sys.modules.pop("leanwatt.prune.demonstration", None)


@pytest.mark.parametrize(
    ("engine", "command"),
    [("onnxruntime", r"pip install 'leanwatt\[onnxruntime\]'"), ("openvino", "pip install openvino")],
)
def test_a_missing_package_names_its_extra_or_itself(
    engine: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from leanwatt.errors import MissingExtraError

    def absent(_path: str) -> None:
        raise ModuleNotFoundError(f"No module named '{engine}'", name=engine)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda p: absent(p) if p.endswith(f"engine.{engine}") else real(p))
    with pytest.raises(MissingExtraError, match=f"{command}$"):
        catalog.find("engine", engine)
