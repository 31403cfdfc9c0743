"""Adapters for servers that read peft's folders: the same logits, their rules, and refusals that write nothing."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from servable import KINDS, adapter_of, logits
from transformers import AutoModel
from typer.testing import CliRunner

import tangora
from tangora.adapters.adapter import Adapter
from tangora.cli import app
from tangora.errors import AdapterError, ArgumentError, FileError, OutputError
from tangora.serving.exporting import TARGETS
from tangora.updates.task_vector import Dense, LowRank

# B times a scaling that is not a power of two rounds once to float32 (2⁻²⁴ of each entry); the rest is float64. The
# logits of these networks follow their weights with a condition far below 100.
SAME = 100 * 2**-24


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).norm()) <= SAME * float(other.norm())


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    ("kind", "to"),
    [("gemma", "vllm"), ("gpt2", "peft"), ("llama", "tgi"), ("llama", "vllm"), ("phi3", "vllm"), ("qwen2", "vllm")],
)
def test_the_folder_gives_the_logits_of_the_adapter(kind, to, bases, adapters, tmp_path):
    exported = tangora.export(adapters[kind], to, tmp_path / "out", base=bases[kind])
    expected = logits(bases[kind], adapters[kind])
    assert same(logits(bases[kind], tmp_path / "out"), expected)
    assert not same(logits(bases[kind], None), expected)
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"] / config["r"], config["use_rslora"]) == (4, exported.scaling, False)
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    named = config_of(adapters[kind])["base_model_name_or_path"]
    assert config["base_model_name_or_path"] == named, "stock peft finds the base by it"
    shapes = {name: tuple(t.shape) for name, t in load_file(tmp_path / "out" / "adapter_model.safetensors").items()}
    assert all(shape["lora_A" not in name] == 4 for name, shape in shapes.items())
    assert exported.difference <= SAME


def test_three_adapters_fused_are_served_as_one(bases, tmp_path):
    base = bases["llama"]
    parts = [adapter_of("llama", base, tmp_path / f"part{seed}", seed, r=2 + seed) for seed in range(3)]
    fused = tangora.fuse(parts, weights=[0.5, -0.25, 0.75])
    fused.save(tmp_path / "fused")
    exported = tangora.export(fused, "vllm", tmp_path / "out", base=base)
    assert exported.rank == max(update.factors().rank for update in fused.updates.values())
    assert same(logits(base, tmp_path / "out"), logits(base, tmp_path / "fused"))
    read = tangora.load(tmp_path / "out")
    for site in fused.updates:
        total = sum(
            weight * update.factors().scaling * update.factors().b.double() @ update.factors().a.double()
            for weight, update in zip((0.5, -0.25, 0.75), (tangora.load(p).updates[site] for p in parts), strict=True)
        )
        assert float((read.updates[site].dense().double() - total).norm()) <= SAME * float(total.norm())


def test_an_adapter_of_the_bare_model_gets_the_names_of_the_served_class(bases, tmp_path):
    from peft import LoraConfig

    import toys

    bare = toys.trained(AutoModel.from_pretrained(bases["llama"]), LoraConfig(r=2, target_modules=["q_proj"]))
    bare.save_pretrained(tmp_path / "bare")
    with_head = adapter_of("llama", bases["llama"], tmp_path / "model", target_modules=["q_proj"], r=2, rank_pattern={})
    tangora.export(tmp_path / "bare", "vllm", tmp_path / "out", base=bases["llama"])
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert names == load_file(with_head / "adapter_model.safetensors").keys()
    bare.get_base_model().double()
    assert not same(logits(bases["llama"], tmp_path / "out"), logits(bases["llama"], None))


def test_tgi_gets_every_layer_of_a_kind(bases, tmp_path):
    some = adapter_of("llama", bases["llama"], tmp_path / "some", target_modules=["q_proj"], layers_to_transform=[1])
    exported = tangora.export(some, "tgi", tmp_path / "out", base=bases["llama"])
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name.split(".")[4] for name in tensors} == {"0", "1"}
    assert not any(t.any() for name, t in tensors.items() if ".layers.0." in name and "lora_B" in name)
    assert any("1 that the adapter does not change" in note for note in exported.notes)
    assert same(logits(bases["llama"], tmp_path / "out"), logits(bases["llama"], some))


def test_embeddings_of_the_base_that_peft_saves_along_are_left_out(bases, tmp_path):
    targets = ["q_proj", "embed_tokens", "lm_head"]
    adapter = adapter_of("llama", bases["llama"], tmp_path / "a", target_modules=targets)
    assert any("base_layer" in name for name in load_file(adapter / "adapter_model.safetensors"))
    exported = tangora.export(adapter, "vllm", tmp_path / "out", base=bases["llama"])
    assert not any("base_layer" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert any("the base's own" in note for note in exported.notes)
    assert same(logits(bases["llama"], tmp_path / "out"), logits(bases["llama"], adapter))
    changed = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in changed if name.endswith("embed_tokens.base_layer.weight"))
    changed[name][0, 0] += 1.0
    save_file(changed, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"saved whole.*tangora merge"):
        tangora.export(adapter, "vllm", tmp_path / "not", base=bases["llama"])


def low_rank(rank=2, rows=16, columns=16):
    torch.manual_seed(rank)
    return LowRank(torch.randn(rows, rank), torch.randn(rank, columns), 0.5)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("to", "updates", "words"),
    [
        ("tgi", {"model.embed_tokens": low_rank(2, 16, 24)}, "TGI changes the layers"),
        ("vllm", {Q: low_rank(16), f"{Q}.bias": Dense(torch.ones(16))}, "not a change of a bias"),
        ("vllm", {Q: low_rank(2, 12)}, r"is \(16, 16\), the update \(12, 16\)"),
        ("vllm", {f"{Q}[0]": low_rank()}, "not a parameter with experts"),
        ("vllm", {"model.layers.0.self_attn.c_attn": low_rank()}, "LlamaForCausalLM has no such layer"),
        ("vllm", {}, "changes nothing"),
    ],
)
def test_what_a_server_would_not_compute_is_refused(to, updates, words, bases, tmp_path):
    adapter = Adapter(updates).with_details(embeddings=frozenset(s for s in updates if "embed" in s))
    with pytest.raises(AdapterError, match=words):
        tangora.export(adapter, to, tmp_path / "out", base=bases["llama"])
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_vllm(bases, tmp_path):
    for rank, most in ((1, 1), (9, 16), (320, 320), (321, 512)):
        exported = tangora.export(Adapter({Q: low_rank(rank)}), "vllm", tmp_path / f"{rank}", base=bases["llama"])
        assert f"--max-lora-rank {most} " in exported.start[0]
    with pytest.raises(AdapterError, match=r"ranks up to 512, got 513.*tangora fuse ADAPTER --weights 1 --rank 512"):
        tangora.export(Adapter({Q: low_rank(513)}), "vllm", tmp_path / "513", base=bases["llama"])


@pytest.mark.parametrize(("kind", "to"), [("gpt2", "tgi"), ("gpt2", "vllm"), ("phi3", "tgi")])
def test_classes_that_a_server_does_not_adapt(kind, to, bases, adapters, tmp_path):
    with pytest.raises(AdapterError, match="tangora merge ADAPTER --base BASE"):
        tangora.export(adapters[kind], to, tmp_path / "out", base=bases[kind])
    assert not (tmp_path / "out").exists()


def test_vllm_adapts_embeddings_in_some_classes_only(bases, tmp_path):
    adapter = adapter_of("qwen2", bases["qwen2"], tmp_path / "a", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(AdapterError, match=r"in Qwen2ForCausalLM.*linear layers.*embed_tokens"):
        tangora.export(adapter, "vllm", tmp_path / "out", base=bases["qwen2"])


def test_dora_heads_and_full_adapters_are_refused(bases, tmp_path):
    from tangora.adapters.metadata import Metadata

    dora = adapter_of("llama", bases["llama"], tmp_path / "dora", use_dora=True, rank_pattern={}, alpha_pattern={})
    with pytest.raises(AdapterError, match=r"DoRA.*tangora merge"):
        tangora.export(dora, "vllm", tmp_path / "out", base=bases["llama"])
    headed = Adapter({Q: low_rank()}, heads={"sst2": {"weight": torch.ones(2, 16)}})
    with pytest.raises(AdapterError, match=r"no heads of tasks.*sst2.*tangora predict"):
        tangora.export(headed, "vllm", tmp_path / "out", base=bases["llama"])
    full = Adapter({f"{Q}.weight": Dense(torch.ones(16, 16))}, Metadata(kind="full"))
    with pytest.raises(AdapterError, match=r"vllm reads low-rank adapters.*tangora merge"):
        tangora.export(full, "vllm", tmp_path / "out", base=bases["llama"])
    assert not (tmp_path / "out").exists()


def test_a_dense_update_is_served_as_its_factors(bases, tmp_path):
    update = low_rank(3)
    exported = tangora.export(Adapter({Q: Dense(update.dense())}), "vllm", tmp_path / "out", base=bases["llama"])
    assert exported.rank == 3
    read = tangora.load(tmp_path / "out").updates[Q].dense()
    assert float((read - update.dense()).norm()) <= 64 * 2**-23 * update.norm()  # the SVD of a matrix of 16 × 16


def test_an_adapter_of_another_kind_is_served_as_lora(bases, tmp_path):
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(bases["llama"])
    model = peft.get_peft_model(base, peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "hada_" in name:
            parameter.data.normal_(0.0, 0.3)
    model.save_pretrained(tmp_path / "loha")
    exported = tangora.export(tmp_path / "loha", "vllm", tmp_path / "out", base=bases["llama"])
    assert exported.rank == 4  # the product, entry by entry, of two matrices of rank 2
    assert same(logits(bases["llama"], tmp_path / "out"), logits(bases["llama"], tmp_path / "loha"))


def test_one_classifier_is_served_and_no_other_whole_parameter(bases, tmp_path):
    details = {"config": {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}}
    one = Adapter({Q: low_rank()}, whole={"score.weight": torch.ones(2, 16)}).with_details(**details)
    exported = tangora.export(one, "vllm", tmp_path / "out", base=bases["llama"])
    assert any("--runner pooling" in note for note in exported.notes)
    assert "base_model.model.score.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="TGI reads no parameters that are saved whole"):
        tangora.export(one, "tgi", tmp_path / "not", base=bases["llama"])
    norm = Adapter({Q: low_rank()}, whole={"model.norm.weight": torch.ones(16)})
    with pytest.raises(AdapterError, match=r"vLLM reads no parameters.*model.norm.weight"):
        tangora.export(norm, "vllm", tmp_path / "not", base=bases["llama"])


def test_arguments_that_are_refused(bases, adapters, tmp_path):
    adapter, base = adapters["llama"], bases["llama"]
    with pytest.raises(ArgumentError, match=r"no such target, got 'sglang'"):
        tangora.export(adapter, "sglang", tmp_path / "out", base=base)
    with pytest.raises(ArgumentError, match="no dtype of an adapter"):
        tangora.export(adapter, "vllm", tmp_path / "out", base=base, dtype="int8")
    with pytest.raises(ArgumentError, match="command line cannot hold"):
        tangora.export(adapter, "vllm", tmp_path / "out", base=base, name="a=b")
    with pytest.raises(FileError, match=r"no config.json of the base.*hf download"):
        tangora.export(adapter, "vllm", tmp_path / "out", base="somewhere/else")
    with pytest.raises(ArgumentError, match="does not name its base"):
        tangora.export(Adapter({Q: low_rank()}), "vllm", tmp_path / "out")
    with pytest.raises(ArgumentError, match="commas and equals signs"):
        tangora.export(adapter, "tgi", tmp_path / "a,b", base=base, name="ab")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        tangora.export(adapter, "vllm", tmp_path / "there", base=base)
    with pytest.raises(OutputError, match="did not write"):
        tangora.export(adapter, "vllm", tmp_path / "there", base=base, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_smaller_dtype_has_a_stated_error(bases, adapters, tmp_path):
    exported = tangora.export(adapters["llama"], "vllm", tmp_path / "out", base=bases["llama"], dtype="bfloat16")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert 2**-12 < exported.rounding < 2 * 2**-8  # both factors round to 8 bits
    assert exported.difference <= 2 * exported.rounding
    again = tangora.export(adapters["llama"], "vllm", tmp_path / "out", base=bases["llama"], overwrite=True)
    assert again.rounding == 0.0


def test_the_base_is_the_one_that_the_adapter_names(bases, adapters, tmp_path):
    exported = tangora.export(adapters["llama"], "vllm", tmp_path / "out")
    assert shlex.split(exported.start[0])[2] == str(bases["llama"])
    moved = shutil.copytree(bases["llama"], tmp_path / "moved")
    (moved / "model.safetensors").unlink()  # its configuration is enough
    exported = tangora.export(
        adapters["llama"], "vllm", tmp_path / "again", base=moved, name="tuned", model="org/model"
    )
    words = shlex.split(exported.start[0])
    assert words[:3] == ["vllm", "serve", "org/model"]
    assert words[-2:] == ["--lora-modules", f"tuned={(tmp_path / 'again').resolve()}"]


def test_the_command(bases, adapters, tmp_path):
    arguments = ["export", str(adapters["llama"]), "--to", "vllm", "--base", str(bases["llama"]), "--out"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "vllm: 10 sites, rank 4, scaling 1" in text
    assert "--enable-lora --max-lora-rank 8 --lora-modules out=" in text
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "json"), "--json"])
    document = json.loads(done.stdout)
    assert document["out"] == str((tmp_path / "json").resolve())
    assert document["rank"] == 4
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert isinstance(done.exception, OutputError)


def test_every_target_is_a_module_of_its_name():
    from importlib import import_module

    for name in TARGETS:
        assert import_module(f"tangora.serving.targets.{name}").TARGET.name == name
    assert set(KINDS) >= {"gemma", "gpt2", "llama", "qwen2"}
