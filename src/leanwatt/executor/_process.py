"""A process of its own for one job, and nothing of it left behind: what executors share.

On Linux the process is a copy of one that has imported the large libraries already: else each job would begin with some
seconds of imports, which for a small model is more than the job itself takes.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from leanwatt.contracts import WorkerDied

BEAT_SECONDS = 1.0
IMPORTED = (
    "leanwatt.jobs",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
"""By the process that all others are copies of."""
GRACE_SECONDS = 10.0
"""For a process that has been told to end, or has said all."""

Beat = Callable[[], None]
"""Called about once a second while the job runs; what it raises ends the job."""


@dataclass(frozen=True)
class Raised:
    """An error that the job did not turn into a record, on its way to where it is raised."""

    error: BaseException


def outcome_of(job: Callable[[Any], Any], item: Any, beat: Beat = lambda: None, *, is_copied: bool = True) -> Any:
    """What the job gives, Raised or WorkerDied. Where it is not `is_copied`, its process starts from nothing."""
    context = _context() if is_copied else multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(send, job, item, dict(os.environ)), daemon=True)
    _start(worker)
    send.close()
    grace = GRACE_SECONDS
    try:
        while not receive.poll(BEAT_SECONDS):
            grace = 0.0  # What beat raises ends the job at once.
            beat()
            grace = GRACE_SECONDS
        return receive.recv()
    except (EOFError, OSError):  # Nothing came, or half an outcome.
        worker.join()
        return WorkerDied(
            item, f"the worker process ended with exit code {worker.exitcode}: {_meaning(worker.exitcode)}"
        )
    finally:
        if worker.is_alive() and not receive.closed:
            worker.join(timeout=grace)
        if worker.is_alive():
            worker.kill()
        worker.join()
        receive.close()


def _context() -> Any:
    if sys.platform != "linux":  # Elsewhere system libraries do not bear being copied.
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def _start(worker: Any) -> None:
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


def _work(send: Connection, job: Callable[[Any], Any], item: Any, environment: dict[str, str]) -> None:
    os.environ.clear()  # That of when the first process was made.
    os.environ.update(environment)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        threading.Thread(target=_end_with_parent, name="leanwatt-parent", daemon=True).start()
        send.send(job(item))
    except KeyboardInterrupt:
        return  # The parent was interrupted too, and says so.
    except Exception as error:  # Crosses to the parent, and is raised there.
        send.send(Raised(_picklable(error)))
    send.close()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its worker, which would go on spending and hold the lease."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # An error that cannot travel is told in words.
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _meaning(code: int | None) -> str:
    if code in (-9, 137):
        return "killed, most often for memory; use a smaller batch or base"
    return "a crash in native code" if code is not None and code < 0 else "no reason given"
