"""From questions to batches of tokens and back: what every engine shares, free of torch.

A backend only multiplies: `prefill` and `step` take numpy arrays. Options are scored in one pass: the prompt once, then
every option's tokens beside each other, each seeing the prompt and itself only. Where all prompts of a batch begin with
the same long instruction, and the backend can, its keys and values are computed once per session.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from leanwatt.prompt import Encoder, windows
from leanwatt.question import Answer, Generate, Likelihood, Prompt, Question, Score

Array = NDArray[Any]
Heard = Callable[[str], None]
"""Told the whole text so far; its end may still change, where a character or a stop is not complete yet."""

SHARED_FROM = 32
"""Tokens from which an instruction is shared. Of the CPU time of reading whole prompts, scoring a ticket took 0.93 to
1.03 with 10 shared tokens, 0.77 to 0.90 with 32 and 0.41 to 0.61 with 202, writing 0.93 to 1.02, 0.82 to 0.99
and 0.47 to 0.77, in three engines at batch 1 and 8 (python benchmarks/prefix.py tickets.csv)."""
INSTRUCTIONS_KEPT = 8
"""Whose keys and values a session holds: a study has one for each task."""


class Backend(Protocol):
    """A model that computes logits. Masks are True where a token (third axis: query) sees another (last axis: key)."""

    def prefill(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        """Start anew: ids and positions (batch, tokens), mask (batch, tokens, tokens) -> logits of the last `keep`."""
        ...

    def step(self, ids: Array, positions: Array, mask: Array) -> Array:
        """One more token each: ids, positions (batch, 1), mask (batch, 1, all so far) -> logits (batch, 1, words)."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """A backend that can begin with keys and values that it computed before."""

    def kept(self, ids: Array, positions: Array, mask: Array) -> Any:
        """Compute one row, (1, tokens), and give its keys and values, in whatever form the backend likes."""
        ...

    def prefill_after(self, kept: Any, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        """As `prefill`, every row after what was kept; mask (batch, tokens, tokens kept + tokens)."""
        ...


@dataclass(frozen=True)
class Asking:
    """A session: answers questions on a backend, in batches of like length."""

    backend: Backend
    encoder: Encoder
    batch: int
    facts: Mapping[str, Any]
    shares: bool = True
    """Compute an instruction of SHARED_FROM tokens or more once, where the backend can."""
    _openings: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """By instruction, in tokens; no ticket and no lead is in them."""
    _kept: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False)
    """By tokens of the instruction: what the backend kept of them."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order."""
        return self.stream(questions, {})

    def stream(self, questions: Sequence[Question], heard: Mapping[int, Heard]) -> list[Answer]:
        """As `answer`; `heard`, by place of the question, is told what is written so far, after every token."""
        answers: dict[int, Answer] = {}
        kinds: list[tuple[type, Any]] = [
            (Score, self._score),
            (Generate, self._generate),
            (Likelihood, self._likelihood),
        ]
        for kind, one in kinds:
            mine = [(i, question) for i, question in enumerate(questions) if isinstance(question, kind)]
            mine.sort(key=lambda pair: _length(pair[1]))
            for start in range(0, len(mine), self.batch):
                part = mine[start : start + self.batch]
                tell = {row: heard[i] for row, (i, _) in enumerate(part) if i in heard}
                found = one([question for _, question in part], tell)
                answers.update(zip((i for i, _ in part), found, strict=True))
        return [answers[i] for i in range(len(questions))]

    def probe(self, prompts: Sequence[Prompt]) -> tuple[Array, Array]:
        """Logits after each prompt, and after one more token, each (prompts, words): how engines are checked."""
        first, second = [], []
        for start in range(0, len(prompts), self.batch):
            part = prompts[start : start + self.batch]
            trees = [_chain(self.encoder.prompt(prompt, room=8).ids) for prompt in part]
            begun = self._begin(part, trees, 1)
            first.append(begun.logits[:, -1])
            after = begun.at + 1
            seen = np.concatenate([begun.seen, np.ones((len(part), 1, 1), bool)], axis=2)
            second.append(self.backend.step(np.full_like(after, self.encoder.end), after, seen)[:, -1])
        return np.concatenate(first), np.concatenate(second)

    def _score(self, questions: Sequence[Score], _: Mapping[int, Heard]) -> Iterator[Answer]:
        begun = time.perf_counter()
        trees = [self._tree(question) for question in questions]
        keep = 1 + max(tree.tokens_of_options for tree in trees)
        read = self._begin([question.prompt for question in questions], trees, keep)
        logs = _log_softmax(read.logits)
        took = time.perf_counter() - begun
        for row, (question, tree) in enumerate(zip(questions, trees, strict=True)):
            scores = tree.scores(logs[row])
            text = question.options[int(np.argmax(scores))]
            out = tree.tokens_of_options + len(question.options)
            shared = read.shared[row]
            yield Answer(text, tuple(scores), tree.prompt - shared, out, took, tree.truncated, shared)

    def _tree(self, question: Score) -> "_Tree":
        options = [self.encoder.answer(option) for option in question.options]
        prompt = self.encoder.prompt(question.prompt, room=max(map(len, options)))
        return _Tree.grow(prompt.ids, options, truncated=prompt.truncated)

    def _begin(self, prompts: Sequence[Prompt], trees: "Sequence[_Tree]", keep: int) -> "_Read":
        """Read a batch of prompts, what they share only once; `keep` of the last tokens are asked for their logits."""
        opening = self._opening(prompts, trees)
        if not opening or not isinstance(self.backend, Sharing):
            ids, positions, mask = _padded(trees)
            logits = self.backend.prefill(ids, positions, mask, keep)
            return _Read(logits, positions[:, -1:], mask[:, -1:], (0,) * len(trees))
        already = len(opening) if opening in self._kept else 0  # Else the first row's answer is charged with it.
        if not already:
            if len(self._kept) == INSTRUCTIONS_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[opening] = self.backend.kept(*_padded([_chain(opening)]))
        ids, positions, mask = _padded([tree.after(len(opening)) for tree in trees])
        is_real = mask.any(axis=2, keepdims=True)
        mask = np.concatenate([np.repeat(is_real, len(opening), axis=2), mask], axis=2)
        logits = self.backend.prefill_after(self._kept[opening], ids, positions, mask, keep)
        rest = (len(opening),) * (len(trees) - 1)
        return _Read(logits, positions[:, -1:], mask[:, -1:], (already, *rest))

    def _opening(self, prompts: Sequence[Prompt], trees: "Sequence[_Tree]") -> tuple[int, ...]:
        """The tokens that all rows begin with because they have one instruction; none where sharing does not pay."""
        if not self.shares:
            return ()
        first = prompts[0]
        if any(each.verbatim or each.instruction != first.instruction for each in prompts):
            return ()
        if first.instruction not in self._openings:
            self._openings[first.instruction] = self.encoder.opening(first)
        opening = self._openings[first.instruction]
        if len(opening) < SHARED_FROM:
            return ()
        is_so = all(tree.ids[: len(opening)] == opening and tree.prompt > len(opening) for tree in trees)
        return opening if is_so else ()

    def _likelihood(self, questions: Sequence[Likelihood], _: Mapping[int, Heard]) -> Iterator[Answer]:
        cut = [windows(self.encoder.document(question.text), self.encoder.context) for question in questions]
        every = [(place, window) for place, each in enumerate(cut) for window in each]
        scores = [0.0] * len(questions)
        for start in range(0, len(every), self.batch):
            part = every[start : start + self.batch]
            ids, positions, mask = _padded([_chain(window.ids) for _, window in part])
            keep = 1 + max(window.fresh for _, window in part)
            logs = _log_softmax(self.backend.prefill(ids, positions, mask, keep))
            for row, (place, window) in enumerate(part):
                predicted_at = np.arange(keep - 1 - window.fresh, keep - 1)
                scores[place] += float(logs[row, predicted_at, list(window.ids[-window.fresh :])].sum())
        for score, each in zip(scores, cut, strict=True):
            yield Answer(None, (score,), sum(len(window.ids) for window in each))

    def _generate(self, questions: Sequence[Generate], heard: Mapping[int, Heard]) -> Iterator[Answer]:
        begun = time.perf_counter()
        encoded = [self.encoder.prompt(question.prompt, room=question.limit) for question in questions]
        read = self._begin([question.prompt for question in questions], [_chain(each.ids) for each in encoded], 1)
        logits = read.logits[:, -1]
        took = time.perf_counter() - begun
        written: list[list[int]] = [[] for _ in questions]
        open_rows = set(range(len(questions)))
        seen, at = read.seen, read.at
        while open_rows:
            must_go_on = [len(written[row]) < question.at_least for row, question in enumerate(questions)]
            chosen = self._likeliest(logits, must_go_on)
            for row in sorted(open_rows):
                written[row].append(int(chosen[row]))
                if row in heard:
                    heard[row](self._text(written[row], questions[row]))
                if self._is_over(written[row], questions[row]):
                    open_rows.discard(row)
            if open_rows:
                at = at + 1
                seen = np.concatenate([seen, np.ones((len(questions), 1, 1), bool)], axis=2)
                logits = self.backend.step(chosen[:, None], at, seen)[:, -1]
        for question, each, tokens, shared in zip(questions, encoded, written, read.shared, strict=True):
            text, computed = self._text(tokens, question), len(each.ids) - shared
            yield Answer(text, (), computed, len(tokens), took, each.truncated, shared)

    def _text(self, tokens: list[int], question: Generate) -> str:
        return until_stop(self.encoder.text(without_end(tokens, self.encoder.end)), question.stop)

    def _likeliest(self, logits: Array, must_go_on: Sequence[bool]) -> Array:
        """The next token of each row; not the end of text where the answer must go on."""
        if not any(must_go_on):
            return np.asarray(logits.argmax(-1))
        open_ended = logits.copy()
        open_ended[np.array(must_go_on), self.encoder.end] = -np.inf
        return np.asarray(open_ended.argmax(-1))

    def _is_over(self, tokens: list[int], question: Generate) -> bool:
        if len(tokens) < question.at_least:
            return False
        if tokens[-1] == self.encoder.end or len(tokens) >= question.limit:
            return True
        return bool(question.stop) and any(stop in self.encoder.text(tokens) for stop in question.stop)


@dataclass(frozen=True)
class _Read:
    """A batch of prompts that was read."""

    logits: Array
    """(batch, kept, words)."""
    at: Array
    """Positions of the last tokens, (batch, 1)."""
    seen: Array
    """What the last tokens see, (batch, 1, tokens)."""
    shared: tuple[int, ...]
    """Tokens of each row that had been computed before."""


@dataclass(frozen=True)
class _Tree:
    """A prompt and the options that follow it, in one row of tokens."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    branch: tuple[int, ...]
    """0 for the prompt, 1, 2, ... for the options: a token sees its own branch and the prompt, up to itself."""
    prompt: int
    """Tokens of the prompt."""
    options: tuple[tuple[int, ...], ...] = ()
    truncated: bool = False

    @classmethod
    def grow(cls, prompt: Sequence[int], options: Sequence[tuple[int, ...]], *, truncated: bool = False) -> "_Tree":
        """An option's last token predicts nothing that is asked for, so it is left out of the row."""
        ids, positions, branch = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for number, option in enumerate(options, start=1):
            ids += option[:-1]
            positions += range(len(prompt), len(prompt) + len(option) - 1)
            branch += [number] * (len(option) - 1)
        return cls(tuple(ids), tuple(positions), tuple(branch), len(prompt), tuple(options), truncated)

    def after(self, shared: int) -> "_Tree":
        """Without the prompt's first tokens; all others stay at their positions."""
        rest = replace(self, ids=self.ids[shared:], positions=self.positions[shared:], branch=self.branch[shared:])
        return replace(rest, prompt=self.prompt - shared)

    @property
    def tokens_of_options(self) -> int:
        return len(self.ids) - self.prompt

    def mask(self) -> Array:
        """(tokens, tokens), True where the row's token sees the column's."""
        branch, place = np.array(self.branch), np.arange(len(self.ids))
        same = (branch[None, :] == 0) | (branch[None, :] == branch[:, None])
        seen: Array = same & (place[None, :] <= place[:, None])
        return seen

    def scores(self, logs: Array) -> list[float]:
        """Summed log-probability of each option; `logs` are those of the row's last tokens, (kept, words)."""
        after_prompt = len(logs) - 1 - self.tokens_of_options
        place, found = after_prompt + 1, []
        for option in self.options:
            predicted_at = [after_prompt, *range(place, place + len(option) - 1)]
            found.append(float(logs[predicted_at, list(option)].sum()))
            place += len(option) - 1
        return found


def _chain(ids: Sequence[int]) -> _Tree:
    """A plain row: every token sees all before it."""
    return _Tree.grow(ids, ())


def _padded(trees: Sequence[_Tree]) -> tuple[Array, Array, Array]:
    """Rows of one length, padded on the left, so that the last tokens stand in the last places."""
    width = max(len(tree.ids) for tree in trees)
    ids = np.zeros((len(trees), width), np.int64)
    positions = np.zeros((len(trees), width), np.int64)
    mask = np.zeros((len(trees), width, width), bool)
    for row, tree in enumerate(trees):
        start = width - len(tree.ids)
        ids[row, start:], positions[row, start:] = tree.ids, tree.positions
        mask[row, start:, start:] = tree.mask()
    return ids, positions, mask


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float32) - logits.max(-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


def _length(question: Question) -> int:
    return len(question.text if isinstance(question, Likelihood) else question.prompt.body)


def without_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def until_stop(text: str, stops: Sequence[str]) -> str:
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)].strip() if ends else text
