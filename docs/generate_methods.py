"""Print docs/methods.md: every method of every room and what its settings mean, from the docstrings.

python docs/generate_methods.py > docs/methods.md
"""

import inspect
from collections.abc import Iterator

from leanwatt import catalog

HEAD = """# Methods

Generated from the docstrings by `docs/generate_methods.py`; change the source, not this page. `leanwatt methods` prints
the same for what is installed, methods of other packages included.

A room's name is the key in the study file: `finetune`, `merge`, `prune` and `quantize` under `steps`, `baseline` as
`baselines`, the others as they are. A method's name is the word to write there; `required` marks what has no default.
"""


def page() -> str:
    """The whole page, without a newline at its end."""
    return "\n".join([HEAD, *(line for room in catalog.ROOMS for line in _room(room))]).rstrip()


def _room(room: str) -> Iterator[str]:
    contract = inspect.getdoc(catalog.ROOMS[room]) or ""
    yield f"## {room}\n"
    if catalog.ROOMS[room].__name__ != "Step":
        yield f"{contract}\n"
    for name in catalog.names(room):
        if catalog.find(room, name).__module__ == f"leanwatt.{room}.{name}":
            yield from _method(room, name)


def _method(room: str, name: str) -> Iterator[str]:
    about, settings = catalog.documentation(room, name)
    yield f"### {name}\n\n{about}\n"
    for setting, meaning in settings.items():
        signature, _, text = meaning.partition(": ")
        yield f"- `{setting}: {signature}`  \n  {' '.join(text.split())}"
    if settings:
        yield ""


if __name__ == "__main__":
    print(page())
