"""The commands that put a winner to work: what they take, what they print, how they fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from offered import folder_of
from test_cli import Said, one_message, study_of, told

from leanwatt import verbs
from leanwatt.feedback import Feedback, Rating
from leanwatt.serving import Settings


@pytest.fixture
def lw(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    return lambda *words: told(tuple(map(str, words)), capsys, monkeypatch)


@pytest.fixture
def study(saved: Callable[[str], Path], tickets: Path, tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_of(saved("llama"), tickets)), encoding="utf-8")
    return path


def test_keys_are_added_listed_and_removed(lw: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    added = lw("keys", "add", "noc", "--keys", file)
    assert (added.code, added.out[:3]) == (0, "lw-")
    assert lw("keys", "list", "--keys", file).out.startswith("noc  made 20")
    assert "there already" in one_message(lw("keys", "add", "noc", "--keys", file), 2)
    assert lw("keys", "remove", "noc", "--keys", file).code == 0
    assert lw("keys", "list", "--keys", file).out == "\n"
    assert "Give a name" in one_message(lw("keys", "remove", "--keys", file), 2)


def test_ratings_are_counted_written_and_deleted(lw: Callable[..., Said], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    folder = folder_of(model, tmp_path / "exported")
    assert "no ratings yet" in one_message(lw("feedback", folder), 2)
    kept = Feedback(verbs.ratings_file(folder), 30)
    numbers = [kept.add(Rating("v", "power lost", "mains failure", None, is_right=True)) for _ in range(3)]
    assert lw("feedback", folder).out == "3 ratings kept\n"
    assert lw("feedback", folder, "--to", tmp_path / "new.csv").out.startswith("3 ratings written to")
    assert lw("feedback", folder, "--delete", numbers[0]).out == "1 ratings deleted\n"
    assert lw("feedback", folder, "--clear").out == "2 ratings deleted\n"


def test_serve_reads_its_settings(
    lw: Callable[..., Said], study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(verbs, "serve", lambda *words, **_: seen.append(words))
    words = ["--port", "0", "--batch", "16", "--wait", "5", "--queue", "9", "--timeout", "3", "--rate", "50"]
    words += ["--max-tokens", "33", "--max-body", "8", "--keys", tmp_path / "k.json", "--rating-days", "7"]
    assert lw("serve", study, "--out", tmp_path / "out", *words).code == 0
    [(named, settings, out, variant)] = seen
    assert (named, out, variant) == (study, tmp_path / "out", None)
    assert settings == Settings(
        port=0,
        batch=16,
        wait_seconds=0.005,
        queue=9,
        timeout_seconds=3.0,
        per_minute=50,
        most_tokens=33,
        body_bytes=8192,
        keys=tmp_path / "k.json",
        ratings=tmp_path / "out" / "ratings.sqlite",
        rating_days=7,
    )
    assert lw("serve", study, "--no-ratings").code == 0
    assert seen[-1][1].ratings is None
    assert seen[-1][1].is_local


def test_what_cannot_be_served_is_said(lw: Callable[..., Said], study: Path, tmp_path: Path) -> None:
    assert "holds no records yet" in one_message(lw("serve", study, "--out", tmp_path / "out"), 2)
    assert "no folder that `leanwatt export` wrote" in one_message(lw("serve", tmp_path), 2)


def test_a_study_is_watched(lw: Callable[..., Said], study: Path, tmp_path: Path) -> None:
    said = lw("watch", study, "--out", tmp_path / "out", "--once")
    assert said.code == 0
    assert "tickets: nothing yet" in said.out
    assert "0 of 3" in said.out


def test_a_study_is_watched_as_a_page(
    lw: Callable[..., Said], study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt.watch import Page

    monkeypatch.setattr(Page, "serve", lambda self: self._server.server_close())
    said = lw("watch", study, "--out", tmp_path / "out", "--web", "--port", "0")
    assert said.code == 0
    assert "Watching on http://127.0.0.1:" in said.err


def test_records_need_a_run(lw: Callable[..., Said], study: Path, tmp_path: Path) -> None:
    assert "holds no records yet" in one_message(lw("records", study, "--out", tmp_path / "out", "--to", "x.csv"), 2)
