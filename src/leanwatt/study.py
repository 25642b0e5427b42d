"""The question a user asks: YAML in, plain data out, with every mistake named before anything runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from leanwatt.bill import Terms
from leanwatt.errors import StudyError, not_among
from leanwatt.recipe import Choice, Fidelity, Recipe, Trial, Variant, digest

STEP_ROOMS = ("finetune", "merge", "prune", "quantize")
ENGINE = "openvino"
"""Of a study that names none, on every machine: the same file asks the same question everywhere (decision 32)."""


@dataclass(frozen=True)
class Protocol:
    """How much is measured. `ranked` carries a ranking; `quick` is labelled and never called one."""

    name: str
    rounds: int
    """Weighings of every variant, each in a fresh process; a round is one repeat."""
    window_seconds: float
    """Shortest window; a sensor that changes slowly makes it longer."""
    examples: int | None = None
    """Validation questions per task that are answered by scoring; None means all."""
    generations: int | None = None
    """Validation questions per task that are answered by writing."""
    confirm_examples: int | None = None
    """The same for the test split."""
    confirm_generations: int | None = None
    idle_seconds: float = 10.0
    """How long the idle machine is watched before each round, where there is a sensor to watch."""
    phases: bool = False
    """Weigh prefill and decode apart too, at fixed lengths."""


PROTOCOLS = {
    "ranked": Protocol("ranked", rounds=5, window_seconds=10.0, phases=True),
    "quick": Protocol("quick", 3, 1.0, examples=1500, generations=200, confirm_examples=None, confirm_generations=400),
}


@dataclass(frozen=True)
class Study:
    """What to make, grade, weigh and compare."""

    name: str
    recipes: tuple[Recipe, ...]
    """The grid: every combination of the axes, in order."""
    also: tuple[tuple[Recipe, Choice], ...]
    """Variants beside the grid, each with its engine."""
    tasks: tuple[Choice, ...]
    baselines: tuple[Choice, ...]
    engines: tuple[Choice, ...]
    batches: tuple[int, ...]
    reference: str
    """`first`, or the label of a trial."""
    protocol: Protocol
    meter: Choice
    search: Choice
    executor: Choice
    seeds: tuple[int, ...]
    fidelity: Fidelity
    budget: Mapping[str, float]
    """`kwh`, `hours`, `trials`; empty means no limit."""
    weight: float
    """w in R = w * phi + (1 - w) * rho."""
    margin: float
    """How much of the primary metric a cheaper variant may lose."""
    load: Mapping[str, Any]
    """`tickets_per_day`, `always_on`; empty where unknown."""
    bill: Terms | None
    """On what terms energy is paid for; None where the study does not say."""
    cache_gb: float | None
    """Most room for models; None keeps all."""

    @classmethod
    def read(cls, path: Path) -> "Study":
        """Read a study file; relative data paths are taken from its folder. Raises StudyError."""
        import yaml

        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StudyError(f"{path}: cannot be read ({error.strerror}). Give the path of a study file.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise StudyError(f"{path}: is not valid YAML: {error}") from error
        return cls.parse(data, folder=path.parent)

    @classmethod
    def parse(cls, data: object, folder: Path = Path()) -> "Study":
        """Read a study from a mapping; raises StudyError that names the key, what was got and what is allowed."""
        if not isinstance(data, Mapping):
            raise StudyError(f"A study is a mapping of keys; got {type(data).__name__}. See examples/.")
        for key in data:
            if key not in _KEYS:
                raise StudyError(not_among("the keys of a study", key, _KEYS))
        if missing := [key for key in ("name", "tasks") if key not in data]:
            raise StudyError(f"The study lacks {', '.join(missing)}.")
        bases = [_base(value) for value in _list(data.get("base", "starter"))]
        tasks = tuple(_rooted(Choice.parse("tasks", task), folder) for task in _list(data["tasks"]))
        _refuse_twins(tasks)
        return cls(
            name=_name(data["name"]),
            recipes=tuple(_recipes(bases, data.get("steps", []))),
            also=tuple(chain.from_iterable(_also(bases, entry, data) for entry in _list(data.get("also", [])))),
            tasks=tasks,
            baselines=tuple(Choice.parse("baseline", value) for value in _list(data.get("baselines", []))),
            engines=tuple(Choice.parse("engine", value) for value in _list(data.get("engine", ENGINE))),
            batches=tuple(_whole("batch", value, 1) for value in _list(data.get("batch", 8))),
            reference=str(data.get("reference", "first")),
            protocol=_protocol(data.get("protocol", "ranked")),
            meter=Choice.parse("meter", data.get("meter", "auto")),
            search=Choice.parse("search", data.get("search", "grid")),
            executor=Choice.parse("executor", data.get("executor", "local")),
            seeds=tuple(dict.fromkeys(_whole("seeds", seed, 0) for seed in _list(data.get("seeds", [0])))),
            fidelity=_fidelity(data.get("fidelity", {})),
            budget=_numbers("budget", data.get("budget", {}), ("kwh", "hours", "trials")),
            weight=_share("weight", data.get("weight", 0.5)),
            margin=_share("margin", data.get("margin", 0.02)),
            load=_numbers("load", data.get("load", {}), ("tickets_per_day", "always_on")),
            bill=Terms.parse(data.get("bill", {})),
            cache_gb=_above_zero("cache_gb", data.get("cache_gb")),
        )

    def trials(self, data: str, folds: int) -> list[Trial]:
        """The whole space, in order: seeds and folds of each variant side by side, baselines last.

        `data` is the digest of what the tasks read; `folds` how often the data are split anew.
        """
        grid = [(r, e, b) for r in self.recipes for e in self.engines for b in self.batches]
        extra = [(recipe, engine, batch) for recipe, engine in self.also for batch in self.batches]
        plain = [(Recipe(""), baseline, 1) for baseline in self.baselines]
        repeats = [(seed, fold) for seed in self.seeds for fold in range(folds)]
        found = [
            Trial(Variant(recipe, data, seed, fold, self.fidelity), engine, batch, self._measured())
            for recipe, engine, batch in dict.fromkeys([*grid, *extra, *plain])
            for seed, fold in repeats
        ]
        return [replace(trial, ordinal=place) for place, trial in enumerate(found)]

    def reference_first(self, trials: Sequence[Trial]) -> list[Trial]:
        """The same trials in the order in which they are tried: the reference, the baselines, then the others.

        Searches compare with the reference, and a budget that ends early should leave something to compare.
        """
        models = [trial.label for trial in trials if not trial.is_baseline]
        label = models[0] if self.reference == "first" else self.reference
        return sorted(trials, key=lambda trial: (trial.is_baseline or trial.label != label, not trial.is_baseline))

    def _measured(self) -> str:
        """More rounds add to those that are there; any other change of protocol or meter measures anew."""
        protocol = {key: value for key, value in asdict(self.protocol).items() if key not in ("name", "rounds")}
        return digest([protocol, asdict(self.meter)])

    def choices(self) -> list[Choice]:
        """Every method that the study names."""
        steps = [step for recipe in [*self.recipes, *(r for r, _ in self.also)] for step in recipe.steps]
        engines = [*self.engines, *(engine for _, engine in self.also)]
        rest = [*self.tasks, *self.baselines, *engines, self.meter, self.search, self.executor]
        return list(dict.fromkeys([*steps, *rest]))


_KEYS = (
    *("name", "base", "steps", "also", "tasks", "baselines", "engine", "batch", "reference", "protocol", "meter"),
    *("search", "executor", "seeds", "fidelity", "budget", "weight", "margin", "load", "cache_gb", "bill"),
)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _name(value: object) -> str:
    if not isinstance(value, str) or not value or value.startswith(".") or set(value) & set('/\\:*?"<>|\n'):
        raise StudyError(f"name: got {value!r}; use a short word that can name a folder.")
    return value


def _base(value: object) -> tuple[str, str | None]:
    """`starter`, a folder, a hub name, or {hub name: revision}."""
    if isinstance(value, str) and value:
        return value, None
    if isinstance(value, Mapping) and len(value) == 1:
        [(name, revision)] = value.items()
        return str(name), str(revision)
    raise StudyError(f"base: got {value!r}; write `starter`, a folder, a hub name or {{hub name: revision}}.")


def _steps(value: object) -> list[tuple[str, list[Any]]]:
    axes: list[tuple[str, list[Any]]] = []
    for step in _list(value):
        if not isinstance(step, Mapping) or len(step) != 1:
            raise StudyError(f"steps: got {step!r}; each step is one room with its options: prune: [none, ...].")
        [(room, options)] = step.items()
        if room not in STEP_ROOMS:
            raise StudyError(not_among("the rooms of steps", room, STEP_ROOMS))
        axes.append((room, list(_list(options))))
    return axes


def _recipes(bases: Sequence[tuple[str, str | None]], steps: object) -> list[Recipe]:
    """Every combination of the axes; the order of the steps is the order in which they are applied."""
    axes = [
        [() if option in (None, "none") else (Choice.parse(room, option),) for option in options]
        for room, options in _steps(steps)
    ]
    found = [
        Recipe(base, tuple(chain.from_iterable(picks)), revision)
        for base, revision in bases
        for picks in product(*axes)
    ]
    return list(dict.fromkeys(found))


def _also(
    bases: Sequence[tuple[str, str | None]], entry: object, data: Mapping[str, Any]
) -> list[tuple[Recipe, Choice]]:
    if not isinstance(entry, Mapping) or set(entry) - {"steps", "engine"}:
        raise StudyError(f"also: got {entry!r}; each entry has `steps` (may be empty) and `engine`.")
    engines = [Choice.parse("engine", value) for value in _list(entry.get("engine", data.get("engine", ENGINE)))]
    return [(recipe, engine) for recipe in _recipes(bases, entry.get("steps", [])) for engine in engines]


def _rooted(task: Choice, folder: Path) -> Choice:
    """Relative data paths that exist beside the study file become paths from here."""
    source = task.settings.get("data")
    if isinstance(source, str) and (folder / source).exists():
        return replace(task, settings={**task.settings, "data": os.path.normpath(folder / source)})
    if isinstance(source, Mapping) and (folder / str(source.get("path", ""))).is_file():
        rooted = {**source, "path": os.path.normpath(folder / str(source["path"]))}
        return replace(task, settings={**task.settings, "data": rooted})
    return task


def _refuse_twins(tasks: Sequence[Choice]) -> None:
    names = [task.name for task in tasks]
    if not names:
        raise StudyError("tasks: is empty; name at least one task.")
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(f"tasks: {', '.join(twins)} stands twice; put each data set in a study of its own.")


def _protocol(value: object) -> Protocol:
    choice = Choice.parse("protocol", value)
    if choice.name not in PROTOCOLS:
        raise StudyError(not_among("the protocols", choice.name, PROTOCOLS))
    known = [field.name for field in fields(Protocol) if field.name != "name"]
    for key, setting in choice.settings.items():
        if key not in known:
            raise StudyError(not_among(f"the settings of protocol.{choice.name}", key, known))
        _refuse_amount(f"protocol.{choice.name}.{key}", key, setting)
    protocol = replace(PROTOCOLS[choice.name], **choice.settings)
    if protocol.name == "ranked" and protocol.rounds < 5:
        raise StudyError(f"protocol.ranked.rounds: got {protocol.rounds}; a ranking needs at least 5. Or use `quick`.")
    return protocol


def _refuse_amount(where: str, key: str, setting: object) -> None:
    """Seconds may be a fraction; questions and rounds are counted, and questions may be all of them (null)."""
    if key == "phases":
        if not isinstance(setting, bool):
            raise StudyError(f"{where}: got {setting!r}; true or false is needed.")
    elif key == "window_seconds":
        if not isinstance(setting, int | float) or isinstance(setting, bool) or not setting > 0:
            raise StudyError(f"{where}: got {setting!r}; a number above 0 is needed.")
    elif setting is not None or key == "rounds":
        _whole(where, setting, 1)


def _fidelity(value: object) -> Fidelity:
    given = _numbers("fidelity", value, ("examples", "steps"))
    return Fidelity(**{key: _whole(f"fidelity.{key}", number, 1) for key, number in given.items()})


def _numbers(where: str, value: object, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise StudyError(f"{where}: got {value!r}; a mapping with {', '.join(known)} is needed.")
    for key, number in value.items():
        if key not in known:
            raise StudyError(not_among(where, key, known))
        if not isinstance(number, int | float) or number < 0:
            raise StudyError(f"{where}.{key}: got {number!r}; a number of at least 0 is needed.")
    return dict(value)


def _above_zero(where: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise StudyError(f"{where}: got {value!r}; a number above 0 is needed, or null for no limit.")
    return float(value)


def _whole(where: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise StudyError(f"{where}: got {value!r}; whole numbers from {least} are allowed.")
    return value


def _share(where: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise StudyError(f"{where}: got {value!r}; a number from 0 to 1 is needed.")
    return float(value)
