"""What the paper found, and whether it repeats here: python findings.py STUDY.yaml [--out FOLDER] [--loss NATS].

Reads the records of a finished study and writes `findings.md` and `findings.html` into its folder: the paper's tables
for this machine, and each finding with what was seen, how certain that is, and what it rests on. The paper:
"Energy-Aware LLMs: A step towards sustainable AI for downstream applications", arXiv:2503.17783.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paper_case import (
    COMPRESSING,
    Case,
    Gain,
    arm,
    arms,
    case_of,
    change,
    costs_to,
    gain,
    has_pattern,
    is_uncompressed,
    level,
    pruned,
    served_bits,
    steps_of,
    trains_on,
    tuned_bits,
    tuning_ratio,
    without_cost,
)

from leanwatt.compare import KERNEL_ALLOWANCE, LEVEL, holm
from leanwatt.page import page
from leanwatt.ranking import Ranking
from leanwatt.recipe import Trial
from leanwatt.report import markdown
from leanwatt.sections import Grid, Section, figure
from leanwatt.study import Study
from leanwatt.verdict import number, percent, provenance_sentence, short_names, some_percent

Verdict = Literal["repeats", "does not repeat", "cannot tell", "not run"]
SCRATCH = (
    "A model trained from scratch on one domain shows mechanisms: whether fewer bits cost less in this engine on this "
    "machine, whether training in them reaches the same loss, what zeros and smaller layers do to a task that was "
    "learned. It has no general knowledge that compression could destroy, and not the outlying activations that come "
    "with size (Dettmers et al., 2022, arXiv:2208.07339), so it cannot show what happens to a large pre-trained model: "
    "there losses can be smaller (more to spare) or larger (knowledge that the task's data lack), and weights, not "
    "overhead, decide the cost."
)


@dataclass(frozen=True)
class Finding:
    """One sentence of the paper, put to the test."""

    claim: str
    verdict: Verdict
    said: tuple[str, ...]
    """What was seen, and what it rests on."""


def best(case: Case, ours: Sequence[str], others: Sequence[str], what: str) -> tuple[Verdict, tuple[str, ...]]:
    """Is the best of ours, by R, above all others? Certain only where every bound says so."""
    if not ours or not others:
        missing = what if not ours else "anything to compare it with"
        return "not run", (f"There is no finished result of {missing}.",)
    names = short_names(case.plain)
    chosen = max(ours, key=lambda label: case.plain.entry(label).r or 0.0)
    gains = {other: case.gain(other, chosen) for other in others}
    return judged(gains, names, names[chosen])


def judged(gains: Mapping[str, Gain | None], names: Mapping[str, str], chosen: str) -> tuple[Verdict, tuple[str, ...]]:
    """From what every rival gains over the chosen one."""
    known = {other: found for other, found in gains.items() if found is not None}
    if not known:
        return "not run", (f"Nothing that was weighed like {chosen} is there to compare it with.",)
    rival, most = max(known.items(), key=lambda item: item[1].value)
    said = [f"{chosen} against the next best by R, {names[rival]}: R {_signed(most)} for the latter."]
    better = [names[other] for other, found in known.items() if found.low is not None and found.low > 0]
    if better:
        return "does not repeat", (*said, f"Certainly higher R: {'; '.join(better)}.")
    if all(found.high is not None and found.high < 0 for found in known.values()):
        return "repeats", (*said, f"Its R is certainly above that of all {len(known)} others.")
    unsure = [names[other] for other, found in known.items() if found.high is None or found.high >= 0]
    word = "highest" if most.value < 0 else "not the highest"
    return "cannot tell", (*said, f"It is {word} by value; not told apart from it: {'; '.join(unsure)}.")


def fine_tuning(case: Case, loss: float | None) -> Finding:
    """Joules to a fixed validation loss, and the quality that was reached."""
    claim = "16 bit is the best precision for fine-tuning"
    found, names = arms(case), short_names(case.plain)
    asked = level(case, found, loss)
    if asked is None:
        return Finding(claim, "not run", ("No LoRA left a curve of its validation loss.",))
    reached = {label: costs_to(case, label, asked) for label in found}
    lacking = {label: without_cost(case, label, asked) for label in found}
    left_out = [f"Left out: {names[label]}, since {why}." for label, why in lacking.items() if why]
    sixteen = [label for label in found if tuned_bits(found[label]) == 16 and reached[label]]
    others = [label for label in found if tuned_bits(found[label]) != 16 and reached[label]]
    if not sixteen or not others:
        missing = "16 bit" if not sixteen else "another precision"
        return Finding(claim, "not run", (f"No LoRA at {missing} has a cost to a common validation loss.", *left_out))
    chosen = sixteen[0]
    ranking = case.ranked(chosen, case.study.margin)
    ratios = {other: tuning_ratio(case, reached[other], reached[chosen]) for other in others}
    gains = {other: gain(cost, ranking.entry(other), case.study.weight) for other, cost in ratios.items()}
    verdict, said = judged(gains, names, names[chosen])
    paired = [
        f"To a validation loss of {asked:.3f}, {names[other]} takes {some_percent(cost)} of what {names[chosen]} does."
        for other, cost in ratios.items()
        if cost is not None
    ]
    count = len(reached[chosen])
    basis = "One run each: a cost of one run has no interval, so nothing is certain."
    pairs = f"Intervals over {count} runs, paired (seeds, folds)."
    return Finding(claim, verdict, (*said, *paired, *left_out, basis if count == 1 else pairs))


def inference(case: Case) -> Finding:
    """Within each way of fine-tuning."""
    claim = "16 bit is the best precision for inference"
    found = {label: trial for label, trial in case.done().items() if not steps_of(trial, "prune")}
    verdicts: list[Verdict] = []
    said: list[str] = []
    for name in dict.fromkeys(arm(trial) for trial in found.values()):
        mine = {label: served_bits(trial) for label, trial in found.items() if arm(trial) == name}
        sixteen = [label for label, bits in mine.items() if bits == 16]
        verdict, words = best(case, sixteen, [label for label in mine if label not in sixteen], "16 bit")
        verdicts.append(verdict)
        said.append(f"{name}: {verdict}. {' '.join(words)}")
    return Finding(claim, agreed(verdicts), tuple(said) or ("Nothing is finished yet.",))


def agreed(verdicts: Sequence[Verdict]) -> Verdict:
    """It repeats where all that ran say so, and does not where one says so."""
    ran = [verdict for verdict in verdicts if verdict != "not run"]
    if not ran:
        return "not run"
    if "does not repeat" in ran:
        return "does not repeat"
    return "repeats" if set(ran) == {"repeats"} else "cannot tell"


def pruning(case: Case) -> Finding:
    """Each pruned variant beside itself without pruning."""
    names = short_names(case.plain)
    said, good, hopeless, count = [], 0, 0, 0
    for label, entry in pruned(case):
        count += 1
        cost = percent(entry.to_reference) if entry.to_reference else "an unknown share"
        said.append(f"{names[label]}: {cost} of the cost unpruned; quality {entry.word}; saves: {entry.saves or '-'}.")
        good += entry.saves == "yes" and entry.word == "non-inferior"
        hopeless += entry.saves == "no" or entry.word == "inferior"
    verdict: Verdict = "cannot tell"
    if not count:
        verdict = "not run"
    elif good:
        verdict = "repeats"
    elif hopeless == count:
        verdict = "does not repeat"
    if not count:
        said.append("No pruned variant is finished together with itself unpruned.")
    else:
        said.append(f"{good} of {count} are certainly cheaper and non-inferior at a margin of {case.study.margin:g}.")
    return Finding("Pruning makes answers cheaper without loss", verdict, tuple(said))


def best_of_all(case: Case) -> Finding:
    """Everything that was finished competes."""
    there = case.done()
    ours = [label for label, trial in there.items() if served_bits(trial) == 16 and has_pattern(trial)]
    verdict, said = best(case, ours, [label for label in there if label not in ours], "16 bit with 2:4 pruning")
    return Finding("16 bit with 2:4 pruning is the best of all", verdict, said)


def raises(case: Case) -> Finding:
    """Superiority over the same training without compression, one-sided, Holm-corrected over all tests."""
    claim = "Compression raises quality"
    compared = {
        f"{label} on {task}": (trial, change(result))
        for label, trial in case.done().items()
        if not is_uncompressed(trial) and (parent := case.without(trial, COMPRESSING)) in case.done()
        for task, result in case.ranked(parent, case.study.margin).entry(label).tasks.items()
    }
    changes = {name: found for name, (_, found) in compared.items() if found is not None}
    if not changes:
        return Finding(claim, "not run", ("No compressed variant has its uncompressed counterpart beside it.",))
    once = {name for name in changes if trains_on(compared[name][0]) and len(case.study.seeds) == 1}
    corrected = holm({name: each.p_higher for name, each in changes.items()})
    higher = [name for name, p in corrected.items() if p <= LEVEL]
    name, most = max(changes.items(), key=lambda item: item[1].value)
    said = [
        f"Compared {len(changes)} times on validation, each with the same training steps and no compression. "
        f"Largest gain: {most.value:+.3f} (one-sided 95 % bounds {most.low:+.3f} to {most.high:+.3f}): {name}.",
        *extra_training(case),
    ]
    if once:
        said.append(_ONCE)
    if higher:
        verdict: Verdict = "cannot tell" if once.issuperset(higher) else "repeats"
        return Finding(claim, verdict, (*said, f"Certainly higher after Holm's correction: {'; '.join(higher)}."))
    if all(each.high < case.study.margin for each in changes.values()):
        verdict = "cannot tell" if once else "does not repeat"
        return Finding(claim, verdict, (*said, f"None can gain as much as {case.study.margin:g}."))
    return Finding(claim, "cannot tell", (*said, "None is certainly higher after Holm's correction."))


def extra_training(case: Case) -> Iterator[str]:
    """What the extra steps alone do, where a study trains again after pruning: the control's own gain."""
    there = case.done()
    for label, trial in there.items():
        tuned = steps_of(trial, "finetune")
        if len(tuned) < 2 or not is_uncompressed(trial):
            continue
        recipe = replace(trial.variant.recipe, steps=trial.variant.recipe.steps[:1])
        before = replace(trial, variant=replace(trial.variant, recipe=recipe)).label
        if before in there:
            for task, result in case.ranked(before, case.study.margin).entry(label).tasks.items():
                found = change(result)
                gained = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})" if found else "unknown"
                yield f"The extra training alone, without compression, changes {task} by {gained}."


def _signed(found: Gain) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:+.3f} (no interval)"
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def findings(case: Case, loss: float | None = None) -> list[Finding]:
    """In the paper's order."""
    return [fine_tuning(case, loss), inference(case), pruning(case), best_of_all(case), raises(case)]


def sections(case: Case, loss: float | None = None) -> list[Section]:
    """The whole page."""
    found = findings(case, loss)
    rows = tuple((each.claim, each.verdict) for each in found)
    return [
        Section("Does it repeat?", (provenance_sentence(case.plain), _BASIS), Grid(("finding", "here"), rows)),
        *(Section(f"{each.claim}: {each.verdict}", items=each.said) for each in found),
        Section("Fine-tuning", (_TO_LOSS,), tuning_table(case, level(case, arms(case), loss))),
        Section("Inference", (), served_table(case, lambda trial: not steps_of(trial, "prune"))),
        Section("Pruning", (), served_table(case, lambda trial: bool(steps_of(trial, "prune")))),
        Section("Cost against quality", chart="front"),
        Section("What a model from scratch can show", (SCRATCH,)),
        Section("Before you rely on it", items=case.plain.caveats),
    ]


_BASIS = (
    "`repeats` and `does not repeat` are said only where every bound agrees, with cost and quality both at their worse "
    "ends (bounds are not corrected for the number of rivals); otherwise `cannot tell`. Bounds of quality hold "
    "for every seed; those of cost are of the mean over seeds, and of CPU-seconds wider by "
    f"{KERNEL_ALLOWANCE:.0%} where kernels are unlike, since their power may differ by as much. R is that of a "
    "ticket: w x phi + (1 - w) x the mean quality of the tasks, phi against the variant compared with."
)
_ONCE = (
    "What trains on after compression is a training of its own, and there is one of each: the bounds are over "
    "examples, and what another training would end at is in none of them. Several seeds would tell."
)
_TO_LOSS = (
    "Cost of the whole fine-tuning, and of coming down to a validation loss that all precisions reach: the best of the "
    "worst of them. Phi and R are of this phase: the cost to that loss against the reference's, and the quality that "
    "was reached."
)


def tuning_table(case: Case, loss: float | None) -> Grid:
    """The paper's table of fine-tuning: one line per precision, with R of this phase."""
    tasks, names = _tasks(case.plain), short_names(case.plain)
    rows = []
    for label in arms(case):
        entry = case.plain.entry(label)
        stage = entry.making.stages.get("finetune", {}) if entry.making else {}
        least = [each.least_loss for (name, _), each in case.curves.items() if name == label]
        phi = _phi(case, label, loss)
        rows.append(
            (
                names[label],
                _or_dash(stage.get("cpu_seconds")),
                _or_dash(stage.get("joules")),
                _or_dash(_mean_cost(case, label, loss)),
                _or_dash(min(least, default=None)),
                _or_dash(phi),
                *(figure(entry.tasks[task].quality) for task in tasks),
                _or_dash(_r(phi, entry.quality, case.study.weight)),
            )
        )
    to_loss = f"to loss {loss:.3f}" if loss is not None else "to a fixed loss"
    return Grid(("fine-tuning", "CPU-seconds", "joules", to_loss, "least loss", "phi", *tasks, "R"), tuple(rows))


def _mean_cost(case: Case, label: str, loss: float | None) -> float | None:
    spent = costs_to(case, label, loss)
    return sum(spent.values()) / len(spent) if spent else None


def _phi(case: Case, label: str, loss: float | None) -> float | None:
    """Of coming down to the loss: 0.5 for the study's reference."""
    own, reference = _mean_cost(case, label, loss), _mean_cost(case, case.plain.reference, loss)
    return None if own is None or reference is None else reference / (reference + own)


def _r(phi: float | None, quality: float | None, weight: float) -> float | None:
    return None if phi is None or quality is None else weight * phi + (1 - weight) * quality


def served_table(case: Case, wanted: Callable[[Trial], bool]) -> Grid:
    """The paper's tables of inference and of pruning: cost, phi, quality and R of each variant."""
    tasks, names = _tasks(case.plain), short_names(case.plain)
    rows = tuple(
        (
            names[label],
            str(served_bits(trial) or "-"),
            figure(entry.cost),
            _or_dash(entry.phi),
            *(figure(entry.tasks[task].quality) for task in tasks),
            _or_dash(entry.r),
        )
        for label, trial in case.done().items()
        if wanted(trial) and (entry := case.plain.entry(label))
    )
    return Grid(("variant", "bits", f"{case.plain.scale.symbol} per ticket", "phi", *tasks, "R"), rows)


def _tasks(ranking: Ranking) -> list[str]:
    return list(dict.fromkeys(task for entry in ranking.entries for task in entry.tasks))


def _or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)


def without_empty_grid(part: Section) -> Section:
    """A study without LoRA, as recovery.yaml, has no table of it."""
    return replace(part, grid=None) if part.grid is not None and not part.grid.rows else part


def main() -> None:
    """Read a study, write its findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the results; by default runs/<name of the study>")
    parser.add_argument("--loss", type=float, help="validation loss at which fine-tunings are compared")
    asked = parser.parse_args()
    study = Study.read(asked.study)
    folder = asked.out or Path("runs") / study.name
    case = case_of(study, folder)
    parts = [without_empty_grid(part) for part in sections(case, asked.loss)]
    (folder / "findings.md").write_text(markdown(case.plain, parts), encoding="utf-8")
    (folder / "findings.html").write_text(page(case.plain, parts), encoding="utf-8")
    for each in findings(case, asked.loss):
        print(f"{each.verdict:16} {each.claim}")


if __name__ == "__main__":
    main()
