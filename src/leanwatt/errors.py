"""Every error a user can meet. Each message says what was got, what is allowed, and what to do.

LeanwattError
├── UserError             the user can mend it: exit code 2
│   ├── StudyError        the study file is wrong; says where, and what would be right
│   ├── DataError         a data file is wrong; says file, row, what was found
│   ├── UnknownNameError  no such method in a room; lists the names there are
│   ├── MissingExtraError an optional dependency is absent; says what to install
│   ├── ModelError        the base is no causal language model that can be used here
│   └── MeterError        this machine cannot measure what was asked
├── RefusedError          a method cannot do this here; becomes a record with status "refused"
└── StoreError            results cannot be written or read: exit code 1
"""

from collections.abc import Iterable
from importlib.util import find_spec


class LeanwattError(Exception):
    """Base of all errors that are shown without a traceback."""


class UserError(LeanwattError):
    """Base of all errors that the user can mend."""


class StudyError(UserError):
    """The study file asks for something that cannot be."""


class DataError(UserError):
    """A data file does not hold what the task needs."""


class UnknownNameError(UserError):
    """No method of that name."""


class MissingExtraError(UserError):
    """An optional dependency is not installed."""


class ModelError(UserError):
    """The base model cannot be used."""


class MeterError(UserError):
    """This machine cannot measure what was asked."""


class RefusedError(LeanwattError):
    """A method cannot do what was asked of it here; the trial is recorded as refused and the study goes on."""


class StoreError(LeanwattError):
    """Results cannot be written or read."""


def missing_extra(room: str, name: str, package: str) -> MissingExtraError:
    """The error for a method whose package is not there; the extra, if there is one, has the method's name."""
    from importlib.metadata import metadata  # Slow to load, and needed only here.

    extras = metadata("leanwatt").get_all("Provides-Extra") or []
    what = f"'leanwatt[{name}]'" if name in extras or name.replace("_", "-") in extras else package
    return MissingExtraError(f"{room}: {name} needs '{package}'. Install it with: pip install {what}")


def not_among(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not there: what there is, and the nearest."""
    from difflib import get_close_matches  # Every file imports this one; a name is seldom wrong.

    there = sorted(known)
    near = get_close_matches(str(name), there, 1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"No '{name}' in {kind}. There are: {', '.join(there) or '(none)'}.{hint}"


def require(package: str, room: str, name: str) -> None:
    """Raises MissingExtraError where a package that a method needs is not installed; imports nothing."""
    if find_spec(package) is None:
        raise missing_extra(room, name, package)
