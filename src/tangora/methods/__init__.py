"""Fusion methods: pure functions from stacked updates to one update, one file each, and their registry.

The contract, for a method of this package as for anybody's::

    @fusion_method("ties", granularity="model", reference="arXiv:2306.01708", default_weight=1.0)
    def ties(deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"],
             density: float = 0.2) -> Float[Tensor, "*param"]: ...

- ``deltas`` are never changed, and the result has their dtype (sums are kept in float32 or better).
- ``weights`` has one row per task, each broadcasting to ``*param``; methods only multiply by it.
- ``granularity`` is a promise: ``element`` (any chunking gives the same), ``tensor`` (a site's whole tensor),
  ``model`` (every site at once, as one vector per task).
- A random method takes ``uniforms`` in [0, 1), shaped like ``deltas``, and draws nothing itself.
- A method that looks beyond an entry only for the magnitude of the smallest entry it keeps names the parameter
  that decides it, ``cutoff="density"``, and takes ``cutoffs``, one per task: with them it is entry by entry, so that
  checkpoints larger than memory can be fused by it.
- A method that must know the experts' data gets **statistics** of them, one tensor per task, which were collected
  before (`tangora.fusion.statistics`): it names the kind, ``statistics="gram"`` or ``"fisher"``, and takes
  ``statistics``, stacked, or None for a tensor that has none.
- No models, no files, no data; a docstring with a paragraph "Choose it ..." for the table of methods.

Other packages add methods through the entry-point group ``tangora.methods``: the entry point's name is the
method's, its value the module or function that carries the decorator. Copy any file here to begin.

The package's own methods are imported when they are asked for.

    >>> import torch
    >>> task_vectors = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    >>> get("average").function(task_vectors, weights=torch.ones(2, 1))
    tensor([2., 0.])
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tangora.methods._limits import Limit
from tangora.methods._registry import ENTRY_POINT_GROUP, Granularity, Method, Statistic, fusion_method, get, methods
from tangora.methods._table import table

if TYPE_CHECKING:
    from tangora.methods.average import average
    from tangora.methods.breadcrumbs import breadcrumbs
    from tangora.methods.consensus import consensus
    from tangora.methods.dare import dare, dare_ties
    from tangora.methods.della import della
    from tangora.methods.fisher import fisher
    from tangora.methods.iso_c import iso_c
    from tangora.methods.iso_cts import iso_cts
    from tangora.methods.knots import knots
    from tangora.methods.magnitude_prune import magnitude_prune
    from tangora.methods.model_stock import model_stock
    from tangora.methods.regmean import regmean
    from tangora.methods.slerp import slerp
    from tangora.methods.svd import svd
    from tangora.methods.task_arithmetic import task_arithmetic
    from tangora.methods.ties import ties, ties_per_tensor, ties_sum
    from tangora.methods.tsv_m import tsv_m

__all__ = [
    "ENTRY_POINT_GROUP",
    "Granularity",
    "Limit",
    "Method",
    "Statistic",
    "average",
    "breadcrumbs",
    "consensus",
    "dare",
    "dare_ties",
    "della",
    "fisher",
    "fusion_method",
    "get",
    "iso_c",
    "iso_cts",
    "knots",
    "magnitude_prune",
    "methods",
    "model_stock",
    "regmean",
    "slerp",
    "svd",
    "table",
    "task_arithmetic",
    "ties",
    "ties_per_tensor",
    "ties_sum",
    "tsv_m",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tangora.methods' has no attribute {name!r}")
    return get(name).function


class _CallableModule(ModuleType):
    """`tangora.methods` is a module and also the public function ``tangora.methods()``.

    Importing a submodule binds its name in the package, so a function of the same name in ``tangora`` would
    be overwritten by the first ``import tangora.methods``, or overwrite it. A module that can be called is both. For
    the same reason a method's module is not bound here: ``tangora.methods.ties`` is the function.
    """

    def __call__(self) -> Mapping[str, Method]:
        return methods()

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _CallableModule
