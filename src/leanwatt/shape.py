"""What a model of a given shape takes per token, in each engine, precision and batch. No quality: weights are random.

For models that cannot be trained here: random weights cost what trained ones cost, nearly. A GPU's watts move with the
values, so every shape is weighed with a control: the same values shuffled. Before a window opens, the engine's logits
are compared with the reference's at the batch that is weighed; who computes something else is named with its error, and
not weighed. Nothing of this is a record, and no ranking reads it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from leanwatt import agreement, catalog
from leanwatt.contracts import WorkerDied
from leanwatt.errors import LeanwattError, RefusedError, StudyError, not_among
from leanwatt.ledger import Ledger
from leanwatt.measurement import Measurement
from leanwatt.passes import Passes
from leanwatt.recipe import Choice, digest

Weights = Literal["random", "shuffled"]
Phase = Literal["prefill", "decode"]
NO_QUALITY = "No quality: the weights are random. These figures are of a shape, and stand in no ranking."
_METER, _EXECUTOR = Choice("meter", "auto"), Choice("executor", "local")
MOST_PASSES = 10_000
"""A window ends there, whatever the clock says."""


@dataclass(frozen=True)
class Shape:
    """A Llama of a size."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    inner: int
    key_heads: int | None = None
    """Heads of keys and values; None for as many as heads."""
    context: int = 2048
    tied: bool = False
    """The head shares the embedding's weights."""

    @property
    def parameters(self) -> int:
        """Weights, norms left out."""
        size = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * size * (self.key_heads or self.heads)
        ends = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + 3 * self.hidden * self.inner) + ends


PRESETS = {
    "14m": Shape(8192, 256, 12, 4, 704),
    "134m": Shape(32000, 768, 12, 12, 2048),
    "1b": Shape(128256, 2048, 16, 32, 8192, key_heads=8, tied=True),
    "8b": Shape(128256, 4096, 32, 32, 14336, key_heads=8),
}
"""14m and 134m are those of the published engine figures; 1b and 8b have the sizes of Llama 3.2 and 3.1."""


def parse(text: str) -> Shape:
    """A preset's name, or a JSON object with the fields of Shape. Raises StudyError."""
    if not text.lstrip().startswith("{"):
        if text not in PRESETS:
            raise StudyError(not_among("the shapes", text, PRESETS) + " Or write a JSON object.")
        return PRESETS[text]
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    try:
        return TypeAdapter(with_config(ConfigDict(extra="forbid"))(Shape)).validate_python(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as error:
        needed = ", ".join(Shape.__dataclass_fields__)
        raise StudyError(f"shape: {str(error).splitlines()[0]}. Give a JSON object with: {needed}.") from error


@dataclass(frozen=True)
class Plan:
    """What to weigh: every combination, in rounds."""

    shape: Shape
    engines: tuple[Choice, ...]
    bits: tuple[int, ...] = (16, 8, 4)
    """16 for bf16 weights as they are."""
    batches: tuple[int, ...] = (1, 8)
    weights: tuple[Weights, ...] = ("random", "shuffled")
    prompt: int = 128
    """Tokens of a prompt."""
    answer: int = 32
    """Tokens written after it, whatever they are."""
    rounds: int = 3
    window_seconds: float = 2.0
    meter: Choice = _METER
    executor: Choice = _EXECUTOR

    def __post_init__(self) -> None:
        if set(self.bits) - {16, 8, 4}:
            raise StudyError(f"bits: got {list(self.bits)}; 16, 8 and 4 can be weighed.")
        if self.prompt + self.answer > self.shape.context:
            raise StudyError(f"{self.prompt} and {self.answer} tokens do not fit a context of {self.shape.context}.")

    @property
    def checked(self) -> Any:
        """Ids (rows, prompt + 1) on which every engine must agree with the reference before it is weighed."""
        import numpy as np

        rows = min(agreement.ROWS, max(self.batches))
        return np.random.default_rng(1).integers(3, self.shape.vocabulary, (rows, self.prompt + 1))

    @property
    def cases(self) -> list[Case]:
        """All that is weighed."""
        return [
            Case(self, engine, bits, batch, weights)
            for engine in self.engines
            for bits in self.bits
            for batch in self.batches
            for weights in self.weights
        ]


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    plan: Plan
    engine: Choice
    bits: int
    batch: int
    weights: Weights

    @property
    def label(self) -> str:
        """Name in the table."""
        return f"{self.engine}, {self.bits} bit, batch {self.batch}, {self.weights}"


@dataclass(frozen=True)
class PhaseCost:
    """What a token of one phase takes, as one window saw it."""

    case: str
    phase: Phase
    tokens: int
    seconds: float
    """Of the window."""
    cpu_seconds: float
    """Of the window."""
    joules: float | None
    """Of the window; None where unknown."""
    provenance: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """A case that could not be weighed."""

    case: str
    why: str


Outcome = list[PhaseCost] | Failed


def profile(plan: Plan, folder: Path, tell: Callable[[str], None] = lambda _text: None) -> list[PhaseCost | Failed]:
    """Make the models in `folder`, then weigh every case in rounds of random order, each in a new process."""
    executor = catalog.build(plan.executor)
    folders = _made(plan, folder, tell)
    _ask_the_reference(plan, sorted(set(folders.values())), executor)
    dropped: set[str] = set()
    found: list[PhaseCost | Failed] = []
    for number in range(plan.rounds):
        cases = [case for case in plan.cases if case.label not in dropped]
        random.Random(number).shuffle(cases)
        for case, outcome in zip(cases, executor.run(_Weighing(folders), cases, alone=True), strict=True):
            failed = Failed(case.label, outcome.reason) if isinstance(outcome, WorkerDied) else outcome
            found += [failed] if isinstance(failed, Failed) else failed
            dropped |= {case.label} if isinstance(failed, Failed) else set()
            tell(f"round {number + 1}: {case.label}")
    return found


def _made(plan: Plan, folder: Path, tell: Callable[[str], None]) -> dict[str, str]:
    """The folder of each model that the plan needs."""
    folders = {}
    for weights in plan.weights:
        for bits in plan.bits:
            target = folder / f"shape-{digest([asdict(plan.shape), weights, bits])}"
            if not target.is_dir():
                tell(f"making {weights} weights at {bits} bits")
                make(plan.shape, target, weights, bits)
            folders[f"{weights} {bits}"] = str(target)
    return folders


def _ask_the_reference(plan: Plan, folders: Sequence[str], executor: Any) -> None:
    """In processes of their own, so that no weighing finds its memory full or its caches warm. Raises StudyError."""
    for died in executor.run(_Asked(plan), folders, alone=True):
        if died is not None:
            raise StudyError(
                f"shape: the reference engine died on it ({died.reason}), so no engine can be checked. Take a smaller "
                "shape, or a machine with more memory."
            )


@dataclass(frozen=True)
class _Asked:
    """Has the reference's logits kept beside a model; pickles."""

    plan: Plan

    def __call__(self, artifact: str) -> None:
        several = any(engine.settings.get("devices") == "all" for engine in self.plan.engines)
        agreement.expected_rows(Path(artifact), self.plan.checked, "all" if several else "one")


def make(shape: Shape, target: Path, weights: Weights, bits: int) -> None:
    """Save a model of this shape with weights that mean nothing; the same values for every number of bits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from leanwatt.model import Model, cast
    from leanwatt.starter import tokenizer_of

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads or shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    module = cast(LlamaForCausalLM(config), torch.bfloat16).eval()
    module.config.dtype = torch.bfloat16
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                _fill(parameter, weights)
    model = Model(module, tokenizer_of(["a shape without words"] * 3, min(300, shape.vocabulary)))
    model.history.append(f"{weights} weights: no quality")
    if bits < 16:
        _quantized(model, bits)
    draft = target.with_name(f".{target.name}.draft")
    model.save(draft)
    draft.replace(target)


def _fill(parameter: Any, weights: Weights) -> None:
    """Columns whose sizes follow a power law, as trained ones do; `shuffled` has the same values anywhere."""
    import torch

    columns = parameter.shape[1]
    sizes = torch.arange(1, columns + 1, dtype=torch.float32) ** -0.5
    sizes = sizes[torch.randperm(columns)] / sizes.square().mean().sqrt()
    parameter.mul_(sizes.to(parameter.dtype))
    if weights == "shuffled":
        apart = torch.Generator().manual_seed(0)  # So that all that is drawn after it is drawn alike.
        order = torch.randperm(parameter.numel(), generator=apart)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _quantized(model: Any, bits: int) -> None:
    """By the plainest method: what the codes are does not matter here, that there are codes does."""
    from leanwatt.contracts import Context

    step = catalog.build(Choice("quantize", "round_to_nearest", {"bits": bits, "group": 64}))
    step.apply(model, Context((), (), 0, Path(), lambda _text, _share: None))


@dataclass(frozen=True)
class _Weighing:
    """Opens a case, checks it and weighs its two phases; pickles."""

    folders: Mapping[str, str]

    def __call__(self, case: Case) -> Outcome:
        artifact = Path(self.folders[f"{case.weights} {case.bits}"])
        try:
            with (
                catalog.build(case.plan.meter).open() as read,
                catalog.build(case.engine).open(artifact, case.batch) as session,
            ):
                expected = agreement.expected_rows(artifact, case.plan.checked)
                return list(phases(case, session, Ledger(read), expected))
        except (LeanwattError, agreement.DisagreementError) as error:
            return Failed(case.label, str(error))


def phases(case: Case, session: Any, ledger: Ledger, expected: agreement.Logits) -> Iterator[PhaseCost]:
    """Prefill, then decode, each for a window after one pass to warm up; `expected` are the reference's logits.

    Raises DisagreementError, and weighs nothing, where the engine computes something else.
    """
    backend = getattr(session, "backend", None)
    if backend is None:
        raise RefusedError(f"engine {case.engine}: it has no phases that could be weighed apart (`backend`).")
    agreed = agreement.check_rows(str(case.engine), backend, case.plan.checked, case.batch, expected)
    plan = case.plan
    passes = Passes(backend, case.batch, (plan.prompt, plan.answer), plan.shape.vocabulary)
    for phase, tokens, one in (
        ("prefill", plan.prompt * case.batch, passes.prefill),
        ("decode", plan.answer * case.batch, passes.decode),
    ):
        passes.prefill()
        one()
        count = 0
        seconds = 0.0
        measured: list[Measurement] = []
        while count == 0 or (seconds < plan.window_seconds and count < MOST_PASSES):
            if phase == "decode":
                passes.prefill()  # Every answer begins after a prompt, which is not weighed here.
            with ledger.stage(phase):
                one()
            measured.append(ledger.measurements[-1])
            seconds += measured[-1].seconds
            count += 1
        yield _cost(case, phase, tokens * count, measured, {**session.facts, **agreed})  # type: ignore[arg-type]


def _cost(
    case: Case, phase: Phase, tokens: int, measured: Sequence[Measurement], facts: Mapping[str, Any]
) -> PhaseCost:
    """The window's parts together."""
    totals = [each.total for each in measured]
    joules = [total.joules for total in totals]
    known = [each for each in joules if each is not None]
    return PhaseCost(
        case.label,
        phase,
        tokens,
        sum(each.seconds for each in measured),
        sum(each.cpu_seconds for each in measured),
        sum(known) if len(known) == len(joules) else None,
        str(totals[0].provenance),
        dict(facts),
    )


def table(found: Iterable[PhaseCost | Failed]) -> str:
    """Markdown: median over rounds per 1,000 tokens, with least and most; what failed is named.

    `logits off by`: relative to the reference's, in the phase and the batch that were weighed.
    """
    from statistics import median

    outcomes = list(found)
    costs = [each for each in outcomes if isinstance(each, PhaseCost)]
    lines = [
        NO_QUALITY,
        "",
        "| case | phase | CPU-s per 1,000 tokens | least to most | tokens/s | J per 1,000 tokens | logits off by |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for case, phase in sorted({(each.case, each.phase) for each in costs}):
        mine = [each for each in costs if (each.case, each.phase) == (case, phase)]
        cpu = [1000 * each.cpu_seconds / each.tokens for each in mine]
        joules = [1000 * each.joules / each.tokens for each in mine if each.joules is not None]
        energy = f"{median(joules):.3g} ({mine[0].provenance})" if len(joules) == len(mine) else "-"
        speed = median(each.tokens / each.seconds for each in mine)
        lines.append(
            f"| {case} | {phase} | {median(cpu):.3g} | {min(cpu):.3g} to {max(cpu):.3g} | {speed:.0f} | {energy} "
            f"| {_off(mine)} |"
        )
    failed = {each.case: each.why.strip().splitlines()[0] for each in outcomes if isinstance(each, Failed)}
    return "\n".join([*lines, "", *(f"- {case}: {why}" for case, why in sorted(failed.items()))]).rstrip()


def _off(costs: Sequence[PhaseCost]) -> str:
    """The worst of the rounds; a dash for figures that were kept from before engines were checked."""
    errors = [each.facts.get(f"logit_error_{each.phase}") for each in costs]
    return "-" if None in errors else f"{max(error for error in errors if error is not None):.2g}"
