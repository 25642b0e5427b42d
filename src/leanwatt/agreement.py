"""Does an engine compute what the model is? Checked against the reference engine before anything is graded or weighed.

Two things must agree with plain transformers in fp32: logits (prefill and one decode step, in full batches and alone),
and the option chosen. A known fast path gives garbage without a word, and looks ten times as fast. Where there are no
questions, as for random weights, logits after rows of tokens are compared (`check_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from leanwatt.errors import RefusedError, StoreError
from leanwatt.prompt import VERSION as PROMPT_VERSION
from leanwatt.question import Likelihood, Prompt, Question, Score
from leanwatt.recipe import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPTS = 8
"""Prompts of each task on which logits are compared."""
ALONE = 2
"""Prompts that are also asked one at a time: the last batch of a pass is often smaller, and kernels differ by size."""
TOLERANCE = 0.25
"""Relative error of logits above which an engine computes something else: 16 bits give 0.01, garbage 1 and more."""
FIRST = 48
"""Scored examples on which choices are compared."""
MORE = 400
"""Scored examples asked where the first few do not all agree: one of 48 says nothing about 99 %."""
ROWS = 8
"""Most rows of tokens that the reference is asked; larger batches repeat them."""
SAME = 0.99
"""Least share of equal choices at 16 bits and more."""
TIE_NATS = 0.1
"""Options whose scores the reference cannot tell apart: rounding to 16 bits may turn them, and no answer is worse."""


class DisagreementError(RuntimeError):
    """An engine computes something else than the model it was given."""


def check(engine: str, session: Any, artifact: Path, asked: Mapping[str, Sequence[Question]]) -> dict[str, float]:
    """How far an opened engine is from the reference: facts for the record. `asked` has the questions of each task.

    `logit_error_prefill`, `logit_error_decode`: size of the difference over size of the reference's logits, the worse
    of batched and alone. `option_agreement`: share of equal choices on `option_examples`, absent where no task scores
    options. Raises DisagreementError where the engine computes something else, RefusedError where it cannot be checked.
    """
    reference = _Reference(artifact, "all" if "devices" in getattr(session, "facts", {}) else "one")
    errors = _logit_errors(engine, session, reference, _prompts(asked))
    scored = [question for questions in asked.values() for question in questions if isinstance(question, Score)]
    return {**errors, **_agreement(engine, session, reference, scored)}


def _prompts(asked: Mapping[str, Sequence[Question]]) -> list[Prompt]:
    """The first few of every task; a text whose likelihood is asked serves as a prompt too."""
    few = [question for questions in asked.values() for question in questions[:PROMPTS]]
    return [Prompt("", each.text, "") if isinstance(each, Likelihood) else each.prompt for each in few]


def _logit_errors(engine: str, session: Any, reference: _Reference, prompts: Sequence[Prompt]) -> dict[str, float]:
    import numpy as np

    if not prompts:
        return {}
    if not hasattr(session, "probe"):
        raise RefusedError(f"engine {engine}: it gives no logits (`probe`), so nothing proves that it computes right.")
    expected = reference.logits(prompts)
    alone = [session.probe([prompt]) for prompt in prompts[:ALONE]]
    errors = {}
    for name, right, batched, single in zip(
        ("prefill", "decode"), expected, session.probe(prompts), zip(*alone, strict=True), strict=True
    ):
        found = (relative_error(batched, right), relative_error(np.concatenate(single), right[:ALONE]))
        # `max` would let a NaN pass when it comes second.
        errors[name] = float(np.max(found))
    return _within_tolerance(engine, errors)


def _within_tolerance(engine: str, errors: Mapping[str, float]) -> dict[str, float]:
    """As facts of a record. Raises DisagreementError."""
    if not all(error <= TOLERANCE for error in errors.values()):
        told = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        raise DisagreementError(
            f"engine {engine}: its logits differ from the reference engine's by {told} (at most {TOLERANCE} is "
            "allowed): it computes something else, and its speed means nothing."
        )
    return {f"logit_error_{name}": error for name, error in errors.items()}


Logits = tuple["NDArray[Any]", "NDArray[Any]"]
"""After all but the last token of each row, and after the last, which was one decode step; each (rows, words)."""


def after_rows(backend: Any, ids: NDArray[Any]) -> Logits:
    """What a backend of an engine computes for rows of tokens, all at once: ids (rows, tokens)."""
    import numpy as np

    rows, width = ids.shape[0], ids.shape[1] - 1
    mask = np.broadcast_to(np.tril(np.ones((width, width), bool)), (rows, width, width)).copy()
    positions = np.broadcast_to(np.arange(width), (rows, width)).copy()
    first = backend.prefill(ids[:, :-1].copy(), positions, mask, 1)[:, -1]
    seen = np.ones((rows, 1, width + 1), bool)
    return first, backend.step(ids[:, -1:].copy(), np.full((rows, 1), width), seen)[:, -1]


def expected_rows(artifact: Path, ids: NDArray[Any], devices: Literal["one", "all"] = "one") -> Logits:
    """The reference's, row by row; asked once for each artifact, and kept beside it. Raises StoreError."""
    return _Reference(artifact, devices).after_rows(ids)


def check_rows(engine: str, backend: Any, ids: NDArray[Any], batch: int, expected: Logits) -> dict[str, float]:
    """How far `batch` rows are from what is `expected` of `ids`, which are repeated to fill it: as facts of a record.

    Raises DisagreementError where the backend computes something else.
    """
    import numpy as np

    asked = np.arange(batch) % len(ids)
    found = after_rows(backend, ids[asked])
    errors = {
        name: relative_error(got, right[asked])
        for name, got, right in zip(("prefill", "decode"), found, expected, strict=True)
    }
    return _within_tolerance(engine, errors)


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Size of the difference over the size of what is right; a constant added to all logits of a row is no difference.

    That constant is free: some engines give logits, others log-probabilities.
    """
    import numpy as np

    mine, right = (each - each.mean(-1, keepdims=True) for each in (got, expected))
    return float(np.linalg.norm(mine - right) / np.linalg.norm(right))


def _agreement(engine: str, session: Any, reference: _Reference, scored: Sequence[Score]) -> dict[str, float]:
    """Compare choices: on the first few, and where these differ on more."""
    if not scored:
        return {}
    found = _compared(session, reference, scored[:FIRST])
    if found.differ:
        found = _compared(session, reference, scored[:MORE])
    if is_whole(session.facts) and not found.is_good:
        raise DisagreementError(
            f"engine {engine}: at 16 bits or more it chose another option than the reference engine on {found.differ} "
            f"of {found.examples} examples, near ties left out (at least {SAME:.0%} must agree)."
        )
    return {"option_agreement": found.equal / found.examples, "option_examples": found.examples}


@dataclass(frozen=True)
class _Choices:
    examples: int
    equal: int
    differ: int
    """Not equal, and no near tie."""

    @property
    def is_good(self) -> bool:
        """At least 99 % are no worse; one may always differ, since of few examples one is more than 1 %."""
        return self.differ <= max(1, (1 - SAME) * self.examples)


def _compared(session: Any, reference: _Reference, scored: Sequence[Score]) -> _Choices:
    equal = differ = 0
    for question, got, right in zip(scored, session.answer(scored), reference.scores(scored), strict=True):
        mine, best = right[question.options.index(got.text)], max(right)
        equal += mine == best
        differ += not best - mine <= TIE_NATS
    return _Choices(len(scored), equal, differ)


def is_whole(facts: Mapping[str, Any]) -> bool:
    """Weights of 16 bits or more, as they are: lower bits drift, which is reported and graded, and is no fault."""
    return not facts.get("codes_bits") and not facts.get("requantized") and facts.get("activations", "float") == "float"


@dataclass(frozen=True)
class _Reference:
    """Plain transformers in fp32 on the same artifact; what it once said is kept beside the artifact."""

    artifact: Path
    devices: Literal["one", "all"] = "one"
    """all where the engine that is checked needs more than one."""

    def logits(self, prompts: Sequence[Prompt]) -> tuple[NDArray[Any], NDArray[Any]]:
        """After each prompt, and after one more token, each (prompts, words)."""
        kept = self._kept("logits", [asdict(prompt) for prompt in prompts])
        found = kept.read() or kept.write(self._session_logits(prompts))
        return found[0], found[1]

    def after_rows(self, ids: NDArray[Any]) -> Logits:
        """As the function of that name; a row at a time."""
        import numpy as np

        kept = self._kept("rows", ids.tolist())
        found = kept.read()
        if found is None:
            with self._open() as session:
                rows = [after_rows(session.backend, row[None]) for row in ids]
            found = kept.write([np.concatenate(each) for each in zip(*rows, strict=True)])
        return found[0], found[1]

    def scores(self, questions: Sequence[Score]) -> list[list[float]]:
        """Of every option of each question."""
        import numpy as np

        kept = self._kept("scores", [asdict(question) for question in questions])
        found = kept.read() or kept.write([np.array(each) for each in self._session_scores(questions)])
        return [each.tolist() for each in found]

    def _session_logits(self, prompts: Sequence[Prompt]) -> list[NDArray[Any]]:
        with self._open() as session:
            return list(session.probe(prompts))

    def _session_scores(self, questions: Sequence[Score]) -> list[tuple[float, ...]]:
        with self._open() as session:
            return [answer.scores for answer in session.answer(questions)]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Every prompt is read whole: what engines share is checked too."""
        from leanwatt.engine.transformers import Transformers

        with Transformers("fp32", devices=self.devices).open(self.artifact, 1) as session:
            yield replace(session, shares=False)

    def _kept(self, what: str, asked: Any) -> _Kept:
        versions = [version(package) for package in ("torch", "transformers")]
        return _Kept(self.artifact / f"reference-{digest([what, asked, versions, PROMPT_VERSION])}.npz")


@dataclass(frozen=True)
class _Kept:
    """Arrays in a file that is there whole or not at all."""

    path: Path

    def read(self) -> list[NDArray[Any]] | None:
        import numpy as np

        if not self.path.is_file():
            return None
        with np.load(self.path, allow_pickle=False) as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]

    def write(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Keep and give back. Raises StoreError."""
        import numpy as np

        draft = self.path.with_name(f".{uuid4().hex[:8]}-{self.path.name}")  # Numbers of processes repeat elsewhere.
        try:
            np.savez(draft, *arrays)
            draft.replace(self.path)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror or error}).") from error
        return arrays
