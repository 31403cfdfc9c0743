"""Updates that depend on the base's weights; single tensors of these are read when they are needed.

DoRA (arXiv:2402.09353, eq. 5)     ΔW = m / ‖W + s·B A‖ · (W + s·B A) − W, row by row; of full rank
PiSSA (arXiv:2404.02948, eq. 2-4)  ΔW = s·B A − U_r S_r V_rᵀ, the first r singular triplets of W; of rank 2r
OLoRA (arXiv:2406.01775)           ΔW = s·B A − s·Q_r R_r of the QR decomposition of W; of rank 2r
bias="all", "lora_only"            Δb = the saved bias − the base's
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.formats.lora.layers import weight_of
from tangora.adapters.formats.lora.settings import is_bias_alone
from tangora.errors import AdapterError
from tangora.storage.names import Names, is_turned
from tangora.storage.tensors import read_rows
from tangora.support.files import digest
from tangora.updates.text import sizes, tensor_digest
from tangora.updates.truncation import whole_svd
from tangora.updates.update import Dense, Factors, LowRank, Update, combine

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint
    from tangora.storage.header import Stored

__all__ = ["BaseWeights", "DoraUpdate", "adapted_digest", "convert"]

_BLOCK = 2**20  # entries of a weight that are computed at a time
_FIX = "give the base model that the adapter was made for"


class BaseWeights:
    """A base's weights, by an adapter's names for them.

    Args:
        base: the checkpoint.
        shapes: site -> shape of its update.
        embeddings: the sites that are embeddings.
        config: the adapter's ``adapter_config.json``.
    """

    def __init__(
        self,
        base: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
        embeddings: frozenset[str],
        config: Mapping[str, Any],
    ) -> None:
        self.base, self.shapes, self.embeddings, self.config = base, shapes, embeddings, config
        self._weights = {site: weight_of(site, shapes) for site in sorted(shapes)}
        self._named = Names(base, {name: shapes[site] for site, name in self._weights.items()}, config)

    def stored(self, site: str) -> tuple[Stored, bool]:
        """Return the stored weight of a site, and whether it is the transpose of its update."""
        weight = self.base.tensors[self._named(self._weights[site])]
        embedding = site in self.embeddings
        return weight, is_turned(self.shapes[site], weight, site, embedding, self.config, self.base)

    def weight(self, site: str) -> Float[Tensor, "out in"]:
        """Read the weight of a site, in the orientation of its update."""
        stored, turned = self.stored(site)
        tensor = read_rows(stored, 0, stored.shape[0])
        return tensor.T if turned else tensor

    def parameter(self, name: str) -> Tensor:
        """Read any parameter, by the adapter's name for it."""
        stored = self.base.find(self._named(name))
        if stored is None:
            raise AdapterError("the base has no such parameter", got=name, where=self.base.folder, fix=_FIX)
        return read_rows(stored, 0, stored.shape[0]).reshape(stored.shape)


@dataclass(frozen=True, eq=False, repr=False)
class DoraUpdate(Update):
    """DoRA's update of a site: factors and norms; the matrix is computed from the base's weight whenever it is needed.

    Args:
        product: ``s·B A``.
        norms: m, ``[out]``.
        stored: the base's weight.
        turned: whether the base stores the transpose.
    """

    product: Factors
    norms: Float[Tensor, " out"]
    stored: Stored
    turned: bool = False

    def __repr__(self) -> str:
        return f"DoraUpdate({sizes(self.shape)}, rank {self.product.rank}, scaling {self.product.scaling:g})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.product.shape

    def factors(self) -> None:
        """Return None: rescaling row by row gives the update full rank."""
        return

    def dense(self) -> Float[Tensor, "out in"]:
        """Compute the matrix."""
        count = self.stored.shape[0]
        matrix = torch.cat([self._as_stored(start, stop) for start, stop in self._blocks(count)])
        return matrix.T.contiguous() if self.turned else matrix

    def scaled(self, number: float) -> Update:
        """Return itself, or ``number`` times the matrix."""
        return self if number == 1.0 else Dense(self.dense() * number)

    def digest(self) -> str:
        """Return the digest of the matrix."""
        return Dense(self.dense()).digest()

    def rows(self, start: int, stop: int, *, transposed: bool = False) -> Float[Tensor, "rows width"]:
        """Return rows of the matrix or of its transpose; in the orientation of the base, only these are computed."""
        if transposed == self.turned:
            return self._as_stored(start, min(stop, self.stored.shape[0]))  # other tensors' bytes follow the last row
        matrix = self.dense()
        return (matrix.T if transposed else matrix)[start:stop]

    def _as_stored(self, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """Compute rows of the matrix as the base stores it, in float64; return float32 (float64 if the base is)."""
        old, moved = self._moved(start, stop)
        if self.turned:
            scale = self._scale[None, :]
        else:
            scale = self._over(torch.linalg.vector_norm(moved, dim=1), self.norms[start:stop])[:, None]
        delta = moved.mul_(scale).sub_(old)
        return delta if self.stored.dtype == "F64" else delta.float()

    @cached_property
    def _scale(self) -> Float[Tensor, " out"]:
        """m / ‖W + s·B A‖, if the base stores the transpose; a norm then needs entries of all stored rows."""
        squares = torch.zeros(self.shape[0], dtype=torch.float64)
        for start, stop in self._blocks(self.stored.shape[0]):
            squares += self._moved(start, stop)[1].square().sum(0)
        return self._over(squares.sqrt(), self.norms)

    def _moved(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        b, a = self.product.b.double(), self.product.a.double() * self.product.scaling
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
    weights: BaseWeights,
) -> tuple[dict[str, Update], dict[str, Tensor]]:
    """Convert updates to changes of the base's weights; return these, and the parameters that stay saved whole.

    Args:
        updates: site -> update, from the factors alone.
        norms: site -> DoRA's m.
        whole: parameter -> value.
        weights: the base's weights.

    Raises:
        AdapterError: the base is not the one that the adapter was made for.
    """
    init = str(weights.config.get("init_lora_weights")).lower()
    converted: dict[str, Update] = {}
    rest = dict(whole)
    for site, update in updates.items():
        factors = update.factors()
        if site in norms and factors is not None:
            norm = norms[site].flatten()
            if len(norm) != update.shape[0]:
                got = f"{len(norm)} of {update.shape[0]} rows"
                raise AdapterError("the norms do not fit the update", got=got, where=site, fix="copy it again")
            converted[site] = DoraUpdate(factors, norm, *weights.stored(site))
        elif init in _STARTS and factors is not None and site not in weights.embeddings:
            converted[site] = combine([update, _STARTS[init](weights.weight(site), factors)], [1.0, -1.0])
            rest.pop(f"{site}.weight", None)  # what the start left of the base's weight, beside which peft trained
        else:
            converted[site] = update
    if weights.config.get("bias") in ("all", "lora_only"):
        for name in [n for n in whole if is_bias_alone(n, weights.config)]:
            converted[name] = Dense(rest.pop(name) - weights.parameter(name))
    return converted, rest


def adapted_digest(updates: Mapping[str, Update]) -> str | None:
    """Return a digest of the base's weights on which DoRA's updates depend; None if none is DoRA's.

    Args:
        updates: site -> update.
    """
    weights = {site: update.stored for site, update in updates.items() if isinstance(update, DoraUpdate)}
    whole = {site: tensor_digest(read_rows(one, 0, one.shape[0])) for site, one in weights.items()}
    return digest(sorted(whole.items())) if whole else None


def _singular(weight: Tensor, update: Factors) -> LowRank:
    u, s, vh = whole_svd(weight)
    root = s[: update.rank].sqrt()
    return LowRank((u[:, : update.rank] * root).float(), (root[:, None] * vh[: update.rank]).float())


def _orthogonal(weight: Tensor, update: Factors) -> LowRank:
    q, r = torch.linalg.qr(weight.double())
    return LowRank(q[:, : update.rank].float(), r[: update.rank].float(), update.scaling)


_STARTS = {"pissa": _singular, "olora": _orthogonal}
