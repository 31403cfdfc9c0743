"""The embedded tasks: shapes, classes, and that no pixel is in two of the four sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tangora import quickstart
from tangora.errors import DataError
from tangora.quickstart import data, pictures
from tangora.quickstart.data import Origin

SETS = ("pretraining", "train", "validation", "test")


@pytest.fixture(scope="module", params=quickstart.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_at_least_four_tasks_two_of_them_with_more_than_two_classes():
    sizes = [len(quickstart.labels(name)) for name in quickstart.names()]
    assert len(sizes) >= 4
    assert sum(size > 2 for size in sizes) >= 2


def test_rows_are_images_of_one_size_with_every_class_equally_often(name):
    splits = quickstart.load(name)
    assert tuple(splits) == ("train", "validation", "test")
    for rows in splits.values():
        assert rows["image"].shape == (len(rows["label"]), 32, 32, 3)
        assert rows["image"].dtype == np.uint8
        assert rows["label"].dtype == np.int64
        counts = np.bincount(rows["label"], minlength=len(quickstart.labels(name)))
        assert len(counts) == len(quickstart.labels(name))
        assert counts.min() == counts.max() >= 10


def test_loading_twice_gives_equal_rows_that_are_not_shared(name):
    first, second = quickstart.load(name), quickstart.load(name)
    for split in first:
        np.testing.assert_array_equal(first[split]["image"], second[split]["image"])
    first["train"]["image"][:] = 0
    assert quickstart.load(name)["train"]["image"].any()


def test_the_four_sets_share_no_pixel(name):
    where = quickstart.origins(name)
    assert tuple(where) == SETS
    assert all(where.values())
    for one, other in itertools.combinations(SETS, 2):
        assert not any(a.overlaps(b) for a in where[one] for b in where[other])


def test_no_two_rows_of_a_set_share_a_pixel(name):
    for rows in quickstart.origins(name).values():
        assert not any(a.overlaps(b) for a, b in itertools.combinations(rows, 2))


def test_origins_tell_the_truth():
    """The pixels named by the origin are those of the row (before resizing)."""
    rows = data._sets("photos")[3]
    photo = pictures.photo(rows[0].origin.source)
    at = rows[0].origin
    np.testing.assert_array_equal(rows[0].image, photo[at.top : at.top + at.height, at.left : at.left + at.width])


def test_no_test_image_is_also_seen_in_training_or_pretraining(name):
    """Equal images from different places (a flat sky, a black margin) are possible in photographs only."""
    splits = quickstart.load(name)
    seen = {image.tobytes() for image in (*splits["train"]["image"], *splits["validation"]["image"])}
    seen |= {image.tobytes() for image in quickstart.pretraining()[0]}
    repeated = np.mean([image.tobytes() in seen for image in splits["test"]["image"]])
    assert repeated <= (0.05 if name == "photos" else 0)


def test_pretraining_is_captioned_and_shows_every_class():
    images, captions = quickstart.pretraining()
    assert images.shape == (len(captions), 32, 32, 3)
    assert images.dtype == np.uint8
    for name in quickstart.names():
        for label in quickstart.labels(name):
            assert any(caption.endswith(f" {label}") for caption in captions), label


def test_pictures_of_pretraining_alone_are_in_no_task():
    of_tasks = {
        origin.source for name in quickstart.names() for rows in quickstart.origins(name).values() for origin in rows
    }
    assert of_tasks.isdisjoint(file for file, _ in data._EXTRA.values())


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Origin("a.png", 10, 10, 5, 5), True),
        (Origin("a.png", 14, 14, 5, 5), True),
        (Origin("a.png", 15, 10, 5, 5), False),
        (Origin("a.png", 10, 5, 5, 5), False),
        (Origin("b.png", 10, 10, 5, 5), False),
    ],
)
def test_overlap_by_hand(other, expected):
    assert Origin("a.png", 10, 10, 5, 5).overlaps(other) is expected
    assert other.overlaps(Origin("a.png", 10, 10, 5, 5)) is expected


@pytest.mark.parametrize("function", [quickstart.load, quickstart.labels, quickstart.origins])
def test_an_unknown_task_is_refused_with_the_known_ones(function):
    with pytest.raises(DataError, match=r"'digit'.*One of digits, textures, faces, photos"):
        function("digit")


def test_a_picture_missing_from_the_package_says_which_and_where():
    with pytest.raises(DataError, match=r"'nessie.png' at skimage data.*constraints.txt"):
        pictures.photo("nessie.png")


def test_large_photographs_are_reduced():
    assert max(pictures.photo("retina.jpg").shape) <= 750
