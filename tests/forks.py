"""Run a function in a process of its own, which has imported what this one has."""

from __future__ import annotations

import os
import pickle
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Any


def in_fork(work: Callable[[], Any]) -> Any:
    """Return what the function returns in a forked process; nothing that it changes is changed here."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            result = pickle.dumps((True, work()))
        except BaseException:
            result = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(write, "wb") as pipe:
            pipe.write(result)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        written = pipe.read()
    os.waitpid(child, 0)
    assert written, "the process ended without a result"
    done, value = pickle.loads(written)
    assert done, value
    return value


def status_of(line: str) -> int:
    """Do a line of a console in this process, and return its exit code."""
    from tangora.cli import commands

    sys.argv = shlex.split(line.removeprefix("$ "))
    try:
        commands.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
