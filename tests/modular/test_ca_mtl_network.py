"""The conditioned encoder of CA-MTL: its equations, what they leave as it is, and which encoders it fits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
    ViTConfig,
    ViTModel,
)

from tangora.errors import ModelError
from tangora.modular.ca_mtl.baked import Baked
from tangora.modular.ca_mtl.conditional import Conditional
from tangora.modular.ca_mtl.encoder import encoder_of
from tangora.modular.ca_mtl.parts import Parts, biased, block_diagonal, film
from tangora.modular.network import attached, drawing

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"vocab_size": 40, "max_position_embeddings": 20}
PARTS = ["alignment", "attention", "norms", "bottleneck"]


def encoder(kernel="eager", cls=BertModel, config=BertConfig, **more):
    with drawing(0):
        made = cls._from_config(config(**{**SIZE, **more}), attn_implementation=kernel)
    return made.eval().requires_grad_(False)


def batch(length=8, padded=True):
    ids = torch.arange(3, 3 + 2 * length).reshape(2, length)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def answer(model, network=None, **inputs):
    inputs = inputs or batch()
    if network is None:
        return model(**inputs).last_hidden_state
    with attached(model, network):
        return model(**inputs).last_hidden_state


def parts(**chosen):
    """Parts of the tiny encoder: length 8 of width 16 makes two blocks of side 4."""
    on = dict.fromkeys(PARTS, False) | chosen
    return Parts(layers=2, width=16, embedded=16, length=on.pop("length", 8), **on)


def drawn(made, tasks=3, spread=0.3):
    """A hypernetwork whose parameters are all drawn, those that begin at zero too."""
    with drawing(1):
        network = Conditional(made, tasks)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=spread)
    return network.requires_grad_(False)


def zeroed(made):
    network = Conditional(made, 2).requires_grad_(False)
    for module in [network.attention, network.norms, network.alignment]:
        for parameter in module.parameters():
            parameter.zero_()
    return network


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
def test_with_zero_film_and_zero_matrices_it_is_the_encoder_bit_for_bit(padded):
    model, network = encoder(), zeroed(parts(alignment=True, attention=True, norms=True))
    inputs = batch(padded=padded)
    assert torch.equal(answer(model, network, **inputs), answer(model, **inputs))


def test_with_sdpa_a_zero_bias_leaves_the_encoder_up_to_rounding():
    model, network = encoder("sdpa"), zeroed(parts(alignment=True, attention=True, norms=True))
    for padded in (True, False):
        inputs = batch(padded=padded)
        # another kernel sums in another order: hidden states of order one, a few dozen terms, two layers
        torch.testing.assert_close(answer(model, network, **inputs), answer(model, **inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PARTS)
def test_each_part_changes_the_answer_by_itself_and_by_task(name):
    model, network = encoder(), drawn(parts(**{name: True}))
    found = []
    for task in range(3):
        network.task = task
        found.append(answer(model, network))
    assert not torch.allclose(found[0], answer(model), atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    assert not torch.allclose(found[1], found[2], atol=1e-4)
    assert torch.equal(answer(model), answer(encoder())), "the encoder is as before"


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_two_tasks_with_equal_embeddings_have_equal_answers(large):
    model, network = encoder(), drawn(parts(**dict.fromkeys(PARTS, True), large=large))
    network.tasks.weight[1] = network.tasks.weight[0]
    first = answer(model, network)
    network.task = 1
    assert torch.equal(answer(model, network), first)


def chunked(x, blocks, length):
    """The bias as the paper writes it: N chunks of rows on the diagonal, cut to L columns."""
    return torch.block_diag(*x.chunk(blocks, 0))[:, :length]


@pytest.mark.parametrize(
    ("width", "length", "shape"), [(768, 128, (6, 22)), (1024, 128, (8, 16)), (16, 8, (2, 4)), (16, 16, (1, 16))]
)
def test_the_bias_is_block_diagonal(width, length, shape):
    made = Parts(2, width, width, length)
    assert (made.blocks, made.side) == shape
    x = torch.randn(length, made.side) + 10  # nowhere zero
    whole = block_diagonal(x, length)
    assert whole.shape == (length, length)
    assert torch.equal(whole, chunked(x, made.blocks, length))
    rows, columns = torch.arange(length)[:, None] // made.side, torch.arange(length)[None] // made.side
    assert torch.equal(whole != 0, rows == columns)
    for shorter in (1, length // 2 + 1):
        assert torch.equal(block_diagonal(x, shorter), whole[:shorter, :shorter])


def test_a_length_that_does_not_divide_the_width_has_whole_blocks_too():
    made = Parts(2, 16, 16, 5)
    assert (made.blocks, made.side) == (3, 2)
    assert block_diagonal(torch.ones(5, 2), 5).sum() == 2 * 2 + 2 * 2 + 1
    assert Parts(2, 16, 16, 40).blocks == 1


def by_hand(layer, hidden, bias, mask):
    """The attention of one layer: softmax(QK/√d_h + B + mask) V, and its output with residual and norm."""
    attention = layer.attention.self
    q, k, v = (f(hidden).view(2, -1, 2, 8).transpose(1, 2) for f in (attention.query, attention.key, attention.value))
    scores = q @ k.transpose(2, 3) / 8**0.5 + bias
    scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, -1, 16)
    return layer.attention.output.dense(mixed) + hidden


def full(layer, attended):
    return layer.output.dense(layer.intermediate(attended)) + attended


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@torch.no_grad()
def test_the_whole_network_by_hand(kernel, large):
    model, network = encoder(kernel), drawn(parts(**dict.fromkeys(PARTS, True), large=large))
    network.task, inputs = 2, batch()
    e = network.tasks.weight[2]
    z = network.transform(e)

    def filmed(module, x, condition=z):
        scale, shift = module.values(condition).chunk(2)
        return (1 + scale) * x + shift

    hidden = filmed(network.alignment, model.embeddings(inputs["input_ids"]), e)
    side = torch.zeros_like(hidden)
    for i, layer in enumerate(model.encoder.layer):
        bias = chunked(filmed(network.attention[i], network.matrices[i]), 2, 8)
        attended = by_hand(layer, hidden, bias, inputs["attention_mask"])
        norms = {"attention": layer.attention.output.LayerNorm, "output": layer.output.LayerNorm}

        def norm(place, x, i=i, norms=norms):
            weight = norms[place].weight
            weight = filmed(network.norms[f"{i}_{place}"], weight) if i == 1 else weight  # the upper half
            return layer_norm(x, (16,), weight, norms[place].bias, 1e-12)

        attended = norm("attention", attended)
        hidden = norm("output", full(layer, attended))
        if large:
            squeeze = network.bottlenecks[str(i)]
            side = squeeze.up(squeeze.down(filmed(squeeze.film, hidden + side, squeeze.transform(z))))
    if not large:
        squeeze = network.bottlenecks["1"]
        squeezed = squeeze.up(squeeze.down(filmed(squeeze.film, hidden, squeeze.transform(z))))
        weight = filmed(network.top_film, network.top_norm.weight)
        hidden = layer_norm(squeezed + attended, (16,), weight, network.top_norm.bias, 1e-12)
    # the same sums in another order, through two layers, on values of order one to ten
    torch.testing.assert_close(answer(model, network), side if large else hidden, atol=2e-4, rtol=1e-4)


def test_a_shorter_batch_answers_as_the_same_rows_padded_to_the_largest_length():
    model, network = encoder(), drawn(parts(attention=True))
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    long = {
        "input_ids": torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]),
    }
    torch.testing.assert_close(
        answer(model, network, **long)[:, :3], answer(model, network, **short), atol=1e-5, rtol=0
    )


def test_masks_of_every_form_get_the_same_bias():
    bias = torch.randn(3, 3)
    attend = torch.tensor([True, True, False])[None, None, None].expand(1, 1, 3, 3)
    added = torch.zeros(1, 1, 3, 3).masked_fill(~attend, torch.finfo(torch.float32).min)
    assert torch.equal(biased(None, bias), bias[None, None])
    assert torch.equal(biased(attend, bias).softmax(-1), biased(added, bias).softmax(-1))
    assert torch.equal(biased(attend, bias)[..., :2], bias[None, None, :, :2])


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_baked_task_answers_as_the_hypernetwork(large, kernel):
    made = parts(**dict.fromkeys(PARTS, True), large=large)
    model, network = encoder(kernel), drawn(made)
    for task in range(3):
        baked = Baked(made, {})
        baked.load_state_dict(network.baked(task, encoder_of(model)))
        network.task = task
        expected = answer(model, network)
        # only the weight of a norm is rounded once more, by 2^-24 of values of order one
        torch.testing.assert_close(answer(model, baked), expected, atol=1e-5, rtol=1e-5)


def test_the_mean_of_two_tasks_is_the_network_with_their_mean_film_vectors():
    made = parts(alignment=True, attention=True, norms=True)
    model, network = encoder(), drawn(made)
    one, two = (network.baked(task, encoder_of(model)) for task in (0, 1))
    between = Baked(made, {})
    between.load_state_dict({name: (one[name] + two[name]) / 2 for name in one})
    network.tasks.weight[2] = (network.tasks.weight[0] + network.tasks.weight[1]) / 2  # FiLM is linear in e
    network.task = 2
    torch.testing.assert_close(answer(model, between), answer(model, network), atol=1e-5, rtol=1e-5)


def test_changes_of_weights_are_added_and_taken_back_bit_for_bit():
    model = encoder()
    made = Parts(2, 16, 16, 8, changed=[1], attention=False, norms=False, bottleneck=False)
    own = encoder_of(model).weights([1])
    baked = Baked(made, {name: value.shape for name, value in own.items()})
    assert sorted(name.removeprefix("changes.") for name in baked.state_dict() if "changes" in name) == sorted(own)
    before = {name: value.clone() for name, value in own.items()}
    for parameter in baked.changes.parameters():
        nn.init.normal_(parameter)
    with attached(model, baked):
        assert all(torch.equal(own[n], before[n] + c) for n, c in baked.changes.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("cls", "config", "more"),
    [
        (RobertaModel, RobertaConfig, {"pad_token_id": 1}),
        (ElectraModel, ElectraConfig, {"embedding_size": 12}),
        (ElectraModel, ElectraConfig, {"embedding_size": 16}),
    ],
    ids=["roberta", "electra of two widths", "electra"],
)
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_other_encoders_with_the_layers_of_bert(cls, config, more, kernel):
    model = encoder(kernel, cls, config, **more)
    found = encoder_of(model)
    made = Parts(2, found.width, found.embedded, 8)
    assert made.embedded == more.get("embedding_size", 16)
    network = drawn(made)
    answers = []
    for task in (0, 1):
        network.task = task
        answers.append(answer(model, network))
        baked = Baked(made, {})
        baked.load_state_dict(network.baked(task, found))
        torch.testing.assert_close(answer(model, baked), answers[-1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(*answers, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: encoder(cls=RobertaPreLayerNormModel, config=RobertaPreLayerNormConfig),
            "no attention.output.LayerNorm",
        ),
        (lambda: DebertaV2Model(DebertaV2Config(**SIZE)), "another attention"),
        (
            lambda: ViTModel(ViTConfig(**{k: v for k, v in SIZE.items() if "vocab" not in k and "position" not in k})),
            "no norm after",
        ),
        (lambda: encoder(is_decoder=True), "is a decoder"),
        (lambda: nn.Linear(2, 2), "no norm after its embeddings"),
    ],
    ids=["norms before", "deberta", "vit", "decoder", "no transformer"],
)
def test_another_network_is_refused_with_the_reason(make, reason):
    with pytest.raises(ModelError, match=reason):
        encoder_of(make())


def test_what_does_not_fit_is_refused_and_nothing_is_left():
    model, network = encoder(), drawn(parts(attention=True))
    with pytest.raises(ModelError, match=r"more tokens than the attention bias, got 9.*max_length of at most 8"):
        answer(model, network, **batch(9))
    other = Conditional(Parts(3, 16, 16, 8), 2)
    with pytest.raises(ModelError, match=r"modules are for layers, width and embeddings of \(3, 16, 16\)"):
        answer(model, other)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="needs the attention eager or sdpa, got 'flex_attention'"):
        answer(model, network)
    assert not model._forward_pre_hooks
    assert not any(module._forward_hooks for module in model.modules())


def test_changed_weights_in_half_precision_are_refused():
    made = Parts(2, 16, 16, 8, changed=[1], attention=False, norms=False, bottleneck=False)
    model = encoder().to(torch.bfloat16)
    baked = Baked(made, {name: value.shape for name, value in encoder_of(model).weights([1]).items()})
    with pytest.raises(ModelError, match="held in float32"), attached(model, baked):
        pass


def count(d, layers, tasks, length, *, embedded=None, large=False):
    """The parameters by formula; w is the width of what a FiLM modulates, c the side of a block."""
    w = embedded or d
    c = -(-length // max(1, d // length))

    def of_film(width):
        return 2 * width * (d + 1)

    linear = d * d + d
    total = tasks * d + linear + of_film(w)
    total += layers * (length * c + of_film(c))
    total += 2 * (layers // 2) * of_film(d)
    bottleneck = linear + of_film(d) + d * (d // 3) + d // 3 + (d // 3) * d + d
    return total + (layers * bottleneck if large else bottleneck + 2 * d + of_film(d))


@pytest.mark.parametrize(
    ("made", "tasks"),
    [
        (Parts(2, 16, 16, 8), 3),
        (Parts(2, 16, 12, 8, large=True), 1),
        (Parts(12, 768, 768, 128), 8),
        (Parts(24, 1024, 1024, 128, large=True), 9),
    ],
    ids=["tiny", "tiny large", "BERT base", "BERT large"],
)
def test_the_numbers_of_parameters_follow_the_formula(made, tasks):
    with torch.device("meta"):
        network = Conditional(made, tasks)
        expected = count(made.width, made.layers, tasks, made.length, embedded=made.embedded, large=made.large)
        assert sum(p.numel() for p in network.parameters()) == expected
        if made == Parts(12, 768, 768, 128):
            assert expected == 19_740_688  # 17.9 % of 110 million
            fixed = sum(p.numel() for p in Baked(made, {}).parameters())
            assert fixed == 2 * 768 + 12 * 128 * 22 + 12 * 768 + (2 * 768 * 256 + 256 + 768 + 2 * 768) + 2 * 768


def test_film():
    assert film(torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0]), torch.tensor([0.0, 3.0])).tolist() == [1.5, 3.0]
