"""The base `starter`: a small Llama and its tokenizer, pre-trained here on simulated tickets of other networks.

Made for studies that need no download: its tickets come from networks and phrases that the embedded study never uses.
It is kept under a key of all that it depends on, so it is made once per machine.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanwatt.console import progress
from leanwatt.errors import StoreError
from leanwatt.prompt import VERSION as PROMPT_VERSION
from leanwatt.prompt import Encoder, plain
from leanwatt.question import Example, Generate, Likelihood, Prompt, Score
from leanwatt.recipe import digest
from leanwatt.variants import Base

if TYPE_CHECKING:
    from leanwatt.contracts import Progress

NAME = "starter"
PIECES = r" ?[A-Z]{2,}(?:-[A-Z]+)+| ?[A-Za-z]+|:\d\d| ?\d\d?|[/._\-][A-Z]+| ?[^\sA-Za-z0-9]+|\s+"
"""Alarm codes, words, minutes and numbers of up to two digits, so that one name is always the same few tokens."""
BEGIN, END, PAD = "<s>", "</s>", "<pad>"
TOKENS_PER_TICKET = 75
"""Roughly, for predictions."""
CAUSE = ("Name the root cause of this fault.", "Root cause:")
NOTE = ("Write the note that closes this ticket.", "Resolution:")
"""Instruction and lead as the tasks have them by default."""


@dataclass(frozen=True)
class Shape:
    """The model and how it is pre-trained; part of its key."""

    vocabulary: int = 1536
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    inner: int = 512
    context: int = 512
    tickets: int = 14_000
    seed: int = 7
    learning_rate: float = 2e-3
    batch: int = 32
    prompt_weight: float = 0.1
    version: int = 1


def cache_folder() -> Path:
    """Where bases are kept: $LEANWATT_CACHE, else the user's cache folder."""
    given = os.environ.get("LEANWATT_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "leanwatt"


def key(shape: Shape | None = None) -> str:
    """Follows the shape, the prompt and the simulator's words."""
    import hashlib

    from leanwatt.simulate import simulate

    sample = json.dumps(simulate(50, seed=0, bank="pretraining"), sort_keys=True)
    words = hashlib.sha256(sample.encode()).hexdigest()
    return digest([asdict(shape or Shape()), PROMPT_VERSION, words])


def config(shape: Shape | None = None) -> Any:
    """The model's configuration."""
    from transformers import LlamaConfig

    made = shape or Shape()
    return LlamaConfig(
        vocab_size=made.vocabulary,
        hidden_size=made.hidden,
        intermediate_size=made.inner,
        num_hidden_layers=made.layers,
        num_attention_heads=made.heads,
        num_key_value_heads=made.heads,
        max_position_embeddings=made.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def is_made(shape: Shape | None = None) -> bool:
    """Whether the base is in the cache."""
    return (cache_folder() / f"starter-{key(shape)}").is_dir()


def base(shape: Shape | None = None) -> Base:
    """The base, made first if it is not there. Raises StoreError where it cannot be kept."""
    made = shape or Shape()
    its_key = key(made)
    folder = cache_folder() / f"starter-{its_key}"
    if not folder.is_dir():
        with progress("pre-training the base `starter`") as tell:
            _make(made, folder, tell)
    return Base(NAME, str(folder), its_key)


def _make(shape: Shape, folder: Path, tell: Progress) -> None:
    """Pre-train in a folder beside, then rename: half a base is never used."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        pretrain(shape, draft, tell)
        if folder.is_dir():
            shutil.rmtree(draft)
        else:
            draft.replace(folder)
    except OSError as error:
        raise StoreError(f"{folder}: the base cannot be kept ({error.strerror}). Set LEANWATT_CACHE.") from error


def pretrain(shape: Shape, folder: Path, tell: Progress) -> None:
    """Simulate, train the tokenizer, train the model on whole tickets, and save."""
    import torch
    from transformers import LlamaForCausalLM

    from leanwatt.lesson import lessons
    from leanwatt.model import Model
    from leanwatt.schedule import Schedule
    from leanwatt.simulate import simulate
    from leanwatt.training import Trainer

    rows = simulate(shape.tickets, seed=shape.seed, bank="pretraining")
    examples = _examples(rows)
    tokenizer = tokenizer_of(_texts(examples[:8000]), shape.vocabulary)
    torch.manual_seed(shape.seed)
    model = Model(LlamaForCausalLM(config(shape)), tokenizer)
    found = lessons(examples, Encoder(tokenizer, shape.context))
    schedule = Schedule(
        shape.learning_rate, 1.0, shape.batch, prompt_weight=shape.prompt_weight, precision=_precision()
    )
    Trainer(model, schedule, shape.seed, tell).run(found, [])
    model.history.append(f"pre-trained on {len(rows)} simulated tickets")
    model.save(folder)


def _precision() -> str:
    """bf16 where the CPU multiplies it natively."""
    import torch

    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def _examples(rows: Sequence[dict[str, str]]) -> list[Example]:
    """Every ticket once, in turn as a cause to name and as a note to write."""
    causes = tuple(sorted({row["cause"] for row in rows}))
    found = []
    for place, row in enumerate(rows):
        if place % 2:
            write = Generate(Prompt(NOTE[0], row["description"], NOTE[1]), limit=64)
            found.append(Example(row["id"], row["id"], "train", write, row["resolution"]))
        else:
            ask = Score(Prompt(CAUSE[0], row["description"], CAUSE[1]), causes)
            found.append(Example(row["id"], row["id"], "train", ask, row["cause"]))
    return found


def _texts(examples: Sequence[Example]) -> list[str]:
    """Prompt and answer of each."""
    asked = [(e.question, e.target) for e in examples if not isinstance(e.question, Likelihood)]
    return [f"{plain(question.prompt)} {target}" for question, target in asked]


def tokenizer_of(texts: Sequence[str], size: int, pieces: str = PIECES) -> Any:
    """Byte-level BPE of at most `size` tokens, none longer than a piece: every text survives it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pieces), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BEGIN, eos_token=END, pad_token=PAD)
