"""Columns against brute force: every fused model by its own forward pass; per site, against one site at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import tangora
from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.metadata import Metadata
from tangora.config.recipe import BaseConfig, TaskConfig
from tangora.errors import ArgumentError, DataError, FileError, ModelError
from tangora.tangent import TangentTaskModel, _memory, direction_of, load_columns, make_columns, site_columns
from tangora.tangent.columns import columns_key
from tangora.tasks import load_base, load_task
from tangora.updates.task_vector import Dense, LowRank, TaskVector

COLORS = ["red", "green", "blue"]
FAMILIES = {
    "clip": ("image-zero-shot", ["q_proj", "v_proj", "fc1"]),
    "bert": ("text-zero-shot", ["query", "value", "dense"]),
    "t5": ("text-to-text", ["q", "wo"]),
}


@pytest.fixture(scope="module")
def setups(tiny_clip, tiny_bert, tiny_t5, image_data, text_data):
    made = {}

    def setup(kind):
        if kind not in made:
            family, targets = FAMILIES[kind]
            folder = {"clip": tiny_clip, "bert": tiny_bert, "t5": tiny_t5}[kind]
            base = load_base(BaseConfig(family=family, model=str(folder), max_length=16, max_new_tokens=4))
            made[kind] = base, load_task(_task(kind, image_data, text_data), base, 0), targets
        return made[kind]

    return setup


def _task(kind, image_data, text_data):
    limit = {"train": 8, "validation": 8, "test": 8}
    if kind == "clip":
        source = {"npz": {s: str(image_data / f"{s}.npz") for s in ("train", "test")}}
        return TaskConfig(name="c", source=source, image="images", label="labels", labels=COLORS, limit=limit)
    source = {"parquet": {s: str(text_data / f"{s}.parquet") for s in ("train", "test")}}
    if kind == "bert":
        return TaskConfig(name="c", source=source, labels_from=str(text_data / "info.json"), limit=limit)
    return TaskConfig(
        name="c", source=source, prompt="{text}", target="{label}", labels=COLORS,
        metric="exact_match", limit=limit,
    )  # fmt: skip


def adapters(base, targets, count=3, ranks=(2, 3, 2)):
    """Random low-rank updates, of unlike ranks; the last one lacks a site."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    sites = [n for n, m in base.backbone.named_modules() if n.rpartition(".")[2] in targets and hasattr(m, "weight")]
    for i in range(count):
        updates = {}
        for site in sites[: len(sites) - (i == count - 1)]:
            out, inside = base.backbone.get_submodule(site).weight.shape
            b = torch.randn(out, ranks[i], generator=generator) * 0.1
            updates[site] = LowRank(b, torch.randn(ranks[i], inside, generator=generator) * 0.3, 1.5)
        found[f"task{i}"] = Adapter(updates, Metadata(linearize="model"))
    return found


def brute(base, task, split, adapter):
    """Logits by a forward pass of their own, rows in order."""
    model = TangentTaskModel(base.backbone, task, base, direction_of(adapter, base.backbone))
    found = []
    with torch.no_grad():
        for row in range(len(task.splits[split])):
            batch = model.collator([task.splits[split].dataset()[row]])
            labels = batch.pop("labels")
            logits = model.logits(batch, labels)
            found.append(logits.reshape(-1, logits.shape[-1]))
    return torch.cat(found)


def near(found, expected):
    """Up to what float32 makes of it: about a hundred roundings of 6e-8 of the largest number that is added up.

    The bound is ten times that; a site or a weight too many is a hundredth at least.
    """
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_fusion_equals_its_own_forward_pass(kind, setups):
    base, task, targets = setups(kind)
    experts = adapters(base, targets)
    columns = make_columns(base, task, "test", experts, batch_size=3)
    assert columns.vectors == tuple(experts)
    for weights in ([0.3, 0.3, 0.3], [1.0, 0.0, 0.0], [-0.5, 0.7, 1.2]):
        vectors = [a.task_vector for a in experts.values()]
        fused = Adapter(dict(TaskVector.combination(vectors, weights)), Metadata(linearize="model"))
        expected = brute(base, task, "test", fused)
        found = columns.logits(torch.tensor(weights))
        assert float((found - expected).norm() / expected.norm()) < 1e-4
        moved, still = expected - columns.origin, found - columns.origin
        assert float((moved - still).norm() / moved.norm()) < 1e-4
    many = columns.logits(torch.rand(4, 3))
    assert many.shape == (4, *columns.origin.shape)
    part = columns.subset(["task2", "task0"])
    near(part.logits(torch.tensor([0.2, 0.4])), columns.logits(torch.tensor([0.4, 0.0, 0.2])))


@pytest.mark.parametrize("kind", FAMILIES)
def test_columns_per_site_are_those_of_single_sites(kind, setups):
    base, task, targets = setups(kind)
    experts = adapters(base, targets)
    whole = make_columns(base, task, "validation", experts)
    sites = site_columns(base, task, "validation", experts, batch_size=3)
    near(sites.columns.sum(1), whole.columns)
    index = sites.sites.index(next(reversed(experts["task2"].updates)))
    one = {"task1": Adapter({sites.sites[index]: experts["task1"].updates[sites.sites[index]]})}
    alone = make_columns(base, task, "validation", one)
    near(sites.columns[1, index], alone.columns[0])
    absent = next(s for s in experts["task0"].updates if s not in experts["task2"].updates)
    assert not sites.columns[2, sites.sites.index(absent)].any()
    picked = site_columns(base, task, "validation", experts, rows=[0, 2])
    assert sorted(set(picked.examples.tolist())) == [0, 2]


class Twice(torch.nn.ModuleList):
    """A layer that is called at two depths, as ALBERT's are."""

    def __iter__(self):
        layers = list(super().__iter__())
        return iter(layers + layers)

    def __getitem__(self, index):
        return list(self)[index]


def test_columns_per_site_of_a_layer_that_is_called_twice(setups, monkeypatch):
    base, task, targets = setups("bert")
    encoder = base.backbone.encoder
    monkeypatch.setitem(encoder._modules, "layer", Twice([encoder.layer[0]]))
    experts = adapters(base, targets)
    whole = make_columns(base, task, "validation", experts)
    assert whole.columns.abs().max() > 0
    sites = site_columns(base, task, "validation", experts, batch_size=3)
    near(sites.columns.sum(1), whole.columns)


def test_a_file_gives_them_back_and_another_run_s_is_refused(setups, tmp_path):
    base, task, targets = setups("bert")
    experts = adapters(base, targets)
    columns = make_columns(base, task, "test", experts)
    columns.save(tmp_path / "c.safetensors")
    back = load_columns(tmp_path / "c.safetensors", columns_key(base, task, "test", experts))
    for field in dataclasses.fields(columns):
        one, other = getattr(columns, field.name), getattr(back, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    key = columns_key(base, task, "validation", experts)
    with pytest.raises(DataError, match=rf"columns have fingerprint .*, not {key[:12]}.*belong to another run"):
        load_columns(tmp_path / "c.safetensors", key)
    (tmp_path / "c.safetensors").write_bytes(b"12345678")
    with pytest.raises(FileError):
        load_columns(tmp_path / "c.safetensors")


def test_bad_input(setups, monkeypatch):
    base, task, targets = setups("bert")
    experts = adapters(base, targets)
    columns = make_columns(base, task, "test", experts)
    with pytest.raises(ArgumentError, match="every column needs a coefficient"):
        columns.logits(torch.ones(2))
    with pytest.raises(ArgumentError, match="no such task vector"):
        columns.subset(["task7"])
    with pytest.raises(DataError, match="split is missing"):
        make_columns(base, task, "holdout", experts)
    site = next(iter(experts["task0"].updates))
    bad = {"bad": Adapter({site: LowRank(torch.full((32, 1), torch.inf), torch.ones(1, 32))})}
    with pytest.raises(ModelError, match="not finite"):
        make_columns(base, task, "test", bad)
    dense = {"dense": Adapter({site: Dense(torch.ones(32, 32))})}
    with pytest.raises(ModelError, match="low-rank"):
        site_columns(base, task, "test", dense)
    monkeypatch.setattr(_memory, "available_memory", lambda: 100)
    with pytest.raises(DataError, match=r"4 columns need .* GB, and .* GB are free.*test"):
        make_columns(base, task, "test", experts)


def test_adapters_of_another_start_are_refused(setups):
    base, task, targets = setups("bert")
    site = next(iter(adapters(base, targets)["task0"].updates))
    one = LowRank(torch.ones(32, 1), torch.ones(1, 32))
    pair = {str(i): Adapter({site: one}, details=LoraDetails(initial={site: one * i})) for i in (1.0, 2.0)}
    with pytest.raises(ModelError, match=r"start at different φ₀, got .* and .*"):
        make_columns(base, task, "test", pair)


def test_the_public_tangent_model_is_the_task_model_s(setups):
    base, task, targets = setups("clip")
    adapter = adapters(base, targets)["task0"]
    pixels = torch.stack([task.splits["test"].dataset()[i]["pixel_values"] for i in range(3)])
    with torch.no_grad():
        found = tangora.TangentModel(base.backbone, adapter)(pixel_values=pixels).image_embeds
        plain = base.backbone(pixel_values=pixels).image_embeds
    assert found.shape == plain.shape
    assert float((found - plain).norm()) > 1e-3
