"""Perplexity of every pruner and quantizer of the catalog on three trained models, and whether the known order holds.

    LEANWATT_SHARED=/path/to/shared python benchmarks/perplexity.py
    python benchmarks/perplexity.py --model tiny=/folder/of/a/model=/calibration.txt=/held-out.txt

Without --model: the two TinyStories models in $LEANWATT_SHARED/models, where it is set, each on stories that the other
one wrote (so that neither is judged on its own words), and the base `starter`, on tickets of the simulator that it was
not trained on. Methods calibrate on one text and are judged on another. Perplexity is the exponential of the mean over
texts of the loss per token, counted in tokens of the untouched model also where a method changes them.

Prints a Markdown table, and for each pair of methods whose order the papers give, whether it comes out, by the paired
difference over texts with its standard error. Wanda differs from magnitude by the norms of the inputs; how much these
differ within a layer (median over layers) stands below.
"""

import argparse
import dataclasses
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS: dict[str, tuple[dict[str, Any], ...]] = {
    "50 %": ({"sparsity": 0.5}, {"keep": 0.5}, {"remove": "half"}),
    "2:4": ({"pattern": "2:4"},),
    "8 bits": ({"bits": 8},),
    "4 bits": ({"bits": 4},),
    "as it is": ({},),
}
"""What is asked of a method, by the settings that it has; `as it is` where it has none of them."""
ORDER = (
    ("sparsegpt", "wanda"),
    ("wanda", "magnitude"),
    ("gptq", "round_to_nearest"),
    ("awq", "round_to_nearest"),
)
"""Better and worse, as the papers have it."""
TEXTS = 128
CALIBRATION = 128


@dataclass(frozen=True)
class Subject:
    """A model, what its methods calibrate on, and what it is judged on: texts with an empty line between them."""

    name: str
    folder: Path
    calibration: Path
    held_out: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="name=folder=calibration text=held-out text")
    parser.add_argument("--only", default="", help="methods whose name holds this")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subjects = [_given(words) for words in asked.model] or list(_usual(Path(folder)))
        found = {subject.name: dict(_losses(subject, asked.only)) for subject in subjects}
        spreads = [f"- {each.name}: norms of inputs deviate by {_spread(each):.0%} of their mean" for each in subjects]
    print(table(found))
    print(*verdicts(found), *spreads, sep="\n")


def _given(words: str) -> Subject:
    name, *paths = words.split("=")
    return Subject(name, *map(Path, paths))


def _usual(folder: Path) -> Iterator[Subject]:
    shared = os.environ.get("LEANWATT_SHARED")
    if shared:
        models = [Path(shared) / "models" / name for name in ("stories260k", "tinystories-656k")]
        for model, other in zip(models, reversed(models), strict=True):
            texts = [_written(folder / f"{other.name}-{seed}.txt", _stories(other, seed)) for seed in (0, 1)]
            yield Subject(model.name, model, *texts)
    from leanwatt import starter

    seeds = (starter.Shape().seed, 99)  # It was trained on the first one's tickets.
    texts = [_written(folder / f"tickets-{seed}.txt", _tickets(seed)) for seed in seeds]
    yield Subject("starter", Path(starter.base().place), *texts)


def _tickets(seed: int) -> list[str]:
    """Whole tickets as `starter` learnt them."""
    from leanwatt.prompt import plain
    from leanwatt.question import Prompt
    from leanwatt.simulate import simulate
    from leanwatt.starter import CAUSE, NOTE

    texts = []
    for place, row in enumerate(simulate(600, seed=seed, bank="pretraining")):
        (instruction, lead), answer = (NOTE, "resolution") if place % 2 else (CAUSE, "cause")
        texts.append(f"{plain(Prompt(instruction, row['description'], lead))} {row[answer]}")
    return texts


def _stories(folder: Path, seed: int) -> list[str]:
    """Written by a model, word by word as it finds them likely."""
    import torch

    from leanwatt.model import load

    model = load(folder)
    torch.manual_seed(seed)
    begin = torch.full((TEXTS, 1), model.tokenizer.bos_token_id)
    ids = model.module.generate(
        begin,
        attention_mask=torch.ones_like(begin),
        do_sample=True,
        temperature=0.8,
        top_k=0,
        max_new_tokens=220,
        pad_token_id=model.tokenizer.eos_token_id,
    )
    return [" ".join(text.split()) for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _written(path: Path, texts: list[str]) -> Path:
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def _read(path: Path, most: int) -> list[str]:
    return [text for text in path.read_text(encoding="utf-8").split("\n\n") if text.strip()][:most]


Losses = Mapping[tuple[str, str], "list[float] | str"]


def _losses(subject: Subject, only: str) -> Iterator[tuple[tuple[str, str], list[float] | str]]:
    """(method, column) -> the loss on each text, per token of the untouched model; or why there is none."""
    from leanwatt import catalog
    from leanwatt.model import load

    dense = load(subject.folder)
    texts = _read(subject.held_out, TEXTS)
    counts = [len(dense.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    yield ("untouched", "as it is"), _judge(dense, texts, counts)
    for room in ("prune", "quantize"):
        for name in catalog.names(room):
            if only in name:
                for column, settings in _asked(room, name, subject, dense).items():
                    yield (name, column), _changed(subject, room, name, settings, (texts, counts))
                    print(f"{subject.name}: {name} {column}", file=sys.stderr)


def _asked(room: str, name: str, subject: Subject, dense: Any) -> dict[str, dict[str, Any]]:
    """Column -> settings, for the columns that a method can stand in."""
    from leanwatt import catalog
    from leanwatt.model import blocks

    fields = {field.name for field in dataclasses.fields(catalog.find(room, name))}
    reads = {"text": str(subject.calibration), "examples": CALIBRATION}
    found = {}
    for column, choices in COLUMNS.items():
        for settings in choices:
            if settings.keys() <= fields and (settings or not found):
                half = len(blocks(dense.module)) // 2
                filled = {key: half if value == "half" else value for key, value in settings.items()}
                found[column] = filled | {key: reads[key] for key in fields & reads.keys()}
    return found


def _changed(
    subject: Subject, room: str, name: str, settings: dict[str, Any], judged_on: tuple[list[str], list[int]]
) -> list[float] | str:
    from leanwatt import catalog
    from leanwatt.errors import RefusedError
    from leanwatt.model import load
    from leanwatt.recipe import Choice

    try:
        changed = catalog.build(Choice(room, name, settings)).apply(load(subject.folder), _context(subject))
    except RefusedError as refusal:
        print(f"{subject.name}: {name} {settings}: {refusal}", file=sys.stderr)
        return "refused"
    return _judge(changed, *judged_on)


def _context(subject: Subject) -> Any:
    """Examples of the same text, for methods that read examples only: go on with the second half of a text."""
    from leanwatt.contracts import Context
    from leanwatt.question import Example, Generate, Prompt

    examples = [
        Example(str(i), str(i), "train", Generate(Prompt("", text[: len(text) // 2], ""), 256), text[len(text) // 2 :])
        for i, text in enumerate(_read(subject.calibration, CALIBRATION))
    ]
    return Context(examples, (), 0, subject.calibration.parent, lambda _text, _share: None)


def _spread(subject: Subject) -> float:
    from leanwatt.calibration import sample, stages
    from leanwatt.model import load

    model, context, found = load(subject.folder), _context(subject), []
    for stage in stages(model, sample(model, context, CALIBRATION, str(subject.calibration)), context):
        norms = sum(inputs.float().square().sum(0) for inputs in stage.inputs()).sqrt()
        found += [float(norms.std() / norms.mean())] * len(stage.layers)
    return statistics.median(found)


def _judge(model: Any, texts: list[str], counts: list[int]) -> list[float]:
    """Negative log-likelihood of each text, in nats per token of the untouched model."""
    import torch

    losses = []
    for text, count in zip(texts, counts, strict=True):
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        row = torch.tensor([ids[: model.context]])
        with torch.inference_mode():
            logits = model.module(row, use_cache=False).logits[0, :-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")) / count)
    return losses


def table(found: Mapping[str, Losses]) -> str:
    """One row per model and method."""
    lines = [f"| model | method | {' | '.join(COLUMNS)} |", "|---|---|" + "--:|" * len(COLUMNS)]
    for model, losses in found.items():
        for method in dict.fromkeys(name for name, _ in losses):
            cells = (_cell(losses.get((method, column), "")) for column in COLUMNS)
            lines.append(f"| {model} | {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(losses: list[float] | str) -> str:
    return losses if isinstance(losses, str) else f"{math.exp(_mean(losses)):.2f}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def verdicts(found: Mapping[str, Losses]) -> Iterator[str]:
    """For each pair of methods in every column: does the better one lose less?"""
    for model, losses in found.items():
        for better, worse in ORDER:
            for column in COLUMNS:
                mine, other = losses.get((better, column)), losses.get((worse, column))
                if isinstance(mine, list) and isinstance(other, list):
                    yield f"- {model}, {column}: {better} before {worse}: {_verdict(mine, other)}"


def _verdict(mine: list[float], other: list[float]) -> str:
    """By the mean difference of the losses on the same texts and twice its standard error."""
    gaps = [b - a for a, b in zip(mine, other, strict=True)]
    mean = _mean(gaps)
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    words = "cannot tell" if abs(mean) <= 2 * error else "holds" if mean > 0 else "does not hold"
    return f"{words} ({mean:+.4f} ± {2 * error:.4f} nats per token)"


if __name__ == "__main__":
    main()
