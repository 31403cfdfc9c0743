"""PHA's modules: where adapters lie, what is generated, what is baked, and how many numbers that takes."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import linear

from tangora.config.pha import ModuleShapes, PrototypeSizes
from tangora.config.settings import FinetuneConfig
from tangora.config.tasks import BaseConfig
from tangora.errors import ModelError
from tangora.modes.modular import modules_footprint
from tangora.modular.network import attached
from tangora.modular.pha.networks import ParallelAdapters, PrototypeNetwork
from tangora.modular.pha.parts import Bottleneck, Generator
from tangora.modular.pha.places import ENCODER_DECODERS, ENCODERS, halves_of
from tangora.support.seams import MODES
from tangora.tasks import Base
from tangora.testing._tiny import tiny_base

SIZES = PrototypeSizes(bottleneck=4, prototype=6, layer=5, hidden=7, code=3)
T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}
DISTILBERT = {"vocab_size": 40, "dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 20}
IDS = torch.arange(3, 13).reshape(2, 5)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def small(kind):
    """A random model of a type, in evaluation mode."""
    config = transformers.AutoConfig.for_model(
        kind, **(T5 if kind in ENCODER_DECODERS else DISTILBERT if kind == "distilbert" else BERT)
    )
    torch.manual_seed(0)
    if kind in ENCODER_DECODERS:
        config.dropout_rate = 0.0
        config.pad_token_id, config.decoder_start_token_id, config.eos_token_id = 0, 0, 1
        return transformers.AutoModelForSeq2SeqLM.from_config(config).eval().requires_grad_(False)
    return transformers.AutoModel.from_config(config).eval().requires_grad_(False)


def answers(model, ids=IDS, mask=MASK):
    if hasattr(model, "decoder"):
        return model(input_ids=ids, attention_mask=mask, labels=ids % 20).logits
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def feed_forward(place, model):
    """The feed-forward layer of a place as a function, and the weights of its last product."""
    if place.form == "pre":
        return place.module.DenseReluDense, [place.module.DenseReluDense.wo.weight]
    if place.form == "inner":
        return place.module, list(place.module.lin2.parameters())
    (layer,) = (m for m in model.modules() if getattr(m, "output", None) is place.module)
    return lambda h: place.module.dense(layer.intermediate(h)), list(place.module.dense.parameters())


@pytest.mark.parametrize("kind", sorted([*ENCODERS, *ENCODER_DECODERS]))
def test_an_adapter_is_added_beside_the_feed_forward_layer_and_has_its_input(kind):
    model = small(kind)
    halves = halves_of(model)
    before = answers(model)
    for place in (halves.shared[0], halves.generated[-1]):
        function, weights = feed_forward(place, model)
        copied = [w.clone() for w in weights]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(2)  # the layer itself as its adapter: h + FFN(x) + FFN(x)
        doubled = answers(model)
        with torch.no_grad():
            for weight, value in zip(weights, copied, strict=True):
                weight.copy_(value)
        inside = copy.deepcopy(function) if isinstance(function, nn.Module) else function
        handle = place.connect(inside)
        added = answers(model)
        handle.remove()
        assert torch.allclose(added, doubled, atol=1e-5), place.form
        assert not torch.allclose(added, before, atol=1e-3)
    assert torch.equal(answers(model), before)


def test_an_encoder_decoder_has_shared_adapters_in_the_encoder():
    model = small("t5")
    halves = halves_of(model)
    assert [p.module for p in halves.shared] == [b.layer[-1] for b in model.encoder.block]
    assert [p.module for p in halves.generated] == [b.layer[-1] for b in model.decoder.block]
    assert (halves.width, halves.border, halves.after) == (16, model.encoder, True)


def test_an_encoder_has_shared_adapters_in_its_lower_half():
    model = small("bert")
    halves = halves_of(model)
    assert [p.module for p in halves.shared] == [model.encoder.layer[0].output]
    assert [p.module for p in halves.generated] == [layer.output for layer in model.encoder.layer[1:]]
    assert (halves.border, halves.after) == (model.encoder.layer[1], False)


def test_other_types_of_models_are_refused():
    model = transformers.AlbertModel(
        transformers.AlbertConfig(vocab_size=9, embedding_size=4, hidden_size=4, num_attention_heads=1)
    )
    with pytest.raises(ModelError, match=r"known types of models, got 'albert' at base\.model\. Choose a model of"):
        halves_of(model)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_rows_are_encoded_by_the_mean_over_their_tokens_at_the_border(kind):
    model = small(kind)
    network = PrototypeNetwork(halves_of(model), 2, SIZES)
    with attached(model, network), network.collecting() as pooled:
        answers(model)
        answers(model, IDS[1:, :3], MASK[1:, :3])
    assert [tuple(p.shape) for p in pooled] == [(2, 16), (1, 16)]
    assert torch.allclose(pooled[0][1:], pooled[1], atol=1e-6), "padding does not count"
    with attached(model, network):
        if kind == "t5":
            hidden = model.encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
        else:
            hidden = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[1]
    weights = MASK / MASK.sum(1, keepdim=True)
    assert torch.allclose(pooled[0], torch.einsum("bl,bld->bd", weights.float(), hidden), atol=1e-6)


def moved(network, seed=1):
    """The network at values far from the initial ones, so that its adapters matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_with_heads_of_zeros_only_the_shared_adapters_are_left(kind):
    model = small(kind)
    network = moved(PrototypeNetwork(halves_of(model), 2, SIZES))
    for head in (network.generator.down, network.generator.up, network.generator.down_bias, network.generator.up_bias):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    halves = halves_of(model)
    handles = [place.connect(adapter) for place, adapter in zip(halves.shared, network.shared, strict=True)]
    expected = answers(model)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(expected, answers(model), atol=1e-3)
    with attached(model, network):
        assert torch.equal(answers(model), expected)


def test_one_task_and_one_layer_generate_a_plain_adapter():
    generator = Generator(8, 1, SIZES)
    prototype, x = torch.randn(SIZES.prototype), torch.randn(2, 3, 8)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(torch.randn_like(parameter))
    made = generator(prototype, 0)
    plain = Bottleneck(8, SIZES.bottleneck)
    plain.load_state_dict(made.tensors())
    assert torch.allclose(plain(x), made.of(x), rtol=1e-5, atol=1e-4)
    code = torch.cat([prototype, generator.layers.weight[0]])
    first, _, second, norm = generator.encoder
    code = linear(torch.relu(linear(code, first.weight, first.bias)), second.weight, second.bias)
    code = norm.weight * (code - code.mean()) / torch.sqrt(code.var(correction=0) + 1e-6) + norm.bias
    down = (generator.down.weight @ code + generator.down.bias).view(8, SIZES.bottleneck)
    assert torch.allclose(made.down, down, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_one_adapter_for_a_batch_equals_one_for_each_of_its_rows(kind):
    model = small(kind)
    network = moved(PrototypeNetwork(halves_of(model), 2, SIZES))
    with attached(model, network):
        by_task = []
        for task in range(2):
            network.task = task
            by_task.append(answers(model))
        network.task = torch.tensor([1, 0])  # rows of two tasks in one batch
        mixed = answers(model)
        network.task = torch.tensor([1, 1])
        assert torch.allclose(answers(model), by_task[1], atol=1e-5)
    assert torch.allclose(mixed, torch.stack([by_task[1][0], by_task[0][1]]), atol=1e-5)
    assert not torch.allclose(by_task[0], by_task[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_the_weights_of_a_task_are_constant_and_can_be_baked(kind):
    model = small(kind)
    network = moved(PrototypeNetwork(halves_of(model), 3, SIZES))
    with attached(model, network):
        network.task = 2
        before = network.baked(2)
        dynamic = answers(model)
        answers(model, IDS.flip(1), MASK)
        after = network.baked(2)
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "whatever the rows are"
    plain = ParallelAdapters(network.shapes())
    plain.load_state_dict(before)
    with attached(model, plain):
        assert torch.allclose(answers(model), dynamic, atol=1e-5)


def test_adapters_of_another_number_of_layers_are_refused():
    network = ParallelAdapters(ModuleShapes(width=16, bottleneck=4, shared=1, generated=1))
    match = r"for 1 \+ 1 layers of width 16, got '1 \+ 2 layers of width 16'"
    with pytest.raises(ModelError, match=match), attached(small("bert"), network):
        pass


def test_initial_values_are_those_of_the_paper():
    torch.manual_seed(0)
    network = PrototypeNetwork(halves_of(tiny_base().backbone), 500, PrototypeSizes())
    width, generator = 16, network.generator
    for head, fan in ((generator.up, 64), (generator.down, width), (generator.up_bias, 1), (generator.down_bias, 1)):
        bound = 1e-3 * (3 / (64 * fan)) ** 0.5
        assert 0.99 * bound < head.weight.abs().max().item() <= bound  # of over 1000 uniform values
        assert not bool(head.bias.any())
    assert generator.down.weight.shape == (64 * width, 64)
    adapter = network.shared[0]
    bound = 1e-4 * (6 / (width + 64)) ** 0.5
    assert 0.99 * bound < adapter.down.weight.abs().max().item() <= bound
    assert not bool(adapter.down.bias.any())
    assert not bool(adapter.up.bias.any())
    assert network.prototypes.shape == (500, 64)
    # of 32,000 normal values, the deviation is within five of its standard errors 1 / √64,000
    assert abs(float(network.prototypes.detach().std()) - 1) < 5 / 64_000**0.5


def base_t5():
    """T5-base without its numbers."""
    size = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
    with torch.device("meta"):
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**size)).requires_grad_(False)


def test_parameters_of_t5_base():
    model = base_t5()
    for tasks in (1, 8):
        with torch.device("meta"):
            network = PrototypeNetwork(halves_of(model), tasks, PrototypeSizes())
        counted = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
        assert counted == {"generator": 6_469_504, "retriever": 106_688, "shared": 1_189_632}
        counted_all = modules_footprint(network, 24).trainable
        assert counted_all == 6_469_504 + 106_688 + 64 * tasks + 1_189_632
    assert round(counted_all / 1e6, 2) == 7.77
    base = Base(BaseConfig(family="text-to-text", model="t5-base"), model, None)
    config = FinetuneConfig(mode="pha", train="pha")
    size = MODES.get("pha").footprint(base, config)
    assert size.trainable == 6_469_504 + 106_688 + 64 + 1_189_632
    assert size.sites == 24
    assert size.size == 4 * (2 * 1_189_632 + 6_469_504 + 106_688 + 64)
    bare = FinetuneConfig(mode="pha", train="pha", keep=False)
    assert MODES.get("pha").footprint(base, bare).size == 4 * 2 * 1_189_632


def test_parameters_by_formula():
    base = tiny_base()
    config = FinetuneConfig(mode="m", train="pha", bottleneck=4, prototype=6, layer=5, hidden=7, code=3)
    d, b, p, e, h, c = 16, 4, 6, 5, 7, 3
    adapter = 2 * d * b + b + d
    heads = (c + 1) * adapter
    generator = (p + e) * h + h + h * c + c + 2 * c + heads + 1 * e
    retriever = d * h + h + h * p + p
    size = MODES.get("pha").footprint(base, config)
    assert size.trainable == generator + retriever + p + adapter
    assert size.size == 4 * (generator + retriever + p + 2 * adapter)
