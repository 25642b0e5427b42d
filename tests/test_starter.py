"""The base `starter`: made once, kept under a key of all it depends on, and usable like any other base."""

import dataclasses
from pathlib import Path

import pytest

from leanwatt import starter, verbs
from leanwatt.errors import StoreError

TINY = starter.Shape(vocabulary=320, hidden=32, layers=1, heads=2, inner=64, tickets=24, batch=8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANWATT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_made_once_and_answers_like_a_base(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.engine.transformers import Transformers
    from leanwatt.question import Prompt, Score

    assert not starter.is_made(TINY)
    base = starter.base(TINY)
    assert starter.is_made(TINY)
    assert [path.name for path in cache.iterdir()] == [f"starter-{base.key}"]
    monkeypatch.setattr(starter, "pretrain", lambda *_: pytest.fail("it was there already"))
    assert starter.base(TINY) == base
    with Transformers().open(Path(base.place), 2) as session:
        [answer] = session.answer(
            [Score(Prompt(*starter.CAUSE[:1], "AC-IN at a site", starter.CAUSE[1]), ("a", "b c"))]
        )
    assert len(answer.scores) == 2


def test_texts_survive_its_tokenizer(cache: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(starter.base(TINY).place)
    text = "03:08 BER-HIGH Vaneholm/RT1; naïve café 100 %"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_its_key_follows_the_shape() -> None:
    assert starter.key(TINY) == starter.key(TINY)
    assert starter.key(dataclasses.replace(TINY, tickets=25)) != starter.key(TINY)


def test_a_study_makes_it_in_a_process_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.contracts import WorkerDied
    from leanwatt.executor import local

    asked = []
    monkeypatch.setattr(local, "_in_fresh_process", lambda job, item: asked.append(item) or job(TINY))
    made = verbs._base("starter", None)
    assert asked == [starter.Shape()]
    assert made.key == starter.key(TINY)
    monkeypatch.setattr(local, "_in_fresh_process", lambda job, item: WorkerDied(item, "killed"))
    with pytest.raises(StoreError, match="could not be made: killed"):
        verbs._base("starter", None)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEANWATT_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="Set LEANWATT_CACHE"):
        starter.base(TINY)
