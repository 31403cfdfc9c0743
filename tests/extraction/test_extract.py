"""`extract` against what it is by definition: the base, plus the best approximation of each weight's change.

Checkpoints are float32, their differences have a relative error of 6e-8, and so have the factors. All else is computed
in float64, so that 1e-5 is far above rounding, and far below the 1e-2 that leaving out anything makes.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tuned_models import KINDS, NOT_HELD, best, both, load, logits, model_of, tune_

import tangora
from tangora.errors import ArgumentError, FileError, FusionError, OutputError, TangoraError
from tangora.storage.checkpoint import open_checkpoint

RANK = 3
LINEAR = ("Linear", "Conv1D", "Conv2d")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Kind -> tuned model and base on disk, made when they are first needed."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            made[kind] = both(tmp_path_factory.mktemp(kind.replace(" ", "")), kind)
        return made[kind]

    return get


def adapted_weights(model: nn.Module, adapter: tangora.Adapter) -> dict[str, bool]:
    """The weights at the adapter's sites, and whether each is stored as the transpose."""
    return {
        f"{name}.weight": type(module).__name__ in ("Conv1D", "Embedding")
        for name, module in model.named_modules()
        if name in adapter.updates
    }


def expected(tuned: Path, base: Path, kind: str, adapter: tangora.Adapter, rank: int) -> tuple[nn.Module, float]:
    """The tuned model with the best approximations at the sites, and the relative error over these."""
    new, old = load(tuned, kind), load(base, kind)
    before = dict(old.named_parameters())
    lost = total = 0.0
    with torch.no_grad():
        for name, turned in adapted_weights(new, adapter).items():
            weight = new.get_parameter(name)
            change = (weight - before[name]).flatten(1) if name in before else weight.flatten(1)
            kept = best(change.T, rank).T if turned else best(change, rank)
            lost += float((change - kept).square().sum())
            total += float(change.square().sum())
            weight.copy_(before[name] + kept.reshape(weight.shape))
    return new, math.sqrt(lost / total)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_stock_peft_computes_the_base_and_the_best_approximation(tmp_path, models, kind):
    tuned, base = models(kind)
    adapter = tangora.extract(tuned, base, tmp_path / "out", rank=RANK, leave_out=NOT_HELD.get(kind, ()))
    info = adapter.metadata.extracted
    reference, error = expected(tuned, base, kind, adapter, RANK)
    assert info.error == pytest.approx(error, abs=1e-6)
    assert info.left_out == {}  # what is named did not change
    wrapped = peft.PeftModel.from_pretrained(load(base, kind), tmp_path / "out").eval().double()
    torch.testing.assert_close(logits(wrapped), logits(reference), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(wrapped), logits(load(base, kind)), atol=1e-3)
    torch.testing.assert_close(logits(wrapped.merge_and_unload()), logits(reference), rtol=1e-5, atol=1e-5)
    layers = {name for name, module in reference.named_modules() if type(module).__name__ in LINEAR}
    assert layers - adapter.updates.keys() <= {
        name for name in layers if any(name == w or name.startswith(f"{w}.") for w in info.whole)
    }


@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta"])
def test_there_and_back(tmp_path, models, kind):
    """A checkpoint to a LoRA of full rank and back: the weights differ by the rounding of the factors."""
    tuned, base = models(kind)
    tangora.extract(tuned, base, tmp_path / "adapter", rank=64)
    tangora.fuse_checkpoints(base, [tmp_path / "adapter"], tmp_path / "back", weights=1.0)
    torch.testing.assert_close(logits(load(tmp_path / "back", kind)), logits(load(tuned, kind)), rtol=1e-5, atol=1e-5)


def test_a_merged_lora_is_found_again(tmp_path, models):
    """What `tangora merge` made of an adapter of rank 2 has changes of rank 2, up to the rounding of its weights."""
    tuned, base = models("llama")
    tangora.extract(tuned, base, tmp_path / "a", rank=2, leave_out=["*norm*", "*embed*", "lm_head*"])
    tangora.fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "merged", weights=1.0)
    found = tangora.extract(tmp_path / "merged", base, error=1e-4).updates
    before = tangora.load(tmp_path / "a").updates
    assert found.keys() == before.keys()
    for site, update in found.items():
        assert update.rank == 2
        # A weight of under 1 is rounded by 6e-8, its change of about 0.01 by 1e-5 of itself.
        torch.testing.assert_close(update.dense(), before[site].dense(), rtol=0, atol=1e-6)


def test_auto_is_the_least_rank_under_the_bound(models):
    tuned, base = models("llama")
    adapter = tangora.extract(tuned, base, rank="auto", error=0.2)
    info = adapter.metadata.extracted
    new, old = (load(folder, "llama").state_dict() for folder in (tuned, base))
    assert len({update.rank for update in adapter.updates.values()}) > 1
    for site, update in adapter.updates.items():
        change = new[f"{site}.weight"] - old[f"{site}.weight"]
        errors = [float((change - best(change, rank)).norm() / change.norm()) for rank in range(17)]
        assert update.rank == next(rank for rank, error in enumerate(errors) if error <= 0.2)
        assert info.site_errors[site] == pytest.approx(errors[update.rank], abs=1e-6)
    assert info.bound == 0.2


def test_a_budget_goes_where_it_keeps_most(models):
    tuned, base = models("llama")
    whole = tangora.extract(tuned, base, error=0.05)
    size = 4 * sum(u.rank * sum(u.shape) for u in whole.updates.values())
    some = tangora.extract(tuned, base, error=0.05, budget=size // 2)
    taken = 4 * sum(u.rank * sum(u.shape) for u in some.updates.values())
    assert size // 2 - 4 * 80 < taken <= size // 2
    # No exchange of one rank for another of the same cost would have kept more.
    new, old = (load(folder, "llama").state_dict() for folder in (tuned, base))
    values = {s: torch.linalg.svdvals(new[f"{s}.weight"] - old[f"{s}.weight"]) for s in some.updates}
    gains = {s: (values[s].square() / sum(u.shape), u.rank) for s, u in some.updates.items()}
    least = min(float(gain[rank - 1]) for gain, rank in gains.values() if rank > 1)
    cheap = [s for s, u in some.updates.items() if sum(u.shape) == 32]
    assert all(float(gains[s][0][gains[s][1]]) <= least * (1 + 1e-6) for s in cheap)
    even = max(r for r in range(1, 17) if 4 * r * sum(sum(u.shape) for u in some.updates.values()) <= size // 2)
    assert some.metadata.extracted.error < tangora.extract(tuned, base, rank=even).metadata.extracted.error
    assert tangora.extract(tuned, base, error=0.05, budget="1GB").fingerprint == whole.fingerprint
    with pytest.raises(ArgumentError, match="one rank for every site takes more"):
        tangora.extract(tuned, base, budget=100)


def test_what_is_left_out_is_counted(tmp_path, models):
    tuned, base = models("gpt2")
    new, old = (dict(load(folder, "gpt2").named_parameters()) for folder in (tuned, base))
    squares = {name: float((new[name] - old[name]).square().sum()) for name in new}
    patterns = ["*ln_*", "*wte*", "*wpe*", "*.bias"]
    info = tangora.extract(tuned, base, rank=64, leave_out=patterns).metadata.extracted
    total = sum(squares.values())
    sites = {name for name in squares if name.removesuffix(".weight") in info.site_errors}
    assert info.left_out.keys() == squares.keys() - sites
    for name, share in info.left_out.items():
        assert share == pytest.approx(squares[name] / total, rel=1e-6)
    assert info.total_error == pytest.approx(math.sqrt(sum(info.left_out.values())), rel=1e-5)
    assert info.whole == []
    with pytest.raises(ArgumentError, match="matches no parameter"):
        tangora.extract(tuned, base, leave_out=["wet"])


def test_embeddings_as_factors(tmp_path, models):
    tuned, base = models("llama")
    adapter = tangora.extract(tuned, base, tmp_path / "out", rank=RANK, embeddings="lora")
    assert adapter.embeddings == {"model.embed_tokens"}
    assert "lm_head" in adapter.updates
    reference, error = expected(tuned, base, "llama", adapter, RANK)
    assert adapter.metadata.extracted.error == pytest.approx(error, abs=1e-6)
    wrapped = peft.PeftModel.from_pretrained(load(base, "llama"), tmp_path / "out").eval().double()
    torch.testing.assert_close(logits(wrapped), logits(reference), rtol=1e-5, atol=1e-5)
    for kind in ("gpt2", "t5", "tied llama"):
        with pytest.raises(ArgumentError, match="tied"):
            tangora.extract(*models(kind), embeddings="lora")
    with pytest.raises(ArgumentError, match="whole or lora"):
        tangora.extract(tuned, base, embeddings="none")


def test_biases_beside_factors_of_embeddings_are_saved_whole(tmp_path, models):
    """peft has no changes of biases beside them: the tuned values are in the file, and loaded."""
    tuned, base = models("bert")
    adapter = tangora.extract(tuned, base, tmp_path / "out", rank=RANK, embeddings="lora")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["bias"] == "all"
    reference, _ = expected(tuned, base, "bert", adapter, RANK)
    wrapped = peft.PeftModel.from_pretrained(load(base, "bert"), tmp_path / "out").eval().double()
    torch.testing.assert_close(logits(wrapped), logits(reference), rtol=1e-5, atol=1e-5)


def test_a_head_that_the_base_lacks_is_saved_whole(tmp_path):
    model = model_of("bert")
    model.bert.save_pretrained(tmp_path / "base")
    tune_(model).save_pretrained(tmp_path / "tuned")
    adapter = tangora.extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "out", rank=64)
    assert "classifier" in adapter.metadata.extracted.whole
    assert adapter.config["task_type"] == "SEQ_CLS"
    torch.manual_seed(5)  # a head that is drawn must not matter
    start = type(model).from_pretrained(tmp_path / "base", num_labels=3)
    wrapped = peft.PeftModel.from_pretrained(start, tmp_path / "out").eval().double()
    torch.testing.assert_close(logits(wrapped), logits(load(tmp_path / "tuned", "bert")), rtol=1e-5, atol=1e-5)


def test_added_tokens(tmp_path, models):
    """Embedding and head are saved whole; a base of as many rows loads them."""
    _, base = models("llama")
    model = load(base, "llama").float()
    model.resize_token_embeddings(43)
    tune_(model).save_pretrained(tmp_path / "tuned")
    adapter = tangora.extract(tmp_path / "tuned", base, tmp_path / "out", rank=64, embeddings="lora")
    assert {"model.embed_tokens", "lm_head"} <= set(adapter.metadata.extracted.whole)
    start = load(base, "llama")
    start.resize_token_embeddings(43)
    wrapped = peft.PeftModel.from_pretrained(start, tmp_path / "out").eval().double()
    torch.testing.assert_close(logits(wrapped), logits(load(tmp_path / "tuned", "llama")), rtol=1e-5, atol=1e-5)
    with pytest.raises(FusionError, match="the shapes differ"):
        tangora.extract(base, tmp_path / "tuned")


def shards(folder: Path, out: Path) -> Path:
    """The same checkpoint in three files."""
    out.mkdir()
    shutil.copy(folder / "config.json", out)
    weights, table = load_file(folder / "model.safetensors"), {}
    for i in range(3):
        name = f"model-{i + 1:05}-of-00003.safetensors"
        part = {key: weights[key] for key in sorted(weights)[i::3]}
        save_file(part, out / name, metadata={"format": "pt"})
        table |= dict.fromkeys(part, name)
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return out


def test_shards_change_nothing(tmp_path, models):
    tuned, base = models("llama")
    one = tangora.extract(tuned, base, rank=2)
    other = tangora.extract(shards(tuned, tmp_path / "s"), shards(base, tmp_path / "b"), rank=2)
    assert one.fingerprint == other.fingerprint


def cast(folder: Path, out: Path, dtype: torch.dtype) -> Path:
    """The same checkpoint in a dtype, with norms of 1: of few entries, no mean is known."""
    shutil.copytree(folder, out)
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    weights |= {name: torch.ones_like(value) for name, value in weights.items() if "norm" in name}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_the_rounding_of_a_checkpoint_is_estimated(tmp_path, models):
    """Of a model that was tuned in float32 and rounded to bfloat16, the change that was lost is known here."""
    tuned, base = models("llama")
    half = [cast(folder, tmp_path / folder.name, torch.bfloat16) for folder in (tuned, base)]
    info = tangora.extract(*half, rank=1).metadata.extracted
    new, old = (load_file(folder / "model.safetensors") for folder in half)
    exact = load_file(tuned / "model.safetensors")
    names = [n for n in new if not torch.equal(new[n], old[n])]
    square = sum(float((new[n].double() - old[n].double()).square().sum()) for n in names)
    lost = sum(float(((new[n].double() - exact[n].double()) * (new[n] != old[n])).square().sum()) for n in names)
    # The mean of 10,000 squares of uniform numbers has a relative deviation of 1 %.
    assert info.rounding == pytest.approx(math.sqrt(lost / square), rel=0.05)
    assert tangora.extract(tuned, base, rank=1).metadata.extracted.rounding < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_the_file(tmp_path, models, dtype):
    tuned, base = models("gpt2")
    adapter = tangora.extract(tuned, base, tmp_path / "out", rank=64, dtype=dtype)
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    eps = torch.finfo(getattr(torch, dtype)).eps
    info = adapter.metadata.extracted
    assert eps / 8 < info.error < 2 * eps
    with pytest.raises(ArgumentError, match="no rank has so small an error"):
        tangora.extract(tuned, base, error=1e-6, dtype=dtype)
    with pytest.raises(ArgumentError, match="no dtype of an adapter"):
        tangora.extract(tuned, base, dtype="int8")


def test_only_biases_changed_beside_one_layer(tmp_path, models):
    _, base = models("gpt2")
    model = load(base, "gpt2").float()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias += 0.1
        model.transformer.h[1].mlp.c_proj.weight += 0.1
    model.save_pretrained(tmp_path / "tuned")
    adapter = tangora.extract(tmp_path / "tuned", base, tmp_path / "out", rank=1)
    assert sorted(adapter.updates) == [
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_fc.bias",
        "transformer.h.1.mlp.c_proj",
    ]
    wrapped = peft.PeftModel.from_pretrained(load(base, "gpt2"), tmp_path / "out").eval().double()
    torch.testing.assert_close(logits(wrapped), logits(load(tmp_path / "tuned", "gpt2")), rtol=1e-5, atol=1e-5)


def edited(folder: Path, out: Path, **config) -> Path:
    shutil.copytree(folder, out)
    text = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({k: v for k, v in {**text, **config}.items() if v is not None}))
    return out


def test_refusals(tmp_path, models):
    tuned, base = models("llama")
    out = tmp_path / "out"

    def refused(kind: type[TangoraError], words: str, *folders: Path, **options) -> None:
        with pytest.raises(kind, match=words):
            tangora.extract(*folders, out, **options)
        assert not out.exists()

    rope = {"rope_type": "default", "rope_theta": 5e5}
    refused(FusionError, "nothing changed", tuned, tuned)
    refused(FusionError, "another architecture.*model_type", tuned, models("gpt2")[1])
    refused(FusionError, "another architecture: rope", edited(tuned, tmp_path / "rope", rope_parameters=rope), base)
    refused(FusionError, "class of the tuned model", edited(tuned, tmp_path / "any", architectures=None), base)
    refused(FusionError, "other layers", tuned, edited(base, tmp_path / "deep", num_hidden_layers=3))
    quantized = edited(base, tmp_path / "q", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(FileError, "is quantized", tuned, quantized)
    refused(FileError, "no such folder", tuned, tmp_path / "nowhere")
    refused(ArgumentError, "rank must be auto", tuned, base, rank=0)
    refused(ArgumentError, "between 0.000001 and 1", tuned, base, error=2)
    refused(ArgumentError, "a rank and a budget", tuned, base, rank=3, budget="1MB")
    refused(ArgumentError, "not a size", tuned, base, budget="much")
    tuned_vit, base_vit = models("vit")
    weights = load_file(tuned_vit / "model.safetensors")
    weights["vit.embeddings.cls_token"] += 1
    shutil.copytree(tuned_vit, tmp_path / "vit")
    save_file(weights, tmp_path / "vit/model.safetensors", metadata={"format": "pt"})
    refused(FusionError, "belongs to no layer.*cls_token.*--leave-out", tmp_path / "vit", base_vit)
    with pytest.raises(OutputError):
        tangora.extract(tuned, base, base, overwrite=True)
    bad = load_file(tuned / "model.safetensors")
    bad["model.layers.0.mlp.up_proj.weight"][0, 0] = math.nan
    shutil.copytree(tuned, tmp_path / "nan")
    save_file(bad, tmp_path / "nan/model.safetensors", metadata={"format": "pt"})
    refused(FileError, "NaN or infinite", tmp_path / "nan", base)


def test_a_file_with_another_error_is_not_published(tmp_path, models, monkeypatch):
    from tangora.adapters.formats.lora import format as lora

    write = lora.write_tensors

    def wrong(*arguments):
        tensors = write(*arguments)
        name = next(n for n in tensors if "up_proj.lora_B" in n)
        tensors[name][0, 0] += 1e-3
        return tensors

    monkeypatch.setattr(lora, "write_tensors", wrong)
    tuned, base = models("llama")
    with pytest.raises(TangoraError, match="is stated"):
        tangora.extract(tuned, base, tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


def test_the_record_and_the_card(tmp_path, models):
    tuned, base = models("gpt2")
    made = tangora.extract(tuned, base, tmp_path / "out", rank=2, leave_out=["*wpe*"])
    read = tangora.load(tmp_path / "out").metadata.extracted
    assert read == made.metadata.extracted
    assert read.fingerprint == open_checkpoint(tuned).fingerprint
    card = (tmp_path / "out/README.md").read_text()
    for words in ("## How it was extracted", "of the change", "wpe", f"{read.error:.3g}"):
        assert words in card
