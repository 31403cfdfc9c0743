"""Split updates of modules that the original fuses into diffusers' modules, and join them again, exactly.

The original's Flux has one matrix for queries, keys and values, and one more with the first layer of the MLP; its rows
are those of diffusers' matrices, one after the other. For ``ΔW = s·B A`` a piece has the same A and some rows of B.
Pieces of equal A are joined without a further rank; of other A, side by side: the ranks add up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from tangora.adapters.layouts.lookup import Place, pieces_of, writes_original
from tangora.adapters.layouts.modules import Module
from tangora.errors import AdapterError
from tangora.updates.task_vector import Dense, LowRank, Update

__all__ = ["at_the_sites_of", "has_fused", "has_pieces", "join_pieces", "split_fused"]


def has_fused(updates: Mapping[str, Update], model: str) -> bool:
    """Return whether a site is one that the original fuses."""
    return not pieces_of(model).keys().isdisjoint(updates)


def has_pieces(updates: Mapping[str, Update], model: str) -> bool:
    """Return whether a site is a piece of one that the original fuses."""
    return any(_piece_sites(place).keys() & updates.keys() for place in pieces_of(model).values())


def split_fused(updates: Mapping[str, Update], model: str) -> dict[str, Update]:
    """Return the updates with diffusers' modules for those that the original fuses.

    Rows that are zero become no update, and ranks that only other pieces use are left out: both change nothing.

    Raises:
        AdapterError: the shape is not the model's.
    """
    fused, split = pieces_of(model), dict[str, Update]()
    for site, update in updates.items():
        if site not in fused:
            split[site] = update
            continue
        parts = _split(update, fused[site])
        kept = {name: part for name, part in parts.items() if part is not None}
        split |= kept or {name: _zero(update, module) for name, module in _piece_sites(fused[site]).items()}
    return split


def join_pieces(updates: Mapping[str, Update], model: str, format_name: str) -> dict[str, Update]:
    """Return the updates with one for each module that the original fuses, if the format writes the original's names.

    A piece without an update is zero.

    Raises:
        AdapterError: the shapes are not the model's.
    """
    places = pieces_of(model)
    return _join(updates, [p for s, p in places.items() if writes_original(model, format_name, s.partition(".")[0])])


def _join(updates: Mapping[str, Update], places: Sequence[Place]) -> dict[str, Update]:
    joined = dict(updates)
    for place in places:
        held = {name: module for name, module in _piece_sites(place).items() if name in joined}
        if held:
            pieces = [(joined.pop(name), module) for name, module in held.items()]
            joined[place.site] = _joined(pieces, place)
    return joined


def at_the_sites_of(sites: Collection[str], updates: Mapping[str, Update], model: str) -> dict[str, Update]:
    """Return updates with the modules that the original fuses split, or their pieces joined, as in other sites.

    A piece that is zero in the other sites becomes an update of zeros, if it was left out.
    """
    fused = pieces_of(model)
    if not fused.keys().isdisjoint(sites):
        return _join(updates, [place for site, place in fused.items() if site in sites])
    split = split_fused(updates, model)
    for site, place in fused.items():
        for name, module in _piece_sites(place).items():
            if name in sites and name not in split and site in updates:
                split[name] = _zero(updates[site], module)
    return split


def _piece_sites(place: Place) -> dict[str, Module]:
    component = place.site.partition(".")[0]
    return {f"{component}.{module.path}": module for module in place.modules}


def _slices(module: Module, width: int) -> list[slice]:
    return [slice(start * width, (start + size) * width) for start, size in module.rows or ()]


def _rows_of(place: Place, width: int) -> int:
    return sum(size for module in place.modules for _, size in module.rows or ()) * width


def _split(update: Update, place: Place) -> dict[str, Update | None]:
    rows, width = update.shape
    if rows != _rows_of(place, width):
        what = f"the shape is not that of the model's module, which has {_rows_of(place, width)} rows"
        fix = "fuse it with files that have the same names only, in their format"
        raise AdapterError(what, got=[rows, width], where=place.site, fix=fix)
    factors = update.factors()
    whole = update.dense() if factors is None else factors.b
    a = None if factors is None else factors.a
    parts: dict[str, Update | None] = {}
    for name, module in _piece_sites(place).items():
        part = torch.cat([whole[rows] for rows in _slices(module, width)])
        if factors is None or a is None:
            parts[name] = Dense(part) if bool(part.any()) else None
            continue
        used = part.any(0) if not part.is_meta else torch.ones(part.shape[1], dtype=torch.bool)
        if not bool(used.all()):
            part = part[:, used].contiguous()
        kept = a if bool(used.all()) else a[used].contiguous()
        parts[name] = LowRank(part, kept, factors.scaling) if bool(used.any()) else None
    return parts


def _zero(update: Update, module: Module) -> Update:
    width = update.shape[1]
    rows = sum(size for _, size in module.rows or ()) * width
    return LowRank(torch.zeros(rows, 1), torch.zeros(1, width))


def _joined(pieces: Sequence[tuple[Update, Module]], place: Place) -> Update:
    widths = {update.shape[1] for update, _ in pieces}
    width = max(widths)
    for update, module in pieces:
        size = sum(size for _, size in module.rows or ()) * width
        if len(widths) > 1 or update.shape[0] != size:
            what = f"the shape is not that of the model's module, [{size}, {width}]"
            raise AdapterError(
                what, got=list(update.shape), where=f"{module.path} of {place.site}", fix="write diffusers"
            )
    rows = _rows_of(place, width)
    if any(update.factors() is None for update, _ in pieces):
        dense = [update.dense() for update, _ in pieces]
        return Dense(_placed(dense, [module for _, module in pieces], rows, width))
    factors = [(f, module) for update, module in pieces if (f := update.factors()) is not None]
    scalings = {f.scaling for f, _ in factors}
    scaling = scalings.pop() if len(scalings) == 1 else 1.0
    groups: list[tuple[Tensor, list[Tensor], list[Module]]] = []
    for f, module in factors:
        a, b = f.a, f.b
        b = b if f.scaling == scaling else (b.double() * f.scaling).to(b.dtype)
        same = next((group for group in groups if torch.equal(group[0], a)), None)
        if same is None:
            groups.append((a, [b], [module]))
        else:
            same[1].append(b)
            same[2].append(module)
    b = torch.cat([_placed(parts, modules, rows, width) for _, parts, modules in groups], 1)
    return LowRank(b, torch.cat([a for a, _, _ in groups]), scaling)


def _placed(parts: Sequence[Tensor], modules: Sequence[Module], rows: int, width: int) -> Tensor:
    """Return the pieces' rows at their places, and zeros elsewhere."""
    whole = parts[0].new_zeros(rows, parts[0].shape[1])
    for part, module in zip(parts, modules, strict=True):
        slices = _slices(module, width)
        for place, block in zip(slices, part.split([s.stop - s.start for s in slices]), strict=True):
            whole[place] = block
    return whole
