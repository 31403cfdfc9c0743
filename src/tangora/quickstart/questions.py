"""Questions and captions on the pictures of the embedded example: an image, a question or none, and an answer.

The rows of a set are made of those of the same set of `tangora.quickstart.data`, so that no two sets share pixels. What
is chosen for a row follows from a hash of the seed and its number: the same on every machine and version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.errors import DataError
from tangora.quickstart import data

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

__all__ = ["load", "names", "texts"]

NUMBERS = ("one", "two", "three", "four")
_ROWS = {"train": 480, "validation": 120, "test": 240}
"""Rows of mosaics, made of the digits of each set."""


@dataclass(frozen=True)
class _Asked:
    """What is asked about the images of a task.

    Attributes:
        source: the task of `tangora.quickstart.data`.
        questions: each with the answer for every class, in label order.
    """

    source: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def _each(questions: Sequence[str], answers: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((question, tuple(answers)) for question in questions)


_ASKED: dict[str, _Asked] = {
    "digit-questions": _Asked(
        "digits", _each(("which digit is this?", "what is written here?"), data.labels("digits"))
    ),
    "face-questions": _Asked("faces", (("is this a face?", ("yes", "no")), ("is this without a face?", ("no", "yes")))),
    "texture-questions": _Asked("textures", _each(("what is the ground made of?",), data.labels("textures"))),
    "photo-captions": _Asked(
        "photos",
        tuple(("", tuple(made.format(label) for label in data.labels("photos"))) for made in data.TEMPLATES[:1]),
    ),
}
COUNTED, COUNT = "count-questions", "how many digits are there?"


def names() -> list[str]:
    """Return the names of the sets of rows for `load`.

    >>> names()
    ['digit-questions', 'face-questions', 'texture-questions', 'photo-captions', 'count-questions']
    """
    return [*_ASKED, COUNTED]


def load(name: str, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return ``image`` (uint8, [n, 32, 32, 3]), ``question`` and ``answer`` of the rows of each split.

    Captions have no question. The images of ``count-questions`` are mosaics of one to four digits.

    Args:
        name: one of `names`.
        seed: determines which question a row asks, and how mosaics are composed.

    Raises:
        DataError: there is no such set, or an installed package lacks one of the pictures.

    >>> load("face-questions")["test"]["question"][0]
    'is this a face?'
    """
    if name == COUNTED:
        return _counted(seed)
    if name not in _ASKED:
        raise DataError("no such built-in questions", got=name, where="builtin", fix=f"one of {', '.join(names())}")
    asked = _ASKED[name]
    made: dict[str, dict[str, Any]] = {}
    for split, rows in data.load(asked.source).items():
        picked = [_drawn(f"{seed}/{name}/{split}/{i}", len(asked.questions)) for i in range(len(rows["label"]))]
        chosen = [asked.questions[place] for place in picked]
        answers = [listed[label] for (_, listed), label in zip(chosen, rows["label"].tolist(), strict=True)]
        made[split] = {"image": rows["image"], "answer": answers}
        if any(question for question, _ in asked.questions):
            made[split]["question"] = [question for question, _ in chosen]
    return made


def texts() -> list[tuple[str, str]]:
    """Return every question with each of its answers, and every caption with an empty question."""
    pairs = [(q, answer) for asked in _ASKED.values() for q, answers in asked.questions for answer in answers]
    return list(dict.fromkeys([*pairs, *((COUNT, number) for number in NUMBERS)]))


def _counted(seed: int) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for split, rows in data.load("digits").items():
        small = _halved(rows["image"])
        mosaics, answers = [], []
        for i in range(_ROWS[split]):
            key, count = f"{seed}/{COUNTED}/{split}/{i}", i % len(NUMBERS) + 1
            cells = sorted(range(4), key=[_drawn(f"{key}/cell{cell}", 2**32) for cell in range(4)].__getitem__)[:count]
            mosaics.append(_mosaic({cell: small[_drawn(f"{key}/{cell}", len(small))] for cell in cells}))
            answers.append(NUMBERS[count - 1])
        made[split] = {"image": np.stack(mosaics), "question": [COUNT] * len(answers), "answer": answers}
    return made


def _halved(images: UInt8[ndarray, "n 32 32 3"]) -> UInt8[ndarray, "n 16 16 3"]:
    """Return the images at half their size: means of 2 x 2 pixels."""
    n, side = len(images), data.SIZE // 2
    mean: Float[ndarray, "n 16 16 3"] = images.reshape(n, side, 2, side, 2, 3).astype(np.float64).mean((2, 4))
    halved: UInt8[ndarray, "n 16 16 3"] = np.rint(mean).astype(np.uint8)
    return halved


def _mosaic(cells: Mapping[int, UInt8[ndarray, "16 16 3"]]) -> UInt8[ndarray, "32 32 3"]:
    """Return small images in the given quarters of a black one."""
    side = data.SIZE // 2
    canvas = np.zeros((data.SIZE, data.SIZE, 3), dtype=np.uint8)
    for cell, image in cells.items():
        top, left = cell // 2 * side, cell % 2 * side
        canvas[top : top + side, left : left + side] = image
    return canvas


def _drawn(key: str, count: int) -> int:
    """Return a number below ``count`` that follows from the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % count
