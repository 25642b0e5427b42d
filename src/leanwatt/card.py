"""The card of an exported model: what it is, what was measured and where, what it cost the climate, what it is for."""

from __future__ import annotations

from typing import Any

from leanwatt.measurement import Energy, Provenance
from leanwatt.ranking import Entry, Figure, Ranking
from leanwatt.recipe import Trial
from leanwatt.verdict import provenance_sentence, sentence


def card(ranking: Ranking, trial: Trial, made: str) -> str:
    """Front matter as the Hugging Face hub reads it, and the text. `made` says what is in the folder."""
    import yaml

    entry = ranking.entry(trial.label)
    front = yaml.safe_dump(_front(ranking, entry, trial), sort_keys=False, allow_unicode=True)
    parts = [
        [*_about(ranking, entry), "", made],
        _intended(entry),
        _quality(ranking, entry),
        _cost(ranking, entry),
        _climate(ranking, entry),
        _provenance(ranking, trial),
    ]
    text = "\n".join(line for part in parts if part for line in [*part, ""])
    return f"---\n{front}---\n\n# {trial.variant.recipe}\n\n{text}"


def _front(ranking: Ranking, entry: Entry, trial: Trial) -> dict[str, Any]:
    tested = entry.confirmation.figures if entry.confirmation else {}
    metrics = [
        {"type": task.metric, "name": f"{task.metric} of {name} ({split})", "value": round(figure.value, 4)}
        for name, task in entry.tasks.items()
        for split, figure in (("validation", task.quality), ("test", tested.get(name)))
        if figure is not None
    ]
    about = {"task": {"type": "text-generation"}, "dataset": {"name": ranking.study, "type": ranking.study}}
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["leanwatt"],
        "model-index": [{"name": str(trial.variant.recipe), "results": [{**about, "metrics": metrics}]}],
    }
    grams = _grams(ranking, entry)
    terms = ranking.terms
    if grams is not None and terms is not None and terms.intensity is not None:
        found["co2_eq_emissions"] = {
            "emissions": float(f"{grams:.4g}"),
            "source": f"leanwatt; {terms.words()}",
            "training_type": "fine-tuning",
            "geographical_location": terms.intensity.name,
            "hardware_used": str(ranking.machine.get("cpu_model") or "unknown"),
        }
    return found


def _grams(ranking: Ranking, entry: Entry) -> float | None:
    """Grams of CO2 equivalent that making the variant came to; None without a bill's country, or without joules."""
    if ranking.terms is None or entry.making is None or entry.making.joules is None:
        return None
    spent = Energy(entry.making.joules, provenance=Provenance(entry.making.provenance), scope=ranking.scale.scope)
    grams = ranking.terms.bill(spent).grams
    return None if grams is None else grams.value


def _climate(ranking: Ranking, entry: Entry) -> list[str]:
    grams = _grams(ranking, entry)
    if grams is None or ranking.terms is None or entry.making is None:
        return []
    said = f"Making it took {entry.making.joules:.4g} J ({entry.making.provenance}), {grams:.4g} g of CO2 equivalent"
    unknown = entry.making.unknown_seconds
    left_out = f" {unknown:.0f} s of stages whose energy is unknown are not in it." if unknown else ""
    return ["## Emissions", "", f"{said}: {ranking.terms.words()}.{left_out}"]


def _intended(entry: Entry) -> list[str]:
    return [
        "## Intended use",
        "",
        f"For texts like those of the study, asked as `provenance.json` says: {', '.join(entry.tasks) or 'no task'}. "
        "Its causes and drafts are for people who decide; the figures below say how often they are right.",
        "",
        "Not for other kinds of text, for other questions, or for acting on answers that nobody has read. The base "
        "model's own licence and limits hold as before.",
    ]


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
