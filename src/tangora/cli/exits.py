"""The end of a command: an exit code, and at most one line on stderr with the reason."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import typer

from tangora.cli.terminal import reader_is_gone, say
from tangora.errors import TangoraError
from tangora.support.printable import LONGEST, printable

__all__ = ["end", "print_traceback", "quiet_libraries", "traceback_goes_to"]

INTERRUPTED = 130  # the shell's code for Ctrl-C
_LOGS: list[Path] = []


def end(command: Callable[[], Any]) -> NoReturn:
    """Run a command and exit: 0 done, 2 an error of the user's to fix, 130 interrupted, 1 a bug."""
    _print_any_name()
    try:
        code = command()  # that of a typer.Exit; typer makes one of Ctrl-C, earlier ones raise
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except TangoraError as error:
        _refused(error)
    except (BrokenPipeError, SystemExit) as stop:  # typer makes a silent exit of a broken pipe
        cause = stop if isinstance(stop, BrokenPipeError) else stop.__context__
        if not isinstance(cause, BrokenPipeError):
            raise
        if not reader_is_gone():
            _bug(cause)
        code = 0
    except (OSError, MemoryError) as error:
        _refused_by_the_system(error)
    except Exception as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error).lower():  # torch has no class for it
            _refused_by_the_system(MemoryError())
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own usage errors
            _usage(error)
        _bug(error)
    if code == INTERRUPTED:
        say("interrupted: nothing is left half-written; the same command goes on where this one stopped")
    sys.exit(code or 0)


def print_traceback(error: BaseException) -> None:
    """Print a traceback on stderr, in which names of files and tensors have no effect on the terminal."""
    text = "".join(traceback.format_exception(error))
    print(printable(text, lines=True, most=10 * LONGEST), file=sys.stderr, end="")


def traceback_goes_to(log: Path) -> None:
    """On an unexpected error, print one line that points to this log file, if it exists."""
    _LOGS[:] = [log]


def quiet_libraries(verbose: bool = False) -> None:
    """Keep the terminal for our own bars and errors; with ``verbose``, show our log and what the libraries print.

    Variables of the environment that are set already win.
    """
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        return
    for key, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(key, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it speaks of kernels nobody asked for
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def _print_any_name() -> None:
    """Allow printing names that the terminal's encoding lacks, such as a path of undecodable bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refused(error: TangoraError) -> NoReturn:
    """End with what is to be put right: one line, or one for each of several faults."""
    if error.faults:
        say(f"error: {error.what} in {error.where}:")
    for fault in error.faults:
        say(f"  {' '.join(str(fault).split())}")
    if not error.faults:
        say(f"error: {' '.join(str(error).split())}")
    sys.exit(2)


def _refused_by_the_system(error: OSError | MemoryError) -> NoReturn:
    """End with one line on what the system refused: a path, or memory. With ``-v`` the log has the traceback."""
    logging.getLogger("tangora").info("refused by the system", exc_info=error)
    if isinstance(error, MemoryError):
        say("error: the memory is used up. Use fewer threads or smaller blocks, or free some memory")
    else:
        names = [
            os.fsdecode(name)[:200] for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
        ]
        at = f" at {' and '.join(names)}" if names else ""
        say(f"error: {error.strerror or error}{at}. Check the path, and its permissions and limits")
    sys.exit(2)


def _usage(error: Any) -> NoReturn:
    if getattr(error, "ctx", None) is not None:
        for line in error.ctx.get_usage().splitlines():
            say(line)
    say(f"error: {error.format_message()}")
    sys.exit(2)


def _bug(error: Exception) -> NoReturn:
    log = None
    with suppress(OSError):  # a name too long
        log = next((path for path in _LOGS if path.is_file()), None)
    if log is None:
        print_traceback(error)
    else:
        say(f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]} (the traceback is in {log})")
    sys.exit(1)
