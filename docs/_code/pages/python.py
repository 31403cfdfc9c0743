"""The reference of Python: one entry for each public name, which mkdocstrings fills."""

from __future__ import annotations

import tangora
import tangora.testing

__all__ = ["pages"]

_GROUPS = {
    "Adapters and fusion": ("load", "Adapter", "fuse", "route", "polish", "extract", "search", "fuse_checkpoints"),
    "Bases, tasks and training": (
        *("load_base", "Base", "load_task", "Task", "FinetuneConfig", "finetune", "linearize", "TangentModel"),
        *("distill", "collect_statistics"),
    ),
    "Answers and scores": ("evaluate", "predict", "predictor", "load_model"),
    "Runs": ("load_recipe", "run", "analyze", "table", "compare"),
    "Publishing": ("export", "push"),
    "Values": ("TaskVector", "LowRank", "Dense"),
    "Extending": ("fusion_method",),
    "Errors": ("TangoraError",),
}
_PACKAGES = ("analysis", "coefficients", "methods", "tasks", "testing")


def pages() -> tuple[tuple[str, str], ...]:
    """Return the path and the text of both pages."""
    return ("reference/python.md", _tangora()), ("reference/testing.md", _testing())


def groups() -> dict[str, list[str]]:
    """Return the public names by group; those of no group are in the last one."""
    grouped = {title: [name for name in names if name in tangora.__all__] for title, names in _GROUPS.items()}
    placed = {name for names in grouped.values() for name in names} | set(_PACKAGES)
    if rest := [name for name in tangora.__all__ if name not in placed]:
        grouped["More"] = rest
    return grouped


def _tangora() -> str:
    parts = ["# Python", "Names are imported when they are first used, so that `import tangora` costs nothing."]
    for title, names in groups().items():
        parts += [f"## {title}", *(f"::: tangora.{name}" for name in names)]
    listed = "".join(f"- `tangora.{name}`\n" for name in _PACKAGES if name in tangora.__all__)
    parts += ["## Packages", f"With more names of their own:\n\n{listed}"]
    return "\n\n".join(parts) + "\n"


def _testing() -> str:
    about = "One function for each kind of plug-in, to call from your own tests: [Plug-ins](../plug-ins.md)."
    names = [name for name in tangora.testing.__all__ if name.startswith("check_")]
    constants = [name for name in tangora.testing.__all__ if name not in names]
    listed = "".join(f"- `tangora.testing.{name}`: the checks of `check_method`, by name\n" for name in constants)
    return "\n\n".join(["# Contract suites", about, *(f"::: tangora.testing.{name}" for name in names), listed])
