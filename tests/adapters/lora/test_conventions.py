"""Every convention of peft's LoRA: what stock peft computes from the input, it computes from Tangora's output."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tangora.adapters.adapter import load
from tangora.errors import AdapterError, ArgumentError, FusionError
from tangora.fusion.fusion import fuse

LINEAR = ["up", "turned", "square"]
CONVENTIONS = {
    "linear": {"target_modules": ["up"]},
    "rslora": {"target_modules": ["up", "line"], "use_rslora": True},
    "patterns": {"target_modules": ["up", "plane", "embed"], "rank_pattern": {"u.": 5, "^embed": 1},
                 "alpha_pattern": {"(plane|embed)": 32, "up": 1.5}},
    "conv1d of transformers": {"target_modules": ["turned", "square"], "fan_in_fan_out": True},
    "embedding": {"target_modules": ["embed", "up"]},
    "convolutions": {"target_modules": ["line", "plane", "point", "space"]},
    "lora_bias": {"target_modules": [*LINEAR, "line", "plane"], "lora_bias": True},
    "experts": {"target_modules": ["up"], "target_parameters": ["experts.down", "experts.gate_up"]},
    "one parameter": {"target_modules": [], "target_parameters": ["experts.down"], "use_rslora": True},
    "parameters of two dimensions": {"target_modules": ["up"], "target_parameters": ["head.weight"]},
    "head": {"target_modules": ["up"], "modules_to_save": ["head", "norm"]},
    "bias all": {"target_modules": ["up", "line"], "bias": "all"},
    "bias lora_only": {"target_modules": ["up", "line"], "bias": "lora_only", "modules_to_save": ["head"]},
}  # fmt: skip


HALF = [(n, d) for n in ("lora_bias", "experts", "head") for d in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), [(n, torch.float32) for n in CONVENTIONS] + HALF)
def test_the_identity_merge_computes_the_same(tmp_path, name, dtype):
    source = zoo.cast(zoo.write(tmp_path / "in", **CONVENTIONS[name]), dtype)
    fuse([source], weights=1.0).save(tmp_path / "out")
    before = zoo.logits(source)
    assert (zoo.logits(tmp_path / "out") - before).abs().max() < 1e-5
    with torch.no_grad():
        assert (zoo.zoo().double()(zoo.IDS) - before).abs().max() > 1e-2  # the adapter does something


@pytest.mark.parametrize("name", [n for n in CONVENTIONS if not n.startswith(("bias", "head"))])
def test_a_pair_is_the_weighted_sum(tmp_path, name):
    pair = [zoo.write(tmp_path / str(seed), seed, **CONVENTIONS[name]) for seed in (1, 2)]
    fuse(pair, weights=[0.7, -0.4]).save(tmp_path / "out")
    first, second = (zoo.differences(folder) for folder in pair)
    for site, delta in zoo.differences(tmp_path / "out").items():
        torch.testing.assert_close(delta, 0.7 * first[site] - 0.4 * second[site], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_transposed", [True, False])
def test_experts_either_way_round(tmp_path, is_transposed):
    settings = CONVENTIONS["experts"]
    make = lambda: zoo.zoo(is_transposed)  # noqa: E731
    pair = [zoo.write(tmp_path / str(s), s, make(), r=s, **settings) for s in (1, 2)]
    fused = fuse(pair, weights=[0.5, 2.0])
    fused.save(tmp_path / "out")
    first, second = (zoo.differences(folder, make(), make()) for folder in pair)
    for site, delta in zoo.differences(tmp_path / "out", make(), make()).items():
        torch.testing.assert_close(delta, 0.5 * first[site] + 2.0 * second[site], rtol=1e-5, atol=1e-6)
    model = make()
    fused.apply_(model)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(zoo.IDS), zoo.logits(tmp_path / "out", make()), rtol=1e-5, atol=1e-5)


def test_all_conventions_in_one_fusion(tmp_path):
    names = ["rslora", "patterns", "convolutions", "experts", "embedding"]
    sources = [zoo.write(tmp_path / str(i), i, **CONVENTIONS[name]) for i, name in enumerate(names)]
    weights = [0.5, -1.0, 0.25, 2.0, 1.0]
    fused = fuse(sources, weights=weights)
    fused.save(tmp_path / "out")
    deltas = [zoo.differences(folder) for folder in sources]
    for site, delta in zoo.differences(tmp_path / "out").items():
        expected = sum(w * d[site] for w, d in zip(weights, deltas, strict=True))
        torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-5)
    again = load(tmp_path / "out")
    assert again.updates.keys() == fused.updates.keys()
    assert again.kernels == fused.kernels
    model = zoo.zoo()
    again.apply_(model)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(zoo.IDS), zoo.logits(tmp_path / "out"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare", "tsv_m", "iso_c"])
def test_dense_methods_take_every_kind_of_site(tmp_path, method):
    pair = [zoo.write(tmp_path / str(s), s, **CONVENTIONS["lora_bias"]) for s in (1, 2)]
    fused = fuse(pair, method)
    fused.save(tmp_path / "out")
    model = zoo.zoo()
    fused.apply_(model)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(zoo.IDS), zoo.logits(tmp_path / "out"), rtol=1e-4, atol=1e-4)


def test_a_rank_cuts_matrices_and_leaves_biases(tmp_path):
    pair = [zoo.write(tmp_path / str(s), s, **CONVENTIONS["lora_bias"]) for s in (1, 2)]
    fused = fuse(pair, weights=1.0, rank=2)
    assert {u.rank for site, u in fused.updates.items() if not site.endswith(".bias")} == {2}
    assert fused.metadata.fused.site_errors["up.bias"] == 0.0
    fused.save(tmp_path / "out")
    whole = fuse(pair, weights=1.0)
    torch.testing.assert_close(load(tmp_path / "out").updates["up.bias"].weight, whole.updates["up.bias"].weight)


def test_two_hundred_adapters(tmp_path):
    folders = [zoo.write(tmp_path / str(s), s, r=1, target_modules=["up"]) for s in range(4)] * 50
    fused = fuse(folders, "average")
    deltas = [zoo.differences(folder)["up.weight"] for folder in folders[:4]]
    # In float32 a sum of 200 products, which together are under 1, is off by 200 · 6e-8 at most.
    torch.testing.assert_close(fused.updates["up"].dense().double(), sum(deltas) / 4, rtol=0, atol=2e-5)


def heads(tmp_path, **settings):
    options = {"target_modules": ["up"], "modules_to_save": ["head"], **settings}
    return [zoo.write(tmp_path / name, seed, **options) for seed, name in enumerate(["sst2", "trec"])]


def test_heads_are_never_dropped(tmp_path):
    pair = heads(tmp_path)
    with pytest.raises(FusionError, match=r"heads \(modules_to_save\) differ.*head\.bias.*--heads keep"):
        fuse(pair)
    with pytest.raises(ArgumentError, match="must be keep or fuse, got 'drop'"):
        fuse(pair, heads="drop")


def test_heads_kept_per_task(tmp_path):
    pair = heads(tmp_path)
    fuse(pair, weights=[1.0, 0.0], heads="keep").save(tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.heads.keys() == {"sst2", "trec"}
    assert again.metadata.fused.heads == "keep"
    model = zoo.zoo()
    model.load_state_dict(load_file(tmp_path / "out/heads/sst2.safetensors"), strict=False)
    with torch.no_grad():
        assert (zoo.logits(tmp_path / "out", model) - zoo.logits(pair[0])).abs().max() < 1e-5
    more = zoo.write(tmp_path / "plain", 5, target_modules=["up"])
    assert fuse([tmp_path / "out", more]).heads.keys() == {"sst2", "trec"}
    assert "heads/" in (tmp_path / "out/README.md").read_text()


def test_heads_fused_by_name(tmp_path):
    pair = heads(tmp_path)
    fuse(pair, weights=[0.3, 0.9], heads="fuse").save(tmp_path / "out")
    first, second, found = (zoo.parameters(folder) for folder in (*pair, tmp_path / "out"))
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(found[name], 0.25 * first[name] + 0.75 * second[name], rtol=1e-6, atol=1e-6)
    with pytest.raises(FusionError, match="must be positive"):
        fuse(pair, weights=[1.0, -0.5], heads="fuse")
    without = zoo.write(tmp_path / "plain", 5, target_modules=["up"])
    with pytest.raises(FusionError, match=r"have different names, got 'head\.bias'"):
        fuse([*pair, without], heads="fuse")


def test_equal_heads_stay_where_they_are(tmp_path):
    pair = heads(tmp_path)
    fuse([pair[0], pair[0]], weights=0.5).save(tmp_path / "out")
    assert (zoo.logits(tmp_path / "out") - zoo.logits(pair[0])).abs().max() < 1e-5


def test_biases_saved_whole(tmp_path):
    pair = [zoo.write(tmp_path / str(s), s, target_modules=["up"], bias="lora_only") for s in (1, 2)]
    fuse(pair, "average").save(tmp_path / "out")
    first, second, found = (zoo.differences(folder) for folder in (*pair, tmp_path / "out"))
    torch.testing.assert_close(found["up.bias"], (first["up.bias"] + second["up.bias"]) / 2, atol=1e-6, rtol=1e-5)
    with pytest.raises(FusionError, match=r"saved whole.*not known without the base, got 'up\.bias'.*--base"):
        fuse(pair, weights=0.3)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"target_modules": ["up"], "lora_bias": True}, {"lora_bias": False}, "does not account for it.*lora_B.bias"),
        ({"target_modules": ["up"], "modules_to_save": ["head"]}, {"modules_to_save": []}, "account for it.*head"),
        ({"target_modules": ["up"], "bias": "all"}, {"bias": "none"}, "does not account for it.*bias"),
        (CONVENTIONS["experts"], {"rank_pattern": {"down": 2}}, "distinguishes parameters of one module"),
        (CONVENTIONS["one parameter"], {"r": 4}, "ranks disagree"),
    ],
)
def test_what_the_configuration_does_not_speak_of(tmp_path, settings, change, message):
    folder = zoo.write(tmp_path / "in", **settings)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        load(folder)


def test_grouped_convolutions_are_refused(tmp_path):
    folder = zoo.write(tmp_path / "in", target_modules=["plane"])
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.plane.lora_B.weight"] = torch.ones(2, 1, 1, 1)
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="grouped convolution"):
        load(folder)


def test_what_peft_has_no_file_for(tmp_path):
    biased = zoo.write(tmp_path / "a", 1, target_modules=["up"], lora_bias=True)
    embedded = zoo.write(tmp_path / "b", 2, target_modules=["embed"])
    with pytest.raises(AdapterError, match="no lora_bias together with an embedding"):
        fuse([biased, embedded]).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    turned = zoo.write(tmp_path / "e", 5, target_modules=["turned"], fan_in_fan_out=True)
    with pytest.raises(AdapterError, match="no parameters with fan_in_fan_out"):
        fuse([turned, zoo.write(tmp_path / "f", 6, **CONVENTIONS["experts"])]).save(tmp_path / "out")
    some = zoo.write(tmp_path / "c", 3, **CONVENTIONS["one parameter"])
    both = zoo.write(tmp_path / "d", 4, **CONVENTIONS["experts"])
    with pytest.raises(FusionError, match="different parameters of one module"):
        fuse([some, both])


def test_an_adapter_may_have_other_sites(tmp_path):
    one = zoo.write(tmp_path / "a", 1, target_modules=["up"], lora_bias=True)
    other = zoo.write(tmp_path / "b", 2, target_modules=["up", "line"])
    fuse([one, other], weights=[0.5, 0.25]).save(tmp_path / "out")
    first, second = zoo.differences(one), zoo.differences(other)
    for site, delta in zoo.differences(tmp_path / "out").items():
        torch.testing.assert_close(delta, 0.5 * first[site] + 0.25 * second[site], rtol=1e-5, atol=1e-6)
