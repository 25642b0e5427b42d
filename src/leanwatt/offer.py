"""What is put to work: a study's winner, or a folder that was exported, with all that a server must know of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leanwatt import catalog
from leanwatt.errors import StudyError
from leanwatt.feedback import Columns
from leanwatt.form import Form, read_provenance
from leanwatt.promise import Promise
from leanwatt.prompt import VERSION, Encoder
from leanwatt.ranking import Ranking
from leanwatt.recipe import Choice, Trial
from leanwatt.study import Study


@dataclass(frozen=True)
class Offer:
    """One variant in its engine."""

    name: str
    """The model's name in the API: the study's."""
    trial: Trial
    artifact: Path
    form: Form
    meter: Choice
    promise: Promise
    columns: Columns

    @classmethod
    def of(cls, study: Study, ranking: Ranking, trial: Trial, artifact: Path) -> Offer:
        """A variant of a finished study."""
        form = Form.of(study, trial.variant.fold)
        return cls(study.name, trial, artifact, form, study.meter, Promise.of(ranking, trial), columns(study))

    @classmethod
    def read(cls, folder: Path) -> Offer:
        """A folder that `leanwatt export` wrote; data and records of the study are not needed. Raises StudyError."""
        from pydantic import TypeAdapter, ValidationError

        found = read_provenance(folder)
        try:
            if found["prompt_version"] != VERSION:
                raise StudyError(
                    f"{folder}: was made for prompts of version {found['prompt_version']}, and these are version "
                    f"{VERSION}. Export it again, or serve it with the version of leanwatt that wrote it."
                )
            return cls(
                name=str(found["study"]),
                trial=TypeAdapter(Trial).validate_python(found["trial"]),
                artifact=folder,
                form=Form.parse(found["questions"]),
                meter=TypeAdapter(Choice).validate_python(found["meter"]),
                promise=Promise(**found["promise"]),
                columns=TypeAdapter(Columns).validate_python(found["columns"]),
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise StudyError(f"{folder}: its provenance.json lacks what a server needs; export it again.") from error

    def data(self) -> dict[str, Any]:
        """What `read` needs, as JSON."""
        return {
            "study": self.name,
            "trial": asdict(self.trial),
            "questions": self.form.data(),
            "prompt_version": VERSION,
            "meter": asdict(self.meter),
            "promise": self.promise.data(),
            "columns": asdict(self.columns),
        }

    def encoder(self) -> Encoder:
        """Of its tokenizer; one of its own, since the engine's is used by the engine's thread."""
        from transformers import AutoTokenizer

        from leanwatt.model import config_of, context_length
        from leanwatt.quiet import quiet

        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(self.artifact, trust_remote_code=False)
        return Encoder(tokenizer, context_length(config_of(str(self.artifact))))


def columns(study: Study) -> Columns:
    """What the study calls the ticket, the cause and the response; several columns of text become the first of them."""
    named: dict[str, str] = {}
    read: dict[str | None, None] = {}
    for choice in study.tasks:
        found = {key: choice.settings.get(key) for key in ("text", "label", "reference")}
        task = catalog.build(choice)
        if hasattr(task, "source"):
            source = task.source
            found |= {key: getattr(source, key) for key in ("id", "group", "time", "split")}
            read |= dict.fromkeys([*task.columns.needed, source.stratify, *source.known_later, *source.known_at_open])
        for key, value in found.items():
            if value is not None:
                named.setdefault(key, value if isinstance(value, str) else value[0])
    others = tuple(name for name in read if name is not None and name not in named.values())
    text, cause, response = named.pop("text", "ticket"), named.pop("label", None), named.pop("reference", None)
    return Columns(text, cause, response, **named, others=others)
