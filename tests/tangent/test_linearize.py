"""L-LoRA against its definition: a `torch.func.jvp` of the very layer, its gradients, its export, its traps."""

import copy
import pickle

import peft
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from transformers.pytorch_utils import Conv1D

from tangora.adapters import initial
from tangora.errors import ModelError
from tangora.tangent.linearization import LinearizedLora, linear_factors, linearize

ADAPTER = "default"
# Two ways to the same outputs differ by some hundred roundings of numbers under 100. In float64 that is 1e-12; in
# float32 1e-3, as much as an error may make. Exports are float32: that of the factors alone, in outputs under 10, is
# 1e-6 at most, and the tests of them allow 1e-5.
ROUNDING = 1e-10


@pytest.fixture
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


double = pytest.mark.usefixtures("in_double")


class Net(nn.Module):
    """One layer of each kind that can be adapted."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.conv = Conv1D(8, 6)
        self.out = nn.Linear(8, 4)

    def forward(self, ids):
        return self.out(torch.tanh(self.conv(self.words(ids))))


def adapted(init=True, *, targets=("words", "conv", "out"), seed=0, **settings):
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=list(targets), init_lora_weights=init, **settings)
    model = peft.get_peft_model(Net(), config)
    if init is True:
        initial.set_initial_(model, seed)
    return model


def sites(model):
    return {name: getattr(model.base_model.model, name) for name in ("words", "conv", "out")}


def lora_parameters(model):
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def move(model, scale=0.5):
    """Somewhere else than φ₀, every factor that may move."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


IDS = torch.arange(10).reshape(2, 5)


def expansion(plain, start, now, x):
    """f(x; φ₀) + J(x)(φ − φ₀) of one plain peft layer, and its output at x."""
    difference = {name: now[name] - start[name] for name in start}
    value, tangent = jvp(lambda factors: functional_call(plain, factors, (x,)), (start,), (difference,))
    return value + tangent


@double
@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("site", ["words", "conv", "out"])
def test_forward_and_gradients_are_those_of_a_jvp(site, init):
    plain = adapted(init)
    linear = linearize(copy.deepcopy(plain))
    start = {n: p.detach().clone() for n, p in sites(plain)[site].named_parameters() if "lora_" in n}
    move(linear)
    layer = sites(linear)[site]
    now = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters() if "lora_" in n}
    x = IDS if site == "words" else torch.randn(3, 5, 6 if site == "conv" else 8)
    expected = expansion(sites(plain)[site], start, now, x)
    found = layer(x)
    assert torch.allclose(found, expected, atol=ROUNDING)
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(gradient, now[name].grad, atol=ROUNDING), name


def test_the_expansion_is_not_lora_itself():
    """Where both factors move, the product of the differences is what the expansion leaves out."""
    plain = adapted(False)
    linear = linearize(copy.deepcopy(plain))
    move(plain)
    move(linear)
    assert (plain(IDS) - linear(IDS)).abs().max() > 0.1


@double
@pytest.mark.parametrize("init", [True, "gaussian", False])
def test_nothing_changes_at_the_start(init):
    plain = adapted(init)
    expected = plain(IDS)
    assert torch.allclose(linearize(plain)(IDS), expected, atol=ROUNDING)


def test_only_the_factor_that_matters_is_trained_and_nothing_is_copied():
    model = linearize(adapted())
    trained = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"words.lora_embedding_A.default", "conv.lora_B.default.weight", "out.lora_B.default.weight"}
    assert not list(model.buffers())
    frozen = {site: layer.lora_variant[ADAPTER].frozen for site, layer in sites(model).items()}
    assert frozen == {"words": "b", "conv": "a", "out": "a"}


def test_where_both_factors_train_phi0_follows_the_model_but_no_state_dict():
    model = linearize(adapted(False))
    assert len(list(model.buffers())) == 6
    assert not [name for name in model.state_dict() if "tangora" in name]
    assert {b.dtype for b in model.to(torch.float64).buffers()} == {torch.float64}
    assert model(IDS).dtype == torch.float64


@double
@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", False])
def test_stock_peft_computes_the_export(init, tmp_path):
    targets = ("conv", "out") if init == "orthogonal" else ("words", "conv", "out")
    linear = move(linearize(adapted(init, targets=targets)))
    updates = linear_factors(linear)
    rank = 4 if init in (False, "orthogonal") else 2
    assert {update.rank for update in updates.values()} == {rank}
    config = peft.LoraConfig(r=rank, lora_alpha=1.5 * rank, target_modules=list(targets))
    torch.manual_seed(0)
    stock = peft.get_peft_model(Net(), config)
    stock.load_state_dict({n: v for n, v in linear.state_dict().items() if "lora_" not in n}, strict=False)
    with torch.no_grad():
        for site, update in updates.items():
            layer = stock.base_model.model.get_submodule(site)
            if site == "words":
                layer.lora_embedding_A[ADAPTER].copy_(update.a)
                layer.lora_embedding_B[ADAPTER].copy_(update.b)
            else:
                layer.lora_A[ADAPTER].weight.copy_(update.a)
                layer.lora_B[ADAPTER].weight.copy_(update.b)
    stock.save_pretrained(tmp_path)
    base = Net()
    base.load_state_dict({k: v for k, v in stock.unload().state_dict().items() if "lora_" not in k})
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.allclose(loaded(IDS), linear(IDS), atol=1e-5)


def test_the_export_of_plain_lora_is_its_factors():
    model = move(adapted())
    update = linear_factors(model)["out"]
    layer = sites(model)["out"]
    assert torch.equal(update.a, layer.lora_A[ADAPTER].weight)
    assert torch.allclose(update.dense(), layer.get_delta_weight(ADAPTER))
    assert update.a.data_ptr() != layer.lora_A[ADAPTER].weight.data_ptr()


@double
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("init", [True, False])
def test_merging_keeps_the_outputs_and_unmerging_the_weights(init, safe):
    model = move(linearize(adapted(init)))
    before, weight = model(IDS), sites(model)["conv"].base_layer.weight.clone()
    model.merge_adapter(safe_merge=safe)
    assert not torch.allclose(sites(model)["conv"].base_layer.weight, weight, atol=1e-3)
    assert torch.allclose(model(IDS), before, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(sites(model)["conv"].base_layer.weight, weight, atol=1e-6)
    assert torch.allclose(model.merge_and_unload(safe_merge=safe)(IDS), before, atol=1e-5)


@double
def test_dropout_falls_on_the_input_as_in_peft():
    plain = adapted(lora_dropout=0.5)
    with torch.no_grad():
        for site in ("conv", "out"):
            sites(plain)[site].lora_B[ADAPTER].weight.normal_()
    start = {}
    for site, layer in sites(plain).items():
        names = ("lora_embedding_A", "lora_embedding_B") if site == "words" else ("lora_A", "lora_B")
        a, b = (getattr(getattr(layer, n)[ADAPTER], "weight", getattr(layer, n)[ADAPTER]).detach() for n in names)
        start[site] = (a, b if site == "words" else torch.zeros_like(b))
    linear = linearize(copy.deepcopy(plain), initial=start)
    torch.manual_seed(3)
    expected = plain(IDS)
    torch.manual_seed(3)
    assert torch.allclose(linear(IDS), expected, atol=ROUNDING)  # with A at A₀ the two are one function
    assert not torch.allclose(linear(IDS), expected, atol=1e-2)  # other masks


def train(model, steps=20):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    for _ in range(steps):
        model(IDS).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def frozen_factors(model):
    named = sites(model)
    factors = [named[site].lora_A[ADAPTER].weight for site in ("conv", "out")]
    return [*factors, named["words"].lora_embedding_B[ADAPTER]]


PATHS = {
    "as it is": lambda model: None,
    "set_adapter": lambda model: model.set_adapter(ADAPTER),
    "set_requires_grad": lambda model: model.set_requires_grad(ADAPTER),
    "off and on": lambda model: (model.base_model.disable_adapter_layers(), model.base_model.enable_adapter_layers()),
    "another adapter": lambda model: (
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["out"])),
        model.set_adapter("other"),
        model.set_adapter(ADAPTER),
    ),
    "everything switched on": lambda model: model.requires_grad_(True),
}


@pytest.mark.parametrize("path", list(PATHS))
def test_weight_decay_never_moves_the_frozen_factor(path):
    model = linearize(adapted())
    before = [factor.detach().clone() for factor in frozen_factors(model)]
    moving = sites(model)["out"].lora_B[ADAPTER].weight
    PATHS[path](model)
    train(model)
    assert moving.any()
    for factor, value in zip(frozen_factors(model), before, strict=True):
        assert torch.equal(factor, value)
        assert factor.grad is None


@double
def test_loading_for_training_keeps_the_frozen_factor_frozen(tmp_path):
    model = move(linearize(adapted()))
    model.save_pretrained(tmp_path)
    expected = model(IDS)
    model.load_adapter(tmp_path, ADAPTER, is_trainable=True)
    model.set_requires_grad(ADAPTER)
    assert torch.equal(model(IDS), expected)
    assert not any(factor.requires_grad for factor in frozen_factors(model))
    model.load_adapter(tmp_path, "second", is_trainable=True)
    start = initial.set_initial_(adapted(), 0)  # the loaded values are not where it started
    linearize(model, "second", initial={site: (update.a, update.b) for site, update in start.items()})
    model.set_adapter("second")
    second = [p for n, p in model.named_parameters() if p.requires_grad]
    assert len(second) == 3
    assert torch.allclose(model(IDS), expected, atol=1e-6)


@double
def test_a_given_phi0_is_used():
    start = initial.set_initial_(adapted(), 0)
    trained = move(linearize(adapted()))
    again = adapted()
    again.load_state_dict(trained.state_dict())
    with torch.no_grad():
        sites(again)["out"].lora_A[ADAPTER].weight += 1  # φ₀ says what A is
    linearize(again, initial={site: (update.a, update.b) for site, update in start.items()})
    assert torch.allclose(again(IDS), trained(IDS), atol=1e-6)


def test_copies_and_pickles_work():
    model = move(linearize(adapted(False)))
    expected = model(IDS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IDS), expected)
        with torch.no_grad():
            sites(other)["out"].lora_B[ADAPTER].weight += 1
        assert not torch.allclose(other(IDS), expected)
    assert torch.equal(model(IDS), expected)


def test_a_base_in_bfloat16_with_an_adapter_in_float32():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 6)).to(torch.bfloat16)
    model = linearize(peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"])))
    layer = base[0]
    with torch.no_grad():
        layer.lora_B[ADAPTER].weight.normal_()
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    assert layer.lora_B[ADAPTER].weight.dtype == torch.float32
    found = model(x)
    assert found.dtype == torch.bfloat16
    low_rank = layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight * layer.scaling[ADAPTER]
    expected = x.float() @ (layer.base_layer.weight.float() + low_rank).T + layer.base_layer.bias.float()
    assert torch.allclose(found.float(), expected, atol=0.05, rtol=0.02)
    found.sum().backward()
    assert layer.lora_B[ADAPTER].weight.grad.any()


def test_autocast_and_a_single_row():
    model = move(linearize(adapted()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(IDS)
    assert torch.allclose(rough.float(), model(IDS), atol=0.1)
    layer = sites(model)["out"]
    x = torch.randn(8)
    assert torch.allclose(layer(x), layer(x[None])[0], atol=1e-6)


def test_it_can_be_called_twice_but_not_at_another_point():
    model = move(linearize(adapted()))
    expected = model(IDS)
    assert torch.equal(linearize(model)(IDS), expected)
    start = {site: (update.a, update.b) for site, update in linear_factors(model).items()}
    with pytest.raises(ModelError, match="linearized already"):
        linearize(model, initial=start)


def test_unknown_adapters_and_models_without_lora_are_refused():
    with pytest.raises(ModelError, match=r"no such adapter in the model, got 'mine'.*default"):
        linearize(adapted(), "mine")
    with pytest.raises(ModelError, match="no such adapter"):
        linearize(Net())
    empty = adapted(targets=("out",))
    empty.base_model.model.out = empty.base_model.model.out.base_layer
    with pytest.raises(ModelError, match="no layer of the model holds the adapter"):
        linearize(empty)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_initial_values_that_change_the_base_are_refused(init):
    with pytest.raises(ModelError, match=f"cannot be linearized, got '{init}'.*It changes the base weights"):
        linearize(adapted(init, targets=("out",)))


def test_loftq_corda_and_lora_ga_are_refused_by_name():
    model = adapted(targets=("out",))
    for init in ("loftq", "corda", "lora_ga", "not made yet"):
        model.peft_config[ADAPTER].init_lora_weights = init
        with pytest.raises(ModelError, match=f"got '{init}'"):
            linearize(model)


def test_variants_are_refused():
    with pytest.raises(ModelError, match=r"a variant of LoRA, got 'DoraLinearVariant' at out"):
        linearize(adapted(targets=("out",), use_dora=True))
    with pytest.raises(ModelError, match="Mica trains only A"):
        linearize(adapted("mica", targets=("out",)))
    with pytest.raises(ModelError, match="lora_bias is not a low-rank update at out"):
        linearize(adapted(targets=("out",), lora_bias=True))


def test_a_refusal_changes_nothing():
    model = adapted()
    start = {site: (update.a, update.b) for site, update in linear_factors(model).items()}
    before = model(IDS)
    for bad in ({"out": start["out"]}, start | {"conv": (torch.zeros(3, 6), torch.zeros(8, 3))}):
        with pytest.raises(ModelError, match=r"no initial value for this site|another shape.*conv"):
            linearize(model, initial=bad)
    assert not any(layer.lora_variant for layer in sites(model).values())
    assert all(p.requires_grad for p in lora_parameters(model).values())
    assert torch.equal(model(IDS), before)


def test_other_layers_and_merged_adapters_are_refused():
    base = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelError, match=r"only LoRA on Linear, Conv1D and Embedding.*Conv2d' at 0"):
        linearize(peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"])))
    merged = adapted()
    merged.merge_adapter()
    with pytest.raises(ModelError, match=r"merged into the base.*unmerge_adapter"):
        linearize(merged)


def test_the_variant_says_whether_it_is_plain_lora():
    assert LinearizedLora("a").supports_lora_conversion()
    assert not LinearizedLora(None).supports_lora_conversion()
