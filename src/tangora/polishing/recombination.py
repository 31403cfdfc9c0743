"""More rows from few: parts of a task's rows put together anew. An expert answers any input, and needs no label for it.

Half of the new texts are the beginning of one row and the end of another; in the other half a quarter of a row's tokens
is replaced by tokens of the other rows. New images are mixtures of two rows, shifted by a few pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.tasks.values import Split

if TYPE_CHECKING:
    from tangora.tasks import Base

__all__ = ["recombined"]

_REPLACED = 0.25
_SHIFT = 16  # an image is shifted by at most this part of its size


def recombined(rows: Split, count: int, base: Base, seed: str, names: Sequence[str] = ()) -> Split:
    """Return rows made of the given ones, with placeholders as targets.

    Args:
        rows: inputs: ``input_ids``, with ``token_type_ids`` for pairs of texts, or ``pixel_values``. Of others, and of
            words with tags, nothing is made.
        count: how many to make.
        base: its tokenizer names the special tokens, which stay where they are.
        seed: of every draw.
        names: of classes. Texts that may be spliced are made of these, too: few rows contain few of many classes.
    """
    generator = random.Random(f"recombined:{seed}")
    kinds = set(rows.inputs)
    if kinds in ({"input_ids"}, {"input_ids", "token_type_ids"}):
        texts, whole = list(rows.inputs["input_ids"]), kinds == {"input_ids"}
        if names and whole:
            texts += [torch.tensor(ids) for ids in base.processor(list(names))["input_ids"]]
        made, of = _texts(texts, count, base, generator, whole=whole)
        inputs: dict[str, Any] = {"input_ids": made}
        if "token_type_ids" in kinds:
            inputs["token_type_ids"] = [rows.inputs["token_type_ids"][row] for row in of]
    elif kinds == {"pixel_values"}:
        inputs = {"pixel_values": _images(rows.inputs["pixel_values"], count, generator)}
    else:
        return Split({name: values[:0] for name, values in rows.inputs.items()}, [])
    return Split(inputs, [0] * count)


def _texts(
    rows: Sequence[Tensor], count: int, base: Base, generator: random.Random, *, whole: bool
) -> tuple[list[Tensor], list[int]]:
    """Return new rows, and for each the row that it begins as.

    Args:
        rows: token ids.
        count: how many to make.
        base: see `recombined`.
        generator: of every draw.
        whole: whether rows may be spliced. If not, a new row is as long as its own, and parts of it stay in place.
    """
    special = set(getattr(base.processor, "all_special_ids", ()))
    special -= {getattr(base.processor, "unk_token_id", None)}  # a word like any other
    parts = [_parts(row.tolist(), special) for row in rows]
    longest = max(len(body) for _, body, _ in parts)
    pool = [token for _, body, _ in parts for token in body if token not in special]
    whole = whole and all(special.isdisjoint(body) for _, body, _ in parts)  # else a splice would move a separator
    made, of = [], []
    for _ in range(count):
        first = generator.choice(range(len(parts)))
        (start, body, end), (_, other, _) = parts[first], generator.choice(parts)
        if whole and generator.random() < 0.5:
            new = body[: generator.randint(0, len(body))] + other[generator.randint(0, len(other)) :]
        else:
            new = [token if token in special else _maybe(token, pool, generator) for token in body]
        made.append(torch.tensor([*start, *(new[:longest] or body), *end], dtype=torch.int64))
        of.append(first)
    return made, of


def _maybe(token: int, pool: Sequence[int], generator: random.Random) -> int:
    """Return the token, or at times one of the pool."""
    return generator.choice(pool) if generator.random() < _REPLACED else token


def _parts(ids: list[int], special: set[int]) -> tuple[list[int], list[int], list[int]]:
    """Return the special tokens at the beginning, what is between, and the special tokens at the end."""
    first, last = 0, len(ids)
    while first < last and ids[first] in special:
        first += 1
    while last > first and ids[last - 1] in special:
        last -= 1
    return ids[:first], ids[first:last], ids[last:]


def _images(rows: Sequence[Tensor] | Tensor, count: int, generator: random.Random) -> Tensor:
    made = []
    for _ in range(count):
        one, other = rows[generator.randrange(len(rows))], rows[generator.randrange(len(rows))]
        share = generator.uniform(0.5, 1.0)
        most = [size // _SHIFT for size in one.shape[-2:]]
        shift = [generator.randint(-size, size) for size in most]
        made.append(torch.roll(share * one + (1 - share) * other, shift, (-2, -1)))
    return torch.stack(made) if made else torch.as_tensor(rows[:0])
