"""Processes of our own: a start that Ctrl-C cannot tear, an end with the parent, errors that travel, exit codes."""

import multiprocessing
import os
import pickle
import signal
import threading
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

GRACE_SECONDS = 10.0
"""For a process that has been told to end, or has said all."""


@dataclass(frozen=True)
class Raised:
    """An error on its way to where it is raised."""

    error: BaseException


def raised(error: Exception) -> Raised:
    """The error, or its words where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # An error that cannot travel is told in words.
        return Raised(RuntimeError(f"{type(error).__name__}: {error}"))
    return Raised(error)


def or_raise(outcome: Any) -> Any:
    """What came from a process; raised here if it is an error."""
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome


def start(worker: Any) -> None:
    """Ctrl-C waits until the worker can answer it: amid its imports it would end with a traceback.

    Blocked for the worker, which inherits that; put off for ourselves, since Python hands us a Ctrl-C that another of
    our threads caught, however blocked it is for this one.
    """
    resource_tracker.ensure_running()  # Its start would let Ctrl-C through again.
    missed: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda number, _: missed.append(number)) if is_main else None
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        worker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        if is_main:
            signal.signal(signal.SIGINT, before)
    if missed:
        os.kill(os.getpid(), signal.SIGINT)


def end_with_parent() -> None:
    """A parent that is killed cannot end its worker, which would go on spending: the worker calls this, and ends."""
    threading.Thread(target=_wait_for_parent, name="leanwatt-parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def cause(code: int | None) -> str:
    """Why a process that said nothing ended with this exit code."""
    if code in (-9, 137):
        why = "killed, most often for memory; use a smaller batch or base"
    else:
        why = "a crash in native code" if code is not None and code < 0 else "no reason given"
    return f"exit code {code}: {why}"
