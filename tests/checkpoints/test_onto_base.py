"""Adapters onto a base: what `Adapter.apply_` does to a loaded model, done to files."""

from __future__ import annotations

import json

import pytest
import torch

import toys
from folders import CONFIG, read, save
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.checkpoints import fuse_checkpoints
from tangora.errors import ArgumentError, FusionError
from tangora.fusion.fusion import fuse
from tangora.updates.task_vector import Dense, LowRank


def state(prefix=""):
    return {prefix + k: v.clone() for k, v in toys.toy().state_dict().items()}


@pytest.fixture
def work(tmp_path):
    base = save(tmp_path / "base", state(), config={"model_type": "toy"})
    folders = []
    for seed in (1, 2, 3):
        toys.lora(seed, rank=seed).save(tmp_path / f"a{seed}")
        folders.append(tmp_path / f"a{seed}")
    return tmp_path, base, folders


# The two sum the same products in other orders: up to ten, in float32, under 30 together. An adapter left out is 1.
ROUNDING = {"rtol": 0.0, "atol": 2e-5}


def applied(adapter):
    model = toys.toy()
    adapter.apply_(model)
    return model.state_dict()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {"weights": [0.5, -0.25, 1.0]}),
        ("average", {}),
        ("ties", {"density": 0.3}),
        ("ties_per_tensor", {}),
        ("dare", {"seed": 4}),
    ],
)
def test_it_is_fusing_and_then_applying(work, method, options):
    root, base, folders = work
    fuse_checkpoints(base, folders, root / "out", method, threads=2, **options)
    expected = applied(fuse(folders, method, **options))
    found = read(root / "out")
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **ROUNDING)
    assert torch.equal(found["embed.weight"], state()["embed.weight"])


def test_in_the_space_of_factors(work):
    root, base, _ = work
    folders = []
    for seed in (1, 2):
        toys.lora(seed).save(root / f"s{seed}")
        folders.append(root / f"s{seed}")
    fuse_checkpoints(base, folders, root / "out", weights=0.5, space="factors")
    expected = applied(fuse(folders, weights=0.5, space="factors"))
    plain = applied(fuse(folders, weights=0.5))
    found = read(root / "out")
    assert all(torch.allclose(found[n], expected[n], **ROUNDING) for n in expected)
    assert not torch.allclose(found["up.weight"], plain["up.weight"], atol=1e-2)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("dropped", ["", "wrapped."])
def test_prefixes_of_names(tmp_path, prefix, dropped):
    if prefix and dropped:
        pytest.skip("one of the two has the longer names")
    base = save(tmp_path / "base", state(prefix), config={})
    lora = toys.lora(1)
    renamed = Adapter({dropped + k: v for k, v in lora.updates.items()}, Metadata(base=BaseInfo(model="toy")))
    renamed.save(tmp_path / "a")
    fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "out", weights=1.0)
    expected = applied(lora)
    assert all(
        torch.allclose(v, expected[k.removeprefix(prefix)], **ROUNDING) for k, v in read(tmp_path / "out").items()
    )


def test_embeddings_and_conv1d_are_transposed(tmp_path):
    """Square weights, where the shape does not tell."""
    g = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(6, 6, generator=g) for n in ("wte.weight", "h.0.c_proj.weight", "lm_head.weight")}
    base = save(tmp_path / "base", weights, config={"model_type": "gpt2", "tie_word_embeddings": False})
    make = lambda: LowRank(torch.randn(6, 2, generator=g), torch.randn(2, 6, generator=g), 0.5)  # noqa: E731
    updates = {"wte": make(), "h.0.c_proj": make(), "lm_head": make()}
    adapter = Adapter(updates, Metadata(base=BaseInfo(model="x")), LoraDetails(embeddings=frozenset({"wte"})))
    adapter.save(tmp_path / "a")
    fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "out", weights=1.0)
    found = read(tmp_path / "out")
    for site, turned in (("wte", True), ("h.0.c_proj", True), ("lm_head", False)):
        dense = updates[site].dense()
        expected = weights[f"{site}.weight"] + (dense.T if turned else dense)
        torch.testing.assert_close(found[f"{site}.weight"], expected, **ROUNDING)


def test_adapters_of_kind_full(tmp_path):
    base = save(tmp_path / "base", state(), config={})
    g = torch.Generator().manual_seed(1)
    updates = {k: Dense(torch.randn(v.shape, generator=g)) for k, v in state().items()}
    Adapter(updates, Metadata(kind="full", base=BaseInfo(model="toy"))).save(tmp_path / "d")
    fuse_checkpoints(base, [tmp_path / "d"], tmp_path / "out", weights=0.5)
    for name, value in read(tmp_path / "out").items():
        torch.testing.assert_close(value, state()[name] + 0.5 * updates[name].weight)


def test_a_start_that_is_not_zero_is_added_once(tmp_path):
    base = save(tmp_path / "base", state(), config={})
    g = torch.Generator().manual_seed(1)
    start = {"up": LowRank(torch.randn(10, 2, generator=g), torch.randn(2, 6, generator=g), 1.0)}
    for seed in (1, 2):
        moved = LowRank(start["up"].b + 0.1 * seed, start["up"].a, 1.0)
        about = Metadata(base=BaseInfo(model="toy"))
        Adapter({"up": moved}, about, LoraDetails(initial=start)).save(tmp_path / f"s{seed}")
    folders = [tmp_path / "s1", tmp_path / "s2"]
    assert load(folders[0]).start
    fuse_checkpoints(base, folders, tmp_path / "out", weights=0.5)
    expected = applied(fuse(folders, weights=0.5))
    for name, value in read(tmp_path / "out").items():
        torch.testing.assert_close(value, expected[name], **ROUNDING)


def test_threads_and_shards_do_not_change_a_bit(work):
    root, base, folders = work
    results = []
    for i, options in enumerate([{"threads": 1}, {"threads": 3, "block": 5}, {"shard_size": 100}]):
        fuse_checkpoints(base, folders, root / f"o{i}", **options)
        results.append(read(root / f"o{i}"))
    assert all(torch.equal(results[0][n], other[n]) for other in results[1:] for n in results[0])


def test_refusals(work):
    root, _, folders = work
    with pytest.raises(FusionError, match="no weight for a site, got 'down'"):
        fuse_checkpoints(save(root / "b2", {"w": torch.zeros(2)}, config={}), folders, root / "out")
    wrong = {**state(), "up.weight": torch.zeros(3, 3)}
    with pytest.raises(FusionError, match="base's weight is"):
        fuse_checkpoints(save(root / "b3", wrong, config={}), folders, root / "out")
    whole = {**state(), "up.weight": torch.zeros(10, 6, dtype=torch.int64)}
    with pytest.raises(FusionError, match="no update can be added to integers"):
        fuse_checkpoints(save(root / "b4", whole, config={}), folders, root / "out")
    assert not (root / "out").exists()


def made_for(folder, model):
    toys.lora(1).save(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": model}))
    (folder / "tangora.json").unlink()
    return folder


def test_a_base_of_another_name_is_refused_unless_said_to_be_the_same(tmp_path):
    base = save(tmp_path / "base", state(), config={"model_type": "toy", "_name_or_path": "org/right-model"})
    wrong = made_for(tmp_path / "a", "org/other-model")
    with pytest.raises(FusionError, match=r"a was made for org/other-model, the base given is org/right-model"):
        fuse_checkpoints(base, [wrong], tmp_path / "out")
    with pytest.raises(FusionError, match="the base given is org/right-model"):
        fuse([wrong], base=base)
    assert not (tmp_path / "out").exists()
    fuse_checkpoints(base, [wrong], tmp_path / "out", same_base=True)
    for name, model in (("b", "org/right-model"), ("c", "/somewhere/Right-Model"), ("d", "elsewhere/base")):
        fuse_checkpoints(base, [made_for(tmp_path / name, model)], tmp_path / f"out-{name}", dry_run=True)


@pytest.mark.parametrize(("name", "value"), [("space", "core"), ("heads", "keep"), ("same_base", True)])
def test_options_of_adapters_are_refused_for_checkpoints(tmp_path, name, value):
    base = save(tmp_path / "base", state(), config={"model_type": "toy"})
    other = save(tmp_path / "ft", state(), config={"model_type": "toy"})
    with pytest.raises(ArgumentError, match=f"{name} is for adapters, got {value!r}"):
        fuse_checkpoints(base, [other], tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_tied_weights_are_refused(tmp_path):
    weights = {"model.embed_tokens.weight": torch.zeros(5, 4), "model.x.weight": torch.zeros(4, 4)}
    base = save(tmp_path / "base", weights, config={**CONFIG, "tie_word_embeddings": True})
    update = LowRank(torch.ones(4, 1), torch.ones(1, 5))
    adapter = Adapter(
        {"model.embed_tokens": update}, Metadata(), LoraDetails(embeddings=frozenset({"model.embed_tokens"}))
    )
    adapter.save(tmp_path / "a")
    with pytest.raises(FusionError, match="shared by the input embedding and the output head"):
        fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "out")


def test_the_lineage_names_the_adapters(work):
    root, base, folders = work
    fuse_checkpoints(base, folders, root / "out", "dare", seed=3)
    lineage = json.loads((root / "out" / "tangora_fusion.json").read_text())
    assert [p["fingerprint"] for p in lineage["parents"]] == [load(f).fingerprint for f in folders]
    assert (lineage["seed"], lineage["space"]) == (3, "delta")
