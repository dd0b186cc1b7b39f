"""An engine's script that ends with whoever started it: `python THIS SCRIPT REQUEST ANSWER`.

Stands alone, as the scripts do. Standard input is a pipe that the starter holds open and writes nothing to: its end
says that the starter is gone, by whatever signal. Then this process goes too, with what it started in its group.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Watch the pipe beside the script."""
    watched = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # an engine that asks a question gets no answer
    os.close(nothing)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with(watched: int) -> None:
    while os.read(watched, 1):
        pass
    if os.getpgrp() == os.getpid():  # a group of our own, and not that of somebody's terminal
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
