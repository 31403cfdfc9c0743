"""Where peft's `add_weighted_adapter` is silently wrong, shown by running it, and Tangora is exact.

Each test first shows the peer's error on the installed peft; if a later peft mends it, the test says so by failing,
and the README's table is corrected.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import tangora
from tangora.errors import AdapterError, FusionError

SITES = ("0", "2")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))


def make(folder, seed, **config):
    """A PEFT adapter with random factors, saved by peft."""
    model = get_peft_model(network(), LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": list(SITES), **config}))
    torch.manual_seed(seed)  # after the network, which seeds too
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


def peft_deltas(*folders, **options):
    """ΔW per site of what peft's merge makes of the adapters."""
    model = PeftModel.from_pretrained(network(), folders[0], adapter_name="a0")
    for i, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=f"a{i}")
    names = [f"a{i}" for i in range(len(folders))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(names, adapter_name="merged", **options)
    return {site: layer(model, site).get_delta_weight("merged").detach() for site in SITES}


def layer(model, site):
    return model.get_submodule(f"base_model.model.{site}")


def true_delta(folder):
    model = PeftModel.from_pretrained(network(), folder)
    return {site: layer(model, site).get_delta_weight("default").detach() for site in SITES}


def weighted(folders, weights):
    deltas = [true_delta(f) for f in folders]
    return {site: sum(w * d[site] for w, d in zip(weights, deltas, strict=True)) for site in SITES}


def error(got, wanted):
    total = sum(float((got[s] - wanted[s]).square().sum()) for s in wanted)
    return (total / sum(float(wanted[s].square().sum()) for s in wanted)) ** 0.5


def fused_deltas(folders, **options):
    updates = tangora.fuse(folders, **options).updates
    return {site: update.dense() for site, update in updates.items()}


@pytest.fixture
def pair(tmp_path):
    return [make(tmp_path / "a", 1), make(tmp_path / "b", 2)]


def test_linear_has_cross_terms(pair):
    wanted = weighted(pair, [0.5, 0.5])
    assert error(peft_deltas(*pair, weights=[0.5, 0.5], combination_type="linear"), wanted) > 0.5
    assert error(fused_deltas(pair, weights=0.5), wanted) < 1e-6


def test_the_identity_merge_of_rslora_is_rescaled(tmp_path):
    folder = make(tmp_path / "rs", 3, use_rslora=True)
    wanted = true_delta(folder)
    assert error(peft_deltas(folder, weights=[1.0], combination_type="linear"), wanted) > 0.5
    assert error(fused_deltas([folder], weights=1.0), wanted) < 1e-6


def test_svd_of_rslora_is_rescaled(tmp_path):
    pair = [make(tmp_path / n, i, use_rslora=True) for i, n in enumerate("ab")]
    wanted = weighted(pair, [1.0, 1.0])
    assert error(peft_deltas(*pair, weights=[1.0, 1.0], combination_type="svd", svd_rank=8), wanted) > 0.5
    assert error(fused_deltas(pair, weights=1.0, rank=8), wanted) < 1e-5


def test_truncation_is_the_best_one_and_says_its_error(pair):
    wanted = weighted(pair, [1.0, 1.0])
    fused = tangora.fuse(pair, weights=1.0, rank=4)
    best = sum(float(torch.linalg.svdvals(d)[4:].square().sum()) for d in wanted.values())
    best = (best / sum(float(d.square().sum()) for d in wanted.values())) ** 0.5
    assert error({s: u.dense() for s, u in fused.updates.items()}, wanted) == pytest.approx(best, rel=1e-4)
    assert fused.metadata.fused.truncation_error == pytest.approx(best, rel=1e-4)


def regauge(folder, target):
    """The same ΔW by another pair: A -> M A, B -> B M⁻¹."""
    model = PeftModel.from_pretrained(network(), folder)
    generator = torch.Generator().manual_seed(7)
    for site in SITES:
        one = layer(model, site)
        mix = torch.randn(4, 4, generator=generator) + 2 * torch.eye(4)
        one.lora_A["default"].weight.data = mix @ one.lora_A["default"].weight.data
        one.lora_B["default"].weight.data = one.lora_B["default"].weight.data @ torch.linalg.inv(mix)
    model.save_pretrained(target)
    return str(target)


def test_ties_depends_on_how_the_factors_are_written(pair, tmp_path):
    other = [regauge(pair[0], tmp_path / "regauged"), pair[1]]
    assert error(true_delta(other[0]), true_delta(pair[0])) < 1e-4
    options = {"weights": [1.0, 1.0], "combination_type": "ties", "density": 0.5}
    assert error(peft_deltas(*other, **options), peft_deltas(*pair, **options)) > 0.3
    ours = [fused_deltas(p, method="ties", weights=1.0, density=0.5) for p in (pair, other)]
    assert error(ours[1], ours[0]) < 1e-3


def test_unequal_ranks_fuse_exactly(tmp_path):
    pair = [make(tmp_path / "a", 1, r=2), make(tmp_path / "b", 2, r=6, rank_pattern={"2": 3})]
    with pytest.raises(ValueError, match="same r"):
        peft_deltas(*pair, weights=[0.5, 0.5], combination_type="linear")
    assert error(fused_deltas(pair, weights=0.5), weighted(pair, [0.5, 0.5])) < 1e-6


def test_a_fused_adapter_with_rank_pattern_loads_again(tmp_path):
    pair = [make(tmp_path / "a", 1, rank_pattern={"2": 6}), make(tmp_path / "b", 2)]
    tangora.fuse(pair, weights=0.5).save(tmp_path / "fused")
    assert error(true_delta(str(tmp_path / "fused")), weighted(pair, [0.5, 0.5])) < 1e-6


def saved_merge(*folders, at, **options):
    """What peft writes for its merge of two adapters."""
    model = PeftModel.from_pretrained(network(), folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], adapter_name="merged", **options)
    model.save_pretrained(at, selected_adapters=["merged"])
    return load_file(at / "merged/adapter_model.safetensors")


def test_a_head_is_dropped(tmp_path):
    pair = [make(tmp_path / "plain", 1, target_modules=["0"])]
    pair += [make(tmp_path / "head", 2, target_modules=["0"], modules_to_save=["2"])]
    tensors = saved_merge(*pair, at=tmp_path / "merged", combination_type="linear")
    assert not any(".2." in name for name in tensors)
    with pytest.raises(FusionError, match="modules_to_save"):
        tangora.fuse(pair)
    tangora.fuse(pair, heads="keep").save(tmp_path / "kept")
    assert [p.name for p in (tmp_path / "kept/heads").iterdir()] == ["head.safetensors"]


def test_lora_bias_is_lost(tmp_path):
    pair = [make(tmp_path / name, seed, lora_bias=True) for seed, name in enumerate("ab", 1)]
    tensors = saved_merge(*pair, at=tmp_path / "merged", combination_type="cat")
    theirs = tensors["base_model.model.0.lora_B.bias"]
    biases = [load_file(f"{folder}/adapter_model.safetensors")["base_model.model.0.lora_B.bias"] for folder in pair]
    wanted = 0.5 * 2.0 * (biases[0] + biases[1])  # scaling 8 / 4
    assert float((theirs - wanted).norm()) > 0.5 * float(wanted.norm())
    torch.testing.assert_close(tangora.fuse(pair, weights=0.5).updates["0.bias"].dense(), wanted)


def merged_deltas(*folders, weights):
    """What peft's merge of the adapters, and each adapter by itself, change of the base's weights."""
    before = dict(network().named_parameters())
    changes = []
    for choice in (*range(len(folders)), None):
        model = PeftModel.from_pretrained(network(), folders[0], adapter_name="a0")
        for i, folder in enumerate(folders[1:], start=1):
            model.load_adapter(folder, adapter_name=f"a{i}")
        names = [f"a{i}" for i in range(len(folders))]
        model.add_weighted_adapter(names, weights, adapter_name="merged", combination_type="cat")
        model.set_adapter("merged" if choice is None else names[choice])
        whole = dict(model.merge_and_unload().named_parameters())
        changes.append({site: (whole[f"{site}.weight"] - before[f"{site}.weight"]).detach() for site in SITES})
    return changes[-1], changes[:-1]


def test_dora_is_mangled(tmp_path):
    pair = [make(tmp_path / name, seed, use_dora=True) for seed, name in enumerate("ab", 1)]
    theirs, each = merged_deltas(*pair, weights=[0.5, 0.5])
    wanted = {site: 0.5 * (each[0][site] + each[1][site]) for site in SITES}
    assert error(theirs, wanted) > 0.05
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file(network().state_dict(), base / "model.safetensors")
    assert error(fused_deltas(pair, weights=0.5, base=base), wanted) < 1e-5


def test_dora_is_refused_without_its_base_not_mangled(tmp_path):
    with pytest.raises(AdapterError, match=r"(?i)dora.*--base"):
        tangora.load(make(tmp_path / "dora", 1, use_dora=True))
