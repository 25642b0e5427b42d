"""Train a small base on texts of your own, for studies whose words no base at hand knows.

    python make_base.py TABLE.csv OUT_FOLDER --text thread --text notice --until year=2021 --epochs 4

It learns a tokenizer from the columns and pre-trains a small Llama on them. Only rows that a study's test split does
not hold may go in: `--until` keeps rows whose column is at most the value. `--epochs 0` gives random weights. Adapters
(`lora`) leave the embeddings as they are, which hold back what random weights of the usual spread can ever answer: give
`--spread 0.09` to a base that only adapters will teach.
"""

import argparse
import csv
from pathlib import Path

from leanwatt.console import progress
from leanwatt.lesson import Lesson
from leanwatt.model import Model, count
from leanwatt.schedule import Schedule
from leanwatt.starter import PIECES, Shape, config, tokenizer_of
from leanwatt.training import Trainer

WHOLE_WORDS = r" ?[^\s]+|\s+"


def main() -> None:
    """Read, learn, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", action="append", required=True, help="a column; may stand several times")
    parser.add_argument("--until", help="column=value: only rows up to it")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=768)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--spread", type=float, default=0.02, help="standard deviation of the first random weights")
    parser.add_argument("--whole-words", action="store_true", help="a word such as a128 may be one token")
    parser.add_argument("--also", default="", help="further words that the tokenizer must know")
    asked = parser.parse_args()
    texts = read(asked.table, asked.text, asked.until)
    shape = Shape(vocabulary=asked.vocabulary, hidden=asked.hidden, layers=asked.layers, context=asked.context)
    model = fresh([*texts, *[asked.also] * 50], shape, WHOLE_WORDS if asked.whole_words else PIECES, asked.spread)
    if asked.epochs:
        learn(model, texts, asked.epochs, shape)
    model.save(asked.out)
    print(f"{asked.out}: {count(model.module):,} parameters, {len(texts)} texts")


def read(table: Path, columns: list[str], until: str | None) -> list[str]:
    """The columns of each row, joined by lines."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if until:
        column, _, most = until.partition("=")
        rows = [row for row in rows if row[column] <= most]
    return ["\n".join(row[column] for column in columns) for row in rows]


def fresh(texts: list[str], shape: Shape, pieces: str, spread: float) -> Model:
    """A tokenizer of these texts and a model that knows nothing yet."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = tokenizer_of(texts, shape.vocabulary, pieces)
    torch.manual_seed(shape.seed)
    made = config(shape)
    made.vocab_size, made.initializer_range = len(tokenizer), spread
    return Model(LlamaForCausalLM(made), tokenizer)


def learn(model: Model, texts: list[str], epochs: float, shape: Shape) -> None:
    """Predict every next token of every text."""
    encoded = [model.tokenizer(text)["input_ids"][: shape.context - 2] for text in texts]
    begin, end = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    lessons = [Lesson((begin, *ids, end), 1) for ids in encoded]
    schedule = Schedule(shape.learning_rate / 2, epochs, 16)
    with progress("pre-training") as tell:
        Trainer(model, schedule, shape.seed, tell).run(lessons, [])
    model.history.append(f"pre-trained on {len(texts)} texts, {epochs} epochs")


if __name__ == "__main__":
    main()
