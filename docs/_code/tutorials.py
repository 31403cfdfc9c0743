"""Execute the tutorials: ``python docs/_code/tutorials.py [NAME ...]``, all of them without a name.

``docs/tutorials/NAME.py`` is the source, in the percent format of jupytext: cells begin with ``# %%``, texts with
``# %% [markdown]``, and lines of a terminal are comments, ``# !tangora ...``. It becomes ``NAME.ipynb`` beside it, with
what its cells printed and drew in a new, empty folder, and with the time that this took. The site shows that file
(`pages.tutorials`) and executes nothing.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "cells", "cleaned", "execute", "names", "notebook"]

FOLDER = Path(__file__).parents[1] / "tutorials"
HOME = "/home/me"  # stands for the folder in which a notebook was executed
HOST = "host"  # stands for the name of the machine
_MARK = re.compile(r"^# %%(?P<kind>| \[markdown\])$", re.MULTILINE)
_COMMAND = re.compile(r"^(\s*)# (?=[!%])", re.MULTILINE)
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TIMED = re.compile(r": done in [\d.]+ s\s*$")  # what stands for a bar where none is drawn
_TIMEOUT = 600  # seconds for a cell, and for the start of the process
# A plain terminal of a fixed width: no colours, no bars that move, nothing fetched.
_ENVIRONMENT = {
    "COLUMNS": "110",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "PYTHONWARNINGS": "ignore",
    "TERM": "dumb",
    "TOKENIZERS_PARALLELISM": "false",
}


def names() -> list[str]:
    """Return the names of all tutorials, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def cells(source: str) -> Iterator[tuple[str, str]]:
    """Yield kind (``markdown`` or ``code``) and text of every cell of a source."""
    marks = list(_MARK.finditer(source))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        text = source[mark.end() : following.start() if following else None].strip("\n")
        if mark["kind"]:
            yield "markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        else:
            yield "code", _COMMAND.sub(r"\1", text)


def notebook(source: str) -> dict[str, Any]:
    """Return the notebook of a source, not executed."""
    made = []
    for number, (kind, text) in enumerate(cells(source), 1):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text}
        made.append(cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def execute(name: str) -> dict[str, Any]:
    """Return an executed tutorial, with its outputs cleaned; the first error of a cell is raised.

    ``metadata.tangora`` states the seconds that it took, from the start of its process, those of processors, and how
    many cores and threads there were.
    """
    import nbformat
    from nbclient import NotebookClient

    made = nbformat.from_dict(notebook((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve() / name
        folder.mkdir()
        options = {"timeout": _TIMEOUT, "startup_timeout": _TIMEOUT, "kernel_name": "python3"}
        client = NotebookClient(made, resources={"metadata": {"path": str(folder)}}, **options)
        begun = time.monotonic(), _of_processors()
        client.execute(env={**os.environ, **_ENVIRONMENT, "PATH": path})
        took = {"seconds": time.monotonic() - begun[0], "processor_seconds": _of_processors() - begun[1]}
        done = cleaned(json.loads(nbformat.writes(made)), folder)
    cores = os.cpu_count()
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or cores
    took = {name: round(value, 1) for name, value in took.items()}
    done["metadata"]["tangora"] = {**took, "cores": cores, "threads": threads}
    return done


def _of_processors() -> float:
    """The processor seconds of all processes that were started and have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def cleaned(executed: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return an executed notebook without bars, warnings, colours, times of execution and paths of this machine."""
    for cell in executed["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"] = list(_joined(_kept(output, folder) for output in cell["outputs"]))
    executed["metadata"]["language_info"] = {"name": "python"}
    return executed


def _kept(output: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    if output["output_type"] == "stream":
        text = _plain(_text(output["text"]), folder)
        return {**output, "text": text} if output["name"] == "stdout" and text.strip() else None
    data = {
        kind: _plain(_text(value), folder) if kind.startswith("text/") else value
        for kind, value in output["data"].items()
        if kind in ("text/plain", "text/html", "image/png")
    }
    if data.get("text/html", "").startswith(("<pre", "</pre")):  # progress, or what was left of it
        return None
    return {**output, "data": data, "metadata": {}}


def _joined(outputs: Iterator[dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
    """Make one of streams that follow each other: how they were cut is chance."""
    last: dict[str, Any] | None = None
    for output in outputs:
        if output is None:
            continue
        if last and last["output_type"] == output["output_type"] == "stream":
            last["text"] += output["text"]
            continue
        if last:
            yield last
        last = output
    if last:
        yield last


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _plain(text: str, folder: Path) -> str:
    """Leave what a terminal would show at the end of each line."""
    text = _CODES.sub("", text).replace("\r\n", "\n")
    text = "\n".join(line.rpartition("\r")[2].rstrip() for line in text.split("\n") if not _TIMED.search(line))
    return _without_host(text.replace(str(folder), HOME))


def _without_host(text: str) -> str:
    """Replace the name of this machine; in a column, the next one stays in its place."""
    name = rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w-])(  +)?"
    return re.sub(name, lambda found: f"{HOST} ".ljust(len(found[0])) if found[1] else HOST, text)


def write(name: str) -> None:
    """Execute a tutorial, write its notebook, and print what it took."""
    done = execute(name)
    text = json.dumps(done, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (FOLDER / f"{name}.ipynb").write_text(text, encoding="utf-8")
    print(f"{name}: {done['metadata']['tangora']['seconds']} s, {len(text.encode()) / 1000:.0f} kB")


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(names())
    if unknown:
        sys.exit(f"error: there is no tutorial {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    for each in sys.argv[1:] or names():
        try:
            write(each)
        except RuntimeError as error:  # of a cell
            sys.exit(f"error: {each}: {_plain(str(error), Path('/'))}")
