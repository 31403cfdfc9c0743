"""Ollama: a folder with the adapter as GGUF, and a Modelfile that adds it to a base."""

from __future__ import annotations

import shlex

from tangora.adapters.metadata import FILE
from tangora.errors import ArgumentError
from tangora.serving.contract import Order, Target, Written
from tangora.serving.targets.gguf import prepare, write_file
from tangora.support.files import atomic_dir, write_json, write_text

__all__ = ["TARGET"]


def _write(order: Order) -> Written:
    assert order.base is not None
    start = order.model or str(order.base.folder.resolve())
    if any(ord(letter) < 32 for letter in start):
        what = "a Modelfile has one line for the base"
        raise ArgumentError(what, got=start, where="--from", fix="give a name without control characters")
    with atomic_dir(order.out, overwrite=order.overwrite, record=FILE) as folder:
        difference = write_file(order, folder / "adapter.gguf")
        write_text(folder / "Modelfile", f"FROM {start}\nADAPTER ./adapter.gguf\n")
        write_json(folder / FILE, order.adapter.metadata.model_dump(mode="json"))
    file = str((order.out / "Modelfile").resolve())
    commands = (shlex.join(["ollama", "create", order.name, "-f", file]), shlex.join(["ollama", "run", order.name]))
    return Written(commands, difference, "gguf's reader")


TARGET = Target("ollama", is_file=False, needs_base=True, prepare=prepare, write=_write)
