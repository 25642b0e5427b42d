"""A process of its own for one job, and nothing of it left behind: what executors share.

On Linux the process is a copy of one that has imported the large libraries already: else each job would begin with some
seconds of imports, which for a small model is more than the job itself takes.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from leanwatt.contracts import WorkerDied
from leanwatt.processes import GRACE_SECONDS, cause, end_with_parent, raised, start

BEAT_SECONDS = 1.0
IMPORTED = (
    "leanwatt.jobs",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
"""By the process that all others are copies of."""
Beat = Callable[[], None]
"""Called about once a second while the job runs; what it raises ends the job."""


def outcome_of(job: Callable[[Any], Any], item: Any, beat: Beat = lambda: None, *, is_copied: bool = True) -> Any:
    """What the job gives, Raised or WorkerDied. Where it is not `is_copied`, its process starts from nothing."""
    context = _context() if is_copied else multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(send, job, item, dict(os.environ)), daemon=True)
    start(worker)
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
        return WorkerDied(item, f"the worker process ended with {cause(worker.exitcode)}")
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


def _work(send: Connection, job: Callable[[Any], Any], item: Any, environment: dict[str, str]) -> None:
    os.environ.clear()  # That of when the first process was made.
    os.environ.update(environment)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        end_with_parent()
        send.send(job(item))
    except KeyboardInterrupt:
        return  # The parent was interrupted too, and says so.
    except Exception as error:  # Crosses to the parent, and is raised there.
        send.send(raised(error))
    send.close()
