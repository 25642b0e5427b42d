"""What to do to a base model: plain, immutable data that outlives the code that runs it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any

from leanwatt.errors import StudyError


@dataclass(frozen=True)
class Choice:
    """One method, by the names it has in the YAML: `prune: {wanda: {sparsity: 0.5}}`."""

    room: str
    """The folder it lives in: `prune`, `quantize`, `meter`, ..."""
    name: str
    """The file it lives in: `wanda`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The fields of its class."""

    @classmethod
    def parse(cls, room: str, value: object) -> "Choice":
        """Read `wanda` or `{wanda: {sparsity: 0.5}}`; raises StudyError for anything else."""
        if isinstance(value, str):
            return cls(room, value)
        if not isinstance(value, Mapping) or len(value) != 1:
            raise StudyError(f"{room}: got {value!r}; write a name, or one name with its settings: {{name: {{...}}}}.")
        [(name, settings)] = value.items()
        if not isinstance(settings, Mapping | None):
            raise StudyError(f"{room}.{name}: got {settings!r}; settings are written as {{setting: value}}.")
        return cls(room, str(name), dict(settings or {}))

    def __hash__(self) -> int:
        return hash(digest(asdict(self)))

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}({inside})" if inside else self.name


@dataclass(frozen=True)
class Recipe:
    """A base model and the steps that turn it into a variant, in order. Every prefix of a recipe is a recipe."""

    base: str
    """A folder, a hub name, or `starter`; empty for a baseline, which has no model."""
    steps: tuple[Choice, ...] = ()
    revision: str | None = None
    """Revision of a base from a hub."""

    def __str__(self) -> str:
        return " > ".join([self.base, *map(str, self.steps)])

    def up_to_last(self, *rooms: str) -> "Recipe":
        """The prefix that ends with the last step of these rooms; the base alone where there is none."""
        last = max((place for place, step in enumerate(self.steps, 1) if step.room in rooms), default=0)
        return replace(self, steps=self.steps[:last])


@dataclass(frozen=True)
class Fidelity:
    """How much of the work is done: less is quicker and says less. None means all."""

    examples: int | None = None
    """Validation examples per task."""
    steps: int | None = None
    """Optimizer steps of each fine-tuning."""


@dataclass(frozen=True)
class Variant:
    """A recipe carried out once: one seed, one fold of the data, one fidelity. Engines and batch sizes share it."""

    recipe: Recipe
    data: str = ""
    """Digest of the tasks: their settings, prompts and the content of their files."""
    seed: int = 0
    fold: int = 0
    fidelity: Fidelity = Fidelity()

    @cached_property
    def id(self) -> str:
        """Names its `make` record."""
        return digest(asdict(self))


@dataclass(frozen=True)
class Trial:
    """One variant in one engine at one batch size: what is graded, weighed and ranked."""

    variant: Variant
    engine: Choice
    """For a baseline: the baseline itself."""
    batch: int = 1
    measured: str = ""
    """Digest of how it is measured: meter and protocol, but not the number of rounds."""
    ordinal: int = 0
    """Place in the study; not part of the identity."""

    @cached_property
    def id(self) -> str:
        """Names its records; the same on every machine."""
        return digest(asdict(replace(self, ordinal=0)))

    @property
    def is_baseline(self) -> bool:
        """True for what is no language model."""
        return self.engine.room == "baseline"

    @property
    def label(self) -> str:
        """Name in tables: equal for all folds and seeds of the same thing."""
        if self.is_baseline:
            return str(self.engine)
        return f"{self.variant.recipe} | {self.engine} | batch {self.batch}"


def digest(data: Any) -> str:
    """Short content hash: equal data have equal digests on every machine. `data` must be JSON-like, dates included."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=_iso).encode()).hexdigest()[:16]


def _iso(value: object) -> str:
    """YAML reads 2026-01-31 as a date."""
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"got a {type(value).__name__}; settings hold numbers, texts, dates, lists and mappings.")
