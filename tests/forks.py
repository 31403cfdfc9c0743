"""Run a function in a process of its own, which has imported what this one has."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
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


def begun(arguments: Sequence[Any], stdout: int | None = None, stderr: int | None = None) -> int:
    """Begin ``tangora`` in a fork that writes to file descriptors, or nowhere, and return the number of its process."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream, end in ((1, stdout), (2, stderr)):
            os.dup2(nowhere if end is None else end, stream)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(stream, "w"), encoding="utf-8") for stream in (1, 2))
        code = status_of(shlex.join(["tangora", *map(str, arguments)]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def program(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Do a command as a shell does, in a fork, which need not import everything again."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        _, status = os.waitpid(begun(arguments, out.fileno(), err.fileno()), 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), out.read(), err.read())
