"""The reference of errors: the tree, what each class means, and the messages in the code with their cures."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tangora
from pages.prose import Docstring, cell, marked, table
from tangora import errors

__all__ = ["Message", "messages", "page"]

_INTRO = """\
# Errors

Everything that you can put right is a `TangoraError`, with four attributes: `what` rule was broken, what was `got`,
`where`, and the `fix`. The command line prints it in one line and ends with code 2, or one line for each fault of a
recipe; `--verbose` adds the traceback. Nothing is written, or nothing is left half-written. Any other exception is a
bug. In the tables below, … stands for a name, a number or a path.
"""


@dataclass(frozen=True, order=True)
class Message:
    """What one line of the code can say.

    Attributes:
        what: the message; `…` stands for a value.
        fix: the cure.
    """

    what: str
    fix: str


def page() -> tuple[str, str]:
    """Return the path and the text of the page."""
    found = messages()
    tree = (errors.__doc__ or "").split("\n\n")[1]
    parts = [_INTRO, "```text\n" + "\n".join(line[4:] for line in tree.splitlines()) + "\n```"]
    for name in errors.__all__:
        text = Docstring.of(getattr(errors, name))
        parts += [f"## {name}", marked(text.summary)]
        if name in found:
            rows = ((cell(marked(one.what)), cell(marked(one.fix))) for one in found[name])
            parts.append(table(("message", "what to do"), rows))
    return "reference/errors.md", "\n\n".join(part.strip("\n") for part in parts) + "\n"


def messages() -> dict[str, list[Message]]:
    """Return the messages with a cure that the package can raise, by class; those made at run time are left out."""
    found: dict[str, set[Message]] = {}
    for path in sorted(Path(tangora.__file__).parent.rglob("*.py")):
        for function in _functions(ast.parse(path.read_text(encoding="utf-8"))):
            texts = _texts(function)
            for call in _calls(function):
                named = {one.arg: one.value for one in call.keywords}
                what = _text(call.args[0], texts) if call.args else None
                fix = _text(named["fix"], texts) if "fix" in named else None
                if what and fix and what.strip("… "):
                    found.setdefault(call.func.id, set()).add(Message(what, fix))  # type: ignore[attr-defined]
    return {name: sorted(of, key=lambda one: one.what.lower()) for name, of in found.items()}


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _calls(function: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors.__all__:
            yield node


def _texts(function: ast.AST) -> dict[str, str]:
    """The local names that are one text each: those with several are left out."""
    found: dict[str, str | None] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            for name, value in _pairs(node.targets[0], node.value):
                found[name] = None if name in found else _text(value, {})
    return {name: text for name, text in found.items() if text}


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, of in zip(target.elts, value.elts, strict=False):
            yield from _pairs(one, of)


def _text(node: ast.expr, known: Mapping[str, str]) -> str | None:
    """The text of an expression with … for its values; None if it is made elsewhere."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
    if isinstance(node, ast.Name):
        return known.get(node.id)
    return None
