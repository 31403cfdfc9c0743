"""Columns from nothing: each task's own vector helps it, the others disturb."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from tangora.tangent.columns import Columns


def columns_of(
    task, *, rows=20, vectors=("t0", "t1"), sites=0, classes=3, strength=2.0, noise=1.0, own=0, draw=0, harmful=False
):
    """Logits of ``rows``; ``own`` is which vector is the task's, ``draw`` which rows."""
    g = torch.Generator().manual_seed(1000 * draw + own)
    labels = torch.randint(0, classes, (rows,), generator=g)
    shape = (len(vectors), *((sites,) if sites else ()), rows, classes)
    columns = torch.randn(shape, generator=g) * noise / max(1, sites) ** 0.5
    right = one_hot(labels, classes) * (-strength / 4 if harmful else strength)
    columns[own] += right / max(1, sites)
    origin = torch.randn(rows, classes, generator=g)
    names = tuple(f"s{i}" for i in range(sites))
    return Columns(task, "validation", tuple(vectors), names, origin, columns, labels, torch.arange(rows), "")


def tasks_of(count, *, useless=False, harmful=False, **options):
    """Columns of ``count`` tasks; with ``useless`` one vector more, of noise; with ``harmful`` the last is wrong."""
    names = tuple(f"t{i}" for i in range(count))
    vectors = (*names, "noise") if useless else names
    made = [
        columns_of(name, vectors=vectors, own=i, harmful=harmful and i == count - 1, **options)
        for i, name in enumerate(names)
    ]
    for one in made if useless else ():
        one.columns[-1] *= 0.1
    return made


def flat(found):
    """Weights per site as one vector, as `LinearLogits` takes them."""
    return torch.tensor(list(found.weights.values()), dtype=torch.float64).T.reshape(-1)
