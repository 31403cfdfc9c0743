"""Verify the files of a fused adapter: read them through stock peft, and compare in float64, site by site.

There are four checks:

reload
    What peft loads from the files, against the fused update in float64: for a linear method the sum of the parents'
    factors, else the result in memory. Sites of up to 2¹⁸ entries are compared entry by entry, with peft's
    ``get_delta_weight``; larger ones on k = 16 random vectors X, ``‖(P − E) X‖ / ‖E X‖``, in linear time.
evaluated again
    If the result in memory was compared: the method again at some sites, in float64 on dense matrices, against what
    peft loads (`tangora.fusion.reevaluation`).
identity
    What peft loads from the parents' own files, against what Tangora read. Parents with equal configurations and
    shapes are read in the same way, so only one of them is loaded.
gauge
    The smallest site fused in float64 from the parents, and from the same updates in other factors,
    ``A → G A, B → B G⁻¹``.

The bound for random vectors: for a matrix D and X of k columns with independent entries from N(0, 1),
``P(‖D X‖² ≤ δ k ‖D‖²) ≤ (δ e^{1−δ})^{k/2}``. By Chernoff: with the squared singular values λᵢ of D, of sum 1,
``E exp(−t ‖D X‖²) = Π (1 + 2tλᵢ)^{−k/2} ≤ (1 + 2t)^{−k/2}``, as the product is at least ``1 + 2tΣλᵢ``; choose
``t = (1/δ − 1)/2``. With k = 16 and δ = 0.01, the true difference exceeds ten times the measured one with probability
3·10⁻¹³ at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangora.adapters.comparison import Loaded, relative
from tangora.adapters.in_peft.comparison import InPeft
from tangora.adapters.in_peft.verification import TOLERANCE, Verification, check_readable, compare, layout_digest
from tangora.adapters.initial import seed_of
from tangora.adapters.metadata import FusedInfo
from tangora.errors import AdapterError
from tangora.fusion.computation import Computation
from tangora.fusion.contract import space_of
from tangora.fusion.fusion import Fusion
from tangora.fusion.mixing import as_sum
from tangora.fusion.reevaluation import reevaluate
from tangora.fusion.sources import SourceAdapter
from tangora.methods import get
from tangora.updates.task_vector import LowRank, Update

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Verification", "verified", "verify"]

GAUGE_TOLERANCE = 1e-2  # of methods with thresholds: rounding may move an entry across one


def verify(
    adapter: Adapter,
    folder: Path,
    sources: Sequence[SourceAdapter] = (),
    rounding: Mapping[str, float] | None = None,
) -> Verification:
    """Read an adapter's folder through stock peft and compare it; see the module.

    Args:
        adapter: the adapter that was written.
        folder: its files.
        sources: the adapters it was fused from, if known.
        rounding: the stated error of each update, if ``adapter`` is what was rounded to the files' dtype.

    Raises:
        AdapterError: peft loads something else.
    """
    return verified(adapter, InPeft(adapter, folder), sources, rounding)


def verified(
    adapter: Adapter,
    read: Loaded,
    sources: Sequence[SourceAdapter] = (),
    rounding: Mapping[str, float] | None = None,
) -> Verification:
    """Compare what a reader loads from an adapter's files; arguments and errors are those of `verify`."""
    begun = time.perf_counter()
    info, parents = adapter.metadata.fused, [source.adapter for source in sources]
    computation = _linear(info, parents) if info is not None and parents else None
    expected = None if computation is None else partial(_terms, parents=parents, computation=computation)
    verification = compare(adapter, read, expected, rounding)
    again, again_error = 0, None
    # Coefficients by site are from the method's own rule: some sites are evaluated on dense matrices, too.
    if info is not None and parents and (computation is None or not get(info.method).linear):
        again, again_error = reevaluate(info, parents, read)
    return replace(
        verification,
        reference="result" if computation is None else "parents",
        again=again,
        again_error=again_error,
        identity=_identity(sources),
        gauge=_gauge(info, parents) if info is not None else None,
        seconds=time.perf_counter() - begun,
    )


def _linear(info: FusedInfo, parents: Sequence[Adapter]) -> Computation | None:
    """Return the computation if the result is an untruncated sum of the parents' updates, with coefficients by site."""
    method, space = get(info.method), space_of(info.space)
    if info.rank is not None or any(parent.start for parent in parents):
        return None
    computation = Computation(method, info.weights, info.parameters)
    if method.linear:
        return computation if space.intrinsic else None
    vectors = [parent.updates for parent in parents]
    return as_sum(computation, vectors, sorted({*chain(*vectors)})) if space.plain else None


def _terms(site: str, parents: Sequence[Adapter], computation: Computation) -> list[tuple[Update, float]]:
    pairs = zip(parents, computation.coefficients(site), strict=True)
    return [(parent.updates[site], c) for parent, c in pairs if site in parent.updates]


def _identity(sources: Sequence[SourceAdapter]) -> float | None:
    """Return the largest difference between what peft and what Tangora reads from the parents' own files."""
    by_layout = {layout_digest(s.adapter): s for s in reversed(sources) if s.folder is not None}
    errors = [check_readable(s.adapter, s.folder) for s in by_layout.values() if s.folder is not None]
    return max((error for error in errors if error is not None), default=None)


def _gauge(info: FusedInfo, adapters: Sequence[Adapter]) -> float | None:
    """Return the relative difference of the smallest site's fusion if the parents' updates are factored differently."""
    method, site = get(info.method), _smallest(adapters)
    depends = not space_of(info.space).intrinsic or any(a.start for a in adapters)
    if site is None or depends or method.random or method.statistics:
        return None
    weights: Any = {site: info.weights[site]} if isinstance(info.weights, dict) else info.weights
    fused = []
    for seed in (None, 0):
        ones = [_only(a, site, None if seed is None else seed + i) for i, a in enumerate(adapters)]
        fusion = Fusion(ones, info.space, seed=info.seed, same_base=True, names=[p.name for p in info.parents])
        # Not truncated: with equal singular values, as Iso-C makes them, the choice of those to keep is arbitrary.
        fused.append(fusion.merge(method.name, weights, info.parameters).updates[site].dense().double())
    error = relative(fused[1] - fused[0], fused[0])
    if not error <= (TOLERANCE * 10 if method.linear else GAUGE_TOLERANCE):
        what = "the result depends on how the updates are factored"
        raise AdapterError(what, got=error, where=site, fix="report it")
    return error


def _smallest(adapters: Sequence[Adapter]) -> str | None:
    first = adapters[0].updates if adapters else {}
    sites = [s for s in first if all(s in a.updates and a.updates[s].factors() is not None for a in adapters)]
    sizes = {site: math.prod(first[site].shape) for site in sites}
    smallest = min(sizes, key=lambda s: (sizes[s], s), default=None)
    return smallest if smallest is not None and sizes[smallest] <= 2**22 else None


def _only(adapter: Adapter, site: str, seed: int | None) -> Adapter:
    """Return the adapter restricted to a site, in float64; with a seed, its update has other factors."""
    factors = adapter.updates[site].factors()
    assert factors is not None  # as `_smallest` requires
    update = LowRank(factors.b.double(), factors.a.double(), factors.scaling)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed_of("gauge", seed))
        q, _ = torch.linalg.qr(torch.randn(update.rank, update.rank, dtype=torch.float64, generator=generator))
        d = 2.0 ** torch.arange(update.rank, dtype=torch.float64).remainder(3).sub(1)
        update = LowRank((update.b @ q.T) / d, d[:, None] * (q @ update.a), update.scaling)
    return replace(adapter, updates={site: update}, whole={}, heads={}).with_details(initial=None)
