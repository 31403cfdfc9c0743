"""Bottleneck adapters and the hypernetworks that write them: equations, sizes, places."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, SwinConfig, SwinModel, ViTConfig, ViTModel

from tangora.config.bottleneck import (
    BottleneckSettings,
    HyperformerSettings,
    PolyhistorLiteSettings,
    PolyhistorSettings,
)
from tangora.errors import ModelError
from tangora.modes.bottleneck import bottlenecks, hypernetwork
from tangora.modular.bottleneck.adapters import Bottlenecks, added
from tangora.modular.bottleneck.heads import MatrixHead, composed, kernel
from tangora.modular.bottleneck.places import find_places
from tangora.modular.network import attached, drawing

WRITING = {
    "hyperformer": HyperformerSettings,
    "hyperformer-stage": lambda **keys: HyperformerSettings(share="stage", **keys),
    "polyhistor": PolyhistorSettings,
    "polyhistor-stage": lambda **keys: PolyhistorSettings(share="stage", **keys),
    "polyhistor-lite": PolyhistorLiteSettings,
    "polyhistor-lite-template-first": lambda **keys: PolyhistorLiteSettings(order="template-first", **keys),
}
SMALL = {"embedding": 6, "hidden": 10, "projected": 7}


def swin(**changes):
    shape = {"embed_dim": 8, "depths": [2, 1, 1], "num_heads": [1, 2, 2], "window_size": 2, "mlp_ratio": 2.0}
    config = SwinConfig(**{**shape, "image_size": 16, "patch_size": 2, "drop_path_rate": 0.0, **changes})
    with drawing(0):
        return SwinModel(config).eval().requires_grad_(False)


def swin_t():
    """Swin-T without numbers."""
    with torch.device("meta"):
        return SwinModel(SwinConfig(drop_path_rate=0.0))


def written(settings, backbone, tasks=2, seed=0):
    with drawing(seed):
        return hypernetwork(backbone, settings, tasks)


@torch.no_grad()
def enlarged(network):
    """The network with all parameters as large as 1, so that adapters change the output by much."""
    with drawing(1):
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    return network


@torch.no_grad()
def answer(backbone):
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return backbone(pixel_values=pixels).last_hidden_state


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("kind", sorted(WRITING))
@pytest.mark.parametrize(("form", "norm"), [("serial", "none"), ("parallel", "after"), ("serial", "before")])
def test_baked_adapters_are_the_network_of_their_task(kind, form, norm):
    backbone = swin()
    settings = WRITING[kind](form=form, norm=norm, output_scale=0.5, **SMALL)
    network, base = enlarged(written(settings, backbone)), answer(backbone)
    answers = []
    for task in (0, 1):
        with attached(backbone, network):
            network.task = task
            answers.append(answer(backbone))
        baked = network.baked(task)
        again = Bottlenecks.of(baked.settings)
        again.load_state_dict(baked.state_dict())
        with attached(backbone, again):
            assert torch.equal(answer(backbone), answers[-1])
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)
    assert not torch.allclose(answers[0], base, atol=1e-3)
    assert torch.equal(answer(backbone), base)


@pytest.mark.parametrize("kind", sorted(WRITING))
@pytest.mark.parametrize("norm", ["after", "none"])
def test_heads_of_zeros_leave_the_base(kind, norm):
    backbone = swin()
    network, base = written(WRITING[kind](norm=norm, **SMALL), backbone), answer(backbone)
    nn.init.zeros_(network.tasks)
    for parameter in network.groups.parameters():
        nn.init.zeros_(parameter)
    with attached(backbone, network):
        assert torch.equal(answer(backbone), base)


def test_new_adapters_leave_the_base():
    backbone = swin()
    base = answer(backbone)
    with attached(backbone, bottlenecks(backbone, BottleneckSettings())):
        assert torch.equal(answer(backbone), base)


@pytest.mark.parametrize("form", ["serial", "parallel"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "swish"])
def test_what_an_adapter_adds_by_hand(form, activation):
    backbone = swin()
    settings = BottleneckSettings(places=["ffn"], form=form, activation=activation, output_scale=2.0)
    network = enlarged(bottlenecks(backbone, settings))
    mlp, seen = backbone.encoder.layers[0].blocks[0].mlp, {}
    first = mlp.fc2.register_forward_hook(lambda module, inputs, output: seen.update(bare=output))
    with attached(backbone, network):
        mlp.fc2.register_forward_hook(lambda module, inputs, output: seen.update(changed=output))
        mlp.register_forward_pre_hook(lambda module, inputs: seen.update(entered=inputs[0]))
        answer(backbone)
    first.remove()
    weights = network.weights(0)
    x = seen["bare"] if form == "serial" else seen["entered"]
    act = {
        "gelu": nn.GELU(),
        "gelu_new": nn.GELU("tanh"),
        "relu": nn.ReLU(),
        "swish": nn.SiLU(),
    }[activation]
    hidden = act(x @ weights["down"].T + weights["down_bias"])
    expected = seen["bare"] + 2.0 * (hidden @ weights["up"].T + weights["up_bias"])
    torch.testing.assert_close(seen["changed"], expected)


def test_norms_by_hand():
    x, form = torch.randn(4, 6), BottleneckSettings(norm="after").norm
    weights = {"down": torch.randn(2, 6), "down_bias": torch.randn(2), "up": torch.randn(6, 2)}
    weights |= {"up_bias": torch.randn(6), "norm_weight": torch.randn(6), "norm_bias": torch.randn(6)}
    for norm in (form, "before"):
        made = bottlenecks(swin(), BottleneckSettings(norm=norm)).form

        def normed(y):
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            return y * weights["norm_weight"] + weights["norm_bias"]

        read = normed(x) if norm == "before" else x
        y = nn.functional.silu(read @ weights["down"].T + weights["down_bias"]) @ weights["up"].T + weights["up_bias"]
        torch.testing.assert_close(added(x, weights, made), normed(y) if norm == "after" else y)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_decomposed_heads_write_matrices_of_low_rank(rank):
    head = MatrixHead(7, 6, 9, rank)
    nn.init.normal_(head.linear.weight)
    ranks = [int(torch.linalg.matrix_rank(matrix)) for matrix in head(torch.randn(5, 7)).detach()]
    assert ranks == [rank] * 5
    assert count(head) == 8 * rank * (6 + 9)


def test_a_decomposed_head_of_full_rank_writes_any_matrix():
    wanted, head = torch.randn(3, 9), MatrixHead(7, 3, 9, 3)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.cat([torch.eye(3).flatten(), wanted.flatten()]))
    torch.testing.assert_close(head(torch.randn(2, 7)).detach(), wanted.expand(2, 3, 9))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("scale", [2, 3])
def test_composed_weights_are_sums_of_kronecker_products(scale, first):
    for shape in ((5,), (2, 7)):
        templates, kernels = torch.randn(scale, *shape), torch.randn(scale, *[scale] * len(shape))
        pairs = zip(*((templates, kernels) if first else (kernels, templates)), strict=True)
        expected = sum(torch.kron(one, other) for one, other in pairs)
        torch.testing.assert_close(composed(templates, kernels, template_first=first), expected)


def test_a_kernel_of_the_identity_copies_a_template_to_the_diagonal():
    templates = torch.randn(2, 3, 4)
    kernels = torch.stack([torch.eye(2), torch.zeros(2, 2)])
    assert torch.equal(composed(templates, kernels), torch.block_diag(templates[0], templates[0]))


def test_scaled_kernels_keep_the_size_of_templates():
    """A sum of s products has the variance s · var K · var T. Of the 512 entries of K, the mean square is within 4
    standard errors (√(2/512) each) of its expectation, so that a ratio of deviations is within 13 % of it."""
    scale = 8
    with drawing(0):
        templates = torch.randn(scale, 96, 96)
        for released, expected in ((False, 1.0), (True, scale**0.5)):
            weights = composed(templates, kernel(scale, 2, released=released).detach())
            assert float(weights.std() / templates.std()) == pytest.approx(expected, rel=0.13)


def test_in_a_network_of_one_width_lite_is_polyhistor():
    with drawing(0):
        config = ViTConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
        config.image_size, config.patch_size = 16, 8
        backbone = ViTModel(config, add_pooling_layer=False).eval()
    lite = enlarged(written(PolyhistorLiteSettings(**SMALL), backbone))
    other = written(PolyhistorSettings(share="stage", **SMALL), backbone, seed=5)
    other.load_state_dict(lite.state_dict())
    answers = []
    for network in (lite, other):
        with attached(backbone, network):
            answers.append(answer(backbone))
    assert torch.equal(*answers)


def test_layers_of_a_width_have_as_many_embeddings_as_they_need_templates():
    network = written(PolyhistorLiteSettings(**SMALL), swin())
    assert network.layers.shape == (2 * 1 + 2 + 4, 6)
    assert len(network.groups) == 1
    shapes = [{name: tuple(k.shape) for name, k in kernels.items()} for kernels in network.kernels]
    assert shapes[0] == {}
    assert shapes[-1] == {"down": (4, 4, 4), "down_bias": (4, 4), "up": (4, 4, 4), "up_bias": (4, 4)}
    assert [size.bottleneck for size in network.sizes] == [2, 2, 2, 2, 4, 4, 8, 8]


def of_swin_t(settings, tasks=4):
    backbone = swin_t()
    with torch.device("meta"):
        return count(hypernetwork(backbone, settings, tasks))


WIDTHS, DEPTHS = (96, 192, 384, 768), (2, 2, 6, 2)  # of Swin-T


def code_size(parts, tasks=4, more=0):
    """Task embeddings, further ones, and the network that joins ``parts`` of them to 64 numbers."""
    return 64 * (tasks + more) + (64 * parts + 1) * 128 + 129 * 64 + 2 * 64


def heads_size(width, bottleneck, rank=None):
    """65 numbers for every number of two matrices (or of their factors), and of their biases."""
    matrix = width * bottleneck if rank is None else rank * (width + bottleneck)
    return 65 * (2 * matrix + width + bottleneck)


@pytest.mark.parametrize("rank", [None, 1, 8])
@pytest.mark.parametrize("share", ["block", "stage"])
def test_numbers_of_parameters_of_swin_t(share, rank):
    settings = {"reduction": 8, "share": share}
    made = HyperformerSettings(**settings) if rank is None else PolyhistorSettings(rank=rank, **settings)
    often = DEPTHS if share == "block" else (1, 1, 1, 1)
    heads = sum(n * heads_size(d, d // 8, rank) for d, n in zip(WIDTHS, often, strict=True))
    code = code_size(2, more=2) if share == "block" else code_size(3, more=2 + sum(DEPTHS))
    assert of_swin_t(made) == heads + code


@pytest.mark.parametrize("places", [["ffn"], ["attention", "ffn"]])
def test_numbers_of_parameters_of_lite_on_swin_t(places):
    made = of_swin_t(PolyhistorLiteSettings(reduction=8, rank=4, places=places))
    both = len(places) - 1
    scales = [d // 96 for d, n in zip(WIDTHS, DEPTHS, strict=True) for _ in range(n)]
    kernels = len(places) * sum(2 * s**3 + 2 * s**2 for s in scales if s > 1)
    assert made == heads_size(96, 12, 4) + kernels + code_size(2 + both, more=2 * both + sum(scales))


def test_numbers_of_parameters_of_the_paper():
    """Table 1 of arXiv:2210.03265 on Swin-T, four tasks, with about 2.55 M of decoders: 11.24 M adapters, 72.77 M
    HyperFormer. With adapters at both places and ρ = 4, all heads but the paper's decoders are counted here."""
    decoders = 2.55e6
    backbone = swin_t()
    with torch.device("meta"):
        own = 4 * count(bottlenecks(backbone, BottleneckSettings()))
    assert own + decoders == pytest.approx(11.24e6, rel=0.005)
    hyperformer = of_swin_t(HyperformerSettings())
    assert hyperformer + decoders == pytest.approx(72.77e6, rel=0.005)
    # the abstract: about 10 % of the trainable parameters; the paper does not state the rank
    polyhistor, lite = of_swin_t(PolyhistorSettings()), of_swin_t(PolyhistorLiteSettings())
    assert 0.08 < (polyhistor + decoders) / (hyperformer + decoders) < 0.13
    assert lite + decoders < 2.96e6


def test_places_of_known_networks():
    found = find_places(swin(), ["attention", "ffn"])
    assert [place.kind for place in found] == ["attention", "ffn"] * 4
    assert found[0].exit == "encoder.layers.0.blocks.0.attention.o_proj"
    assert found[-1].entry == "encoder.layers.2.blocks.0.mlp.fc1"
    assert [place.width for place in found] == [8, 8, 8, 8, 16, 16, 32, 32]


def test_what_a_backbone_lacks_is_named():
    backbone = ConvNextModel(ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1]))
    with pytest.raises(ModelError, match=r"no sub-layer of this kind.*ConvNextModel.*places: attention"):
        bottlenecks(backbone, BottleneckSettings())
    assert len(bottlenecks(backbone, BottleneckSettings(places=["ffn"])).places) == 2
    with pytest.raises(ModelError, match=r"multiples of the smallest, 8, got '12 in"):
        hypernetwork(backbone, PolyhistorLiteSettings(places=["ffn"]), 1)
    with pytest.raises(ModelError, match=r"a layer of width 8 has no bottleneck, got 9 at reduction"):
        bottlenecks(backbone, BottleneckSettings(places=["ffn"], reduction=9))


def test_places_are_given_once():
    with pytest.raises(ValueError, match="each place once"):
        BottleneckSettings(places=["ffn", "ffn"])
