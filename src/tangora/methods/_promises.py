"""`Promises`: the properties of a fusion method that the engine relies on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tangora.errors import PluginError

__all__ = ["AfterThinning", "Granularity", "Promises", "Statistic"]

Granularity = Literal["element", "tensor", "model"]
Statistic = Literal["gram", "fisher"]
AfterThinning = Literal["sum", "elected_sum", "elected_mean"]


@dataclass(frozen=True, kw_only=True)
class Promises:
    """The properties that the engine relies on; `tangora.testing.check_method` checks all of them.

    The defaults are promises too. So declare those that do not hold, such as ``symmetric=False``, as well as those that
    save the engine work, such as ``linear=True``.

    Attributes:
        granularity: ``element`` (any chunking gives the same), ``tensor`` (a site's whole tensor at a time), ``model``
            (every site at once, as one vector per task).
        linear: the result is ``Σ cₜ νₜ`` with coefficients that depend on the weights only.
        rule: for a linear method, returns the cₜ from one weight per task, in closed form.
        mixing: for a method whose result is ``Σ cₜ νₜ`` with coefficients that depend on the tensor, but only by the
            inner products of the updates: ``(gram, weights, **parameters) -> cₜ``, in float64, with ``gram[s][t] =
            ⟨νₛ, νₜ⟩`` and one weight per task. Low-rank updates are then summed as factors, as by a linear method.
        homogeneous: ``f(c·weights) = c·f(weights)``, so that a grid over λ costs one call.
        additive: ``f(v + w) = f(v) + f(w)`` in the weights: a sum over the tasks, each times its weight, so that
            coefficients can be found by gradients of a model that is linear in them.
        random: the function takes ``uniforms`` in [0, 1), shaped like ``deltas``.
        tasks: the only number of tasks that it can fuse; None for any.
        cutoff: the parameter that is the fraction of a task's entries to keep, for a method that needs other entries
            only to find the smallest one to keep. The function then takes ``cutoffs``, one magnitude per task (of the
            smallest entry that is kept in the tensor, or in the model, by ``granularity``). With them it works entry by
            entry; without them it computes them.
        after_thinning: for a method that first thins every update, by its ``cutoff``, or at random: an entry stays if
            its uniform number is under the parameter ``density``, and is divided by it. What becomes of the thinned
            updates ν̂ₜ: ``sum`` (``Σ wₜ ν̂ₜ``), or ``elected_sum`` or ``elected_mean`` of the entries that have the
            elected sign, as in TIES. The engine may then compute it by compiled code, bit for bit.
        statistics: the statistics of the experts' data that the method needs, one tensor per task and tensor of the
            model: ``gram`` (second moments of a linear layer's inputs, ``[in, in]``) or ``fisher`` (diagonal Fisher
            information, shaped like the update). The function then takes ``statistics``, stacked, or None for a tensor
            that has none.
        by_rows: every row of the result is the same linear function of that row of the updates, so that low-rank
            updates stay low-rank: the method is applied to their factors A.
        rotates_outputs: ``f(Qν) = Q f(ν)`` for every Q with orthonormal columns, if the rank of no update is more than
            the number of its rows over that of the tasks. The method is then applied to low-rank updates in a basis of
            all their outputs: small matrices, and a low-rank result.
        exact: the same numbers in another memory layout give the same bits. False for a method that decomposes
            matrices: its result is equal up to rounding, and a kernel ``[out, in, k, …]`` is used as ``[out, in·k·…]``.
        symmetric: ``f(νᵀ) = f(ν)ᵀ``, so that it does not matter whether a layer stores the transpose of its weight.
        identity: one task of weight 1 gives that task's update, with the ``neutral`` parameters.
        neutral: parameters that drop nothing, such as ``{"density": 1.0}``.
        copies: ``(p, q)``: for T tensors of n entries, a call holds at most ``(p·T + q)·n`` numbers at once.
    """

    granularity: Granularity
    linear: bool = False
    rule: Callable[..., Sequence[float]] | None = None
    mixing: Callable[..., Sequence[float]] | None = None
    homogeneous: bool = True
    additive: bool = True
    random: bool = False
    tasks: int | None = None
    cutoff: str | None = None
    after_thinning: AfterThinning | None = None
    statistics: Statistic | None = None
    by_rows: bool = False
    rotates_outputs: bool = False
    exact: bool = True
    symmetric: bool = True
    identity: bool = True
    neutral: Mapping[str, Any] = field(default_factory=dict)
    copies: tuple[int, int] = (3, 6)

    @property
    def needs_whole(self) -> bool:
        """Whether a call needs a whole tensor: an entry of the result depends on others, and not only by a cutoff."""
        return self.granularity != "element" and self.cutoff is None

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise PluginError("no such granularity", got=self.granularity, fix=_valid(Granularity))
        if self.statistics not in (None, *get_args(Statistic)):
            raise PluginError("no such statistics", got=self.statistics, fix=_valid(Statistic))
        if self.after_thinning not in (None, *get_args(AfterThinning)):
            raise PluginError("no such after_thinning", got=self.after_thinning, fix=_valid(AfterThinning))
        if self.after_thinning and (self.needs_whole or (self.cutoff is not None) == self.random):
            fix = "declare a cutoff, or random=True and granularity='element', or leave after_thinning out"
            raise PluginError("after_thinning is for a method that thins", got=self.after_thinning, fix=fix)
        if self.statistics and self.granularity == "model":
            fix = "declare granularity='tensor'"
            raise PluginError("statistics are given tensor by tensor", got=self.granularity, fix=fix)


def _valid(names: Any) -> str:
    return f"valid: {', '.join(get_args(names))}"
