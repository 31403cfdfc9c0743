"""GGUF files: metadata, names and numbers, compared with the equation of llama.cpp in float64."""

from __future__ import annotations

import json
import shlex

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from servable import IDS, adapter_of, logits

import tangora
from tangora.adapters.adapter import Adapter
from tangora.errors import AdapterError, ArgumentError, MissingExtraError
from tangora.serving.gguf_names import KINDS, layout_of
from tangora.serving.targets import gguf as target
from tangora.support import extras
from tangora.updates.task_vector import LowRank


def contents(path):
    """Metadata, and tensors in float64, by gguf's own reader."""
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    return fields, tensors


def rotated(weight, heads):
    """The rows as llama.cpp has them, one after the other: entry t·d/2 + i of a head becomes its entry 2i + t."""
    size = weight.shape[0] // heads
    result = np.empty_like(weight)
    for head in range(heads):
        for t in range(2):
            for i in range(size // 2):
                result[head * size + 2 * i + t] = weight[head * size + t * (size // 2) + i]
    return result


PARTS = {
    "gemma": {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down"},
    "gpt2": {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "llama": {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
    },
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    "qwen2": {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.up_proj": "ffn_up"},
}


@pytest.mark.parametrize("kind", sorted(PARTS))
def test_the_file_holds_the_updates_in_llama_cpps_orientation(kind, bases, adapters, tmp_path):
    exported = tangora.export(adapters[kind], "gguf", tmp_path / "a.gguf", base=bases[kind])
    fields, tensors = contents(tmp_path / "a.gguf")
    stated = {key: fields[key] for key in ("general.type", "general.architecture", "adapter.type", "general.name")}
    assert stated == {
        "general.type": "adapter",
        "general.architecture": KINDS[kind][0],
        "adapter.type": "lora",
        "general.name": "a",
    }
    adapter, seen = tangora.load(adapters[kind]), set()
    for site, update in adapter.updates.items():
        layer, part = site.removeprefix("transformer.h.").removeprefix("model.layers.").split(".", 1)
        name = f"blk.{layer}.{PARTS[kind][part]}.weight"
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        delta = fields["adapter.lora.alpha"] / b.shape[1] * b @ a
        factors = update.factors()
        expected = (factors.scaling * factors.b.double() @ factors.a.double()).numpy()
        if kind == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            expected = rotated(expected, 4 if "q_proj" in part else 2)
        # B rounds once to float32, entry by entry
        assert np.linalg.norm(delta - expected) <= 2**-23 * np.linalg.norm(expected), site
        seen |= {f"{name}.lora_a", f"{name}.lora_b"}
    assert seen == tensors.keys()
    assert exported.difference <= 2**-22


def test_equal_scalings_are_written_without_rounding(bases, tmp_path):
    plain = {"r": 4, "lora_alpha": 6, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    adapter = adapter_of("qwen2", bases["qwen2"], tmp_path / "a", **plain)
    tangora.export(adapter, "gguf", tmp_path / "a.gguf", base=bases["qwen2"])
    fields, tensors = contents(tmp_path / "a.gguf")
    assert fields["adapter.lora.alpha"] == 6.0
    factors = tangora.load(adapter).updates["model.layers.1.mlp.up_proj"].factors()
    assert np.array_equal(tensors["blk.1.ffn_up.weight.lora_b"], factors.b.double().numpy())
    assert np.array_equal(tensors["blk.1.ffn_up.weight.lora_a"], factors.a.double().numpy())


def test_the_rotation_of_pairs_is_the_same_in_the_permuted_order():
    """A head's q·k after llama.cpp's rotation of (2i, 2i + 1) is that after transformers' of (i, i + d/2)."""
    torch.manual_seed(0)
    size, position = 8, 5.0
    q, k = torch.randn(2, size, dtype=torch.float64)
    angles = position * 10000.0 ** (-torch.arange(size // 2, dtype=torch.float64) / (size // 2))

    def halves(x):
        one, two = x[: size // 2], x[size // 2 :]
        return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()])

    def neighbors(x):
        one, two = x[0::2], x[1::2]
        turned = torch.empty_like(x)
        turned[0::2], turned[1::2] = one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()
        return turned

    from tangora.serving.gguf_names import Layout

    rows = Layout("llama", (1, 1), None).rows("layer.q_proj", size)
    expected = halves(q) @ k
    assert torch.isclose(neighbors(q[rows]) @ k[rows], expected, rtol=1e-12)
    assert not torch.isclose(neighbors(q) @ k, expected, rtol=1e-3)


def test_embeddings_are_transposed_and_heads_follow(bases, tmp_path):
    adapter = adapter_of("llama", bases["llama"], tmp_path / "a", target_modules=["embed_tokens", "lm_head"])
    tangora.export(adapter, "gguf", tmp_path / "a.gguf", base=bases["llama"])
    fields, tensors = contents(tmp_path / "a.gguf")
    a, b = (tensors[f"token_embd.weight.lora_{half}"] for half in "ab")
    assert (a.shape, b.shape) == ((24, 4), (16, 4))
    update = tangora.load(adapter).updates["model.embed_tokens"].dense().double().numpy()
    delta = fields["adapter.lora.alpha"] / 4 * b @ a.T
    assert np.linalg.norm(delta - update) <= 2**-20 * np.linalg.norm(update)
    assert tensors["output.weight.lora_b"].shape == (24, 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, bases, adapters, tmp_path):
    exported = tangora.export(adapters["llama"], "gguf", tmp_path / "a.gguf", base=bases["llama"], dtype=dtype)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert {t.tensor_type.name for t in reader.tensors} == {{"bfloat16": "BF16", "float16": "F16"}[dtype]}
    assert 0 < exported.difference <= 3 * exported.rounding
    assert exported.rounding < 2 * {"bfloat16": 2**-8, "float16": 2**-11}[dtype]


def test_ollama_gets_a_modelfile_beside_it(bases, adapters, tmp_path):
    exported = tangora.export(adapters["llama"], "ollama", tmp_path / "mine", base=bases["llama"], model="llama3.2")
    assert (tmp_path / "mine" / "Modelfile").read_text() == "FROM llama3.2\nADAPTER ./adapter.gguf\n"
    tangora.export(adapters["llama"], "gguf", tmp_path / "mine.gguf", base=bases["llama"])
    assert (tmp_path / "mine.gguf").read_bytes() == (tmp_path / "mine" / "adapter.gguf").read_bytes()
    assert shlex.split(exported.start[0]) == ["ollama", "create", "mine", "-f", str(tmp_path / "mine" / "Modelfile")]
    tangora.export(adapters["llama"], "ollama", tmp_path / "mine", base=bases["llama"], overwrite=True)
    assert (tmp_path / "mine" / "Modelfile").read_text().startswith(f"FROM {bases['llama'].resolve()}\n")
    with pytest.raises(ArgumentError, match="one line for the base"):
        tangora.export(adapters["llama"], "ollama", tmp_path / "two", base=bases["llama"], model="a\nSYSTEM b")
    assert not (tmp_path / "two").exists()


def test_a_tied_output_layer_would_change_with_the_embedding(bases, tmp_path):
    adapter = adapter_of("gemma", bases["gemma"], tmp_path / "a", target_modules=["embed_tokens"])
    with pytest.raises(AdapterError, match=r"the output layer is the input embedding.*embed_tokens.*tangora merge"):
        tangora.export(adapter, "gguf", tmp_path / "a.gguf", base=bases["gemma"])


def test_what_llama_cpp_has_no_tensor_or_kind_for_is_refused(bases, adapters, tmp_path):
    with pytest.raises(ArgumentError, match=r"writes one file.*adapter.gguf"):
        tangora.export(adapters["llama"], "gguf", tmp_path, base=bases["llama"])
    other = tmp_path / "opt"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "mamba9", "num_hidden_layers": 2}))
    with pytest.raises(AdapterError, match=r"no GGUF adapters for this kind of model.*qwen2.*mamba9"):
        tangora.export(adapters["llama"], "gguf", tmp_path / "a.gguf", base=other)
    unknown = json.loads((bases["llama"] / "config.json").read_text()) | {"architectures": ["MyOwn"]}
    (other / "config.json").write_text(json.dumps(unknown))
    strange = Adapter({"model.layers.0.mlp.extra": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    with pytest.raises(AdapterError, match=r"no tensor for this layer.*mlp.extra"):
        tangora.export(strange, "gguf", tmp_path / "a.gguf", base=other)
    odd = Adapter({"model.layers.0.self_attn.q_proj": LowRank(torch.ones(6, 1), torch.ones(1, 2))})
    with pytest.raises(AdapterError, match="6 rows cannot be divided among 4 heads"):
        tangora.export(odd, "gguf", tmp_path / "a.gguf", base=other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["opt"]


def test_a_file_with_other_numbers_is_never_published(bases, adapters, tmp_path, monkeypatch):
    right = target._tensors

    def wrong(adapter, layout):
        for name, value in right(adapter, layout):
            yield name, value * (1.001 if name == "blk.1.attn_v.weight.lora_b" else 1.0)

    monkeypatch.setattr(target, "_tensors", wrong)
    with pytest.raises(AdapterError, match=r"by 1.0e-03 of its norm at model.layers.1.self_attn.v_proj"):
        tangora.export(adapters["llama"], "gguf", tmp_path / "a.gguf", base=bases["llama"])
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_extra_is_named(bases, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda name: name != "gguf")
    with pytest.raises(MissingExtraError, match=r"pip install 'tangora\[gguf\]'"):
        tangora.export(adapters["llama"], "gguf", tmp_path / "a.gguf", base=bases["llama"])


def test_every_kind_is_an_architecture_of_gguf():
    assert {architecture for architecture, _ in KINDS.values()} <= set(gguf.MODEL_ARCH_NAMES.values())


def test_read_back_it_has_the_logits_of_the_adapter(bases, adapters, tmp_path):
    """The whole way: file, llama.cpp's orientation, back to transformers', into the weights."""
    from tangora.serving.base import served_base

    tangora.export(adapters["llama"], "gguf", tmp_path / "a.gguf", base=bases["llama"])
    base, source = served_base(str(bases["llama"]), None), tangora.load(adapters["llama"])
    assert layout_of(base).heads == (4, 2)
    read = Adapter(target.read_updates(tmp_path / "a.gguf", base, source))
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(bases["llama"], dtype=torch.float64)
    read.apply_(model)
    with torch.no_grad():
        found = model(IDS).logits
    expected = logits(bases["llama"], adapters["llama"])
    assert float((found - expected).norm()) <= 100 * 2**-23 * float(expected.norm())
