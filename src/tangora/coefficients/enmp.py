"""Which layers of which experts are left out of a fusion, found by evolution (`enmp`)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tangora.coefficients.found import Found
from tangora.coefficients.problem import Coefficients, silent
from tangora.errors import ArgumentError, FusionError
from tangora.support.extras import require

__all__ = ["enmp", "layer_of"]

_NUMBERED = re.compile(r"(.*?\.\d+)(?:\.|$)")


def layer_of(site: str) -> str:
    """Return the layer of the network that a site belongs to; a site outside the layers is one by itself.

    >>> layer_of("encoder.layer.3.attention.self.query"), layer_of("pooler.dense")
    ('encoder.layer.3', 'pooler.dense')
    """
    found = _NUMBERED.match(site)
    return found[1] if found else site


def enmp(
    loss: Callable[[Coefficients], float],
    tasks: int,
    sites: Sequence[str] = (),
    *,
    weight: float = 0.5,
    dropped: float = 0.2,
    population: int = 8,
    generations: int = 30,
    sigma: float = 0.5,
    rows: Mapping[str, int] | None = None,
    seed: int = 0,
    on_step: Callable[[int, int, str], None] = silent,
) -> Found:
    """Find the layers of the experts that a fusion is better without, by the loss of complete fused models.

    A unit is one layer of one expert. Of all units, ``dropped`` are left out; the others have the one weight. Which
    ones are left out is found by CMA-ES (Hansen and Ostermeier 2001; the package cmaes): a point has a number for each
    unit, and the units with the smallest numbers are left out. This is ENMP (arXiv:2604.17753), with its population,
    generations and sigma.

    Departures: the loss decides, in place of the normalized accuracy; and the fusion without any unit left out, which
    is scored first, is the result if nothing is better. Choose it if there are labels, and time for ``population ·
    generations`` scorings.

    Args:
        loss: a deterministic function from coefficients to a loss.
        tasks: number of experts.
        sites: their names; empty to leave out whole experts.
        weight: of the units that stay.
        dropped: share of the units, at least one of them.
        population: points of a generation.
        generations: number of them.
        sigma: first step size.
        rows: task -> number of rows that the loss uses, for the record.
        seed: of the points.
        on_step: called after each evaluation, see `Problem`.

    Raises:
        MissingExtraError: cmaes is not installed.
        FusionError: no evaluation had a finite loss, or there is one unit only.

    >>> gain = {"layer.0.up": [-1.0, 1.0], "layer.1.up": [-1.0, -1.0]}  # the second expert's layer 0 does harm
    >>> def loss(weights):
    ...     return sum(w * g for site, row in weights.items() for w, g in zip(row, gain[site], strict=True))
    >>> enmp(loss, 2, list(gain), weight=1.0, dropped=0.25).weights
    {'layer.0.up': [1.0, 0.0], 'layer.1.up': [1.0, 1.0]}
    """
    require("search", purpose="the search enmp")
    from cmaes import CMA  # deferred: an extra

    began, layers = time.perf_counter(), list(dict.fromkeys(map(layer_of, sites))) or [""]
    units = tasks * len(layers)
    if units < 2:
        raise FusionError("there is nothing to leave out", got=f"{units} layer of one expert", where="enmp")
    count = min(units - 1, max(1, round(dropped * units)))
    total, seen = 1 + population * generations, dict[bytes, float]()

    def measured(mask: npt.NDArray[np.bool_]) -> float:
        key = mask.tobytes()
        if key not in seen:
            try:
                reached = float(loss(_weights(mask, weight, layers, sites)))
            except ArgumentError:  # a method that divides by the sum of the weights, at a layer without any
                if mask.all():
                    raise
                reached = math.inf
            seen[key] = reached if math.isfinite(reached) else math.inf
        return seen[key]

    best: npt.NDArray[np.bool_] = np.ones((len(layers), tasks), np.bool_)
    least, done = measured(best), 1
    on_step(done, total, f"loss {least:.4g}")
    evolution = CMA(mean=np.zeros(units), sigma=sigma, population_size=population, seed=seed % 2**32)
    for _ in range(generations):
        told = []
        for _ in range(population):
            point = evolution.ask()
            mask = np.ones(units, np.bool_)
            mask[np.argsort(point, kind="stable")[:count]] = False
            reached = measured(mask.reshape(best.shape))
            told.append((point, reached))
            if reached < least:
                best, least = mask.reshape(best.shape), reached
            done += 1
            on_step(done, total, f"loss {reached:.4g}")
        evolution.tell(told)
    if not math.isfinite(least):
        fix = "check the adapters and the validation data"
        raise FusionError(f"no evaluation had a finite loss, in {done}", got=least, where="enmp", fix=fix)
    settings = {"search": "enmp", "weight": weight, "dropped": dropped, "population": population}
    settings |= {"generations": generations, "sigma": sigma, "seed": seed, "left_out": int((~best).sum())}
    weights, seconds = _weights(best, weight, layers, sites), time.perf_counter() - began
    return Found(weights, least, least, None, None, len(seen), seconds, dict(rows or {}), settings)


def _weights(
    mask: npt.NDArray[np.bool_], weight: float, layers: Sequence[str], sites: Sequence[str]
) -> list[float] | dict[str, list[float]]:
    """Return the coefficients of a mask ``[layers, tasks]``."""
    rows = dict(zip(layers, (mask * weight).tolist(), strict=True))
    return {site: list(rows[layer_of(site)]) for site in sites} if sites else rows[layers[0]]
