"""What a folder holds, whichever command it is given to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import folders
import toys
from folders import CONFIG, save, tensors
from tangora.adapters.adapter import load
from tangora.adapters.contract import holds_adapter
from tangora.checkpoints import fuse_checkpoints
from tangora.errors import ArgumentError, FileError, TangoraError
from tangora.fusion.fusion import fuse
from tangora.inspection.folders import inspect
from tangora.inspection.fusable import fusable
from tangora.modes.loading import load_model
from tangora.storage.checkpoint import open_base, open_checkpoint
from tangora.storage.recognition import contents_of, inner


def adapter(folder: Path) -> Path:
    toys.lora(1).save(folder)
    return folder


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["adapter_config.json", "adapter_model.safetensors", "config.json"], "adapter"),
        (["adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin"], "adapter"),
        (["adapter_config.json", "adapter_model.bin"], "adapter"),
        (["adapter_config.json", "config.json"], "adapter"),
        (["adapter_model.safetensors"], "adapter"),
        (["delta.safetensors", "tangora.json", "config.json"], "adapter"),
        (["config.json", "model.safetensors"], "checkpoint"),
        (["config.json", "model.safetensors", "adapter_config.json"], "checkpoint"),
        (["config.json", "model.safetensors.index.json"], "checkpoint"),
        (["config.json", "pytorch_model-00001-of-00002.bin", "training_args.bin"], "checkpoint"),
        (["config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"], "both"),
        (["config.json", "model.safetensors.index.json", "adapter_model.bin"], "both"),
        (["config.json", "training_args.bin", "optimizer.pt", "checkpoint-5/adapter_model.safetensors"], "nothing"),
        (["tokenizer.json"], "nothing"),
    ],
)
def test_by_the_names_of_its_files(tmp_path, names, held):
    folder = touch(tmp_path / "a", *names)
    for path in folder.glob("*config.json"):
        path.write_text("{}")
    assert contents_of(folder) == held


def test_the_bases_configuration_beside_an_adapter_changes_nothing(tmp_path):
    plain, beside = adapter(tmp_path / "plain"), adapter(tmp_path / "beside")
    (beside / "config.json").write_text(json.dumps(CONFIG))
    assert holds_adapter(beside)
    assert load(beside).fingerprint == load(plain).fingerprint
    assert inspect(beside).sites == inspect(plain).sites
    with pytest.raises(ArgumentError, match="an adapter where a full checkpoint is needed"):
        open_checkpoint(beside)


def test_both_in_one_folder_are_refused_wherever_either_may_be_meant(tmp_path):
    folder = save(tmp_path / "a", tensors())
    for path in adapter(tmp_path / "adapter").iterdir():
        shutil.copy(path, folder)
    for attempt in (holds_adapter, open_checkpoint):
        with pytest.raises(FileError, match="an adapter and a whole model in one folder"):
            attempt(folder)
    assert "in one folder" in str(inspect(folder).problem)
    assert load(folder).updates  # peft decides so too


def insides() -> dict[str, list[str]]:
    trainer = ["checkpoint-1000", "checkpoint-500"]
    return {
        "trainer": trainer,
        "hub": ["snapshots/0123"],
        "hub with a subfolder": ["snapshots/0123/checkpoint-500"],
        "adapters by name": ["default", "other"],
        "a run": ["adapters/lora/sst2"],
    }


COMMANDS = {
    "load": load,
    "fuse": lambda folder: fuse([folder]),
    "base": open_base,
    "merge": lambda folder: fuse_checkpoints(folder, [folder], folder.parent / "out"),
    "load_model": lambda folder: load_model(folder, torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", insides())
def test_folders_inside_are_named_by_every_command(tmp_path, case, command):
    folder = tmp_path / "models--org--lora"
    for name in insides()[case]:
        adapter(folder / name)
    touch(folder, "training_args.bin", "trainer_state.json", "refs/main")
    with pytest.raises(FileError) as caught:
        COMMANDS[command](folder)
    for name in insides()[case]:
        assert name in str(caught.value)
    assert insides()[case][0] in str(inspect(folder).problem)


def test_the_latest_checkpoint_is_proposed(tmp_path):
    for step in (1000, 500, 20):
        adapter(tmp_path / f"checkpoint-{step}")
    assert [one.name for one in inner(tmp_path)] == ["checkpoint-20", "checkpoint-500", "checkpoint-1000"]
    with pytest.raises(FileError, match=r"such as .*checkpoint-1000$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.bin"], "pickle"),
        (["adapter_model.bin"], "pickle"),
        (["config.json", "pytorch_model.bin"], "pickle"),
        (["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], "pickle"),
        (["config.json", "consolidated.00.pth"], "pickle"),
        (["config.json", "global_step5/mp_rank_00_model_states.pt", "zero_to_fp32.py"], "distributed training"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "distributed training"),
        (["config.json", "model-00001-of-00002.safetensors"], "shards without their index"),
        (["config.json", "consolidated.safetensors"], "not loaded by their names"),
        (["model-Q4_K_M.gguf"], "not loaded by their names"),
    ],
)
def test_what_cannot_be_read_is_described(tmp_path, names, message):
    folder = touch(tmp_path / "a", *names)
    for path in folder.glob("*config.json"):
        path.write_text('{"peft_type": "LORA", "r": 2}')
    assert message in str(inspect(folder).problem)
    for attempt in (load, open_base):
        with pytest.raises(TangoraError) as caught:
            attempt(folder)
        if attempt is load or "adapter" not in names[0]:
            assert message in str(caught.value)


def test_a_file_instead_of_its_folder(tmp_path):
    with pytest.raises(FileError, match="Give its folder"):
        load(adapter(tmp_path / "a") / "adapter_model.safetensors")


def cached(root: Path, source: Path, *below: str) -> Path:
    """Move a folder's files into the Hub's cache, and return the folder of links to them."""
    home = root / "models--org--lora"
    place = home.joinpath("snapshots", "0123", *below)
    place.mkdir(parents=True)
    (home / "blobs").mkdir()
    for i, path in enumerate(sorted(p for p in source.iterdir() if p.is_file())):
        shutil.move(path, home / "blobs" / str(i))
        (place / path.name).symlink_to(Path(*[".."] * (2 + len(below)), "blobs", str(i)))
    return place


@pytest.mark.parametrize("below", [[], ["checkpoint-500"], ["runs", "last"]])
def test_any_level_of_the_hubs_cache_is_read(tmp_path, below):
    expected = load(adapter(tmp_path / "a")).fingerprint
    assert load(cached(tmp_path / "hub", tmp_path / "a", *below)).fingerprint == expected
    checkpoint = cached(tmp_path / "other", save(tmp_path / "b", tensors()), *below)
    assert open_checkpoint(checkpoint).model == "/".join(["org/lora", *below])


def test_a_cache_allows_no_link_but_to_its_own_files(tmp_path):
    place = cached(tmp_path, adapter(tmp_path / "a"), "checkpoint-500")
    outside = tmp_path / "outside.safetensors"
    shutil.copy(place / "adapter_model.safetensors", outside)
    (place / "adapter_model.safetensors").unlink()
    (place / "adapter_model.safetensors").symlink_to(outside)
    with pytest.raises(FileError, match="leads out of the folder"):
        load(place)


QUANTIZED = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"weight.absmax": torch.float32}),
    "gptq": ({"quant_method": "gptq", "bits": 4}, {"qweight": torch.int32, "qzeros": torch.int32}),
    "awq": ({"quant_method": "awq", "bits": 4}, {"qweight": torch.int32, "scales": torch.float16}),
    "fp8": ({"quant_method": "fp8"}, {"weight": torch.float8_e4m3fn, "weight_scale_inv": torch.float32}),
    "compressed": ({"quant_method": "compressed-tensors"}, {"weight_packed": torch.int32}),
    "mxfp4": ({"quant_method": "mxfp4"}, {"weight_blocks": torch.uint8, "weight_scales": torch.uint8}),
}


@pytest.mark.parametrize("stated", [True, False], ids=["by config.json", "by its tensors"])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_checkpoints_are_refused_by_every_command(tmp_path, kind, stated):
    settings, stored = QUANTIZED[kind]
    weights = tensors()
    site = "model.layers.0.mlp.up_proj"
    whole = weights.pop(f"{site}.weight")
    if kind == "bitsandbytes":
        weights[f"{site}.weight"] = torch.zeros(whole.numel() // 2, 1, dtype=torch.uint8)
    for name, dtype in stored.items():
        weights[f"{site}.{name}"] = torch.zeros(4, 6).to(dtype)
    base = save(tmp_path / "base", weights, config={**CONFIG, **({"quantization_config": settings} if stated else {})})
    plain = save(tmp_path / "plain", tensors())
    for models in ((base, plain), (plain, base), (base, adapter(tmp_path / "a"))):
        with pytest.raises(FileError, match=r"is quantized.*full precision"):
            fuse_checkpoints(models[0], [models[1]], tmp_path / "out")
    with pytest.raises(FileError, match="is quantized"):
        fuse([tmp_path / "a"], base=base)
    found = inspect(base)
    assert found.problem is None
    assert found.quantized
    assert "is quantized" in fusable([found, inspect(plain)]).reasons["all"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_full_precision_is_not_taken_for_quantized(tmp_path, dtype):
    weights = {**tensors(dtype=dtype), "h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    weights |= {"position_ids": torch.arange(8)[None], "logit_scale": torch.ones(())}
    checkpoint = open_checkpoint(save(tmp_path / "a", weights, config={**CONFIG, "quantization_config": None}))
    assert checkpoint.quantized is None


def test_the_file_that_counts_is_the_one_that_transformers_loads(tmp_path):
    old, new = tensors(1), tensors(2)
    folder = save(tmp_path / "a", old, shards=2)
    assert torch.equal(folders.read(folder)["lm_head.weight"], old["lm_head.weight"])
    save(folder, new)  # beside the shards and their index
    assert [path.name for path in open_checkpoint(folder).files] == ["model.safetensors"]
    named = {**CONFIG, "transformers_weights": "model.safetensors.index.json"}
    (folder / "config.json").write_text(json.dumps(named))
    assert len(open_checkpoint(folder).files) == 2
    (folder / "config.json").write_text(json.dumps({**CONFIG, "transformers_weights": "../a.safetensors"}))
    with pytest.raises(FileError, match="outside the folder"):
        open_checkpoint(folder)
