"""Updates that depend on the base's weights, of which single tensors are read when they are needed.

DoRA (arXiv:2402.09353, eq. 5)     ΔW = m / ‖W + s·B A‖ · (W + s·B A) − W, row by row; of full rank
PiSSA (arXiv:2404.02948, eq. 2-4)  ΔW = s·B A − U_r S_r V_rᵀ, the first r singular triplets of W; of rank 2r
OLoRA (arXiv:2406.01775)           ΔW = s·B A − s·Q_r R_r of the QR decomposition of W; of rank 2r
bias="all", "lora_only"            Δb = what was saved, less the base's
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import AdapterError
from tangora.storage.names import Names, is_turned
from tangora.storage.tensors import read_rows
from tangora.updates.task_vector import Dense, LowRank, Update, combine
from tangora.updates.truncation import whole_svd

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint
    from tangora.storage.header import Stored

__all__ = ["Rescaled", "Weights", "convert", "open_base"]

_BLOCK = 2**20  # numbers of a weight that are computed with at a time
_FIX = "give the base model that the adapter was made for"


def open_base(base: str | os.PathLike[str] | Checkpoint | None) -> Checkpoint | None:
    """The base's checkpoint, from its folder where it is not open yet."""
    if not isinstance(base, str | os.PathLike):
        return base
    from tangora.storage.checkpoint import open_checkpoint

    return open_checkpoint(base)


class Weights:
    """A base's tensors by an adapter's names for them.

    Args:
        base: the checkpoint.
        shapes: site -> shape of its update.
        embeddings: the sites that are embeddings.
        config: the adapter's.
    """

    def __init__(
        self,
        base: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
        embeddings: frozenset[str],
        config: Mapping[str, Any],
    ) -> None:
        self.base, self.shapes, self.embeddings, self.config = base, shapes, embeddings, config
        self._named = Names(base, [f"{site}.weight" for site in sorted(shapes)])

    def stored(self, site: str) -> tuple[Stored, bool]:
        """Where the weight of a site lies, and whether as the transpose of its update."""
        found = self.base.tensors[self._named(f"{site}.weight")]
        embedding = site in self.embeddings
        return found, is_turned(self.shapes[site], found.shape, site, embedding, self.config, self.base)

    def weight(self, site: str) -> Float[Tensor, "out in"]:
        """The weight of a site in the orientation of its update, read now."""
        stored, turned = self.stored(site)
        tensor = read_rows(stored, 0, stored.shape[0])
        return tensor.T if turned else tensor

    def parameter(self, name: str) -> Tensor:
        """Any parameter, by the adapter's name for it."""
        stored = self.base.find(self._named(name))
        if stored is None:
            raise AdapterError("the base has no such parameter", got=name, where=self.base.folder, fix=_FIX)
        return read_rows(stored, 0, stored.shape[0]).reshape(stored.shape)


class Rescaled(Dense):
    """DoRA's update of a site: factors and norms; the matrix is formed from the base's weight whenever it is asked for.

    Args:
        factors: ``s·B A``.
        norms: m, ``[out]``.
        weights: where the base's weight is read.
        site: its name.
    """

    factors: LowRank
    norms: Tensor
    stored: Stored
    turned: bool

    def __init__(self, factors: LowRank, norms: Float[Tensor, "out"], weights: Weights, site: str) -> None:
        stored, turned = weights.stored(site)
        told = {"factors": factors, "norms": norms, "stored": stored, "turned": turned}
        for name, value in told.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.factors.shape

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix, formed anew."""
        count = self.stored.shape[0]
        whole = torch.cat([self.rows(start, stop) for start, stop in self._blocks(count)])
        return whole.T.contiguous() if self.turned else whole

    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix, formed anew."""
        return self.weight

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """Rows of the matrix as the base stores it, computed in float64, in float32 (float64 where the base is)."""
        old, moved = self._moved(start, stop)
        if self.turned:
            scale = self._scale[None, :]
        else:
            scale = self._over(torch.linalg.vector_norm(moved, dim=1), self.norms[start:stop])[:, None]
        delta = moved.mul_(scale).sub_(old)
        return delta if self.stored.dtype == "F64" else delta.float()

    @cached_property
    def _scale(self) -> Float[Tensor, "out"]:
        """m / ‖W + s·B A‖ where the base stores the transpose, whose rows do not hold a whole norm."""
        squares = torch.zeros(self.shape[0], dtype=torch.float64)
        for start, stop in self._blocks(self.stored.shape[0]):
            squares += self._moved(start, stop)[1].square().sum(0)
        return self._over(squares.sqrt(), self.norms)

    def _moved(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        b, a = self.factors.b.double(), self.factors.a.double() * self.factors.scaling
        old = read_rows(self.stored, start, stop).double()
        return old, old + (a.T[start:stop] @ b.T if self.turned else b[start:stop] @ a)

    def _over(self, lengths: Tensor, norms: Tensor) -> Tensor:
        if not bool((lengths > 0).all()):
            raise AdapterError("a row of W + s·BA is zero, which has no direction", where=self.stored.name, fix=_FIX)
        return norms.double() / lengths

    def _blocks(self, count: int) -> list[tuple[int, int]]:
        step = max(1, _BLOCK // max(1, self.stored.entries // count))
        return [(at, min(at + step, count)) for at in range(0, count, step)]


def convert(
    updates: Mapping[str, Update],
    norms: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    weights: Weights,
) -> tuple[dict[str, Update], dict[str, Tensor]]:
    """Updates of the base's weights, from those that are relative to something else, and what stays saved whole.

    Args:
        updates: as the factors say.
        norms: site -> DoRA's m.
        whole: parameter -> value.
        weights: the base's.

    Raises:
        AdapterError: the base is not the one that the adapter was made for.
    """
    init = str(weights.config.get("init_lora_weights")).lower()
    found: dict[str, Update] = {}
    for site, update in updates.items():
        if site in norms and isinstance(update, LowRank):
            norm = norms[site].flatten()
            if len(norm) != update.shape[0]:
                got = f"{len(norm)} of {update.shape[0]} rows"
                raise AdapterError("the norms do not fit the update", got=got, where=site, fix="copy it again")
            found[site] = Rescaled(update, norm, weights, site)
        elif init in _STARTS and isinstance(update, LowRank) and site not in weights.embeddings:
            found[site] = combine([update, _STARTS[init](weights.weight(site), update)], [1.0, -1.0])
        else:
            found[site] = update
    rest = dict(whole)
    if weights.config.get("bias") in ("all", "lora_only"):
        for name in [n for n in whole if n.endswith(".bias") and not _in_module(n, weights.config)]:
            found[name] = Dense(rest.pop(name) - weights.parameter(name))
    return found, rest


def _in_module(name: str, config: Mapping[str, Any]) -> bool:
    return any(f".{module}." in f".{name}" for module in config.get("modules_to_save") or ())


def _singular(weight: Tensor, update: LowRank) -> LowRank:
    u, s, vh = whole_svd(weight)
    root = s[: update.rank].sqrt()
    return LowRank((u[:, : update.rank] * root).float(), (root[:, None] * vh[: update.rank]).float())


def _orthogonal(weight: Tensor, update: LowRank) -> LowRank:
    q, r = torch.linalg.qr(weight.double())
    return LowRank(q[:, : update.rank].float(), r[: update.rank].float(), update.scaling)


_STARTS = {"pissa": _singular, "olora": _orthogonal}
