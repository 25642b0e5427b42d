"""Does it pay to compute a long instruction once? CPU-seconds per ticket with sharing and without, in one run.

    leanwatt simulate tickets.csv
    python benchmarks/prefix.py tickets.csv --base starter --tokens 0 30 200 --batch 1 8 --rounds 5

The embedded tickets' root causes are scored, and answers of 8 tokens are written, by the base as it is: its quality
does not matter here. `--tokens` is the length of the instruction that is put before each ticket (0 for the task's own).
Every round answers the same 32 tickets both ways in random order, after one round to warm up; a cell is the median of
the rounds' quotients with least and most. Engines that are not installed are left out.
"""

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from leanwatt import catalog, starter, variants
from leanwatt.engine import _asking
from leanwatt.engine._asking import Asking
from leanwatt.prompt import Encoder
from leanwatt.question import Generate, Question
from leanwatt.recipe import Choice

ENGINES = ["openvino", "{openvino: {compute: fp32}}", "{transformers: {compute: fp32}}", "onnxruntime"]
TICKETS = 32
WRITTEN = 8
SENTENCE = "You help the network's operators: read the ticket and think of power, fibre, radio, routing and load. "


def main() -> None:
    """Read the command line, weigh, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", default="starter", help="starter, or a folder")
    parser.add_argument("--tokens", type=int, nargs="+", default=[0, 30, 200])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    asked = parser.parse_args()
    _asking.SHARED_FROM = 1  # To see where it does not pay.
    base = starter.base() if asked.base == starter.NAME else variants.local_base(asked.base, None)
    print("| engine | batch | tokens shared | of prompt | scoring, CPU ms | of whole | writing, CPU ms | of whole |")
    print("|---|--:|--:|--:|--:|---|--:|---|")
    with TemporaryDirectory() as folder:
        artifact = shutil.copytree(base.place, Path(folder) / "model")  # Engines put what they convert beside it.
        for text in asked.engines:
            choice = Choice.parse("engine", yaml.safe_load(text))
            for batch in asked.batch if catalog.is_installed("engine", choice.name) else ():
                with ExitStack() as stack:
                    session = stack.enter_context(catalog.build(choice).open(artifact, batch))
                    for tokens in asked.tokens:
                        given = questions(asked.data, session.encoder, tokens)
                        print(line(choice, session, given, asked.rounds), flush=True)


def questions(data: Path, encoder: Encoder, tokens: int) -> tuple[list[Question], list[Question]]:
    """To score and to write, with an instruction of so many tokens, or the task's own."""
    source = {"path": str(data), "validation": 0.15, "test": 0.34, "stratify": "cause"}
    source["known_later"] = ["resolution", "action", "work_notes", "close_code"]
    task = catalog.build(Choice("tasks", "root_cause", {"data": source, "text": "description", "label": "cause"}))
    asked = [example.question for example in task.examples(0) if example.split == "validation"][:TICKETS]
    if tokens:
        words = encoder.tokenizer(SENTENCE * tokens, add_special_tokens=False)["input_ids"][:tokens]
        given = encoder.tokenizer.decode(words)
        asked = [replace(each, prompt=replace(each.prompt, instruction=given)) for each in asked]
    return asked, [Generate(each.prompt, WRITTEN, at_least=WRITTEN) for each in asked]


def line(choice: Choice, session: Asking, asked: tuple[Sequence[Any], Sequence[Any]], rounds: int) -> str:
    """One row of the table."""
    one = session.answer(asked[0])[-1]
    cells = [str(choice), str(session.batch), str(one.tokens_shared)]
    cells.append(f"{sum(e.tokens_in + e.tokens_shared for e in session.answer(asked[0])) / TICKETS:.0f}")
    for kind in asked:
        shared, plain = both(session, kind, rounds)
        ratios = [mine / right for mine, right in zip(shared, plain, strict=True)]
        cells.append(f"{1000 * median(shared) / TICKETS:.2f}")
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {' | '.join(cells)} |"


def both(session: Asking, asked: Sequence[Question], rounds: int) -> tuple[list[float], list[float]]:
    """CPU-seconds of each round with sharing, and without."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    dice = random.Random(0)
    for number in range(rounds + 1):
        for shares in dice.sample([True, False], 2):
            begun = time.process_time()
            replace(session, shares=shares).answer(asked)
            if number:
                spent[shares].append(time.process_time() - begun)
    return spent[True], spent[False]


if __name__ == "__main__":
    main()
