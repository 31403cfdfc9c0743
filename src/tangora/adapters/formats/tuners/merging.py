"""The change that stock peft's own merge makes to one layer's weights, and an update that computes it when needed.

    ΔW = merge(W) − W, in float64

A layer is copied with the base's weights in place of the views of zero, all of it in float64, merged, and dropped.
peft's layers compute in the dtype of their tensors, so the change is exact to about 1e-15 of the weight. A few kinds
force a part into float32 (C3A, DEFT, AdaMSS): theirs is exact to about 1e-7 of the weight.

Before an update is returned for the first time, the layer's answer to random inputs is compared with that of its
merged weight. So a kind whose merge is not what it computes, in this version of peft or another, is refused.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangora.adapters.formats.tuners.skeleton import NAME, Wrapped
from tangora.errors import AdapterError
from tangora.updates.text import sizes
from tangora.updates.update import Dense, Update

__all__ = ["Changes", "MergedUpdate", "layer_kind"]

_PROBES = 8
_OF_CHANGE, _OF_ANSWER = 1e-3, 1e-6  # what rounding may make of a difference: parts of float32's answers cancel
_FIX = "merge it into its base with peft, compare the two models, and give the merged checkpoint"


@dataclass(frozen=True, eq=False)
class Changes:
    """The changes of all layers of a wrapped base, computed one at a time.

    Args:
        wrapped: the layers.
        title: of the kind, for errors.
    """

    wrapped: Wrapped
    title: str
    _dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    _last: threading.local = field(default_factory=threading.local)

    def checked(self, site: str) -> dict[str, Tensor]:
        """Return a layer's changed parameters, float64, in the layer's own orientation; check what they compute.

        Returns:
            name in the layer -> change. The weight is always among them, other parameters if they change.

        Raises:
            AdapterError: the layer cannot be merged, or computes something else than its merged weight.
        """
        try:
            try:
                changes = self._merged(site, torch.float64, check=True)
                self._dtypes[site] = torch.float64
            except RuntimeError:  # of two dtypes in one product: the kind computes in float32 only
                changes = self._merged(site, torch.float32, check=True)
                self._dtypes[site] = torch.float32
        except AdapterError:
            raise
        except Exception as cause:  # whatever the kind of a newer peft raises
            reason = str(cause)[:200] or type(cause).__name__
            what = f"{self.title}: stock peft cannot merge the layer into its weight ({reason})"
            raise AdapterError(what, where=self._where(site), fix=_FIX) from cause
        for name, change in changes.items():
            if not bool(change.isfinite().all()):
                fix = "the training diverged or the file is damaged: train or copy it again"
                raise AdapterError(f"the change of {name} is not finite", where=self._where(site), fix=fix)
        return changes

    def weight(self, site: str) -> Tensor:
        """Return the change of a weight in the orientation of an update; a thread keeps the one that it computed last.

        float32, or float64 if the base is.
        """
        if getattr(self._last, "site", None) != site:
            self._last.site, self._last.update = None, None  # frees the last before the next is computed
            self._last.update = self.oriented(site, self._merged(site, self._dtypes[site])["weight"])
            self._last.site = site
        update: Tensor = self._last.update
        return update

    def oriented(self, site: str, change: Tensor) -> Float[Tensor, "out in"]:
        """Return the change of a weight as that of a layer ``[out, in]``, or of an embedding ``[dim, vocabulary]``."""
        layer = self.wrapped.layers[site].get_base_layer()
        turned = layer_kind(layer) in ("embedding", "Conv1D")
        change = (change.T if turned else change.flatten(1)).contiguous()
        return change if self._stored_wide(site) else change.float()

    def before(self, site: str, name: str) -> Tensor:
        """Read a parameter of the base's layer, float32 (float64 stays)."""
        layer = self.wrapped.layers[site].get_base_layer()
        parameter = layer.get_parameter(name)
        return self.wrapped.read(self.wrapped.own.get(parameter, f"{site}.{name}"), parameter.shape)

    def _stored_wide(self, site: str) -> bool:
        weight = self.wrapped.layers[site].get_base_layer().weight
        return self.wrapped.stored(self.wrapped.own.get(weight, f"{site}.weight"), weight.shape).dtype == "F64"

    @torch.no_grad()
    def _merged(self, site: str, dtype: torch.dtype, check: bool = False) -> dict[str, Tensor]:
        """Return what the merge of a copy of the layer changes."""
        layer = self.wrapped.layers[site]
        values = {name: self.before(site, name).to(dtype) for name, _ in layer.get_base_layer().named_parameters()}
        work: Any = self._copied(layer, values).to(dtype).eval()
        answers = self._answers(site, work) if check else None
        work.merge(safe_merge=False, adapter_names=[NAME])
        merged = work.get_base_layer()
        if answers is not None:
            self._compare(site, merged(answers[0]), *answers[1:])
        after = dict(merged.named_parameters())
        if after.keys() != values.keys():
            raise AdapterError(f"{self.title} changes what a layer consists of", where=self._where(site), fix=_FIX)
        changes = {name: after[name].detach().double() - value.double() for name, value in values.items()}
        return {name: change for name, change in changes.items() if name == "weight" or bool(change.any())}

    def _copied(self, layer: nn.Module, values: dict[str, Tensor]) -> nn.Module:
        """Return a copy of peft's layer around the base's values, which a merge changes in place."""
        base: Any = layer.get_base_layer()  # type: ignore[operator]
        memo: dict[int, Any] = {}
        for name, parameter in base.named_parameters():
            memo[id(parameter)] = nn.Parameter(values[name].clone(), requires_grad=False)
        # A buffer that the class computes, such as the scale of embeddings: any number but 1 shows if it is left out.
        memo |= {id(buffer): torch.full(buffer.shape, 2.0) for buffer in base.buffers() if buffer.is_meta}
        return copy.deepcopy(layer, memo)

    def _answers(self, site: str, work: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs of a layer, its answers to them, and those of the base's layer."""
        base = work.get_base_layer()
        x = _inputs(base)
        if x is None:
            what = "no update can be added to this kind of layer"
            raise AdapterError(what, got=type(base).__name__, where=self._where(site), fix=_FIX)
        return x, work(x).clone(), base(x).clone()

    def _compare(self, site: str, merged: Tensor, answered: Tensor, without: Tensor) -> None:
        change, size = float((answered - without).norm()), float(without.norm())
        error = float((merged - answered).norm())
        if not error <= _OF_CHANGE * change + _OF_ANSWER * size:
            what = f"{self.title} computes something else than the weight that stock peft merges it into"
            raise AdapterError(what, got=f"a difference of {error:.1e}", where=self._where(site), fix=_FIX)

    def _where(self, site: str) -> str:
        return f"{site} in {self.wrapped.where}"


def layer_kind(layer: nn.Module) -> str | None:
    """Return ``linear``, ``Conv1D``, ``embedding``, ``convolution`` or ``norm``; None if no update can be added."""
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # attention reads its weight without calling it, so that the adapter has no effect
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, nn.Embedding):
        return "embedding"
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution" if layer.groups == 1 else None
    if type(layer).__name__ == "Conv1D":
        return "Conv1D"
    shapes = {name: parameter.ndim for name, parameter in layer.named_parameters()}
    return "norm" if "weight" in shapes and set(shapes.values()) == {1} else None


def _inputs(layer: Any) -> Tensor | None:
    """Return random inputs of a layer, of its dtype; None for a kind of layer that takes no update."""
    generator, kind, weight = torch.Generator().manual_seed(0), layer_kind(layer), layer.weight
    if kind == "embedding":
        return torch.arange(weight.shape[0])
    if kind == "convolution":
        sides = [d * (k - 1) + 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape = [2, layer.in_channels, *sides]
    elif kind is not None:
        shape = [1, _PROBES, weight.shape[0 if kind in ("Conv1D", "norm") else 1]]
    else:
        return None
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(weight.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class MergedUpdate(Update):
    """The change of a site's weight by a kind of peft; the matrix is computed whenever it is needed.

    Args:
        changes: of all sites.
        site: the layer.
        size: the shape of the update.
    """

    changes: Changes
    site: str
    size: tuple[int, ...]

    def __repr__(self) -> str:
        return f"MergedUpdate({sizes(self.shape)}, {self.changes.title})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the update."""
        return self.size

    def factors(self) -> None:
        """Return None: the kinds have no factors, or others than LoRA's."""
        return

    def dense(self) -> Float[Tensor, "out in"]:
        """Compute the matrix."""
        return self.changes.weight(self.site)

    def scaled(self, number: float) -> Update:
        """Return itself, or ``number`` times the matrix."""
        return self if number == 1.0 else Dense(self.dense() * number)

    def digest(self) -> str:
        """Return the digest of the matrix."""
        return Dense(self.dense()).digest()
