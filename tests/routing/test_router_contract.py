"""The contract of routers, over the registry; that a broken one is caught; one of another package."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch
import yaml

import plugins
import tangora
from routing.experts import of_tiny
from tangora.config.recipe import load_recipe
from tangora.modular import gates
from tangora.modular.gates import Gate, GateSettings
from tangora.routing.assembly import Routed, expert_sites, routed_adapter
from tangora.runs.runner import run
from tangora.support.seams import ROUTERS
from tangora.testing import check_router
from tangora.updates.task_vector import Dense
from tiny_run import recipe_for


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_keeps_its_promises(name):
    router = ROUTERS.get(name)
    small = {"steps": 2} if "steps" in router.settings.model_fields else {}
    check_router(router, **small)


SMILE = type(ROUTERS.get("smile"))


class Counts(SMILE):
    """Makes another adapter every time."""

    count = 0

    def __call__(self, experts, settings, bench=None):
        type(self).count += 1
        made = super().__call__(experts, settings)
        name = next(iter(made.updates))
        return replace(made, updates={**made.updates, name: Dense(made.updates[name].dense() + self.count)})


class Spoils(SMILE):
    """Changes an expert."""

    def __call__(self, experts, settings, bench=None):
        made = super().__call__(experts, settings)
        for adapter in experts.values():
            for update in adapter.updates.values():
                update.b.mul_(1.5)
            vars(adapter).pop("fingerprint", None)
        return replace(made, updates=SPOILED.setdefault("first", made.updates))


SPOILED: dict = {}


class Forgets(SMILE):
    """Does not record its settings."""

    def __call__(self, experts, settings, bench=None):
        made = super().__call__(experts, settings)
        info = made.metadata.fused.model_copy(update={"parameters": {}})
        return replace(made, metadata=made.metadata.model_copy(update={"fused": info}))


class MeanSettings(GateSettings):
    kind: str = "batch-mean"


class MeanGate(Gate):
    """Decides for the whole batch."""

    settings_class = MeanSettings

    def forward(self, x, mask=None):
        score = x.mean((0, 1))[:2].softmax(-1) * 2
        return score.expand(*x.shape[:-1], 2)


class OfBatches(SMILE):
    """Routes batches."""

    def __call__(self, experts, settings, bench=None):
        sites = {site: Routed(updates, "all") for site, updates in expert_sites(experts).items()}
        return routed_adapter(experts, settings, sites, {"all": MeanGate(MeanSettings())})


class Silent(SMILE):
    """Adds nothing."""

    def __call__(self, experts, settings, bench=None):
        made = super().__call__(experts, settings)
        return replace(made, updates={n: Dense(torch.zeros(u.shape)) for n, u in made.updates.items()})


class Other(SMILE):
    """Has the name of a fusion method."""

    name = "ties"


BROKEN = {
    Counts: "the same experts and seed give another adapter",
    Spoils: "changes an expert",
    Forgets: "metadata.fused does not have its settings",
    OfBatches: "answers depend on the rest of the batch",
    Silent: "the adapter answers as the base does",
    Other: "the default of the setting name must be 'ties', got 'smile'",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_router_is_caught(broken, monkeypatch):
    monkeypatch.setitem(gates.GATES, "batch-mean", MeanGate)
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_router(broken())


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = plugins.install(tmp_path_factory.mktemp("site"), "router")
    with plugins.installed(folder, ROUTERS):
        yield folder


def test_a_router_of_another_package_keeps_the_contract(package):
    assert "activated" in ROUTERS
    check_router(ROUTERS.get("activated"))
    assert tangora.fuse(of_tiny(1, 2), "activated", top_k=1).metadata.fused.method == "activated"


def test_a_recipe_names_it_and_a_run_uses_it(package, tiny_bert, text_data, tmp_path, monkeypatch):
    raw = recipe_for(tiny_bert, text_data)
    raw["tasks"], raw["modes"] = raw["tasks"][:2], {"lora": {}}
    raw["fusion"] = {"methods": [{"method": "activated", "top_k": 1, "name": "mine"}]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setattr("tangora.report.build", lambda out: out)
    out = run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")
    with (out / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "mine"]
    assert {row["subset"] for row in rows} == {"plain+good"}
    assert tangora.load(out / "fused" / "lora" / "mine").metadata.fused.parameters == {"top_k": 1}
