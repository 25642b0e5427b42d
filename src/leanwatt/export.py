"""The winner as a folder that others can use: Hugging Face files and a card that says what was measured, and where."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from leanwatt.errors import StoreError, StudyError
from leanwatt.recipe import Trial

if TYPE_CHECKING:
    from leanwatt.ranking import Ranking

_LEFT_BEHIND = ("openvino-*", "costs.json")
"""What belongs to this machine or to the study's books."""


def export(ranking: Ranking, trial: Trial, artifact: Path, target: Path) -> Path:
    """Copy the model of `trial` to `target` with a card; checks that it opens again. Raises StudyError, StoreError."""
    if target.exists() and any(target.iterdir()):
        raise StudyError(f"{target}: is there already and not empty. Give a new folder.")
    try:
        shutil.copytree(artifact, target, ignore=shutil.ignore_patterns(*_LEFT_BEHIND), dirs_exist_ok=True)
        (target / "README.md").write_text(card(ranking, trial), encoding="utf-8")
        (target / "provenance.json").write_text(json.dumps(asdict(trial), indent=1), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}).") from error
    _check_opens(artifact, target)
    return target


def _check_opens(artifact: Path, target: Path) -> None:
    """The copy gives the very logits of the original. Raises StoreError."""
    from leanwatt.engine.transformers import Transformers
    from leanwatt.question import Prompt

    probe = [Prompt("Check.", "The copy answers as the original does.", "Answer:")]
    with Transformers().open(artifact, 1) as first:
        expected = first.probe(probe)
    with Transformers().open(target, 1) as second:
        got = second.probe(probe)
    if any((mine != right).any() for mine, right in zip(got, expected, strict=True)):
        raise StoreError(f"{target}: the copy does not answer as the original does; the disk may be faulty.")


def card(ranking: Ranking, trial: Trial) -> str:
    """The model card: front matter, quality, energy, provenance, machine, and how to ask it."""
    from leanwatt.report import card_lines

    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [leanwatt]", "---", ""]
    return "\n".join([*front, f"# {trial.variant.recipe}", "", *card_lines(ranking, trial.label), ""])
