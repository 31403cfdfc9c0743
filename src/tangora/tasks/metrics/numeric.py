"""Numeric: whether a text has the value of its reference."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from tangora.tasks.metrics._rows import TextScore

__all__ = ["METRIC", "Numeric"]

_LONGEST = 300  # characters of an expression; so neither its depth nor a number in it can be too large to evaluate
_ASCII = str.maketrans({",": None, "$": None, "×": "*", "÷": "/"})
_ARITHMETIC = re.compile(r"[0-9.+*/() \t-]+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_PARTS = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.USub, *_OPERATORS)
_TOLERANCE = 1e-3


class Numeric(TextScore):
    """The share of rows whose value x is that of a reference, v: ``|x - v| ≤ 0.001 max(1, |v|)``; in [0, 1].

    The value of a text is that of the part before its first ``=``, if this is an arithmetic expression of numbers,
    ``+ - * /``, parentheses and unary minus, of at most 300 characters; otherwise it is the last number in the text.
    Commas and ``$`` are removed, ``×`` and ``÷`` are read as ``*`` and ``/``. A text without a value is wrong. Choose
    it for word problems whose answer is a number, or the expression of it.

    >>> METRIC.score(["(3 + 4) × 2 = 15", "so it is $1,200", "many"], ["14", "1200", "3"])
    0.6666666666666666
    """

    name = "numeric"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return 1 if both have a value, and the same."""
        value, expected = _value(text), _value(reference)
        if value is None or expected is None:
            return 0.0
        return float(abs(value - expected) <= _TOLERANCE * max(1.0, abs(expected)))


def _value(text: str) -> float | None:
    plain = text.translate(_ASCII)
    tree = _parsed(plain.partition("=")[0].strip())
    if tree is not None:
        try:
            value = _evaluated(tree.body)
        except ZeroDivisionError:
            return None
    else:
        *_, last = (None, *_NUMBER.finditer(plain))
        value = math.nan if last is None else float(last[0])
    return value if math.isfinite(value) else None


def _parsed(text: str) -> ast.Expression | None:
    """Return the syntax tree of an arithmetic expression; None for any other text. Nothing is executed."""
    if len(text) > _LONGEST or not _ARITHMETIC.fullmatch(text):
        return None
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return tree if all(_is_arithmetic(node) for node in ast.walk(tree)) else None


def _is_arithmetic(node: ast.AST) -> bool:
    return isinstance(node, _PARTS) or (isinstance(node, ast.Constant) and type(node.value) in (int, float))


def _evaluated(node: Any) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp):
        return -_evaluated(node.operand)
    return _OPERATORS[type(node.op)](_evaluated(node.left), _evaluated(node.right))


METRIC = Numeric()
