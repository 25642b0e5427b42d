"""Making a variant: the longest finished prefix of its recipe from the cache, then the remaining steps, each saved.

Every prefix that variants share is made once. A stage's key follows all that it depends on: what it starts from, the
method, its settings and version, and for steps that read data the data, fold and seed. An edited file never meets a
stale model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache as cached
from pathlib import Path
from typing import Any

from leanwatt import catalog
from leanwatt.cache import COSTS, CURVE, SPENT, alone, draft_of, in_use, publish
from leanwatt.contracts import Context, Progress
from leanwatt.errors import StoreError, StudyError
from leanwatt.ledger import Ledger
from leanwatt.measurement import Measurement
from leanwatt.model import Model, config_of, load
from leanwatt.outlook import foresee
from leanwatt.prompt import VERSION as PROMPT_VERSION
from leanwatt.question import Example
from leanwatt.recipe import Choice, Recipe, Variant, digest


@dataclass(frozen=True)
class Base:
    """A base model that is at hand."""

    name: str
    place: str
    """A folder or a hub name."""
    key: str
    """Follows its content."""
    revision: str | None = None


def local_base(name: str, revision: str | None) -> Base:
    """A base in a folder, known by its content, or on a hub, known by name and revision."""
    folder = Path(name)
    key = _folder_digest(folder) if folder.is_dir() else digest([name, revision])
    return Base(name, name, key, revision)


def stage_keys(variant: Variant, base: Base) -> list[str]:
    """One key for the base itself and one after every step, each following the one before."""
    keys = [digest(["base", base.key, base.revision, PROMPT_VERSION])]
    for step in variant.recipe.steps:
        method = catalog.find(step.room, step.name)
        reads = [variant.data, variant.fold, variant.seed, variant.fidelity.steps] if method.reads_data else []
        reads += [_content(path) for path in catalog.build(step).files()]
        keys.append(digest([keys[-1], asdict(step), method.version, reads]))
    return keys


def parent_of(recipe: Recipe) -> int | None:
    """Place among the keys of the model before the first pruning: all later keys follow its key."""
    rooms = [step.room for step in recipe.steps]
    return rooms.index("prune") if "prune" in rooms else None


def _content(path: Path) -> str:
    """Follows what is in a file of the user's. Raises StudyError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}).") from error


@dataclass(frozen=True)
class Maker:
    """Makes one variant in `folder`, where every stage has a folder of its own."""

    variant: Variant
    base: Base
    folder: Path
    ledger: Ledger
    progress: Progress

    def make(self, examples: Callable[[], Sequence[Example]]) -> Path:
        """The folder of the finished variant; `examples` is asked for only where a step reads data."""
        keys = stage_keys(self.variant, self.base)
        folders, parent = [self.folder / key for key in keys], parent_of(self.variant.recipe)
        with ExitStack() as held:
            whole = [held.enter_context(in_use(folder)) for folder in folders]
            done = _done(whole, parent)
            if done < len(folders) - 1:  # What cannot be is refused before it costs anything.
                foresee(self.variant.recipe, self._config(keys[0]))
            for folder in folders[: done + 1]:
                self.ledger.reuse(read_costs(folder))
            self._go_on(folders, done, held, cached(lambda: self._context(examples())))
        return folders[-1]

    def _go_on(self, folders: Sequence[Path], done: int, held: ExitStack, context: Callable[[], Context]) -> None:
        """Make what is not there yet, stage by stage; what another worker makes meanwhile is waited for and taken."""
        model: Model | None = None
        for place in range(done + 1, len(folders)):
            with alone(folders[place]):
                if held.enter_context(in_use(folders[place])):
                    self.ledger.reuse(read_costs(folders[place]))
                    model = None
                    continue
                model = model or self._opened(folders[place - 1] if place else None)
                if place:
                    step = self.variant.recipe.steps[place - 1]
                    before = replace(context(), parent=self._before_pruning(folders, place))
                    model = self._step(model, step, folders[place].name, before)
                else:
                    self._save(model, folders[0], [])
                held.enter_context(in_use(folders[place]))

    def _before_pruning(self, folders: Sequence[Path], place: int) -> Path | None:
        """The model that the step at `place` may learn from: none before the first pruning is done."""
        parent = parent_of(self.variant.recipe)
        return folders[parent] if parent is not None and parent < place - 1 else None

    def _opened(self, parent: Path | None) -> Model:
        with self.ledger.stage("load"):
            return load(parent) if parent else load(self.base.place, self.base.revision)

    def _config(self, first: str) -> Any:
        """Of the base; from its own folder here, where it is, so that a finished prefix needs no base any more."""
        if (self.folder / first / "config.json").is_file():
            return config_of(str(self.folder / first))
        return config_of(self.base.place, self.base.revision)

    def _step(self, model: Model, step: Choice, key: str, context: Context) -> Model:
        work = self.folder / f".{key}.work"
        work.mkdir(parents=True, exist_ok=True)
        begun = len(self.ledger.measurements)
        with self.ledger.stage(step.room):
            model = catalog.build(step).apply(model, replace(context, folder=work))
        self._save(model, self.folder / key, self.ledger.measurements[begun:], work)
        shutil.rmtree(work, ignore_errors=True)
        return model

    def _context(self, examples: Sequence[Example]) -> Context:
        return Context(
            train=[e for e in examples if e.split == "train"],
            validation=[e for e in examples if e.split == "validation"],
            seed=self.variant.seed,
            folder=self.folder,
            progress=self.progress,
            max_steps=self.variant.fidelity.steps,
            stage=self.ledger.stage,
            read=self.ledger.read,
        )

    @staticmethod
    def _save(model: Model, folder: Path, spent: Sequence[Measurement], work: Path | None = None) -> None:
        """Write beside, then rename: half a folder is never served."""
        try:
            with draft_of(folder) as draft:
                model.save(draft)
                if work is not None and (work / CURVE).is_file():
                    (work / CURVE).replace(draft / CURVE)
                (draft / COSTS).write_text(json.dumps([asdict(each) for each in spent]), encoding="utf-8")
                publish(draft, folder)
        except OSError as error:
            raise StoreError(f"{folder}: the model cannot be saved ({error.strerror}).") from error


def _done(whole: Sequence[bool], parent: int | None) -> int:
    """Place of the last stage that is there, -1 for none. What has gone and is a parent is made again."""
    there = [place for place, is_there in enumerate(whole) if is_there]
    last = max(there, default=-1)
    if parent is not None and parent < last < len(whole) - 1 and parent not in there:
        return max((place for place in there if place < parent), default=-1)
    return last


def read_costs(folder: Path) -> list[Measurement]:
    """What the making of one stage cost, be its model still there or not; empty where that is not known."""
    from pydantic import TypeAdapter

    adapter: Any = TypeAdapter(list[Measurement])
    path = next((folder / name for name in (COSTS, SPENT) if (folder / name).is_file()), None)
    return adapter.validate_json(path.read_bytes()) if path else []


def _folder_digest(folder: Path) -> str:
    """Of names and contents; of files above 64 MB the size, the first and the last part."""
    summed = hashlib.sha256()
    part = 1 << 20
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        size = path.stat().st_size
        summed.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            if size <= 64 * part:
                summed.update(file.read())
            else:
                summed.update(file.read(part))
                file.seek(-part, os.SEEK_END)
                summed.update(file.read(part))
    return summed.hexdigest()[:16]
