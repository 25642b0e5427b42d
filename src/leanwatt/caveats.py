"""What a reader must know before believing a ranking: one sentence each."""

from collections.abc import Iterable

from leanwatt.evidence import Gathered
from leanwatt.measurement import Provenance
from leanwatt.ranking import Entry, Ranking

FEW_EXAMPLES = 200
FULL_AGREEMENT = 0.99
FLAGS = {
    "contended": "other programs used this machine meanwhile",
    "resumed": "the study was interrupted in their round",
    "short": "the window was short for the sensor",
}


def caveats(ranking: Ranking, gathered: Gathered) -> tuple[str, ...]:
    """In order of weight: what is not known, then what is less sure than it looks."""
    found = [*_protocol(ranking), *_reference(ranking), *_energy(ranking), *_untried(ranking)]
    found += [*_unfinished(ranking), *_few(ranking)]
    return (
        *found,
        *_quality(ranking),
        *_chance(ranking, gathered),
        *_drift(ranking),
        *_flags(gathered),
        *_least_form(ranking),
        *ranking.scale.left_out,
        *gathered.left_out,
    )


def _protocol(ranking: Ranking) -> Iterable[str]:
    if ranking.protocol != "ranked":
        yield f"Protocol {ranking.protocol}: a first look with {ranking.rounds} rounds, not a ranking."
    if ranking.folds > 1:
        yield (
            f"Cross-validated over {ranking.folds} folds: each example served to choose in one fold and to test in "
            "another, so nothing here was confirmed on examples that no choice has seen."
        )


def _reference(ranking: Ranking) -> Iterable[str]:
    reference = ranking.entry(ranking.reference)
    if not reference.is_complete:
        yield f"The reference {reference.label} has no comparable result ({reference.why}); nothing can be judged."


def _energy(ranking: Ranking) -> Iterable[str]:
    scale = ranking.scale
    if scale.unit == "joules":
        return
    yield (
        "No energy sensor was read alike for all: CPU-seconds are ranked. Kernels that differ in kind draw up to 30 % "
        "more or less power at equal load; inside that allowance the answer is `cannot tell`."
    )
    if scale.provenance == Provenance.ESTIMATED:
        yield "Joules are estimates from CPU time and a table of processors, with a wide band; they are not ranked."
    if ranking.machine.get("gpus"):
        yield "This machine has a GPU whose energy was not read; its work is not in the CPU-seconds."


def _untried(ranking: Ranking) -> Iterable[str]:
    found = ranking.searched
    if not found.not_tried:
        return
    charged = {key: f"{found.charged[key]:.3g}" if key in found.charged else "unknown" for key in found.budget}
    limits = [f"{key} {charged[key]} of {most:g}" for key, most in found.budget.items()]
    budget = f" Charged to the budget so far: {', '.join(limits)}." if limits else ""
    wanted = f", {found.still_wanted} of which the search would still try" if found.still_wanted else ""
    yield f"{len(found.not_tried)} variants were not tried (search {found.method}){wanted}.{budget}"


def _unfinished(ranking: Ranking) -> Iterable[str]:
    for entry in ranking.entries:
        if entry.status != "done":
            yield f"{entry.label}: {entry.status}. {entry.why}"
        elif not entry.is_complete:
            yield f"{entry.label}: not ranked, since it {_because(entry.why)}."
        if entry.confirmation is not None and entry.confirmation.why:
            yield f"{entry.label}: could not answer the test split ({entry.confirmation.why})."


def _because(why: str) -> str:
    return why if why.startswith("does not") else f"cannot be compared ({why})"


def _few(ranking: Ranking) -> Iterable[str]:
    for task in ranking.best_by_task:
        counts = [entry.tasks[task].quality.repeats for entry in ranking.entries if task in entry.tasks]
        if min(counts) < FEW_EXAMPLES:
            yield f"{task}: only {min(counts)} validation examples; small losses cannot be seen."


def _quality(ranking: Ranking) -> Iterable[str]:
    for task in dict.fromkeys(task for entry in ranking.entries for task in entry.tasks):
        cut = max(_share(entry, task, "truncated") for entry in ranking.entries)
        if cut > 0:
            yield f"{task}: up to {cut:.1%} of the tickets were longer than the model's context and were cut."


def _chance(ranking: Ranking, gathered: Gathered) -> Iterable[str]:
    """Of training, which intervals over examples do not hold."""
    if len(ranking.seeds) > 1:
        yield f"{len(ranking.seeds)} seeds: the word for quality is the worst of them, each paired with its reference."
        return
    graded = [record.trial.variant.recipe for record in gathered.records if record.job == "grade"]
    trainings = {recipe.up_to_last("finetune").steps for recipe in graded}
    trainings.discard(())
    if len(trainings) > 1:
        yield (
            f"{len(trainings)} ways of training with one seed: a training that is repeated may end elsewhere, and no "
            "interval here holds that. What is graded are the models as they are; to say that one way of training is "
            "better than another, set `seeds: [0, 1, 2]`."
        )


def _drift(ranking: Ranking) -> Iterable[str]:
    """Of engines at few bits; at 16 bits and more such a difference fails the trial."""
    for entry in ranking.entries:
        share, examples = entry.facts.get("option_agreement"), entry.facts.get("option_examples")
        if isinstance(share, float) and share < FULL_AGREEMENT:
            yield (
                f"{entry.label}: here it chose another option than in plain transformers on {1 - share:.1%} of "
                f"{examples} checked examples; its quality here is what was graded in that engine."
            )


def _share(entry: Entry, task: str, metric: str) -> float:
    result = entry.tasks.get(task)
    return result.figures[metric].value if result and metric in result.figures else 0.0


def _flags(gathered: Gathered) -> Iterable[str]:
    for flag, times in gathered.flags.items():
        if flag in FLAGS:
            yield f"{times} weighings are flagged `{flag}`: {FLAGS[flag]}."


def _least_form(ranking: Ranking) -> Iterable[str]:
    if ranking.least_form_turned_by:
        others = ", ".join(ranking.least_form_turned_by)
        yield (
            f"The least/own form of the score (winner: {ranking.least_form_winner}) depends on who is in the table: "
            f"without {others} another one would win."
        )
