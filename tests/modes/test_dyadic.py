"""MoDE: the network against its definition and against LoRA, its number of parameters, and its training."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import tangora
from tangora.config.dyadic import DyadicSettings
from tangora.config.settings import FinetuneConfig
from tangora.errors import AdapterError, FusionError, ModelError, TangoraError
from tangora.inspection.folders import inspect
from tangora.modes.contract import is_fusable, mode_of
from tangora.modes.dyadic import shape_of
from tangora.modes.finetuning import finetune
from tangora.modes.loading import load_model
from tangora.modular.dyadic import DyadicNetwork, DyadicShape, Dyads, draw_, dyadic_network
from tangora.modular.network import attached
from tangora.support.seams import MODES
from tangora.testing import check_mode
from tangora.testing._tiny import tiny_base, tiny_tasks

P, Q, R, M = 6, 10, 4, 3


def shape(ups=M, decisions=R, router="input", scaling=0.5, sites=None):
    return DyadicShape(
        r=R, ups=ups, decisions=decisions, router=router, scaling=scaling, sites=sites or {"site": [Q, P]}
    )


def filled(of, seed=0):
    """The modules of a site with random numbers everywhere."""
    dyads, draw = Dyads(of, Q, P), torch.Generator().manual_seed(seed)
    for parameter in dyads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    return dyads.requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(2, 5, P, generator=torch.Generator().manual_seed(7))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("decisions", [1, 2, 4])
@pytest.mark.parametrize("router", ["core", "input"])
def test_the_update_is_the_sum_over_ranks_and_up_vectors(decisions, router, x):
    dyads = filled(shape(decisions=decisions, router=router))
    expected = torch.zeros(2, 5, Q, dtype=torch.float64)
    a, b, w = (p.double() for p in (dyads.a, dyads.b, dyads.router))
    for row in range(2):
        for token in range(5):
            one = x[row, token].double()
            read = a @ one if router == "core" else one
            for rank in range(R):
                weights = (w[rank // (R // decisions)] @ read).softmax(0)
                expected[row, token] += 0.5 * (a[rank] @ one) * sum(weights[i] * b[:, i, rank] for i in range(M))
    close(dyads(x), expected.float())


def test_one_up_vector_is_lora_bit_for_bit(x):
    dyads, layer = filled(shape(ups=1, scaling=2.0)), nn.Sequential(nn.Linear(P, Q))
    assert dyads.router is None
    wrapped = peft.get_peft_model(layer, peft.LoraConfig(r=R, lora_alpha=2 * R, target_modules=["0"]))
    lora = wrapped.base_model.model[0]
    lora.lora_A["default"].weight.data, lora.lora_B["default"].weight.data = dyads.a, dyads.b[:, 0]
    with torch.no_grad():
        assert torch.equal(lora.base_layer(x) + dyads(x), wrapped(x))


@pytest.mark.parametrize("router", ["core", "input", "shared"])
def test_equal_up_vectors_are_lora_whatever_the_router(router, x):
    dyads = filled(shape(router=router, decisions=1 if router == "shared" else R))
    dyads.b.copy_(dyads.b[:, :1].expand(Q, M, R).clone())
    close(dyads(x), 0.5 * x @ dyads.a.T @ dyads.b[:, 0].T)


def test_zero_up_vectors_are_the_base_and_a_zero_router_is_the_mean(x):
    dyads = filled(shape())
    dyads.router.zero_()
    close(dyads(x), 0.5 * x @ dyads.a.T @ dyads.b.mean(1).T)
    dyads.b.zero_()
    assert not bool(dyads(x).any())


def test_a_bank_of_adapters_with_one_a_and_a_one_hot_router_is_the_expert(x):
    dyads, positive = filled(shape()), x.abs()
    for chosen in range(M):
        dyads.router.fill_(-1e4)
        dyads.router[:, chosen] = 1e4  # logits of ±1e4 times the sum of a token's entries
        close(dyads(positive), 0.5 * positive @ dyads.a.T @ dyads.b[:, chosen].T)


def test_a_router_for_all_ranks_is_one_block_of_them(x):
    settings = DyadicSettings(lora={"r": R}, router="shared")
    assert settings.decisions == DyadicSettings(lora={"r": R}, block=R).decisions == 1
    assert DyadicSettings(lora={"r": R}, block=2).decisions == 2


def test_tokens_do_not_depend_on_each_other(x):
    dyads = filled(shape())
    turned = dyads(x.flip(0).flip(1)).flip(1).flip(0)
    close(turned, dyads(x))
    close(torch.stack([dyads(x[:, token]) for token in range(5)], 1), dyads(x))


def count(inside, out, r, ups, decisions, router="input"):
    with torch.device("meta"):
        of = DyadicShape(r=r, ups=ups, decisions=decisions, router=router, scaling=1, sites={"w": [out, inside]})
        return sum(p.numel() for p in DyadicNetwork(of).parameters())


def test_the_numbers_of_parameters_are_the_papers():
    p, q = 819, 167  # of a million: the paper's layers have .0819 % and .0167 % of the base per rank
    for r, m in ((4, 16), (4, 6), (4, 4), (8, 2)):
        assert count(p, q, r, m, r) == r * p + m * r * q + m * r * p  # MoDE
        assert count(p, q, r, m, 1) == r * p + m * r * q + m * p  # MoLORA-SD
        assert count(p, q, r, m, r, "core") == r * p + m * r * q + m * r * r
        assert count(p, q, r, 1, r) == r * (p + q)  # LoRA

    def percent(numbers):
        return numbers / 1e6 * 100

    assert percent(count(p, q, 64, 1, 64)) == pytest.approx(6.31, abs=0.005)  # LoRA of rank 64
    molora = 16 * count(p, q, 4, 1, 4) + 16 * p  # 16 experts with an A each, and a router
    assert percent(molora) == pytest.approx(7.62, abs=0.005)
    assert percent(count(p, q, 4, 16, 1)) == pytest.approx(2.71, abs=0.005)
    assert percent(count(p, q, 4, 16, 4)) == pytest.approx(6.64, abs=0.005)
    assert percent(count(p, q, 4, 6, 4)) == pytest.approx(2.69, abs=0.005)
    assert percent(count(p, q, 4, 4, 4)) == pytest.approx(1.90, abs=0.006)


def config(steps=4, **keys):
    training = {"steps": steps, "batch_size": 4, "learning_rate": 0.02, "checkpoint_every": 2}
    lora = {"r": 4, "target_modules": ["query", "value"], **keys.pop("lora", {})}
    return FinetuneConfig(mode="mine", train="dyadic", lora=lora, training=training, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"ups": 1},
        {"ups": 3, "router": "core"},
        {"ups": 2, "router": "shared", "sampling": {"mixed": True}},
        {"ups": 2, "block": 2, "lora": {"target_modules": "all-linear", "dropout": 0.1, "rslora": True}},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_every_router_keeps_the_promises_of_a_mode(keys):
    made = config(**keys)
    more = {n: v for n, v in keys.items() if n != "lora"}
    check_mode(MODES.get("dyadic"), lora=made.lora.model_dump(), **more)


def test_the_footprint_is_that_of_the_file(tmp_path):
    base, tasks, settings = tiny_base(), tiny_tasks(2), config(ups=3)
    mode = mode_of(settings)
    size = mode.footprint(base, settings)
    sites = 4  # query and value of two layers of width 16
    assert size.trainable == sites * (4 * 16 + 3 * 4 * 16 + 3 * 4 * 16)
    assert (size.sites, size.adapted, size.size) == (sites, sites * 256, 4 * size.trainable)
    made = finetune(base, tasks, settings, out=tmp_path / "out")
    assert sum(u.dense().numel() for u in made["task0"].updates.values()) == size.trainable
    record = json.loads((tmp_path / "out" / "task0" / "training.json").read_text())
    assert record["trainable"] == size.trainable
    assert len({adapter.fingerprint for adapter in made.values()}) == 1
    assert made["task1"].metadata.joint == ["task0", "task1"]
    assert not is_fusable(mode, {})
    found = inspect(tmp_path / "out" / "task0").routed
    assert list(found.lines())[:2] == [
        "3 up-vectors for each of 4 ranks beside 4 layers",
        "router: dyadic (router input, decisions 4)",
    ]
    assert found.numbers == {"down-vectors": 256, "routers": 768, "up-vectors": 768}
    with pytest.raises(FusionError, match="adds modules to the network"):
        tangora.fuse([made["task0"], made["task0"]])


class Killed(Exception):
    pass


def test_a_killed_training_ends_with_the_same_adapter(tmp_path):
    base, tasks, settings = tiny_base(), tiny_tasks(2), config(ups=2, lora={"dropout": 0.2})
    whole, steps = finetune(base, tasks, settings)["task0"], []

    def kill(step, total, loss):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        finetune(base, tasks, settings, scratch=tmp_path, on_step=kill)
    assert not hasattr(base.backbone, "added_modules")
    again = finetune(base, tasks, settings, scratch=tmp_path, on_step=lambda step, *_: steps.append(step))
    assert steps == [3, 4]
    assert again["task0"].fingerprint == whole.fingerprint


def test_the_start_is_the_base_and_drawn_by_name():
    base = tiny_base()
    one, two = (draw_(DyadicNetwork(shape_of(base, config(ups=u).settings)), 5) for u in (2, 3))
    for name in one.shape.sites:
        first, second = one.sites.at(name), two.sites.at(name)
        assert torch.equal(first.a, second.a)
        assert not bool(first.b.any())
        # 64 and more draws of N(0, 0.01²): their standard deviation is within a third of it, by six of its own
        assert float(first.a.detach().std()) == pytest.approx(0.01, rel=0.55)
        assert float(first.router.detach().std()) == pytest.approx(0.01, rel=0.55)
    ids = torch.arange(6).reshape(2, 3)
    with torch.no_grad():
        before = base.backbone(input_ids=ids).last_hidden_state
        with attached(base.backbone, one):
            assert torch.equal(base.backbone(input_ids=ids).last_hidden_state, before)


def test_transformers_own_linear_layers_are_sites_too():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16, eos_token_id=1,
                                       bos_token_id=1)).eval().requires_grad_(False)  # fmt: skip
    base = replace(tiny_base(), backbone=model)
    settings = config(ups=2, lora={"target_modules": ["c_attn"]}).settings
    assert shape_of(base, settings).sites == {"transformer.h.0.attn.c_attn": [48, 16]}
    every = shape_of(base, config(ups=2, lora={"target_modules": "all-linear"}).settings)
    assert len(every.sites) == 4  # without the output layer, as peft chooses
    network = draw_(DyadicNetwork(every), 0).requires_grad_(False)
    network.sites.at("transformer.h.0.mlp.c_fc").b.normal_()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = model(ids).logits
        with attached(model, network):
            whole = model(ids, use_cache=False).logits
            assert not torch.allclose(whole, before)
            first = model(ids[:, :2], use_cache=True)
            rest = model(ids[:, 2:], past_key_values=first.past_key_values).logits
            close(torch.cat([first.logits, rest], 1), whole)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ups": 0}, "greater than or equal to 1"),
        ({"block": 3}, "block must divide lora.r: 4 ranks are no blocks of 3"),
        ({"block": 2, "router": "shared"}, "leave block out"),
        ({"router": "cor"}, "router"),
        ({"lora": {"rank_pattern": {"query": 2}}}, "leave rank_pattern and alpha_pattern out"),
        ({"lora": {"init": "gaussian"}}, "leave lora.init out"),
        ({"lora": {"a_init": "per_task"}}, "set a_init: shared"),
        ({"up": 3}, "has no key 'up'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(keys, message):
    with pytest.raises(Exception, match=message) as found:
        config(**keys)
    assert isinstance(found.value, TangoraError | ValueError)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["querry"], r"matches nothing, got 'querry'.*query"),
        (["word_embeddings"], "chosen by the input of a layer, got 'Embedding'"),
        (["LayerNorm"], "not a layer to adapt"),
    ],
)
def test_targets_that_do_not_fit_are_refused_before_training(targets, message):
    settings = config(lora={"target_modules": targets})
    with pytest.raises(ModelError, match=message):
        mode_of(settings).check(tiny_base(), settings)


def test_files_that_do_not_fit_are_refused(tmp_path):
    made = finetune(tiny_base(), tiny_tasks(2), config(steps=1, ups=2))["task0"]
    modules = made.metadata.modules
    for changed in ({**modules, "decisions": 3}, {**modules, "sites": {"x": [1]}}):
        with pytest.raises(AdapterError, match="contradict each other"):
            dyadic_network(changed)
    with pytest.raises(AdapterError, match="key is missing"):
        dyadic_network(None)
    replace(made, metadata=made.metadata.model_copy(update={"modules": {**modules, "ups": 3}})).save(tmp_path / "odd")
    with pytest.raises(AdapterError, match="does not fit the modules that dyadic makes"):
        load_model(tmp_path / "odd", tiny_base().backbone, same_base=True)
