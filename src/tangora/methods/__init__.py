"""Fusion methods: pure functions from stacked updates to one update, one module each, and their registry.

The contract, for built-in methods and for those of other packages::

    @fusion_method("ties", granularity="model", reference="arXiv:2306.01708", default_weight=1.0)
    def ties(deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"],
             density: float = 0.2) -> Float[Tensor, "*param"]: ...

- ``deltas`` are never changed, and the result has their dtype (sums are kept in float32 or better).
- ``weights`` has one row per task, each broadcasting to ``*param``; methods only multiply by it.
- ``granularity`` is a promise: ``element`` (any chunking gives the same), ``tensor`` (a site's whole tensor),
  ``model`` (every site at once, as one vector per task). `Promises` lists everything that a method may promise.
- A random method takes ``uniforms`` in [0, 1), shaped like ``deltas``, and draws no random numbers itself.
- If a method needs other entries only to find the magnitude of the smallest entry it keeps, it names the parameter
  that decides this, ``cutoff="density"``, and takes ``cutoffs``, one per task. With them it works entry by entry, and
  can fuse checkpoints larger than memory.
- A method that needs the experts' data gets **statistics** that were collected before
  (`tangora.fusion.statistics`), one tensor per task. It names the kind, ``statistics="gram"`` or ``"fisher"``, and
  takes ``statistics``, stacked, or None for a tensor that has none.
- No models, no files, no data; a docstring with a paragraph "Choose it ..." for the table of methods.
- A **step** changes the updates of a tensor before any method: ``equal_norms+ties_per_tensor``. It is registered with
  `fusion_step`, and is a function ``(deltas, **parameters) -> Change``.
- `tangora.testing.check_method` checks the promises; call it in a test.

Other packages add methods through the entry-point group ``tangora.methods``: the entry point has the method's name,
and its value is the module or function with the decorator. Start from a copy of any module here.

The built-in methods are imported when they are first used.

    >>> import torch
    >>> task_vectors = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    >>> get("average").function(task_vectors, weights=torch.ones(2, 1))
    tensor([2., 0.])
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from tangora.errors import PluginError
from tangora.methods._limits import Limit
from tangora.methods._promises import Granularity, Promises, Statistic
from tangora.methods._registry import ENTRY_POINT_GROUP, Method, fusion_method, get, methods
from tangora.methods._steps import Change, Step, fusion_step
from tangora.methods._table import table

__all__ = [
    "ENTRY_POINT_GROUP",
    "Change",
    "Granularity",
    "Limit",
    "Method",
    "Promises",
    "Statistic",
    "Step",
    "fusion_method",
    "fusion_step",
    "get",
    "methods",
    "table",
]


def __getattr__(name: str) -> Any:
    """Return the function of a method by its name, such as ``tangora.methods.ties``."""
    if not name.startswith("_"):
        try:
            return get(name).function
        except PluginError as cause:
            raise AttributeError(f"module 'tangora.methods' has no attribute {name!r}: {cause}") from cause
    raise AttributeError(f"module 'tangora.methods' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *methods()})


class _CallableModule(ModuleType):
    """Makes `tangora.methods` a module that is also the public function ``tangora.methods()``.

    Importing a submodule binds its name in the package, so a function of the same name in ``tangora`` would be
    overwritten by the first ``import tangora.methods``, or overwrite it. A callable module is both. For the same reason
    a method's module is not bound here: ``tangora.methods.ties`` is the function.
    """

    def __call__(self) -> Mapping[str, Method]:
        return methods()

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _CallableModule
