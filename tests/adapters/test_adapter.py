from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import peft
import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

import tangora.adapters.initial
import toys
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.formats.lora.settings import rank_and_scaling
from tangora.adapters.formats.lora.writing import Content, write_config
from tangora.adapters.metadata import BaseInfo, InitialInfo, Metadata
from tangora.errors import AdapterError, FileError, ModelError, OutputError
from tangora.updates.task_vector import Dense, LowRank

IDS = torch.tensor([[1, 2, 3], [4, 5, 10]])


def saved(tmp_path, **settings):
    """A folder written by stock peft, and the model that wrote it."""
    settings = {"target_modules": ["up", "down"], "r": 3, "lora_alpha": 6, **settings}
    wrapped = toys.trained(toys.toy(), peft.LoraConfig(**settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(tmp_path / "peft")
    return tmp_path / "peft", wrapped


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def edit_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def through_peft(folder, model=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns of missing keys and of patterns that match nothing
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(model or toys.toy(), folder).eval()


VARIANTS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"up": 5}, "alpha_pattern": {"dow.": 32}},
    {"use_rslora": True, "rank_pattern": {"^down$": 2, "nothing": 7}, "alpha_pattern": {"up": 1.5}},
    {"target_modules": ["embed", "up"], "alpha_pattern": {"embed": 3}},
    {"target_modules": "(up|embed)"},
    {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
    {"init_lora_weights": False, "exclude_modules": ["down"]},
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_reads_what_peft_computes(tmp_path, settings):
    folder, wrapped = saved(tmp_path, **settings)
    adapter = load(folder)
    found = dict(toys.layers(wrapped))
    assert adapter.updates.keys() == found.keys()
    for site, layer in found.items():
        theirs = layer.get_delta_weight("default")
        mine = adapter.updates[site].dense()
        torch.testing.assert_close(mine.T if site in adapter.embeddings else mine, theirs, rtol=1e-6, atol=1e-7)
    assert adapter.initial is None
    assert adapter.metadata.tangora
    model = toys.toy()
    adapter.apply_(model)
    torch.testing.assert_close(model(IDS), wrapped(IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS)
def test_what_is_saved_again_is_the_same_bit_for_bit(tmp_path, settings):
    folder, wrapped = saved(tmp_path, **settings)
    adapter = load(folder)
    adapter.save(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.fingerprint == adapter.fingerprint
    assert again.embeddings == adapter.embeddings
    assert all(again.updates[s].scaling == u.scaling for s, u in adapter.updates.items())
    if "nothing" not in settings.get("rank_pattern", {}):
        torch.testing.assert_close(through_peft(tmp_path / "again")(IDS), wrapped(IDS), rtol=1e-6, atol=1e-6)


def test_patterns_are_matched_as_peft_does():
    patterns = {"layer.1": 3, r"layer\.\d+": 4, "^other": 5, "q": 6}
    for site in ("layer.1", "x.layer.1", "layer.12", "layer_1", "other", "x.other", "a.q", "aq", "q"):
        key = get_pattern_key(list(patterns), site)
        rank, scaling = rank_and_scaling({"r": 8, "lora_alpha": 16, "rank_pattern": patterns}, site)
        assert rank == patterns.get(key, 8)
        assert scaling == 16 / rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(tmp_path, dtype):
    folder, _ = saved(tmp_path)
    edit_weights(folder, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    update = load(folder).updates["up"]
    assert update.a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(
        update.a,
        load_file(folder / "adapter_model.safetensors")["base_model.model.up.lora_A.weight"].to(update.a.dtype),
    )


REFUSED_SETTINGS = {
    "peft_type": "IA3",
    "use_dora": True,
    "bias": "some",
    "modules_to_save": "head",
    "trainable_token_indices": [1],
    "layer_replication": [[0, 1]],
    "use_qalora": True,
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 1},
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1},
    "monteclora_config": {"n": 1},
    "some_new_variant": True,
    "init_lora_weights": "pissa_niter_4",
    "r": 0,
    "lora_alpha": "many",
    "rank_pattern": {"up": 2.5},
    "alpha_pattern": {"up[": 2},
}


@pytest.mark.parametrize("key", REFUSED_SETTINGS)
def test_refuses_what_is_not_plain_lora(tmp_path, key):
    folder, _ = saved(tmp_path)
    edit(folder, **{key: REFUSED_SETTINGS[key]})
    with pytest.raises(AdapterError) as caught:
        load(folder)
    assert key in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("init", ["pissa", "olora", "corda", "loftq", "lora_ga"])
def test_refuses_starts_that_change_the_base(tmp_path, init):
    folder, _ = saved(tmp_path)
    with pytest.raises(AdapterError, match=f"changes the base weights, got '{init}'"):
        load(edit(folder, init_lora_weights=init))


def test_knows_every_setting_of_this_peft():
    from dataclasses import fields

    from tangora.adapters.formats.lora import settings

    known = settings._BENIGN | settings._REFUSED.keys()
    assert {f.name for f in fields(peft.LoraConfig)} <= known


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


UP_A, UP_B = "base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(UP_B), "lora_A without lora_B at up"),
        (drop(UP_A), "lora_B without lora_A at up"),
        (put(UP_A, torch.ones(2, 6)), r"ranks disagree, got 'A \(2, 6\), B \(10, 3\), rank 3"),
        (put(UP_A, torch.full((3, 6), math.nan)), f"a weight is NaN at {UP_A}"),
        (put(UP_B, torch.full((10, 3), math.inf)), f"a weight is infinity at {UP_B}"),
        (put(UP_A, torch.ones(3, 6, 1, 1)), "factors of no known kind of layer"),
        (put(UP_A, torch.ones(3, 6, dtype=torch.int8)), "floating-point"),
        (put("base_model.model.head.weight", torch.ones(2)), "account for it, got 'base_model.model.head.weight'"),
        (put("up.lora_A.weight", torch.ones(3, 6)), "does not account for it"),
        (put("base_model.model.up.lora_magnitude_vector", torch.ones(2)), "does not account for it"),
        (put("base_model.model.embed.lora_embedding_A", torch.ones(3, 6)), "lora_embedding_A without"),
        (lambda tensors: tensors.clear(), "no LoRA weights"),
    ],
)
def test_refuses_weights_that_cannot_be_right(tmp_path, change, message):
    folder, _ = saved(tmp_path)
    with pytest.raises(FileError, match=message):
        load(edit_weights(folder, change))


def test_refuses_two_kinds_of_factors_at_one_site(tmp_path):
    folder, _ = saved(tmp_path)
    extra = {
        "base_model.model.up.lora_embedding_A": torch.ones(3, 6),
        "base_model.model.up.lora_embedding_B": torch.ones(10, 3),
    }
    with pytest.raises(AdapterError, match="two updates of one site at up"):
        load(edit_weights(folder, lambda tensors: tensors.update(extra)))


def test_refuses_files_that_cannot_be_read(tmp_path):
    folder, _ = saved(tmp_path)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=r"truncated or corrupt"):
        load(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        load(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileError, match="file not found"):
        load(folder)
    config.write_text("{")
    with pytest.raises(FileError, match="not readable as JSON"):
        load(folder)
    config.unlink()
    with pytest.raises(AdapterError, match=r"no format recognizes .*got 'README.md'"):
        load(folder)
    with pytest.raises(FileError, match="no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": 2}, "this version reads format 1, got 2"),
        ({"format": "1"}, "whole number"),
        ({"format": 1, "knid": "lora"}, "unknown key 'knid'"),
        ({"format": 1, "kind": "ia3"}, "'lora', 'full', 'modules' or 'routed'"),
    ],
)
def test_refuses_metadata(tmp_path, metadata, message):
    folder, _ = saved(tmp_path)
    (folder / "tangora.json").write_text(json.dumps(metadata))
    with pytest.raises(AdapterError, match=message):
        load(folder)


def test_metadata_survives(tmp_path):
    adapter = toys.lora(1, initial=False).with_scores({"a": 0.5}, split="test", selection="oracle")
    adapter.save(tmp_path / "x")
    again = load(tmp_path / "x")
    assert again.metadata == adapter.metadata
    assert again.metadata.scores == {"split": "test", "selection": "oracle", "tasks": {"a": 0.5}}
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    written = json.loads((tmp_path / "x/tangora.json").read_text())
    assert written == {**adapter.metadata.model_dump(mode="json"), "files": files}
    assert again.config["base_model_name_or_path"] == "toy"
    assert (tmp_path / "x/README.md").read_text()


def test_mixed_ranks_and_scalings_load_in_peft(tmp_path):
    g = torch.Generator().manual_seed(3)
    updates = {
        "up": LowRank(torch.randn(10, 2, generator=g), torch.randn(2, 6, generator=g), 0.3),
        "down": LowRank(torch.randn(6, 5, generator=g), torch.randn(5, 10, generator=g), -0.7),
        "head": LowRank(torch.randn(4, 2, generator=g), torch.randn(2, 6, generator=g), 0.1 + 0.2),
        "embed": LowRank(torch.randn(6, 3, generator=g), torch.randn(3, 11, generator=g), 1e-3),
    }
    adapter = Adapter(updates, details=LoraDetails(embeddings=frozenset({"embed"})))
    adapter.save(tmp_path / "x")
    again = load(tmp_path / "x")
    assert again.fingerprint == adapter.fingerprint
    model = toys.toy()
    adapter.apply_(model)
    torch.testing.assert_close(through_peft(tmp_path / "x")(IDS), model(IDS), rtol=1e-5, atol=1e-5)


def test_patterns_of_nested_sites_do_not_meet():
    def update(rank: int) -> LowRank:
        return LowRank(torch.ones(4, rank), torch.ones(rank, 4), 1.0)

    updates = {"q": update(1), "a.q": update(2), "b.a.q": update(3), "axq": update(2), "c": update(2)}
    config = write_config(Content(updates, {}, frozenset(), {}, {}), None, "base")
    assert config["r"] == 3
    assert config["target_modules"] == sorted(updates)
    for site, u in updates.items():
        assert rank_and_scaling(config, site) == (u.rank, u.scaling)
        assert config["rank_pattern"].get(get_pattern_key(list(config["rank_pattern"]), site), 3) == u.rank


def test_zero_scaling_is_folded(tmp_path):
    adapter = toys.lora(1)
    nothing = replace(adapter, updates={s: u * 0.0 for s, u in adapter.updates.items()}).with_details(initial=None)
    nothing.save(tmp_path / "x")
    assert load(tmp_path / "x").task_vector.norm() == 0.0
    assert json.loads((tmp_path / "x/adapter_config.json").read_text())["lora_alpha"] > 0


def test_dense_updates_are_saved_exactly(tmp_path):
    g = torch.Generator().manual_seed(3)
    updates = {"up": Dense(torch.randn(10, 6, generator=g)), "embed": Dense(torch.randn(6, 11, generator=g))}
    adapter = Adapter(updates, details=LoraDetails(embeddings=frozenset({"embed"})))
    adapter.save(tmp_path / "x")
    model = toys.toy()
    adapter.apply_(model)
    torch.testing.assert_close(through_peft(tmp_path / "x")(IDS), model(IDS), rtol=1e-5, atol=1e-5)


def test_saving_never_overwrites_unasked_and_leaves_nothing_behind(tmp_path):
    adapter = toys.lora(1)
    adapter.save(tmp_path / "x")
    with pytest.raises(OutputError, match="exists"):
        adapter.save(tmp_path / "x")
    toys.lora(2).save(tmp_path / "x", overwrite=True)
    assert load(tmp_path / "x").metadata.task == "task2"
    broken = replace(adapter, updates={"up": LowRank(torch.full((2, 1), math.nan), torch.ones(1, 2))})
    with pytest.raises(FileError, match="NaN at up"):
        broken.save(tmp_path / "y")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_kind_full(tmp_path):
    deltas = {name: Dense(torch.randn_like(p)) for name, p in toys.toy().named_parameters()}
    adapter = Adapter(deltas, Metadata(kind="full", base=BaseInfo(model="toy")))
    adapter.save(tmp_path / "x")
    again = load(tmp_path / "x")
    assert again.fingerprint == adapter.fingerprint
    model, before = toys.toy(), toys.toy()
    again.apply_(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name) + deltas[name].weight)
    (tmp_path / "x/delta.safetensors").write_bytes(b"1234")
    with pytest.raises(FileError, match="corrupt"):
        load(tmp_path / "x")


def drawn(seed=5, *, a_init="shared", init=True):
    adapter = toys.lora(1, initial=False)
    task = adapter.metadata.task if a_init == "per_task" else None
    initial = {
        site: tangora.adapters.initial.draw_factors(
            seed, site, u.rank, u.shape, kind=tangora.adapters.initial.DRAWN[init], task=task, scaling=2.0
        )
        for site, u in adapter.updates.items()
    }
    info = InitialInfo(seed=seed, a_init=a_init, init=init, fingerprint=tangora.adapters.initial.fingerprint(initial))
    metadata = adapter.metadata.model_copy(update={"initial": info})
    return replace(adapter, metadata=metadata).with_details(initial=initial)


@pytest.mark.parametrize("settings", [{}, {"a_init": "per_task"}, {"init": "gaussian"}])
def test_phi0_is_drawn_again(tmp_path, settings):
    adapter = drawn(**settings)
    adapter.save(tmp_path / "x")
    assert not (tmp_path / "x/tangora_initial.safetensors").exists()
    again = load(tmp_path / "x")
    for site, start in adapter.initial.items():
        assert torch.equal(again.initial[site].a, start.a)
        assert not again.initial[site].b.any()


def test_phi0_of_another_fingerprint_is_refused(tmp_path):
    adapter = drawn()
    adapter.save(tmp_path / "x")
    metadata = json.loads((tmp_path / "x/tangora.json").read_text())
    metadata["initial"]["seed"] += 1
    (tmp_path / "x/tangora.json").write_text(json.dumps(metadata))
    with pytest.raises(AdapterError, match="φ₀ has fingerprint"):
        load(tmp_path / "x")


def test_phi0_that_cannot_be_drawn_is_kept(tmp_path):
    adapter = toys.lora(1)
    start = {s: LowRank(torch.ones_like(u.b), torch.ones_like(u.a), 2.0) for s, u in adapter.updates.items()}
    adapter = adapter.with_details(initial=start)
    adapter.save(tmp_path / "x")
    again = load(tmp_path / "x")
    for site, u in again.updates.items():
        assert torch.equal(again.initial[site].b, start[site].b)
        expected = u.dense() - start[site].dense()
        torch.testing.assert_close(again.task_vector[site].dense(), expected, rtol=1e-5, atol=1e-5)
    path = tmp_path / "x/tangora_initial.safetensors"
    tensors = load_file(path)
    del tensors["up.A"]
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"factor of φ₀ is missing, got 'up\.A'"):
        load(tmp_path / "x")


def test_without_b0_the_task_vector_is_the_update():
    adapter = toys.lora(1)
    assert all(adapter.task_vector[site] is update for site, update in adapter.updates.items())


def test_fingerprint_sees_every_part():
    adapter = toys.lora(1)
    up = adapter.updates["up"]
    others = [
        {"up": up},
        {**adapter.updates, "up": up * 2},
        {**adapter.updates, "up": LowRank(up.b, up.a + 1e-3, up.scaling)},
        {"up2": up, "down": adapter.updates["down"]},
        {**adapter.updates, "up": Dense(up.dense())},
    ]
    prints = {replace(adapter, updates=u).fingerprint for u in others} | {adapter.fingerprint}
    assert len(prints) == len(others) + 1
    reordered = dict(reversed(adapter.updates.items()))
    assert replace(adapter, updates=reordered).fingerprint == adapter.fingerprint


@pytest.mark.parametrize(
    ("site", "shape", "message"),
    [
        ("nowhere", (10, 6), "no such layer at nowhere"),
        ("up", (6, 10), r"weight is \(10, 6\), the adapter's update \(6, 10\) at up"),
        ("embed", (11, 6), r"weight is \(6, 11\)"),
        ("", (1, 1), "no update can be added to this kind of layer, got 'Toy'"),
    ],
)
def test_apply_refuses_what_does_not_fit_and_changes_nothing(site, shape, message):
    model = toys.toy()
    bad = LowRank(torch.ones(shape[0], 1), torch.ones(1, shape[1]))
    adapter = Adapter({"down": toys.lora(1).updates["down"], site: bad})
    with pytest.raises(ModelError, match=message):
        adapter.apply_(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), toys.toy().parameters(), strict=True))


def test_apply_refuses_tied_weights_and_missing_parameters():
    model = toys.toy()
    model.other = torch.nn.Linear(6, 10)
    model.other.weight = model.up.weight
    with pytest.raises(ModelError, match=r"shared with other\.weight"):
        toys.lora(1).apply_(model)
    full = Adapter({"up.wieght": Dense(torch.ones(10, 6))}, Metadata(kind="full"))
    with pytest.raises(ModelError, match=r"no such parameter at up\.wieght"):
        full.apply_(model)


def test_transformers_round_trip_bert(tmp_path):
    from transformers import BertConfig, BertModel

    def base():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=20,
        )  # fmt: skip
        return BertModel(config).eval()

    targets = ["query", "value", "output.dense", "word_embeddings"]
    config = peft.LoraConfig(target_modules=targets, r=4, rank_pattern={"layer.0.attention.self.query": 6})
    compare(tmp_path, base, config)


def test_transformers_round_trip_gpt2_conv1d(tmp_path):
    from transformers import GPT2Config, GPT2Model

    def base():
        torch.manual_seed(0)
        return GPT2Model(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=20)).eval()

    compare(tmp_path, base, peft.LoraConfig(target_modules=["c_attn", "mlp.c_fc"], r=4, fan_in_fan_out=True))


def compare(tmp_path, base, config):
    """peft's own model, peft on what we saved, and the base with the updates added in place: one output."""
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 29]])
    # In float64, where forward passes of so few layers agree to 1e-12; the factors are the float32 of the files.
    wrapped = toys.trained(base(), config).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(tmp_path / "peft")
    adapter = load(tmp_path / "peft")
    adapter.save(tmp_path / "ours")
    model = base().double()
    adapter.apply_(model)
    with torch.no_grad():
        expected = wrapped(input_ids=ids).last_hidden_state
        torch.testing.assert_close(model(input_ids=ids).last_hidden_state, expected, rtol=0, atol=1e-10)
        again = through_peft(tmp_path / "ours", base()).double()
        torch.testing.assert_close(again(input_ids=ids).last_hidden_state, expected, rtol=0, atol=1e-10)
    with pytest.raises(ModelError, match="unwrap a PeftModel"):
        adapter.apply_(wrapped)
