"""Which cost can be ranked, and what each variant spends: only figures that were measured alike are compared."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from leanwatt.compare import Costs, Window, average, mean
from leanwatt.evidence import Evidence
from leanwatt.measurement import PREFILL, PREFILL_AND_DECODE, Energy, Measurement, Provenance, total, worst
from leanwatt.ranking import Phases, Scale, Spending

RANKABLE = (Provenance.MEASURED, Provenance.INTEGRATED)
"""Good enough to rank joules: a sensor, read without gaps."""

Signature = tuple[str, str, str]
"""Scope, provenance and source: figures with different ones are not comparable."""
Windows = Mapping[Window, Mapping[str, Measurement]]


@dataclass(frozen=True)
class Weighed:
    """The windows of every line that can be compared, and on which scale."""

    scale: Scale
    windows: Mapping[str, Windows]
    """By label."""
    incomparable: Mapping[str, str]
    """Labels that were weighed but not alike, and why."""


def weigh_up(lines: Sequence[Evidence], reference: str) -> Weighed:
    """Choose the widest set of devices that was read alike for all; CPU-seconds where there is no sensor."""
    machine, said = _machine(lines)
    windows: dict[str, Windows] = {line.label: found for line in lines if (found := line.windows(machine))}
    elsewhere = {
        line.label: "weighed on another machine" for line in lines if _weighed_elsewhere(line, windows, machine)
    }
    usual = _usual(windows)
    devices, covered = _widest(windows, usual, reference, RANKABLE)
    if not devices:
        return Weighed(_cpu_scale(windows, usual, reference, machine, said), windows, elsewhere)
    alike = {name: _alike(windows[name], devices, usual) for name in covered}
    named = "+".join(devices)
    strange = {
        name: f"its energy was not measured as that of the others ({named})" for name in windows.keys() - covered
    }
    scale = Scale("joules", devices, **_words(devices, usual), machine=machine, left_out=said)
    return Weighed(_with_left_out(scale, windows, alike), alike, elsewhere | strange)


def _machine(lines: Sequence[Evidence]) -> tuple[str | None, tuple[str, ...]]:
    """The one on which most was weighed, and a sentence on the others."""
    weighs = [record for line in lines for run in line.runs for record in run.weighs]
    counted = Counter(str(record.machine["id"]) for record in weighs if record.machine.get("id") is not None)
    if not counted:
        return None, ()
    [(machine, most)] = sorted(counted.items(), key=lambda found: (-found[1], found[0]))[:1]
    others = len(weighs) - most
    said = f"{others} weighings on other machines are left out: energy is never compared across machines."
    return machine, (said,) if others else ()


def _weighed_elsewhere(line: Evidence, windows: Mapping[str, Windows], machine: str | None) -> bool:
    weighs = [record for run in line.runs for record in run.weighs]
    return line.label not in windows and any(record.machine.get("id") != machine for record in weighs)


def _signature(energy: Energy) -> Signature:
    return energy.scope, str(energy.provenance), energy.source


def _devices(windows: Windows) -> Iterable[tuple[str, Energy]]:
    for tasks in windows.values():
        for measurement in tasks.values():
            yield from ((n, e) for n, e in measurement.devices.items() if e.joules is not None and e.scope != "memory")


def _usual(windows: Mapping[str, Windows]) -> dict[str, Signature]:
    """How each device was read most often, all variants together."""
    counted = Counter((name, _signature(e)) for each in windows.values() for name, e in _devices(each))
    found: dict[str, Signature] = {}
    for (name, signature), _ in sorted(counted.items(), key=lambda item: (item[1], item[0])):
        found[name] = signature
    return dict(sorted(found.items()))


def _widest(
    windows: Mapping[str, Windows],
    usual: Mapping[str, Signature],
    reference: str,
    allowed: Sequence[Provenance],
) -> tuple[tuple[str, ...], set[str]]:
    """Devices that were read alike for all, or else for the reference and most others; and for whom."""
    fit = [name for name, (_, provenance, _) in usual.items() if provenance in allowed]
    covered = {name: {label for label, each in windows.items() if _alike(each, (name,), usual)} for name in fit}
    covered = {n: c for n, c in covered.items() if reference in c and len(c) * 2 > len(windows)}
    if not covered:
        return (), set()
    most = max(len(found) for found in covered.values())
    best = [name for name, found in covered.items() if len(found) == most]
    nodes = [name for name in best if usual[name][0] == "node"]
    chosen = tuple(nodes[:1] or _together(best, covered, most))
    return chosen, set.intersection(*(covered[name] for name in chosen))


def _together(best: Sequence[str], covered: Mapping[str, set[str]], most: int) -> list[str]:
    """Those of the best devices that cover the same variants as the first."""
    return [name for name in best if len(covered[name] & covered[best[0]]) == most]


def _alike(windows: Windows, devices: Sequence[str], usual: Mapping[str, Signature]) -> Windows:
    """The windows in which every task's figure of these devices was obtained in the usual way."""
    return {w: tasks for w, tasks in windows.items() if all(_is_alike(m, devices, usual) for m in tasks.values())}


def _is_alike(measurement: Measurement, devices: Sequence[str], usual: Mapping[str, Signature]) -> bool:
    found = [measurement.devices.get(name) for name in devices]
    return all(
        e is not None and e.joules is not None and _signature(e) == usual[name]
        for name, e in zip(devices, found, strict=True)
    )


def _words(devices: Sequence[str], usual: Mapping[str, Signature]) -> dict[str, str]:
    signatures = [usual[name] for name in devices]
    return {
        "scope": "+".join(sorted({scope for scope, _, _ in signatures})),
        "provenance": str(worst(Provenance(provenance) for _, provenance, _ in signatures)),
        "source": "+".join(sorted({source for _, _, source in signatures})),
    }


def _cpu_scale(
    windows: Mapping[str, Windows],
    usual: Mapping[str, Signature],
    reference: str,
    machine: str | None,
    said: tuple[str, ...],
) -> Scale:
    """CPU-seconds rank; joules of the widest other kind (an estimate, say) stand beside them."""
    devices, _ = _widest(windows, usual, reference, tuple(Provenance))
    words = _words(devices, usual) if devices else {"scope": "", "provenance": str(Provenance.ABSENT), "source": ""}
    return Scale("cpu_seconds", devices, **words, machine=machine, left_out=said)


def _with_left_out(scale: Scale, before: Mapping[str, Windows], after: Mapping[str, Windows]) -> Scale:
    """Name the devices that are not counted, and the windows that were set aside."""
    seen = {name: e.scope for each in before.values() for name, e in _devices(each)}
    inside = {name for name, scope in seen.items() if scope != "node" and scale.scope == "node"}
    out = sorted(seen.keys() - set(scale.devices) - inside)
    said = [f"{name} is left out: it was not read alike for all variants." for name in out]
    lost = sum(len(before[name]) - len(after[name]) for name in after)
    if lost:
        said.append(f"{lost} windows are left out: a sensor failed or doubted itself in them.")
    return replace(scale, left_out=(*scale.left_out, *said))


def costs(windows: Windows, scale: Scale, tasks: Sequence[str]) -> dict[Window, float]:
    """Of one answer to each of `tasks` together, in the unit that is ranked; only windows that hold them all."""
    return {
        window: sum(_cost(measured[task], scale) for task in tasks)
        for window, measured in windows.items()
        if all(task in measured for task in tasks)
    }


def _cost(measurement: Measurement, scale: Scale) -> float:
    if scale.unit == "cpu_seconds":
        return measurement.cpu_seconds / measurement.answers
    joules = counted(measurement, scale).joules
    if joules is None:
        raise ValueError(f"{measurement.stage}: no joules, although its window was found comparable.")
    return joules / measurement.answers


def counted(measurement: Measurement, scale: Scale) -> Energy:
    """Joules of the devices that are counted; unknown unless all of them are known."""
    parts = {name: e for name, e in measurement.devices.items() if name in scale.devices and e.joules is not None}
    energy = total(parts)
    return energy if len(parts) == len(scale.devices) else replace(energy, joules=None, lower=None, upper=None)


def spending(windows: Windows, scale: Scale, tasks: Sequence[str]) -> Spending | None:
    """Everything one answer to each of `tasks` together takes; None where it was not weighed."""
    held = {w: [measured[t] for t in tasks] for w, measured in windows.items() if all(t in measured for t in tasks)}
    cpu = average(_each(held, lambda m: m.cpu_seconds))
    seconds = average(_each(held, lambda m: m.seconds))
    if cpu is None or seconds is None:
        return None
    return Spending(
        cpu_seconds=cpu,
        seconds=seconds,
        joules=average(_each(held, lambda m: counted(m, scale).joules)),
        joules_lower=_mean(_each(held, lambda m: counted(m, scale).lower)),
        joules_upper=_mean(_each(held, lambda m: counted(m, scale).upper)),
        net_joules=_mean(_each(held, lambda m: _net_joules(m, scale))),
        tokens_out=sum(m.tokens_out / m.answers for ms in held.values() for m in ms) / len(held),
    )


def phases(windows: Windows, scale: Scale) -> Phases | None:
    """Reading and writing apart, per token; None where they were not weighed, or not on this scale."""
    held = [(w, stages[PREFILL], stages[PREFILL_AND_DECODE]) for w, stages in windows.items()]
    known = [(w, first, both) for w, first, both in held if _is_known(first, scale) and _is_known(both, scale)]
    if not known:
        return None
    prompt_tokens = [first.tokens_in / first.answers for _, first, _ in known]
    new_tokens = [both.tokens_out / both.answers - 1 for _, _, both in known]
    prefill = {w: _cost(first, scale) / tokens for (w, first, _), tokens in zip(known, prompt_tokens, strict=True)}
    decode = {
        w: (_cost(both, scale) - _cost(first, scale)) / tokens
        for (w, first, both), tokens in zip(known, new_tokens, strict=True)
    }
    read, written = mean(prefill), mean(decode)
    return Phases(read, written, fmean(prompt_tokens), fmean(new_tokens)) if read and written else None


def _is_known(measurement: Measurement, scale: Scale) -> bool:
    return scale.unit == "cpu_seconds" or counted(measurement, scale).joules is not None


def _each(held: Mapping[Window, Sequence[Measurement]], what: Callable[[Measurement], float | None]) -> Costs:
    """Per answer, summed over tasks, in each window; a window in which one task's figure is unknown is absent."""
    found: dict[Window, float] = {}
    for window, measurements in held.items():
        figures = [what(m) for m in measurements]
        known = [figure / m.answers for figure, m in zip(figures, measurements, strict=True) if figure is not None]
        if len(known) == len(figures):
            found[window] = math.fsum(known)
    return found


def _mean(costs: Costs) -> float | None:
    return math.fsum(costs.values()) / len(costs) if costs else None


def _net_joules(measurement: Measurement, scale: Scale) -> float | None:
    """Less what the same devices would have spent idle; below 0 where the idle reading was not quiet."""
    joules = counted(measurement, scale).joules
    watts = [measurement.idle_watts.get(name) for name in scale.devices]
    known = [each for each in watts if each is not None]
    if joules is None or not watts or len(known) < len(watts):
        return None
    return joules - math.fsum(known) * measurement.seconds


def idle_watts(windows: Windows, scale: Scale) -> float | None:
    """Of the counted devices together, mean over windows; None where one was not read."""
    found = [
        math.fsum(m.idle_watts[name] for name in scale.devices)
        for measured in windows.values()
        for m in measured.values()
        if scale.devices and all(name in m.idle_watts for name in scale.devices)
    ]
    return math.fsum(found) / len(found) if found else None


def load_cost(measurement: Measurement | None, scale: Scale) -> float | None:
    """Of opening the engine once, in the unit that is ranked; None where unknown."""
    if measurement is None:
        return None
    return measurement.cpu_seconds if scale.unit == "cpu_seconds" else counted(measurement, scale).joules
