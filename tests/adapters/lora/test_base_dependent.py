"""Updates that depend on the base's weights: exact with it, refused without; and adapters of all kinds onto it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import zoo
from tangora.adapters.adapter import load
from tangora.adapters.application import applied
from tangora.checkpoints import fuse_checkpoints
from tangora.errors import AdapterError, FileError, FusionError
from tangora.fusion.fusion import fuse

TURNED = {"target_modules": ["turned"], "fan_in_fan_out": True}
EVERYTHING = {"target_modules": ["embed", "up", "line", "plane", "space"]}
BASED = {
    "dora": {"use_dora": True, **EVERYTHING},
    "dora of conv1d": {"use_dora": True, "use_rslora": True, **TURNED},
    "pissa": {"init_lora_weights": "pissa", "target_modules": ["up"], "lora_alpha": 5},
    "pissa of conv1d": {"init_lora_weights": "pissa", **TURNED},
    "olora": {"init_lora_weights": "olora", "target_modules": ["up"]},
    "bias all": {"target_modules": ["up"], "bias": "all"},
}


def read(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", BASED)
def test_stock_peft_computes_the_same(tmp_path, name):
    folder, base = zoo.write(tmp_path / "in", **BASED[name]), zoo.save_base(tmp_path / "base")
    wanted = zoo.logits(folder)
    if name == "bias all":  # of layers that have no factors, for which peft has no file
        with pytest.raises(AdapterError, match="bias of a layer without factors"):
            fuse([folder], weights=1.0, base=base).save(tmp_path / "out")
    else:
        fuse([folder], weights=1.0, base=base).save(tmp_path / "out")
        assert (zoo.logits(tmp_path / "out") - wanted).abs().max() < 1e-5
    fuse_checkpoints(base, [folder], tmp_path / "full", weights=1.0, block=16)
    model = zoo.zoo()
    model.load_state_dict(read(tmp_path / "full"))
    with torch.no_grad():
        assert (model.double()(zoo.IDS) - wanted).abs().max() < 1e-5
    with pytest.raises((AdapterError, FusionError), match=r"--base"):
        fuse([folder], weights=0.5)


@pytest.mark.parametrize("name", ["dora", "pissa", "bias all"])
def test_a_pair_with_a_plain_one(tmp_path, name):
    base = zoo.save_base(tmp_path / "base")
    pair = [zoo.write(tmp_path / "a", 1, **BASED[name]), zoo.write(tmp_path / "b", 2, target_modules=["up", "line"])]
    first, second = (zoo.differences(folder) for folder in pair)
    fuse_checkpoints(base, pair, tmp_path / "out", weights=[0.5, -0.25])
    before = read(base)
    for site, weight in read(tmp_path / "out").items():
        expected = before[site] + 0.5 * first[site] - 0.25 * second[site]
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_to_a_rank_with_its_error(tmp_path):
    base = zoo.save_base(tmp_path / "base")
    folder = zoo.write(tmp_path / "a", 1, use_dora=True, target_modules=["up"])
    exact = zoo.differences(folder)["up.weight"]
    fused = fuse([folder], weights=1.0, base=base, rank=4)
    error = float((fused.updates["up"].dense() - exact).norm() / exact.norm())
    best = float(torch.linalg.svdvals(exact)[4:].norm() / exact.norm())
    assert error == pytest.approx(best, rel=1e-3)
    assert fused.metadata.fused.truncation_error == pytest.approx(error, rel=1e-3)


def test_a_base_in_half_precision_is_taken_at_its_word(tmp_path):
    base = zoo.save_base(tmp_path / "base", torch.bfloat16)
    model = zoo.zoo()
    model.load_state_dict({name: tensor.float() for name, tensor in read(base).items()})
    folder = zoo.write(tmp_path / "a", 1, model, use_dora=True, target_modules=["up"])
    again = zoo.zoo()
    again.load_state_dict({name: tensor.float() for name, tensor in read(base).items()})
    merged = zoo.parameters(folder, again)["up.weight"]
    update = load(folder, base).updates["up"]
    torch.testing.assert_close(read(base)["up.weight"].double() + update.dense(), merged, rtol=1e-5, atol=1e-6)


def test_another_base_is_refused(tmp_path):
    other = zoo.zoo()
    other.up = torch.nn.Linear(7, 10)
    base = zoo.save_base(tmp_path / "base", model=other)
    with pytest.raises(FusionError, match=r"the base's weight is .10, 7., the adapter's update .10, 6."):
        load(zoo.write(tmp_path / "a", use_dora=True, target_modules=["up"]), base)
    with pytest.raises(FileError, match="no such folder"):
        load(tmp_path / "a", tmp_path / "nowhere")


ONTO = {
    "convolutions": {"target_modules": ["line", "plane", "point", "space"]},
    "lora_bias": {"target_modules": ["up", "line"], "lora_bias": True},
    "experts": {"target_modules": ["up"], "target_parameters": ["experts.down", "experts.gate_up"]},
    "head": {"target_modules": ["up"], "modules_to_save": ["head"]},
}


@pytest.mark.parametrize("name", ONTO)
@pytest.mark.parametrize("method", ["task_arithmetic", "ties_per_tensor"])
def test_onto_a_base(tmp_path, name, method):
    base = zoo.save_base(tmp_path / "base")
    pair = [zoo.write(tmp_path / str(s), s, **ONTO[name]) for s in (1, 2)]
    fuse_checkpoints(base, pair, tmp_path / "out", method, weights=0.7, heads="fuse", block=16)
    model = zoo.zoo()
    fuse(pair, method, weights=0.7, heads="fuse").apply_(model)
    for site, weight in read(tmp_path / "out").items():
        torch.testing.assert_close(weight, model.get_parameter(site).detach(), rtol=1e-5, atol=1e-5)


def test_heads_beside_a_checkpoint(tmp_path):
    base = zoo.save_base(tmp_path / "base")
    pair = [zoo.write(tmp_path / n, s, **ONTO["head"]) for s, n in enumerate(["sst2", "trec"])]
    with pytest.raises(FusionError, match="--heads keep"):
        fuse_checkpoints(base, pair, tmp_path / "out")
    merged = fuse_checkpoints(base, pair, tmp_path / "out", heads="keep")
    assert merged.notes[0] == "the head of sst2 is in heads/sst2.safetensors"
    head = load_file(tmp_path / "out/heads/trec.safetensors")
    torch.testing.assert_close(head["head.weight"], zoo.parameters(pair[1])["head.weight"].float())
    torch.testing.assert_close(read(tmp_path / "out")["head.weight"], read(base)["head.weight"])


def test_square_experts_are_refused(tmp_path):
    model = zoo.zoo()
    model.experts.down = torch.nn.Parameter(torch.randn(3, 6, 6))
    base = zoo.save_base(tmp_path / "base", model=model)
    folder = zoo.write(tmp_path / "a", 1, model, target_modules=[], target_parameters=["experts.down"])
    with pytest.raises(FusionError, match="in exactly one orientation"):
        fuse_checkpoints(base, [folder], tmp_path / "out")


def test_what_was_applied_is_taken_back(tmp_path):
    names = ("lora_bias", "experts", "head", "convolutions")
    for i, name in enumerate(names):
        adapter, model = load(zoo.write(tmp_path / str(i), i, **ONTO[name])), zoo.zoo()
        with applied(model, adapter):
            wanted = zoo.parameters(tmp_path / str(i))
            for site, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.detach().double(), wanted[site], rtol=1e-5, atol=1e-6)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), zoo.zoo().parameters(), strict=True))
