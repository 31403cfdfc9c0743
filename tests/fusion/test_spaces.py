"""Spaces: ours keep the contract, broken ones are caught, one of another package is installed and fused in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import plugins
import tangora
import toys
from tangora.config.fusion import FusionEntry
from tangora.errors import FusionError, PluginError
from tangora.fusion.contract import Coordinates, space_of
from tangora.fusion.fusion import fuse
from tangora.support.seams import SPACES
from tangora.testing import check_space
from tangora.updates.task_vector import TaskVector


@pytest.mark.parametrize("name", sorted(SPACES.own))
def test_ours_keep_the_contract(name):
    check_space(name)


def changed(name: str, **members: object) -> SimpleNamespace:
    space = space_of(name)
    names = ("summary", "needs_factors", "needs_start", "plain", "intrinsic", "check", "coordinates", "is_linear")
    return SimpleNamespace(**{member: getattr(space, member) for member in names} | members)


def doubled(adapters) -> Coordinates:
    made = space_of("delta").coordinates(adapters)
    return Coordinates([vector * 2.0 for vector in made.vectors], lambda fused: made.back(fused / 2.0))


def forgetful(adapters) -> Coordinates:
    made = space_of("delta").coordinates(adapters)
    return Coordinates(made.vectors, lambda fused: made.back(TaskVector({"up": fused["up"]})))


def nothing(adapters, names) -> None:
    """Refuse nothing."""


BROKEN = {
    "summary": (changed("delta", summary=""), "the summary is empty"),
    "plain": (changed("delta", coordinates=doubled), "plain=True, but a vector is not the change"),
    "back": (changed("delta", coordinates=forgetful), "do not convert back to it: ..up"),
    "linear": (changed("factors", is_linear=lambda adapters: True), "a sum of coordinates is not the sum"),
    "factors": (changed("delta", needs_factors=True), "adapters of kind full are not refused"),
    "start": (changed("delta", needs_start=True), "adapters of unknown φ₀ are not refused"),
    "separate": (
        changed("core", coordinates=lambda adapters: _separate(space_of("core").coordinates(adapters))),
        "separate=True, but coordinates depend on the other adapters",
    ),
    "intrinsic": (changed("factors", intrinsic=True), "intrinsic=True, but the result depends on how"),
    "members": (SimpleNamespace(summary="x"), "lacks a member"),
}


def _separate(made: Coordinates) -> Coordinates:
    return Coordinates(made.vectors, made.back, made.site_of)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_space_is_caught(name):
    space, message = BROKEN[name]
    with pytest.raises((AssertionError, KeyError), match=message):
        check_space(space)


def test_an_unknown_space_is_named():
    with pytest.raises(PluginError, match=r"no such space, got 'cores'. Did you mean 'core'\?"):
        space_of("cores")
    with pytest.raises(ValueError, match=r"no such space.*core.*delta.*factors"):
        FusionEntry(method="ties", spaces=["nowhere"])


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    return plugins.install(tmp_path_factory.mktemp("site"), "space")


def test_a_space_of_another_package(unit):
    with plugins.installed(unit, SPACES):
        assert "unit" in SPACES
        assert FusionEntry(method="ties", spaces=["unit"]).spaces == ["unit"]
        check_space("unit")
        pair = [toys.lora(1), toys.lora(2)]
        found = fuse(pair, weights=[0.5, 0.25], space="unit").updates["up"].dense()
        norms = [adapter.task_vector.norm() for adapter in pair]
        scale = [sum(norms) / 2 / norm for norm in norms]
        expected = 0.5 * scale[0] * pair[0].updates["up"].dense() + 0.25 * scale[1] * pair[1].updates["up"].dense()
        torch.testing.assert_close(found, expected)
        still = toys.lora(3)
        still = tangora.Adapter({s: u * 0.0 for s, u in still.updates.items()}, still.metadata, still.details)
        with pytest.raises(FusionError, match="task3 has none"):
            fuse([pair[0], still], space="unit")
    with pytest.raises(PluginError, match="no such space"):
        fuse(pair, space="unit")


def test_the_command_fuses_in_it(unit, tmp_path):
    for seed in (1, 2):
        toys.lora(seed).save(tmp_path / f"a{seed}")
    folders = [str(tmp_path / f"a{seed}") for seed in (1, 2)]
    command = [sys.executable, "-c", "from tangora.cli import main; main()", "fuse", *folders]
    options = ["--space", "unit", "--method", "ties", "--out", str(tmp_path / "out")]
    paths = os.pathsep.join([str(unit), str(Path(tangora.__file__).parents[1])])
    subprocess.run([*command, *options], env={**os.environ, "PYTHONPATH": paths}, check=True, capture_output=True)
    assert json.loads((tmp_path / "out" / "tangora.json").read_text())["fused"]["space"] == "unit"
