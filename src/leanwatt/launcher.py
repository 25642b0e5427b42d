"""Starts one command when told to, and ends it with all that it started when whoever asked for it is gone.

Run as a script in a process group of its own, before a weighing begins: `launcher.py LIFELINE COMMAND...`, where
LIFELINE is one end of a socket. We say that we are ready, a byte from it says go, and its end says that the starter
has died, whatever killed it.
Loads only what it needs, since its start is waited for.
"""

import os
import select
import signal
import sys

NOT_FOUND = 127
NOT_EXECUTABLE = 126
BY_SIGNAL = 128
"""Exit codes as a shell gives them."""
PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
"""Meant for the command, which is in the same group and gets them too."""


def launch(lifeline: int, command: list[str]) -> int:
    """The exit code of the command, once it was told to go."""
    for each in PASSED_ON:
        signal.signal(each, signal.SIG_IGN)
    os.write(lifeline, b"r")
    if os.read(lifeline, 1) != b"g":
        return 0
    ended, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        _become(command)
    while True:
        ready, _, _ = select.select([lifeline, ended], [], [])
        if lifeline in ready:
            os.killpg(0, signal.SIGKILL)
        found, status = os.waitpid(child, os.WNOHANG)
        if found == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else BY_SIGNAL - code
        os.read(ended, 64)


def _become(command: list[str]) -> None:
    """Never returns. A stop from the keyboard is ignored: a pause would spoil the window."""
    for each in (*PASSED_ON, signal.SIGCHLD):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"leanwatt: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
