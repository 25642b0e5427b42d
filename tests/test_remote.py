"""An engine in a process of its own: the same answers, its CPU time counted as ours, and a crash that ends it alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from offered import FORM, Even

from leanwatt import catalog
from leanwatt.batching import Batcher, Rules
from leanwatt.errors import LeanwattError
from leanwatt.meter._reader import own_cpu_seconds
from leanwatt.question import Answer, Generate, Prompt, Question
from leanwatt.recipe import Choice
from leanwatt.remote import EngineDiedError, Opening, Remote

ENGINE = Choice("engine", "transformers")
WRITTEN = Generate(Prompt("", "site A power", "", verbatim=True), 12)


@pytest.fixture(scope="module")
def opening(saved: Callable[[str], Path]) -> Opening:
    return Opening(ENGINE, saved("llama"), 2, tuple(FORM.about("warm").values()))


@pytest.fixture(scope="module")
def remote(opening: Opening) -> Iterator[Remote]:
    """One for all tests: whatever happens to it, it is to be there for the next."""
    with Remote(opening) as session:
        yield session


def gists(answers: Sequence[Answer]) -> list[tuple[str | None, tuple[float, ...]]]:
    return [(answer.text, answer.scores) for answer in answers]


def test_it_answers_as_the_engine_here_does_and_says_what_is_written(remote: Remote, opening: Opening) -> None:
    questions: list[Question] = [*FORM.about("power lost at A").values(), WRITTEN]
    with catalog.build(ENGINE).open(opening.artifact, 2) as here:
        expected, facts = here.answer(questions), here.facts
    assert gists(remote.answer(questions)) == gists(expected)
    assert remote.facts == facts
    heard: list[str] = []
    streamed = remote.stream(questions, {2: heard.append})
    assert gists(streamed) == gists(expected)
    assert len(heard) == streamed[2].tokens_out
    assert heard[-1] == streamed[2].text


def test_its_cpu_time_is_ours_while_it_runs_and_counted_once_when_it_has_ended(opening: Opening) -> None:
    before = own_cpu_seconds()
    with Remote(opening) as session:
        opened = own_cpu_seconds()
        assert opened - before > 0.3, "its start and its imports"
        session.answer([WRITTEN] * 64)
        answered = own_cpu_seconds()
        assert answered > opened
    ended = own_cpu_seconds()
    assert answered <= ended < answered + 0.5 * (answered - before), "not once more"


def test_what_cannot_be_opened_is_refused_here(tmp_path: Path, opening: Opening) -> None:
    with pytest.raises(Exception, match="nowhere"):
        Remote(Opening(ENGINE, tmp_path / "nowhere", 2))
    with pytest.raises(LeanwattError, match="engine"):
        Remote(Opening(Choice("engine", "no_such_engine"), opening.artifact, 2))


def test_a_question_that_fails_is_raised_here_and_the_next_is_answered(remote: Remote) -> None:
    process = remote.process_id()
    with pytest.raises(AttributeError):
        remote.answer([Generate("no prompt", 4)])  # type: ignore[arg-type]
    assert remote.answer([WRITTEN])[0].text
    assert remote.process_id() == process


class Gone:
    """A prompt whose text is on no disk any more."""

    @property
    def body(self) -> str:
        raise FileNotFoundError("gone")


def test_an_error_of_the_system_there_is_no_death(remote: Remote) -> None:
    process = remote.process_id()
    with pytest.raises(FileNotFoundError, match="gone"):
        remote.answer([Generate(Gone(), 4)])  # type: ignore[arg-type]
    assert remote.process_id() == process


def test_one_that_dies_while_nobody_asks_is_started_by_the_next_question(
    remote: Remote, capfd: pytest.CaptureFixture[str]
) -> None:
    first, before = remote.answer([WRITTEN]), remote.process_id()
    os.kill(before, signal.SIGKILL)
    ends = time.monotonic() + 10
    while remote.is_alive:
        assert time.monotonic() < ends
    assert gists(remote.answer([WRITTEN])) == gists(first)
    assert remote.is_alive
    assert remote.process_id() != before
    assert "exit code -9: killed, most often for memory" in capfd.readouterr().err


def _killed_while_it_answers(remote: Remote, ask: Callable[[], None]) -> None:
    """Held, asked, and killed: the question is in its hands for certain."""
    os.kill(remote.process_id(), signal.SIGSTOP)
    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    os.kill(remote.process_id(), signal.SIGKILL)
    asking.join(60)
    assert not asking.is_alive()


def test_whose_question_it_died_with_is_told(remote: Remote) -> None:
    found: list[Exception] = []

    def ask() -> None:
        try:
            remote.answer([WRITTEN])
        except EngineDiedError as error:
            found.append(error)

    _killed_while_it_answers(remote, ask)
    assert "exit code -9" in str(found[0])
    assert remote.is_alive, "started anew"
    assert remote.answer([WRITTEN])[0].text


def test_what_was_accepted_together_is_answered_though_the_engine_died(remote: Remote) -> None:
    batcher = Batcher(remote, Even(), Rules(2, 0.5))
    answers: list[str | None] = []

    def ask() -> None:
        futures = [batcher.submit([WRITTEN]) for _ in range(2)]
        answers.extend(future.result(60).answers[0].text for future in futures)

    _killed_while_it_answers(remote, ask)
    batcher.close()
    assert answers == [remote.answer([WRITTEN])[0].text] * 2
    assert (batcher.answered, batcher.failed) == (2, 0)


def test_signals_that_end_the_server_are_not_for_the_engine(remote: Remote) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(remote.process_id(), each)
    assert remote.answer([WRITTEN])[0].text
    assert remote.is_alive


PARENT = """
import sys, time
from pathlib import Path
from leanwatt.remote import Remote, Opening
from leanwatt.recipe import Choice
if __name__ == "__main__":
    with Remote(Opening(Choice("engine", "transformers"), Path(sys.argv[1]), 2)) as session:
        print(session.process_id(), flush=True)
        time.sleep(60)
"""


def test_it_ends_with_a_parent_that_is_killed(opening: Opening, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(opening.artifact)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    engine = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    ends = time.monotonic() + 10
    while Path(f"/proc/{engine}").exists() and "Z" not in Path(f"/proc/{engine}/stat").read_text().split()[2]:
        assert time.monotonic() < ends
        time.sleep(0.05)
