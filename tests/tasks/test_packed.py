"""A quantized base computes what the float32 model with the dequantized weights computes."""

from __future__ import annotations

import importlib.util
import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertModel

import tangora
from families import Case
from tangora.adapters.adapter import Adapter
from tangora.cli.exits import quiet_libraries
from tangora.coefficients.forward import ForwardLogits
from tangora.errors import MissingExtraError, ModelError
from tangora.evaluation.evaluator import answering
from tangora.storage import packed
from tangora.storage.held import held_names, hold_
from tangora.storage.packed import dequantized, is_packed, pack_
from tangora.support.machine import Machine
from tangora.tasks import Base, load_base
from tangora.tasks.base import pretrained, weights_fingerprint
from tangora.tasks.model import Predictions, predict
from tangora.updates.task_vector import Dense, LowRank

HERE = importlib.util.find_spec("bitsandbytes") is not None
needed = pytest.mark.skipif(not HERE, reason="bitsandbytes is not installed")
BITS = [pytest.param("4bit", marks=needed), "8bit"]
SUMS = 2**-24 * 128 * 12  # sums of at most 128 products in another order, in 12 layers that follow one another


def quantized(base: Base, bits: str, machine: Machine | None = None, **settings) -> Base:
    return load_base(base.config.model_copy(update={"quantization": bits, **settings}), machine)


def twin(base: Base, bits: str, machine: Machine | None = None) -> Base:
    """The base in float32, with the weights of its linear layers quantized and dequantized by other code."""
    made = load_base(base.config, machine)
    for name, module in made.backbone.named_modules():
        if type(module) is nn.Linear and name != "lm_head":
            module.weight.data = by_bitsandbytes(module.weight.data) if bits == "4bit" else by_rows(module.weight.data)
    return made


def by_bitsandbytes(weight: torch.Tensor) -> torch.Tensor:
    """Quantized in one row: the kernel for narrow rows unpacks them wrongly."""
    from bitsandbytes import functional

    row = weight.reshape(1, -1)
    values = functional.dequantize_4bit(*functional.quantize_4bit(row, quant_type="nf4", blocksize=64))
    return values.reshape(weight.shape)


def by_rows(weight: torch.Tensor) -> torch.Tensor:
    largest = weight.abs().amax(1, keepdim=True)
    return torch.round(weight / (largest / 127)) * (largest / 127)


def answers(base: Base, case: Case, adapter: Adapter | None = None) -> Predictions:
    with answering(adapter, base, same_base=True) as model_of:
        return predict(model_of(case.task), case.task.splits["test"], 4)


def same(a: Predictions, b: Predictions, bound: float = 0) -> None:
    assert a.plain == b.plain
    np.testing.assert_allclose(a.losses, b.losses, rtol=bound, atol=bound)


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["answer", "image", "language", "text"])
@pytest.mark.parametrize("bits", BITS)
def test_logits_are_those_of_the_dequantized_twin(families, kind, bits, compute):
    case, machine = families[kind], Machine(dtype=compute)
    base, other = quantized(case.base, bits, machine), twin(case.base, bits, machine)
    layers = [m for n, m in base.backbone.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert layers
    assert all(is_packed(layer) for layer in layers)
    same(answers(base, case), answers(other, case))
    assert not np.array_equal(answers(base, case).losses, answers(case.base, case).losses)


@pytest.mark.parametrize("mode", ["lora", "l-lora", "l-lora-moved", "tangent"])
@pytest.mark.parametrize("bits", BITS)
def test_training_is_that_of_the_dequantized_twin(families, bits, mode):
    case = families["language"]
    base, other = quantized(case.base, bits), twin(case.base, bits)
    before = base.fingerprint
    adapter, expected = (tangora.finetune(b, case.task, case.config(mode), progress=False) for b in (base, other))
    for site, update in expected.updates.items():
        assert torch.equal(adapter.updates[site].dense(), update.dense())
    assert adapter.metadata.base.weights == f"{bits} and float32"
    same(answers(base, case, adapter), answers(other, case, adapter), SUMS)
    assert weights_fingerprint(base.backbone) == before == base.fingerprint


@pytest.mark.parametrize("bits", BITS)
def test_fused_adapters_of_any_rank_are_exact_beside_it(families, bits):
    case = families["language"]
    base, other = quantized(case.base, bits), twin(case.base, bits)
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for name, module in other.backbone.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            shapes = ((module.out_features, 3), (3, module.in_features))
            b, a = (torch.randn(shape, generator=generator) / 8 for shape in shapes)
            updates[name] = Dense(b @ a) if len(updates) % 2 else LowRank(b, a, 0.5)
    before = {name: p.clone() for name, p in base.backbone.named_parameters()}
    same(answers(base, case, Adapter(updates)), answers(other, case, Adapter(updates)), SUMS)
    for name, parameter in base.backbone.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("bits", BITS)
def test_the_other_weights_are_held_in_the_dtype(families, bits):
    base = quantized(families["text"].base, bits, weights_dtype="bfloat16")
    dtypes = {n: p.dtype for n, p in base.backbone.named_parameters()}
    assert dtypes["embeddings.word_embeddings.weight"] == torch.bfloat16
    assert dtypes["encoder.layer.0.output.dense.weight"] == (torch.uint8 if bits == "4bit" else torch.int8)
    assert dtypes["encoder.layer.0.output.dense.bias"] == torch.float32
    assert base.config.weights == f"{bits} and bfloat16"
    assert base.identity != base.fingerprint


@pytest.mark.parametrize(("out", "into"), [(5, 6), (16, 128), (32, 32), (48, 96), (64, 64)])
@pytest.mark.parametrize("bits", BITS)
def test_values_are_within_a_step_of_the_format(bits, out, into):
    weight = torch.randn(out, into, generator=torch.Generator().manual_seed(0))
    layer = pack_(nn.Sequential(nn.Linear(into, out)), bits, "a model")[0]
    layer_of = nn.Sequential(nn.Linear(into, out))
    layer_of[0].weight.data = weight.clone()
    layer = pack_(layer_of, bits, "a model")[0]
    values = dequantized(layer)
    assert torch.equal(layer.weight, values)
    if bits == "8bit":
        assert bool(((values - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 / 2 * (1 + 2**-20)).all())
        return
    # the widest gap of NF4 is between -1 and -0.6962
    blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    bound = blocks.abs().amax(1).repeat_interleave(64)[: weight.numel()].view_as(weight) * (1 - 0.6961) / 2
    assert bool(((values - weight).abs() <= bound).all())


@needed
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_layer_of_odd_width_stays_as_it_is(bits):
    if bits == "4bit":
        pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(3, 64), nn.Linear(64, 2))
    before = model[0].weight.clone()
    pack_(model, bits, "model")
    assert [is_packed(layer) for layer in model] == [False, True]
    assert torch.equal(model[0].weight, before)


def test_a_layer_gives_what_bitsandbytes_own_layer_gives():
    from bitsandbytes.nn import Linear4bit

    own, theirs = nn.Linear(128, 64), Linear4bit(128, 64, quant_type="nf4", compress_statistics=False)
    theirs.load_state_dict({"weight": own.weight.data.clone(), "bias": own.bias.data.clone()})
    theirs.to("cpu").train()
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer = pack_(nn.Sequential(own).requires_grad_(False), "4bit", "a model")
    found, expected = layer(x), theirs(x)
    torch.testing.assert_close(found, expected, rtol=SUMS, atol=SUMS)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=SUMS, atol=SUMS * float(gradients[1].abs().max()))


@needed
def test_rows_in_8_bits_are_those_of_bitsandbytes():
    from bitsandbytes import functional
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    own = nn.Linear(128, 64).requires_grad_(False)
    own.weight.data = own.weight.data.half().float()  # bitsandbytes rounds weights to float16 first, and computes in it
    codes, scales, _ = functional.int8_vectorwise_quant(own.weight.data.half())
    theirs = Linear8bitLt(128, 64, has_fp16_weights=False)
    theirs.weight = Int8Params(codes.clone(), requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    theirs.bias.data = own.bias.data.clone()
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer = pack_(nn.Sequential(own), "8bit", "a model")[0]
    mine = layer._parameters["weight"]
    assert int((mine.int() - codes.int()).abs().max()) <= 1  # where a weight is nearly in the middle of two codes
    assert float((mine == codes).float().mean()) > 0.99
    mine.data = codes
    found, expected = layer(x), theirs.train()(x)
    torch.testing.assert_close(found, expected, rtol=SUMS, atol=SUMS)


@pytest.mark.parametrize("bits", BITS)
def test_searches_columns_and_polishes_compute_with_the_dequantized_values(families, bits):
    case = families["text"]
    base, other = quantized(case.base, bits), twin(case.base, bits)
    expert = tangora.finetune(other, case.task, case.config("l-lora-moved"), progress=False)
    name, found = case.task.name, []
    for one in (base, other):
        logits = ForwardLogits(one, [case.task], "test", {name: expert})
        c = torch.tensor([0.7], requires_grad=True)
        total = sum(part[name].logits.square().sum() for part in logits(c, {name: range(8)}))
        made = tangora.polish(
            [expert],
            one,
            [case.task],
            start=tangora.fuse([expert], weights=0.5),
            rank=2,
            rows=8,
            steps=2,
            batch_size=4,
            same_base=True,
            progress=False,
        )
        polished = torch.cat([update.dense().flatten() for update in made.updates.values()])
        found.append((total.detach(), *torch.autograd.grad(total, c), polished))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    # lessons are scored with the expert beside the weights, and Adam's first steps have the size of the rate: 1e-3
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_a_training_keeps_no_dequantized_weights(bits, half):
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32)).requires_grad_(False)
    pack_(model, bits, "a model")
    plain = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32)).requires_grad_(False)
    for one, other in zip(plain, model, strict=True):
        one.weight.data, one.bias.data = dequantized(other), other.bias.data
    x, kept = torch.randn(2, 64, requires_grad=True), []
    gradients = []
    for network in (model, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
                loss = network(x).float().square().sum()
            if network is model:
                assert all(not t.is_floating_point() for t in kept if t.numel() > 2 * 64)
        gradients += torch.autograd.grad(loss, x)
    assert torch.equal(*gradients)


def test_quantized_weights_have_a_fingerprint_of_their_own(families):
    base = quantized(families["text"].base, "8bit")
    again = quantized(families["text"].base, "8bit")
    assert base.fingerprint == again.fingerprint != families["text"].base.fingerprint


def test_an_adapter_records_the_quantization_and_its_folder_answers_with_it(families, tmp_path):
    case = families["language"]
    base = quantized(case.base, "8bit")
    adapter = tangora.finetune(base, case.task, case.config("lora"), out=tmp_path / "adapter", progress=False)
    answers_of = tangora.predictor(tmp_path / "adapter")
    expected = tangora.predict(adapter, base, case.task, case.rows[:3])
    assert answers_of(case.rows[:3]).answers == expected.answers
    network = tangora.load_model(tmp_path / "adapter")
    assert any(is_packed(module) for module in network.modules())
    for merge in (network.merge_adapter, network.merge_and_unload):
        with pytest.raises(ModelError, match=r"take no update at merge\. Load the base in float32"):
            merge()
    with pytest.raises(ModelError, match="a quantized model cannot be saved as a checkpoint"):
        base.backbone.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ModelError, match=r"trained on weights in 8bit and float32.*got 'float32'.*same_base=True"):
        tangora.evaluate(adapter, case.base, [case.task])
    assert "8bit and float32" in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_right_on_quantized_weights_is_refused(families):
    case = families["text"]
    base = quantized(case.base, "8bit")
    for mode, where in (("full", "base.weights_dtype"), ("full-tangent", "base.quantization")):
        with pytest.raises(ModelError, match=rf"mode {mode} .*{where}"):
            tangora.finetune(base, case.task, case.config(mode), progress=False)
    adapter = tangora.finetune(base, case.task, case.config("lora", steps=1), progress=False)
    with pytest.raises(ModelError, match="held in another dtype"):
        adapter.apply_(base.backbone)
    with pytest.raises(ModelError, match="no statistics are collected on quantized weights"):
        tangora.collect_statistics(base, case.task, adapter, kinds=["gram"], rows=2)


def test_a_model_without_linear_layers_is_refused(tiny_resnet):
    with pytest.raises(ModelError, match=r"no linear layer to quantize, got 'ResNetModel'"):
        tangora.load_base(tiny_resnet, family="image-classification", quantization="8bit")


def test_experts_are_refused():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ParameterList([nn.Parameter(torch.ones(2, 4, 4))])

    with pytest.raises(ModelError, match=r"matrices of experts cannot be quantized.*base\.weights_dtype: bfloat16"):
        pack_(Experts(), "8bit", "a model")


def test_layers_that_share_a_weight_and_the_output_layer_stay(families):
    base = quantized(families["language"].base, "8bit")
    names = held_names(base.backbone)
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" not in names
    assert names["model.layers.0.mlp.up_proj.weight"] == 48 * 32


@needed
def test_a_kernel_that_unpacks_wrongly_is_refused(families, monkeypatch):
    right = packed._values
    monkeypatch.setattr(packed, "_values", lambda *arguments: right(*arguments).roll(1))
    with pytest.raises(ModelError, match=r"unpacks a weight to wrong values, got \(\d+, \d+\).*another version"):
        quantized(families["text"].base, "4bit")


def test_without_bitsandbytes_the_extra_is_named(families, monkeypatch):
    monkeypatch.setattr("tangora.support.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a base in 4 bits.*bitsandbytes.*tangora\[quantized\]"):
        pack_(nn.Sequential(nn.Linear(4, 4)), "4bit", "a model")


def test_a_weight_that_is_not_finite_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data[0, 0] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        pack_(model, "8bit", "a model")


def test_held_layers_are_quantized_from_their_values(families):
    config = families["text"].base.config
    model = pretrained(BertModel, config)
    expected = pack_(hold_(pretrained(BertModel, config), torch.bfloat16), "8bit", "a model")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    pack_(model, "8bit", "a model")
    assert weights_fingerprint(model) == weights_fingerprint(expected)


@pytest.mark.parametrize("verbose", [False, True])
def test_commands_keep_bitsandbytes_quiet(verbose, monkeypatch):
    logger = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("warnings.simplefilter", lambda *_: None)
    quiet_libraries(verbose)
    assert logger.level == (logging.NOTSET if verbose else logging.ERROR)
    logger.setLevel(logging.NOTSET)  # and forget what is cached by level
