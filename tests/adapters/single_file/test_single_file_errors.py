"""Files that cannot be read exactly are refused with what, where and how to put it right."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tangora.adapters.adapter import load
from tangora.adapters.contract import recognized_by
from tangora.cli import commands as cli
from tangora.errors import AdapterError, FileError

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
SAME = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"  # in the original's names
D = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
A, B = torch.ones(2, 4), torch.ones(3, 2)


def pair(module=Q, a=A, b=B, **more):
    kohya = {f"{module}.lora_down.weight": a, f"{module}.lora_up.weight": b}
    return {name: value.clone() for name, value in kohya.items()} | {f"{module}.{k}": v for k, v in more.items()}


ALPHA = torch.tensor(1.0)
CASES = {
    "a half is missing": ({f"{Q}.lora_down.weight": A}, "B is missing beside A"),
    "alpha alone": (pair() | {"lora_unet_conv_in.alpha": ALPHA}, "alpha without factors"),
    "alpha of several numbers": (pair(alpha=torch.ones(2)), "alpha must be one finite number"),
    "alpha of zero": (pair(alpha=torch.tensor(0.0)), "alpha must be one finite number other than 0, got 0.0"),
    "another kind of layer": (pair(b=torch.ones(3, 2, 1, 1)), "factors of no known kind of layer"),
    "dora": (pair(dora_scale=torch.ones(1, 4)), "DoRA: the change depends on the base's weights"),
    "empty": (pair(a=torch.ones(2, 0)), "factors of no known kind of layer"),
    "ia3": (pair() | {f"{Q}.on_input": ALPHA}, "IA³"),
    "infinite": (pair(a=torch.full((2, 4), torch.inf)), "a weight is infinity"),
    "integers": (pair(a=torch.ones(2, 4, dtype=torch.int32)), "weights must be floating-point"),
    "nan": (pair(b=torch.full((3, 2), torch.nan)), "a weight is NaN"),
    "norms": (pair() | {f"{Q}.w_norm": ALPHA}, "a change of a bias or a norm"),
    "oft": (pair() | {f"{Q}.oft_blocks": ALPHA}, "OFT"),
    "one module twice": (pair() | pair(SAME), f"two modules of the file are one: {Q} and {SAME}"),
    "other names": (pair("model.layers.0.q_proj"), "an adapter with module names of no known format"),
    "other tensors": (pair() | {"decoder.weight": A}, r"1 tensors are none that a LoRA, LoHa or LoKr has.*decoder"),
    "ranks that disagree": (pair(b=torch.ones(3, 5)), "the ranks of the factors disagree"),
    "two alphas": (
        {f"{D}.lora_A.weight": A, f"{D}.lora_A.default.weight": A.clone(), f"{D}.lora_B.weight": B},
        "two tensors are A of one module",
    ),
    "two formats": (pair() | pair(D), r"names of several formats in one file.*\(kohya\).*\(diffusers\)"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_file_that_cannot_be_read_exactly_is_refused(case, tmp_path):
    tensors, message = CASES[case]
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    for lazily in (False, True):
        with pytest.raises(FileError, match=message) as caught:
            for update in load(path, lazily=lazily).updates.values():
                update.dense()
        assert str(path) in str(caught.value)


OTHERS = {
    "a checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": A}, "a full checkpoint, or a part of one"),
    "an embedding": ({"emb_params": A}, "an embedding of textual inversion"),
    "an embedding of SDXL": ({"clip_l": A, "clip_g": B}, "an embedding of textual inversion"),
    "something else": ({"scores": A}, "no format recognizes this"),
}


@pytest.mark.parametrize("case", sorted(OTHERS))
def test_a_file_that_is_no_adapter_is_named(case, tmp_path):
    tensors, message = OTHERS[case]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=message):
        load(tmp_path / "a.safetensors")


def test_a_pickle_is_refused_and_a_damaged_file_too(tmp_path):
    torch.save(pair(), tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="the weights are a pickle"):
        load(tmp_path / "a.pt")
    save_file(pair(), tmp_path / "b.safetensors")
    content = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(content[:-4])
    assert recognized_by(tmp_path / "b.safetensors") == []
    with pytest.raises(FileError, match="the file's size is wrong"):
        load(tmp_path / "b.safetensors")


def diffusers(path, config, rank=2):
    about = {"lora_adapter_metadata": config if isinstance(config, str) else json.dumps(config)}
    save_file(
        {f"{D}.lora_A.weight": torch.ones(rank, 4), f"{D}.lora_B.weight": torch.ones(3, rank)}, path, metadata=about
    )
    return path


def test_peft_configurations_in_the_metadata_count_and_are_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    diffusers(path, {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {}, "text_encoder.r": 9})
    assert load(path).updates[D].factors().scaling == 3.0
    diffusers(path, {"unet.r": 2, "unet.lora_alpha": 6, "unet.use_rslora": True})
    assert load(path).updates[D].factors().scaling == pytest.approx(6 / 2**0.5, rel=1e-15)
    for config, message in {
        "{": "damaged",
        '{"unet.r": 4, "unet.lora_alpha": 6}': "the ranks disagree",
        '{"unet.r": 2, "unet.use_dora": true}': "use_dora",
        '{"unet.r": 2, "unet.other": 1}': "unknown setting 'other'",
        '{"unet.peft_type": "LOHA", "unet.r": 2}': "only LoRA adapters can be read",
    }.items():
        with pytest.raises(AdapterError, match=message):
            load(diffusers(path, config))
    alpha = {f"{D}.lora_A.weight": A, f"{D}.lora_B.weight": B, f"{D}.alpha": ALPHA}
    save_file(alpha, path, metadata={"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 6}'})
    with pytest.raises(AdapterError, match="two alphas"):
        load(path)


def test_provenance_of_a_newer_version_is_refused(tmp_path):
    for content in ("{", '{"format": 99}', '{"format": 1, "kind": "other"}'):
        save_file(pair(), tmp_path / "a.safetensors", metadata={"tangora": content})
        with pytest.raises(AdapterError, match="tangora"):
            load(tmp_path / "a.safetensors")


def test_an_error_writes_nothing(tmp_path, capsys):
    save_file(pair(), tmp_path / "a.safetensors")
    save_file(pair(b=torch.ones(5, 2)), tmp_path / "b.safetensors")
    arguments = ["fuse", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    with pytest.raises(FileError.__mro__[1], match="the widths differ"):
        cli.app([*arguments, "--out", str(tmp_path / "c.safetensors")], standalone_mode=False)
    with pytest.raises(FileError.__mro__[1], match="no such format"):
        cli.app([*arguments[:2], "--format", "koya", "--out", str(tmp_path / "c.safetensors")], standalone_mode=False)
    with pytest.raises(FileError.__mro__[1], match="the format kohya is one file"):
        cli.app([*arguments[:2], "--out", str(tmp_path / "c")], standalone_mode=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_peft_file_beside_its_configuration_is_named_by_its_folder(tmp_path):
    prefix = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{prefix}.lora_A.weight": A, f"{prefix}.lora_B.weight": B}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["to_q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert next(iter(load(tmp_path).updates.values())).factors().scaling == 4.0
    with pytest.raises(AdapterError, match="a file where the folder of an adapter is needed"):
        load(tmp_path / "adapter_model.safetensors")
