"""A base whose weights are held in half precision computes what the float32 model with the rounded weights computes."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import BertModel

import tangora
import tiny
from decoders import DECODERS, batch, decoder
from families import Case
from tangora.adapters.adapter import Adapter
from tangora.coefficients.forward import ForwardLogits
from tangora.errors import ModelError
from tangora.evaluation.evaluator import Evaluator, ScoreStore, answering
from tangora.storage.held import hold_
from tangora.support.machine import Machine
from tangora.tasks import Base, load_base
from tangora.tasks.base import pretrained
from tangora.tasks.model import Predictions, TaskModel, predict
from tangora.updates.task_vector import Dense, LowRank

KINDS = ("answer", "head", "image", "language", "pairs", "picture", "tags", "text")
HELD = torch.bfloat16
SUMS = 2**-24 * 128 * 12  # sums of at most 128 products in another order, in 12 layers that follow one another


def held(base: Base, machine: Machine | None = None, dtype: str = "bfloat16") -> Base:
    """The base with its weights in half precision."""
    return load_base(base.config.model_copy(update={"weights_dtype": dtype}), machine)


def twin(base: Base, machine: Machine | None = None, dtype: torch.dtype = HELD) -> Base:
    """The base in float32, with every weight rounded."""
    made = load_base(base.config, machine)
    for parameter in made.backbone.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return made


def answers(base: Base, case: Case, adapter: Adapter | None = None) -> Predictions:
    with answering(adapter, base, same_base=True) as model_of:
        return predict(model_of(case.task), case.task.splits["test"], 4)


def features(base: Base, case: Case) -> torch.Tensor:
    """What the readout reads of the backbone, before a head that may be zero."""
    model = TaskModel(base.backbone, case.task, base).eval()
    batch = case.task.splits["test"].batches(8, model.collator)[0][1]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return model.readout.features(model.backbone, inputs, batch.get("labels"))


def same(a: Predictions, b: Predictions, bound: float = 0) -> None:
    assert a.plain == b.plain
    np.testing.assert_allclose(a.losses, b.losses, rtol=bound, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_rounded_twin(families, kind):
    case = families[kind]
    base, other = held(case.base), twin(case.base)
    kept = {p.dtype for n, p in base.backbone.named_parameters() if p.ndim > 1}
    assert kept == {HELD}
    assert {p.dtype for p in base.backbone.parameters() if p.ndim < 2} <= {torch.float32}
    same(answers(base, case), answers(other, case))
    found, expected, exact = (features(b, case) for b in (base, other, case.base))
    assert torch.equal(found, expected)
    assert not torch.equal(found, exact)  # the weights were rounded


@pytest.mark.parametrize("mode", ["lora", "l-lora", "l-lora-moved", "tangent", "tangent-moved", "full-tangent"])
@pytest.mark.parametrize("kind", ["language", "text"])
def test_training_is_that_of_the_rounded_twin(families, kind, mode):
    case = families[kind]
    base, other = held(case.base), twin(case.base)
    before = base.fingerprint
    adapter, expected = (tangora.finetune(b, case.task, case.config(mode), progress=False) for b in (base, other))
    assert {u.dense().dtype for u in adapter.updates.values()} == {torch.float32}
    for site, update in expected.updates.items():
        torch.testing.assert_close(adapter.updates[site].dense(), update.dense(), rtol=0, atol=0)
    same(answers(base, case, adapter), answers(other, case, adapter), SUMS)
    assert tangora.tasks.base.weights_fingerprint(base.backbone) == before


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["image", "language"])
def test_any_adapter_is_scored_as_on_the_rounded_twin(families, kind, compute):
    case, machine = families[kind], Machine(dtype=compute)
    base, other = held(case.base, machine), twin(case.base, machine)
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for name, module in other.backbone.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            b, a = (
                torch.randn(s, generator=generator) / 8 for s in ((module.out_features, 3), (3, module.in_features))
            )
            updates[name] = Dense(b @ a) if len(updates) % 2 else LowRank(b, a, 0.5)
    before = base.fingerprint
    found, expected = answers(base, case, Adapter(updates)), answers(other, case, Adapter(updates))
    # in bfloat16, W + ΔW is rounded once in the twin, and W x and ΔW x beside each other are rounded apart
    bound = SUMS if compute == "float32" else 2**-8 * 12
    np.testing.assert_allclose(found.losses, expected.losses, rtol=bound, atol=bound)
    assert not np.allclose(found.losses, answers(base, case).losses, rtol=bound, atol=bound)
    assert tangora.tasks.base.weights_fingerprint(base.backbone) == before


def test_embeddings_and_whole_parameters_are_adapted_too(families):
    case = families["text"]
    base, other = held(case.base), twin(case.base)
    name = "embeddings.word_embeddings"
    rows, width = other.backbone.get_submodule(name).weight.shape
    generator = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(width, 2, generator=generator), torch.randn(2, rows, generator=generator))
    whole = {"encoder.layer.0.output.dense.weight": torch.randn(32, 64, generator=generator)}
    adapter = Adapter({name: update}, whole=whole)
    same(answers(base, case, adapter), answers(other, case, adapter), SUMS)
    assert answers(base, case, adapter).losses.tolist() != answers(base, case).losses.tolist()
    assert {p.dtype for p in base.backbone.parameters() if p.ndim > 1} == {HELD}


def test_a_training_keeps_no_float32_weights():
    model = hold_(torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 32)), HELD).requires_grad_(False)
    kept: list[torch.Tensor] = []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        loss = model(x).square().sum()
    assert {t.dtype for t in kept if t.numel() > 2 * 64} == {HELD}
    (found,) = torch.autograd.grad(loss, x)
    (expected,) = torch.autograd.grad(hold_(model, torch.float32)(x).square().sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_decoders_of_every_class_equal_the_rounded_twin(kind):
    model = copy.deepcopy(decoder(kind)).float()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data = parameter.data.to(HELD).float() if parameter.ndim > 1 else parameter.data
    assert hold_(model, HELD) is model
    assert {p.dtype for p in model.parameters() if p.ndim > 1} == {HELD}
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, other(**batch()).logits)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(**batch()).logits, other(**batch()).logits)


def test_a_scalar_of_gemma_keeps_its_value(tmp_path):
    """Gemma 3 scales embeddings by √width, which is no weight, so that nothing may round it."""
    name, settings = DECODERS["gemma3"]
    tokenizer = tiny.decoder_tokenizer()
    kind, config = (getattr(transformers, f"{name}{end}") for end in ("ForCausalLM", "TextConfig"))
    kind(config(**{**settings, "vocab_size": len(tokenizer)})).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base = tangora.load_base(tmp_path, family="causal-lm", weights_dtype="bfloat16", max_length=32)
    twin = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for parameter in twin.parameters():
        parameter.data = parameter.data.bfloat16().float()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(base.backbone(input_ids=ids).logits, twin(input_ids=ids).logits)


def test_a_checkpoint_in_bfloat16_has_one_fingerprint(tiny_llama, families, tmp_path):
    base = families["language"].base
    rounded = twin(base).backbone.to(HELD)
    shutil.copytree(tiny_llama, tmp_path / "half")
    rounded.save_pretrained(tmp_path / "half")
    config = base.config.model_copy(update={"model": str(tmp_path / "half")})
    wide, narrow = (load_base(config.model_copy(update={"weights_dtype": name})) for name in ("float32", "bfloat16"))
    assert wide.fingerprint == narrow.fingerprint != base.fingerprint
    assert wide.identity == wide.fingerprint != narrow.identity  # of results


def test_scores_have_keys_by_the_dtypes(families):
    case = families["text"]
    keys = set()
    for base in (
        case.base,
        held(case.base),
        held(case.base, dtype="float16"),
        held(case.base, Machine(dtype="bfloat16")),
    ):
        store = ScoreStore()
        Evaluator(base, [case.task], store=store).evaluate("zero_shot", lambda: None, [case.task.name], "test")
        keys |= set(store)
    assert len(keys) == 4


def test_an_adapter_records_the_form_of_the_weights_and_names_it(families, caplog):
    case = families["text"]
    base = held(case.base)
    adapter = tangora.finetune(base, case.task, case.config("lora", steps=1), progress=False)
    assert adapter.metadata.base.weights == "bfloat16"
    with pytest.raises(ModelError, match=r"trained on weights in bfloat16.*got 'float32'.*same_base=True"):
        tangora.evaluate(adapter, case.base, [case.task])
    with caplog.at_level("WARNING", "tangora"):
        tangora.evaluate(adapter, case.base, [case.task], same_base=True)
        tangora.evaluate(adapter, base, [case.task])
    warnings = [line for line in caplog.messages if "was trained on weights" in line]
    assert warnings == ["the adapter was trained on weights in bfloat16, and is scored on others, in float32"]


def test_a_saved_adapter_loads_its_base_in_the_same_dtype(families, tmp_path):
    case = families["text"]
    base = held(case.base)
    adapter = tangora.finetune(base, case.task, case.config("l-lora"), out=tmp_path / "adapter", progress=False)
    predict_rows = tangora.predictor(tmp_path / "adapter")
    expected = tangora.predict(adapter, base, case.task, case.rows[:4])
    assert predict_rows(case.rows[:4]).answers == expected.answers
    network = tangora.load_model(tmp_path / "adapter")
    assert {p.dtype for n, p in network.named_parameters() if "lora_" not in n and p.ndim > 1} == {HELD}
    assert {p.dtype for n, p in network.named_parameters() if "lora_" in n} == {torch.float32}
    batch = {"input_ids": torch.tensor([[2, 5, 7, 3]])}
    with torch.no_grad():
        answer = network(**batch).last_hidden_state
        assert torch.equal(copy.deepcopy(network)(**batch).last_hidden_state, answer)
    with pytest.raises(ModelError, match=r"take no update at merge\. Load the base in float32"):
        network.merge_and_unload()


def test_what_trains_or_changes_held_weights_is_refused(families):
    case = families["text"]
    base = held(case.base)
    with pytest.raises(ModelError, match=r"mode full needs the base's weights in float32.*got 'bfloat16' at base\."):
        tangora.finetune(base, case.task, case.config("full"), progress=False)
    adapter = tangora.finetune(base, case.task, case.config("lora", steps=1), progress=False)
    with pytest.raises(
        ModelError, match=r"held in another dtype.*weight\. Load the base with base\.weights_dtype: float32"
    ):
        adapter.apply_(base.backbone)


def test_a_table_that_the_dtype_would_round_is_refused(families, monkeypatch):
    class Sines(BertModel):
        def __init__(self, config, **more):
            super().__init__(config, **more)
            self.register_buffer("sines", torch.ones(4).sin(), persistent=False)

    config = families["text"].base.config
    assert pretrained(Sines, config).sines.dtype == torch.float32
    with pytest.raises(ModelError, match=r"computes a table.*sines.*base\.weights_dtype: float32"):
        pretrained(Sines, config.model_copy(update={"weights_dtype": "bfloat16"}))


def test_searches_and_statistics_compute_with_the_float32_values(families):
    case = families["text"]
    base, other = held(case.base), twin(case.base)
    adapter = tangora.finetune(other, case.task, case.config("l-lora-moved"), progress=False)
    name = case.task.name
    losses = []
    for one in (base, other):
        logits = ForwardLogits(one, [case.task], "test", {name: adapter})
        c = torch.tensor([0.7], requires_grad=True)
        total = sum(part[name].logits.square().sum() for part in logits(c, {name: range(8)}))
        losses.append((total.detach(), *torch.autograd.grad(total, c)))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])
    plain = Adapter(adapter.updates)
    found, expected = (
        tangora.collect_statistics(b, case.task, plain, kinds=["gram", "fisher"], rows=6) for b in (base, other)
    )
    assert found.tensors.keys() == expected.tensors.keys() != set()
    for key, tensor in found.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[key], rtol=SUMS, atol=SUMS * float(tensor.abs().max()))
