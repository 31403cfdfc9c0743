"""Write the pages of the site that come from the code: ``python docs/_code/generate.py FOLDER``.

Methods, members, commands, recipe keys, errors and Python names are read from registries, typer, pydantic and
docstrings, so that no page can lack one; tutorials are executed notebooks. ``make docs`` calls this in the development
environment; mkdocs then needs no torch.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pages import commands, errors, members, methods, python, recipes, tutorials
from tangora.errors import OutputError

__all__ = ["pages", "write"]

_MARK = ".generated"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path, relative to the folder, and the text of every page."""
    yield from methods.pages()
    yield from members.pages()
    yield commands.page()
    yield recipes.page()
    yield recipes.schema()
    yield errors.page()
    yield from python.pages()
    yield from tutorials.pages()


def write(folder: Path) -> None:
    """Write all pages, and the pictures of the methods, into a folder that is new, or was written by this before.

    Raises:
        OutputError: the folder holds something else.
    """
    from pages import pictures  # deferred: matplotlib, which the test of the texts does without
    from tangora.methods import methods as registered

    if folder.exists() and not (folder / _MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "choose a new folder, such as build/docs"
        raise OutputError("the place holds something that this did not write", where=folder, fix=fix)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()
    for name, text in pages():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name, method in registered().items():
        pictures.draw(method, folder / "methods" / "pictures" / f"{name}.png")
    for name, content in tutorials.pictures():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/_code/generate.py FOLDER")
    try:
        write(Path(sys.argv[1]))
    except OutputError as error:
        sys.exit(f"error: {error}")
