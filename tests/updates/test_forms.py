"""Every form of an update keeps the contract, and one that does not is caught."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import zoo
from tangora.adapters.adapter import load
from tangora.testing import check_update
from tangora.updates.task_vector import Dense, LowRank, TaskVector
from tangora.updates.update import Update


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Update]:
    folder = tmp_path_factory.mktemp("forms")
    lazy = load(zoo.write(folder / "plain", target_modules=["up", "down"]), lazily=True)
    base = zoo.save_base(folder / "base")
    dora = load(zoo.write(folder / "dora", use_dora=True, target_modules=["up", "embed"]), base)
    return {
        "LowRank": LowRank(draw(5, 2), draw(2, 7), 0.5),
        "LowRank of float64": LowRank(draw(5, 2, dtype=torch.float64), draw(2, 4, dtype=torch.float64)),
        "Dense": Dense(draw(4, 6)),
        "Dense vector": Dense(draw(4)),
        "LazyLowRank": lazy.updates["up"],
        "DoraUpdate": dora.updates["up"],
        "DoraUpdate, stored turned": dora.updates["embed"],
    }


NAMES = (
    "LowRank",
    "LowRank of float64",
    "Dense",
    "Dense vector",
    "LazyLowRank",
    "DoraUpdate",
    "DoraUpdate, stored turned",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_keeps_the_contract(forms, name):
    check_update(forms[name])
    assert name.split()[0].rstrip(",") == type(forms[name]).__name__


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_names_form_and_shape(forms, name):
    update = forms[name]
    assert repr(update).startswith(f"{type(update).__name__}({'x'.join(map(str, update.shape))}")


def test_a_sum_begins_with_nothing():
    x, y = LowRank(draw(5, 2), draw(2, 7)), Dense(draw(5, 7))
    assert torch.equal(sum([x, y]).dense(), (x + y).dense())
    v, w = TaskVector({"one": x}), TaskVector({"one": y})
    assert torch.equal(sum([v, w])["one"].dense(), (v + w)["one"].dense())
    with pytest.raises(TypeError):
        _ = 1 + x
    with pytest.raises(TypeError):
        _ = "0" + v


@dataclass(frozen=True, eq=False)
class Turned(Update):
    """An update that mixes up its rows and columns, and otherwise is right."""

    weight: torch.Tensor

    @property
    def shape(self):
        return tuple(self.weight.shape)

    def dense(self):
        return self.weight

    def factors(self):
        return None

    def scaled(self, number):
        return Dense(self.weight * number)

    def digest(self):
        return Dense(self.weight).digest()

    def rows(self, start, stop, *, transposed=False):
        return (self.weight if transposed else self.weight.T)[start:stop]


@dataclass(frozen=True, eq=False)
class Silent(Turned):
    """An update whose digest says nothing of its numbers."""

    def rows(self, start, stop, *, transposed=False):
        return (self.weight.T if transposed else self.weight)[start:stop]

    def digest(self):
        return str(self.shape)


def test_broken_forms_are_caught():
    with pytest.raises(AssertionError, match=r"rows\(0, 2, transposed=False\) is of shape"):
        check_update(Turned(draw(4, 3)))
    with pytest.raises(AssertionError, match="that of the same numbers"):
        check_update(Silent(draw(4, 3)))
    with pytest.raises(AssertionError, match="lacks a member"):
        check_update(draw(4, 3))
