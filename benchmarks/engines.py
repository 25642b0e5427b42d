"""Variants of one tuned model in every engine at batch 1 and 8: CPU-seconds and joules per ticket, losers included.

    leanwatt simulate tickets.csv
    python benchmarks/engines.py tickets tickets.csv --out runs/engines --minutes 60      # quality and cost, embedded
    python benchmarks/engines.py shape 134m --out runs/engines-134m --minutes 30          # cost only

`tickets` is a study: same tickets, same run, the same reuse of prompts, rounds in random order. `--reuse runs/tickets`
takes the models of a finished study instead of training anew. `shape` weighs random weights phase by phase and says
nothing of quality. Both stop after --minutes, go on from there when started again, and print what there is so far.
The GPU's table is that of engines_gpu.py.

`compiled` compiles each variant and batch size once, for about a minute, and later processes find its graphs in torch's
own cache on the disk (TORCHINDUCTOR_CACHE_DIR). Reading and writing are weighed apart (--no-phases leaves that out), so
that the factor of each variant can be taken apart into engine, batch, precision, pruning and output length.
"""

import argparse
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from leanwatt import catalog, shape, verbs
from leanwatt.apart import WAY, taken_apart
from leanwatt.ranking import Entry, Ranking
from leanwatt.recipe import Choice
from leanwatt.verdict import factor_sentence, short_names, word

TUNED = {"finetune": [{"full": {"precision": "bf16"}}]}
FP32 = {"transformers": {"compute": "fp32"}}
SHAPES = ["openvino", "onnxruntime", "llama_cpp", "compiled", "{transformers: {compute: bf16}}", yaml.dump(FP32)]
"""Also: `{openvino: {activations: int8}}`, `{onnxruntime: {activations: int8}}`, for what is quantized."""
BITS = (16, 8, 4)
CODED = ["{round_to_nearest: {bits: 8, group: 0}}", "{round_to_nearest: {bits: 4}}"]
PRUNED = ["{magnitude: {pattern: '2:4'}}", "{width: {keep: 0.5}}"]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    tickets = kinds.add_parser("tickets")
    tickets.add_argument("data", type=Path)
    tickets.add_argument("--reuse", type=Path, help="folder of a finished study with the same tuned model")
    tickets.add_argument("--examples", type=int, default=300, help="graded by scoring, and by writing")
    tickets.add_argument("--quantize", nargs="+", default=CODED, help="beside the uncompressed model")
    tickets.add_argument("--prune", nargs="*", default=PRUNED, help="uncompressed, and with the last of --quantize")
    tickets.add_argument("--phases", action=argparse.BooleanOptionalAction, default=True, help="for the output length")
    sizes = kinds.add_parser("shape")
    sizes.add_argument("shape")
    sizes.add_argument("--prompt", type=int, default=256)
    sizes.add_argument("--answer", type=int, default=64)
    for each in (tickets, sizes):
        each.add_argument("--out", type=Path, required=True)
        each.add_argument("--minutes", type=float, default=60.0)
        each.add_argument("--rounds", type=int, default=5)
        each.add_argument("--batch", type=int, nargs="+", default=[1, 8])
        each.add_argument("--seconds", type=float, default=2.0, help="shortest window")
        each.add_argument("--engines", nargs="+", help="as in a study; default: all that are installed here")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    print(of_tickets(asked) if asked.kind == "tickets" else of_shape(asked))


def installed(engines: Sequence[str]) -> list[Any]:
    """Those of them that can be built here; the others are named on the error stream."""
    found = []
    for text in engines:
        choice = Choice.parse("engine", yaml.safe_load(text))
        if catalog.is_installed("engine", choice.name):
            found.append(yaml.safe_load(text))
        else:
            print(f"not installed, left out: {choice.name}", file=sys.stderr)
    return found


# Tickets


def of_tickets(asked: Any) -> str:
    """Run the study for so many minutes, and rank what there is."""
    path = asked.out / "study.yaml"
    path.write_text(yaml.safe_dump(study(asked), sort_keys=False), encoding="utf-8")
    if asked.reuse and not (asked.out / "variants").exists():
        shutil.copytree(asked.reuse / "variants", asked.out / "variants")
    command = [sys.executable, "-m", "leanwatt", "run", str(path), "--out", str(asked.out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        running.wait(timeout=60 * asked.minutes)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)
        running.wait()
        print("Stopped at the time limit; start it again to go on.", file=sys.stderr)
    if not list((asked.out / "records").glob("*")):
        return "Nothing is finished yet; start it again to go on."
    return "\n".join(ticket_lines(verbs.rank(path, asked.out)))


def study(asked: Any) -> dict[str, Any]:
    """The uncompressed model, quantized, pruned, and both, in each engine."""
    engines = installed(asked.engines or SHAPES[:-1])
    coded, pruned = list(map(yaml.safe_load, asked.quantize)), list(map(yaml.safe_load, asked.prune))
    combined = {"steps": [TUNED, {"prune": pruned}, {"quantize": ["none", coded[-1]]}], "engine": engines}
    data = {"path": str(asked.data.resolve()), "validation": 0.15, "test": 0.34, "stratify": "cause"}
    data["known_later"] = ["resolution", "action", "work_notes", "close_code"]
    slots = {"action": "action", "equipment": "equipment", "place": "place"}
    return {
        "name": "engines",
        "base": "starter",
        "steps": [TUNED, {"quantize": ["none", *coded]}],
        "engine": engines,
        "also": [
            {"steps": [TUNED], "engine": FP32},
            *([combined] if pruned else []),
        ],
        "batch": asked.batch,
        "reference": f"starter > full(precision=bf16) | transformers(compute=fp32) | batch {asked.batch[0]}",
        "tasks": [
            {"root_cause": {"data": data, "text": "description", "label": "cause"}},
            {"response": {"data": data, "text": "description", "reference": "resolution", "slots": slots}},
        ],
        "protocol": {
            "quick": {
                "rounds": asked.rounds,
                "window_seconds": asked.seconds,
                "examples": asked.examples,
                "generations": asked.examples,
                "phases": asked.phases,
            }
        },
        "margin": 0.02,
    }


def ticket_lines(ranking: Ranking) -> list[str]:
    """The whole table, then the factor taken apart, then what could not run."""
    names = short_names(ranking)
    head = ["variant", "batch", "CPU-s per ticket", "J per ticket", "of best 16 bit", "of fp32 eager", "tokens out"]
    lines = [f"| {' | '.join([*head, 'quality', 'what ran'])} |", "|---|--:|--:|--:|--:|--:|--:|---|---|"]
    for entry in sorted((e for e in ranking.entries if e.spending), key=lambda e: (e.batch, _cpu(e))):
        assert entry.spending is not None
        joules = entry.spending.joules
        best, eager = yardstick(ranking, entry, is_eager=False), yardstick(ranking, entry, is_eager=True)
        cells = [
            names[entry.label],
            str(entry.batch),
            f"{_cpu(entry):.3g}",
            "-" if joules is None else f"{joules.value:.3g}",
            _share(entry, best),
            _share(entry, eager),
            f"{entry.spending.tokens_out:.1f}",
            word(entry),
            str(entry.facts.get("kernel")),
        ]
        lines.append("| " + " | ".join(cell.replace(" | ", ", ") for cell in cells) + " |")
    lines += ["", "`of`: quotients of mean CPU-seconds at the same batch.", "", *apart_lines(ranking)]
    lines += ["", "Pairs that differ in one thing, paired in each round:", ""]
    lines += [f"- {factor_sentence(factor)} ({names[factor.label]})" for factor in ranking.factors]
    lines += [f"- {names[e.label]}: {e.status}, {e.why}" for e in ranking.entries if not e.spending]
    return lines


def apart_lines(ranking: Ranking) -> list[str]:
    """The report's own table: the factor of each variant over the reference, axis by axis, cheapest first."""
    [part] = [each for each in taken_apart(ranking) if each.title == WAY]
    assert part.grid is not None
    place = {short_names(ranking)[entry.label]: number for number, entry in enumerate(ranking.entries)}
    rows = [
        part.grid.head,
        tuple("---" for _ in part.grid.head),
        *sorted(part.grid.rows, key=lambda row: place[row[0]]),
    ]
    return [*part.text, "", *("| " + " | ".join(cell.replace(" | ", ", ") for cell in row) + " |" for row in rows)]


def yardstick(ranking: Ranking, entry: Entry, *, is_eager: bool) -> Entry | None:
    """At the same batch: the uncompressed model in plain transformers at fp32, or in 16 bits in its best engine."""
    kinds = ("fp32",) if is_eager else ("bf16", "fp16")
    same = [
        each
        for each in ranking.entries
        if each.spending
        and each.batch == entry.batch
        and not any(step.startswith(("prune", "quantize")) for step in each.steps)
        and each.facts.get("weight_dtype") in kinds
        and (not is_eager or each.engine.startswith("transformers"))
    ]
    return min(same, key=_cpu, default=None)


def _cpu(entry: Entry) -> float:
    assert entry.spending is not None
    return entry.spending.cpu_seconds.value


def _share(entry: Entry, other: Entry | None) -> str:
    return "-" if other is None else f"{_cpu(entry) / _cpu(other):.0%}"


# A shape


def of_shape(asked: Any) -> str:
    """Weigh case after case in random order, round by round, until the time is over; each is kept as a line of JSON."""
    kept, deadline = asked.out / "outcomes.jsonl", time.monotonic() + 60 * asked.minutes
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    found = [line for line in lines if "why" not in line]  # What failed is tried again.
    done = {(each["round"], each["asked"]) for each in found}
    for number in range(asked.rounds):
        plans = list(shape_plans(asked))
        random.Random(number).shuffle(plans)
        for name, plan in plans:
            if (number, name) in done or time.monotonic() > deadline:
                continue
            outcomes = [_as_json(each) for each in shape.profile(plan, asked.out)]
            found += [{"round": number, "asked": name, **each} for each in outcomes]
            kept.write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    return "\n".join(shape_lines([_from_json(each) for each in found], asked.prompt, asked.answer))


def shape_lines(found: Sequence[Any], prompt: int, answer: int) -> list[str]:
    """A line for each engine and number of bits: per 1,000 tokens and per ticket, medians over rounds, by batch."""
    import pandas as pd

    failed = {each.case: each.why.strip().splitlines()[0] for each in found if isinstance(each, shape.Failed)}
    costs = pd.DataFrame(_cells(each) for each in found if isinstance(each, shape.PhaseCost))
    lines = ["", shape.NO_QUALITY, "", *(f"- {case}: {why}" for case, why in sorted(failed.items()))]
    if costs.empty:
        return lines
    keys = ["engine", "weights", "what ran"]
    by_phase = costs.pivot_table(["cpu", "joules"], keys, ["phase", "batch"], "median")
    ticket = {
        unit: (prompt * by_phase[unit]["prefill"] + answer * by_phase[unit]["decode"]) / 1000
        for unit in by_phase.columns.unique(0)
    }
    uncompressed = costs[costs.weights == "16 bit"].drop_duplicates(keys).set_index(keys)["dtype"]
    best = ticket["cpu"].loc[uncompressed[uncompressed.isin(["bf16", "fp16"])].index].min()
    eager = uncompressed[(uncompressed == "fp32") & uncompressed.index.get_level_values(0).str.startswith("transf")]
    names = {"cpu": f"{prompt + answer} tokens", "joules": "J"}
    figures = {phase: by_phase["cpu"][phase] for phase in ("prefill", "decode")}
    figures |= {names[unit]: each for unit, each in ticket.items()}
    shares = {"of best 16 bit": best, "of fp32 eager": ticket["cpu"].loc[eager.index].min()}
    shares = {name: ticket["cpu"] / of for name, of in shares.items()}
    told = (pd.concat(figures, axis=1).map("{:.3g}".format), pd.concat(shares, axis=1).map("{:.0%}".format))
    table = pd.concat(told, axis=1)
    table.columns = [f"{name}, batch {batch}" for name, batch in table.columns]
    table["off by"] = costs.groupby(keys)["off"].max().map("{:.1g}".format)
    table = table.reset_index()
    rows = [table.columns, ["---"] * len(table.columns), *table.replace(["nan%", "nan"], "-").to_numpy()]
    return [*(f"| {' | '.join(row)} |" for row in rows), *lines]


def _cells(cost: shape.PhaseCost) -> dict[str, Any]:
    """What `shape.Case.label` says, and what a thousand tokens take."""
    engine, bits, batch, _weights = cost.case.rsplit(", ", 3)
    return {
        "engine": engine,
        "weights": bits,
        "what ran": cost.facts["kernel"],
        "batch": int(batch.split()[1]),
        "phase": cost.phase,
        "cpu": 1000 * cost.cpu_seconds / cost.tokens,
        "joules": math.nan if cost.joules is None else 1000 * cost.joules / cost.tokens,
        "dtype": cost.facts["weight_dtype"],
        "off": cost.facts.get(f"logit_error_{cost.phase}", math.nan),
    }


def shape_plans(asked: Any) -> Any:
    """One case each, so that a run that is stopped loses one."""
    for engine in installed(asked.engines or SHAPES):
        for bits in BITS:
            for batch in asked.batch:
                choice = Choice.parse("engine", engine)
                plan = shape.Plan(
                    shape.parse(asked.shape),
                    (choice,),
                    (bits,),
                    (batch,),
                    ("random",),
                    asked.prompt,
                    asked.answer,
                    rounds=1,
                    window_seconds=asked.seconds,
                )
                yield f"{choice} {bits} {batch}", plan


def _as_json(outcome: Any) -> dict[str, Any]:
    return asdict(outcome)


def _from_json(line: dict[str, Any]) -> Any:
    fields = {key: value for key, value in line.items() if key not in ("round", "asked")}
    return shape.Failed(**fields) if "why" in fields else shape.PhaseCost(**fields)


if __name__ == "__main__":
    main()
