"""Adapters of other kinds than LoRA in every part of Tangora: refusals, heads, bases, files, commands."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import kinds
import tangora
from tangora.adapters.adapter import load
from tangora.adapters.contract import format_of
from tangora.adapters.formats.tuners import merging
from tangora.adapters.formats.tuners.known import REFUSED
from tangora.checkpoints import fuse_checkpoints
from tangora.cli import commands as cli
from tangora.errors import AdapterError, FusionError, ModelError
from tangora.inspection.folders import inspect
from tangora.inspection.fusable import fusable

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    kinds.model_of("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loha(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loha")
    return kinds.write(folder, "LOHA", kinds.model_of("llama"), target_modules=["q_proj", "down_proj"], r=2)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return kinds.write(folder, "LORA", kinds.model_of("llama"), 2, target_modules=["q_proj"], r=2)


def edit(folder, change=None, **config):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if change is not None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
    return folder


def copied(source, folder):
    folder.mkdir()
    for name in ("adapter_config.json", WEIGHTS):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_changes_no_weight_is_refused_by_name(tmp_path, base, kind):
    title, reason = REFUSED[kind]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(AdapterError) as caught:
        load(tmp_path, base)
    assert f"{title} {reason}, got 'peft_type {kind}'" in str(caught.value)
    assert title in str(inspect(tmp_path).problem)


def test_without_its_base_it_is_refused_and_described(loha, base, tmp_path, monkeypatch, capsys):
    with pytest.raises(AdapterError, match=r"LoHa is computed by peft's own layers.*--base or base="):
        load(loha)
    found = inspect(loha)
    assert found.title == "a LoHa adapter"
    assert [site.name for site in found.sites][:2] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
    ]
    with pytest.raises(SystemExit) as ended:
        cli.app(["inspect", str(loha), str(base)])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a LoHa adapter:" in shown
    assert "needs --base: LoHa is computed" in shown
    monkeypatch.chdir(tmp_path)  # named as it is on the trainer's machine, the base is found
    here = edit(copied(loha, tmp_path / "a"), base_model_name_or_path=str(base))
    assert load(here).fingerprint == load(loha, base).fingerprint


def test_a_dora_is_called_one(tmp_path):
    dora = kinds.write(tmp_path, "LORA", kinds.model_of("llama"), target_modules=["q_proj"], use_dora=True)
    assert inspect(dora).title == "a DoRA adapter"


@pytest.mark.parametrize("kind", ["IA3", "LOHA"])
def test_a_new_kind_is_tried_and_an_unknown_one_refused_by_name(tmp_path, base, kind, monkeypatch):
    from tangora.adapters.formats.tuners import known

    settings = kinds.settings_of(kind, "llama")
    folder = kinds.write(tmp_path / "a", kind, kinds.model_of("llama"), **settings)
    wanted = load(folder, base).fingerprint
    monkeypatch.setattr(known, "KNOWN", {kind: known.Tuner(kind, known.KNOWN[kind].stem, starts_from_base=True)})
    assert load(folder, base).fingerprint == wanted
    with pytest.raises(AdapterError, match=r"has no such kind, got 'peft_type NEWEST'"):
        load(edit(folder, lambda t: t.update({"base_model.model.x.newest_a": torch.ones(1)}), peft_type="NEWEST"), base)


def test_a_merge_that_is_not_what_the_layer_computes_is_refused(loha, base, monkeypatch):
    from peft.tuners.loha import layer

    honest = layer.LoHaLayer.get_delta_weight
    monkeypatch.setattr(layer.LoHaLayer, "merge", _doubled(layer.LoHaLayer.merge))
    with pytest.raises(AdapterError, match=r"LoHa computes something else than the weight.*down_proj"):
        load(loha, base)
    monkeypatch.undo()
    assert layer.LoHaLayer.get_delta_weight is honest
    monkeypatch.setattr(layer.LoHaLayer, "merge", lambda self, **_: (_ for _ in ()).throw(NotImplementedError("no")))
    with pytest.raises(AdapterError, match=r"LoHa: stock peft cannot merge the layer into its weight \(no\)"):
        load(loha, base)


def _doubled(merge):
    def twice(self, **options):
        merge(self, **options)
        merge(self, **options)
        self.get_base_layer().weight.data.add_(self.get_delta_weight("default"))

    return twice


DAMAGE = {
    "a tensor is missing": (lambda t: t.pop(next(iter(t))), {}, "LOHA: the file lacks a tensor"),
    "a tensor of another layer": (
        lambda t: t.update({"base_model.model.model.layers.7.mlp.down_proj.hada_w1_a": torch.ones(2, 2)}),
        {},
        "no use for a tensor|does not load it",
    ),
    "a tensor of no kind": (lambda t: t.update({"base_model.model.x": torch.ones(2)}), {}, "unexpected tensor"),
    "a width": (lambda t: t.update({k: v[:, :-1].clone() for k, v in t.items()}), {}, "does not load it"),
    "an empty tensor": (lambda t: t.update({next(iter(t)): torch.ones(0, 2)}), {}, "the tensor is empty"),
    "no tensors": (
        lambda t: t.clear() or t.update({"x.modules": torch.ones(1)}),
        {"modules_to_save": ["x"]},
        "no weights of LoHa|unexpected",
    ),
    "not finite": (lambda t: t.update({k: v * torch.nan for k, v in t.items()}), {}, "NaN"),
    "an unknown setting": (None, {"rotate": True}, "unknown setting 'rotate'"),
    "targets that are numbers": (None, {"target_modules": [1]}, "target_modules must be a list of names"),
    "a pattern": (None, {"target_modules": "q_proj["}, "not a regular expression"),
    "a rank": (None, {"r": -1}, "does not load it"),
    "targets of nothing": (None, {"target_modules": ["nothing"]}, "does not load it"),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_damage_is_refused(tmp_path, base, loha, name):
    change, config, message = DAMAGE[name]
    folder = edit(copied(loha, tmp_path / "a"), change, **config)
    with pytest.raises((AdapterError, tangora.errors.FileError), match=message):
        load(folder, base)


def test_another_base_is_refused(tmp_path, base, loha):
    with pytest.raises(
        (AdapterError, FusionError),
        match=r"was made for LlamaForCausalLM, which the base is not, got .*BertForMaskedLM",
    ):
        other = tmp_path / "bert"
        kinds.model_of("bert").save_pretrained(other)
        load(loha, other)
    path = tmp_path / "custom"
    kinds.model_of("llama").save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "mine", "architectures": ["Mine"]}))
    with pytest.raises(AdapterError, match=r"transformers has no class for the base.*Merge the adapter"):
        load(edit(copied(loha, tmp_path / "a"), auto_mapping=None), path)


def test_load_model_is_stock_pefts(base, loha):
    model = tangora.load_model(loha, str(base))
    wanted = kinds.logits(kinds.through_peft(loha, kinds.model_of("llama")), "llama")
    torch.testing.assert_close(kinds.logits(model, "llama"), wanted, rtol=0, atol=0)
    with pytest.raises(ModelError, match="cannot put the adapter into the base"):
        tangora.load_model(loha, kinds.model_of("bert"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_into_the_base(tmp_path, loha, lora, dtype):
    """Rounded once to the base's dtype: half a unit in its last place of a weight, which is 2⁻⁹ of it in bfloat16."""
    base = tmp_path / "base"
    kinds.model_of("llama").to(dtype).save_pretrained(base)
    model = kinds.model_of("llama").to(dtype).float()
    ia3 = kinds.write(tmp_path / "ia3", "IA3", kinds.model_of("llama"), **kinds.settings_of("IA3", "llama"))
    fuse_checkpoints(base, [loha, ia3], tmp_path / "out", weights=[0.5, 2.0])
    before = {n: p.double() for n, p in model.named_parameters()}
    parts = [kinds.merged(folder, kinds.model_of("llama").to(dtype).float()) for folder in (loha, ia3)]
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, old in before.items():
        wanted = old + 0.5 * (parts[0][name] - old) + 2.0 * (parts[1][name] - old)
        bound = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
        assert (written[name].double() - wanted).abs().max() <= bound * wanted.abs().max(), name


def test_out_as_lora_exactly_or_to_a_rank_with_its_error(tmp_path, base, loha, lora):
    fused = tangora.fuse([loha, lora], weights=[1.0, 0.5], base=base)
    fused.save(tmp_path / "out")
    ranks = {update.factors().rank for update in load(tmp_path / "out").updates.values()}
    assert ranks == {4, 6}  # a LoHa of rank 2 is a product of two: of rank 4; and 2 of the LoRA beside it
    site = "model.layers.0.self_attn.q_proj"
    exact, read = fused.updates[site].dense(), load(tmp_path / "out").updates[site].dense()
    torch.testing.assert_close(read, exact, rtol=1e-5, atol=1e-6)
    cut = tangora.fuse([loha, lora], weights=[1.0, 0.5], base=base, rank=1)
    error = {s: float((cut.updates[s].dense() - u.dense()).norm() / u.dense().norm()) for s, u in fused.updates.items()}
    assert cut.metadata.fused.site_errors == pytest.approx(error, rel=1e-4)
    assert fused.details.tuner is None


def test_only_delta_fits(base, loha, lora):
    with pytest.raises(FusionError, match=r"space 'factors' needs φ₀"):
        tangora.fuse([loha, loha], base=base, space="factors")
    with pytest.raises(FusionError, match=r"space 'core' needs low-rank updates"):
        tangora.fuse([loha, loha], base=base, space="core")
    with pytest.raises(FusionError, match=r"of LoHa: its updates have no factors"):
        tangora.fuse([loha, loha], "smile", base=base)
    answer = fusable([inspect(loha), inspect(lora)])
    assert list(answer.spaces) == ["delta"]
    assert answer.routers == []
    assert "of LoHa, which has no factors" in answer.reasons["factors"]


def test_a_head_that_is_saved_whole(tmp_path):
    base = tmp_path / "base"
    kinds.model_of("roberta").save_pretrained(base)
    settings = {"target_modules": ["query"], "r": 2, "task_type": "SEQ_CLS"}
    folder = kinds.write(tmp_path / "a", "LOKR", kinds.model_of("roberta"), **settings)
    wanted = kinds.logits(kinds.through_peft(folder, kinds.model_of("roberta")), "roberta")
    adapter, model = load(folder, base), kinds.model_of("roberta")
    assert {name.partition(".")[0] for name in adapter.whole} == {"classifier"}
    adapter.apply_(model)
    torch.testing.assert_close(kinds.logits(model, "roberta"), wanted, rtol=2e-5, atol=2e-5)
    adapter.save(tmp_path / "lora")  # plain LoRA, with the head
    read = kinds.logits(kinds.through_peft(tmp_path / "lora", kinds.model_of("roberta")), "roberta")
    torch.testing.assert_close(read, wanted, rtol=2e-5, atol=2e-5)
    model = tangora.load_model(folder, str(base))
    torch.testing.assert_close(kinds.logits(model, "roberta"), wanted, rtol=0, atol=0)


def test_biases_that_were_trained_beside_it(tmp_path):
    base = tmp_path / "base"
    kinds.model_of("bert").save_pretrained(base)
    settings = {**kinds.settings_of("OFT", "bert"), "bias": "oft_only"}
    folder = kinds.write(tmp_path / "a", "OFT", kinds.model_of("bert"), **settings)
    wanted = kinds.logits(kinds.through_peft(folder, kinds.model_of("bert")), "bert")
    model = kinds.model_of("bert")
    load(folder, base).apply_(model)
    torch.testing.assert_close(kinds.logits(model, "bert"), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_trained_tokens_are_factors_and_tied_weights_move_once(tmp_path, name):
    base = tmp_path / "base"
    kinds.model_of(name).save_pretrained(base)
    folder = kinds.write(tmp_path / "a", "TRAINABLE_TOKENS", kinds.model_of(name), token_indices=[1, 3])
    adapter, model = load(folder, base), kinds.model_of(name)
    assert {update.factors().rank for site, update in adapter.updates.items() if site in adapter.embeddings} == {2}
    adapter.apply_(model)
    wanted = kinds.logits(kinds.through_peft(folder, kinds.model_of(name)), name)
    torch.testing.assert_close(kinds.logits(model, name), wanted, rtol=2e-5, atol=2e-5)


def test_a_layer_that_is_called_by_nobody_takes_no_update():
    attention = torch.nn.MultiheadAttention(4, 1)
    assert merging.layer_kind(attention.out_proj) is None
    assert merging.layer_kind(torch.nn.Conv2d(4, 4, 1, groups=2)) is None
    assert merging.layer_kind(torch.nn.Linear(2, 2)) == "linear"


def test_an_update_keeps_the_contract(base, loha):
    from tangora.testing import check_update

    check_update(next(iter(load(loha, base).updates.values())))


def test_nothing_is_drawn_from_the_users_generator(base, loha):
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    load(loha, base)
    assert torch.equal(torch.rand(1), wanted)
    assert format_of(loha).name == "tuners"
    assert peft.PeftConfig.from_pretrained(loha).peft_type == "LOHA"
