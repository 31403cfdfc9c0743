"""The table of fusion methods in the documentation."""

from __future__ import annotations

from tangora.methods._registry import Method, methods

__all__ = ["table"]

_HEADER = ("method", "granularity", "parameters", "default λ", "reference", "choose it")
_SITES = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def table() -> str:
    """Return all methods of the registry as a Markdown table.

    >>> print(table().splitlines()[0])
    | method | granularity | parameters | default λ | reference | choose it |
    """
    rows = [_HEADER, ("---",) * len(_HEADER), *(_row(m) for m in methods().values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(method: Method) -> tuple[str, ...]:
    parameters = ", ".join(f"`{name}={default!r}`" for name, default in method.parameters.items()) or "–"
    cells = f"`{method.name}`", method.granularity, parameters, f"{method.default_weight:g}", _link(method.reference)
    return (*cells, method.choose.replace("|", "\\|") or "–")


def _link(reference: str) -> str:
    kind, _, number = reference.partition(":")
    if kind not in _SITES:
        return reference.replace("|", "\\|")
    return f"[{reference}]({_SITES[kind]}{number})"
