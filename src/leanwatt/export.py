"""The winner as a folder that others can use: Hugging Face files and a card that says what was measured, and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leanwatt import catalog
from leanwatt.errors import StoreError, StudyError
from leanwatt.prompt import VERSION as PROMPT_VERSION
from leanwatt.ranking import Entry, Figure, Ranking
from leanwatt.recipe import Choice, Trial, digest
from leanwatt.verdict import provenance_sentence, sentence

_LEFT_BEHIND = ("openvino-*", "onnxruntime-*", "llama_cpp-*", "reference-*.npz", "costs.json")
"""What belongs to this machine or to the study's books."""


def export(ranking: Ranking, trial: Trial, artifact: Path, target: Path, tasks: Sequence[Choice]) -> Path:
    """Copy the model of `trial` to `target` with a card; checks that it opens again. Raises StudyError, StoreError.

    `tasks` are the study's: their instructions are what the model was tuned to and must be asked with.
    """
    if target.exists() and any(target.iterdir()):
        raise StudyError(f"{target}: is there already and not empty. Give a new folder.")
    try:
        shutil.copytree(artifact, target, ignore=shutil.ignore_patterns(*_LEFT_BEHIND), dirs_exist_ok=True)
        (target / "README.md").write_text(card(ranking, trial), encoding="utf-8")
        (target / "provenance.json").write_text(json.dumps(provenance(trial, tasks), indent=1), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}).") from error
    _check_opens(artifact, target)
    return target


def provenance(trial: Trial, tasks: Sequence[Choice]) -> dict[str, Any]:
    """The whole recipe, and the prompt of each task: its words, and the digest of how they become tokens."""
    built = {choice.name: catalog.build(choice) for choice in tasks}
    prompts = {
        name: {part: getattr(task, part) for part in ("instruction", "lead") if hasattr(task, part)}
        for name, task in built.items()
    }
    return {"trial": asdict(trial), "prompts": prompts, "prompt_digest": digest([PROMPT_VERSION, prompts])}


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
    entry = ranking.entry(trial.label)
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [leanwatt]", "---", ""]
    parts = [_about(ranking, entry), _quality(ranking, entry), _cost(ranking, entry), _provenance(ranking, trial)]
    return "\n".join([*front, f"# {trial.variant.recipe}", "", *(line for part in parts for line in [*part, ""])])


def _about(ranking: Ranking, entry: Entry) -> list[str]:
    steps = ", ".join(entry.steps) or "none"
    return [
        f"Made by the study `{ranking.study}` (protocol: {ranking.protocol}); steps: {steps}.",
        "",
        sentence(ranking),
    ]


def _quality(ranking: Ranking, entry: Entry) -> list[str]:
    """Validation, and test where this variant met it, each with its interval."""
    lines = ["## Quality", "", "| task | metric | validation | test |", "|---|---|---|---|"]
    tested = entry.confirmation.figures if entry.confirmation else {}
    for name, task in entry.tasks.items():
        lines.append(
            f"| {name} | {task.metric} | {_with_interval(task.quality)} | {_with_interval(tested.get(name))} |"
        )
    return [
        *lines,
        "",
        f"Compared with the reference `{ranking.reference}`: {entry.word} at a margin of {ranking.margin}.",
    ]


def _cost(ranking: Ranking, entry: Entry) -> list[str]:
    spent = entry.spending
    if spent is None:
        return ["## Energy", "", "Not weighed."]
    lines = ["## Energy", "", f"CPU-seconds per ticket: {_with_interval(spent.cpu_seconds)}."]
    if spent.joules is not None and spent.joules_lower is not None and spent.joules_upper is not None:
        band = f"between {spent.joules_lower:.3g} and {spent.joules_upper:.3g}"
        lines.append(f"Joules per ticket: {spent.joules.value:.3g}, {band} with all that is uncertain about them.")
    return [*lines, provenance_sentence(ranking)]


def _provenance(ranking: Ranking, trial: Trial) -> list[str]:
    machine = ranking.machine
    known = [f"{key}: {machine[key]}" for key in ("cpu_model", "gpus", "os") if machine.get(key)]
    return [
        "## Where this comes from",
        "",
        f"Base: `{trial.variant.recipe.base}`. Engine: {trial.engine}, batch {trial.batch}. Seed {trial.variant.seed}.",
        f"Machine: {'; '.join(known) or 'unknown'}.",
        "`provenance.json` holds the whole recipe and the prompts that it must be asked with.",
    ]


def _with_interval(figure: Figure | None) -> str:
    if figure is None:
        return "not measured"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"
