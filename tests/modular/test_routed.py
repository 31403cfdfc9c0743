"""Experts beside the layers of a backbone: against dense sums of their updates, in every kind of backbone."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from routing.experts import expert, weights_of
from tangora.adapters.application import applied
from tangora.errors import AdapterError, ModelError
from tangora.fusion.fusion import fuse
from tangora.modes.modular import with_tensors
from tangora.modular.gates import PrototypeGate, PrototypeSettings, gate_of, top
from tangora.modular.network import attached
from tangora.modular.routed import RoutedSettings, routed_network
from tangora.routing.assembly import Routed, network_of
from tangora.routing.route import route
from tangora.storage.held import hold_

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 1]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def model_of(name):
    torch.manual_seed(0)
    if name == "encoder":
        return BertModel(BertConfig(vocab_size=32, **SMALL), add_pooling_layer=False), ("query", "dense")
    if name == "decoder":
        return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, **SMALL)), ("q_proj", "down_proj")
    if name == "conv1d":
        settings = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        return GPT2LMHeadModel(settings), ("c_attn", "c_fc")
    if name == "encoder-decoder":
        settings = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        return T5ForConditionalGeneration(settings), ("q", "wo")
    size = {"image_size": 8, "patch_size": 4}
    return ViTModel(ViTConfig(**SMALL, **size), add_pooling_layer=False), ("query", "dense", "q_proj", "fc1")


KINDS = ["conv1d", "decoder", "encoder", "encoder-decoder", "vision"]


@torch.no_grad()
def answers(model, name, rows=slice(None)):
    if name == "vision":
        return model(pixel_values=torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)[rows])[0]
    if name == "encoder-decoder":
        return model(input_ids=IDS[rows], attention_mask=MASK[rows], decoder_input_ids=IDS[rows, :3])[0]
    return model(input_ids=IDS[rows], attention_mask=MASK[rows])[0]


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    model, targets = model_of(request.param)
    model = model.eval().requires_grad_(False)
    return request.param, model, [expert(model, seed, rank, targets) for seed, rank in ((1, 2), (2, 3))]


def routed_answers(case, made):
    name, model, _ = case
    with attached(model, with_tensors(routed_network(made.metadata.modules), made)):
        return answers(model, name)


def summed_answers(case, *coefficients):
    name, model, experts = case
    with applied(model, fuse(experts, weights=list(coefficients))):
        return answers(model, name)


def close(actual, expected):
    # float32: the same products in another order, through a few layers of outputs of about this size
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.3, -0.7), (0.0, 0.0)])
def test_constant_gates_are_task_arithmetic_and_one_hot_ones_are_the_expert(case, weights):
    made = weights_of(route(case[2]), *weights)
    close(routed_answers(case, made), summed_answers(case, *weights))


@pytest.mark.parametrize("method", ["arrow", "smile"])
def test_decisions_do_not_depend_on_the_rest_of_a_batch(case, method):
    name, model, experts = case
    made = route(experts, method, top_k=1)
    with attached(model, with_tensors(routed_network(made.metadata.modules), made)):
        together, turned = answers(model, name), answers(model, name, [1, 0])
        alone = torch.cat([answers(model, name, [row]) for row in (0, 1)])
    assert not torch.allclose(together, answers(model, name), atol=1e-3), "it answers otherwise than the base"
    close(turned, together.flip(0))
    close(alone, together)


def test_bases_in_half_precision_answer_as_the_rounded_ones(case):
    name, model, experts = case
    import copy

    held, rounded = (copy.deepcopy(model) for _ in range(2))
    hold_(held, torch.bfloat16)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16().float()
    made = route(experts, "smile")
    found = []
    for base in (held, rounded):
        with attached(base, with_tensors(routed_network(made.metadata.modules), made)):
            found.append(answers(base, name))
    close(*found)


def test_a_decoder_with_a_cache_answers_as_without():
    model, targets = model_of("decoder")
    made = route([expert(model, seed, 2, targets) for seed in (1, 2)], "arrow", top_k=1)
    with attached(model.eval(), with_tensors(routed_network(made.metadata.modules), made)), torch.no_grad():
        whole = model(input_ids=IDS).logits
        first = model(input_ids=IDS[:, :2], use_cache=True)
        rest = model(input_ids=IDS[:, 2:], past_key_values=first.past_key_values, use_cache=True).logits
        close(torch.cat([first.logits, rest], 1), whole)
        # greedy texts: the cached steps of generate, against a whole pass for every token
        text = model.generate(input_ids=IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
        for length in range(4, text.shape[1]):
            assert int(model(input_ids=text[:, :length]).logits[0, -1].argmax()) == int(text[0, length])


def test_a_gate_at_a_block_decides_once_for_the_sites_inside_and_a_gate_may_serve_several_blocks():
    model, _ = model_of("encoder")
    model.eval().requires_grad_(False)
    experts = [expert(model, seed, 2, ("query", "dense")) for seed in (1, 2)]
    names = [name for name in experts[0].updates if ".intermediate." in name or name.endswith("layer.0.output.dense")]
    blocks = {name: ".".join(name.split(".")[:3]) for name in names}
    gate = PrototypeGate(PrototypeSettings(width=16, experts=2, top_k=1))
    gate.prototypes.data = torch.randn(2, 16, generator=torch.Generator().manual_seed(5))
    sites = {n: Routed([e.updates[n] for e in experts], "shared", at) for n, at in blocks.items()}
    network = network_of(["a", "b"], sites, {"shared": gate})
    seen = {}

    def note(at):
        def keep(module, inputs):
            seen[at] = gate(inputs[0])

        return model.get_submodule(at).register_forward_pre_hook(keep)

    hooks = [note(at) for at in sorted(set(blocks.values()))]
    with attached(model, network):
        routed = answers(model, "encoder")
    for hook in hooks:
        hook.remove()
    assert set(seen) == {"encoder.layer.0", "encoder.layer.1"}

    def by_hand(name):
        def add(module, inputs, output):
            each = torch.stack([inputs[0] @ e.updates[name].dense().T for e in experts], -1)
            return output + (each * seen[blocks[name]].unsqueeze(-2)).sum(-1)

        return add

    hooks = [model.get_submodule(name).register_forward_hook(by_hand(name)) for name in names]
    close(routed, answers(model, "encoder"))
    for hook in hooks:
        hook.remove()


def test_a_decision_for_a_sample_counts_for_all_its_tokens_and_a_fixed_part_is_always_added():
    from tangora.modular.routed import Bank

    bank = Bank([3, 4], [1, 2]).requires_grad_(False)
    bank.a.data, bank.b.data = torch.randn(3, 4), torch.randn(3, 3)
    x, weights = torch.randn(2, 5, 4), torch.randn(2, 2)
    close(bank(x, weights), bank(x, weights[:, None].expand(2, 5, 2)))
    first = (bank.a[:1], bank.b[:, :1])
    close(bank(x, torch.tensor([[1.0, 0.0]]).expand(2, 2)), x @ first[0].T @ first[1].T)

    model, _ = model_of("encoder")
    model.eval().requires_grad_(False)
    one, two = (expert(model, seed, 2, ("query",)) for seed in (1, 2))
    always = fuse([one, two], weights=[0.3, 0.3])
    network = network_of(["a", "b"], {}, {}, {n: u.factors() for n, u in always.updates.items()})
    with attached(model, network):
        fixed = answers(model, "encoder")
    with applied(model, always):
        close(fixed, answers(model, "encoder"))


def test_the_largest_weights_are_those_of_the_softmax_divided_by_their_sum():
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    whole = logits.softmax(-1)
    for count in (1, 2, 5, 9):
        kept = torch.where(whole >= whole.topk(min(count, 5), -1).values[:, -1:], whole, torch.zeros(()))
        torch.testing.assert_close(top(logits, count), kept / kept.sum(-1, keepdim=True))


def test_gates_and_settings_that_do_not_fit_are_refused():
    with pytest.raises(AdapterError, match="no such gate, got 'odd'"):
        gate_of({"kind": "odd"})
    with pytest.raises(AdapterError, match="settings of a gate are invalid"):
        gate_of({"kind": "constant", "experts": 0})
    with pytest.raises(AdapterError, match="key is missing"):
        routed_network(None)
    with pytest.raises(ValueError, match="names the gate g, which does not exist"):
        RoutedSettings(experts=["a"], sites={"x": {"shape": [1, 1], "ranks": [1], "gate": "g"}})
    with pytest.raises(ValueError, match="x has 2 ranks for 1 experts"):
        RoutedSettings(experts=["a"], sites={"x": {"shape": [1, 1], "ranks": [1, 1], "gate": "g"}})


@pytest.mark.parametrize(
    ("site", "shape", "message"),
    [
        ("encoder.layer.9.output.dense", (16, 24), "no such layer"),
        ("encoder.layer.0.output.dense", (16, 16), r"the layer is \(16, 24\), the experts are \(16, 16\)"),
        ("embeddings.word_embeddings", (32, 16), "no experts can be put beside this kind of layer, got 'Embedding'"),
    ],
)
def test_sites_that_the_model_lacks_are_refused_and_nothing_stays(site, shape, message):
    model, _ = model_of("encoder")
    settings = {"experts": ["a"], "gates": {"g": {"kind": "constant", "experts": 1}}}
    settings["sites"] = {site: {"shape": list(shape), "ranks": [1], "gate": "g"}}
    with pytest.raises(ModelError, match=message), attached(model, routed_network(settings)):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
