"""Adapters in one file: read, fused and written in every layout, against sums in float64 from the raw tensors."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
import torch
from layouts import FLUX, SD1, SDXL, WIDTH, delta, kohya, lora
from safetensors.torch import load_file, save_file

import tangora
from tangora.adapters.adapter import Adapter, load
from tangora.adapters.contract import format_of
from tangora.cli import commands as cli
from tangora.errors import AdapterError, ArgumentError, FusionError, OutputError
from tangora.updates.task_vector import LowRank

TABLES = {"flux": FLUX, "sd1": SD1, "sdxl": SDXL}
EPS = 2.0**-24  # float32's rounding, relative
BOUND = 16 * EPS  # two factors of fusion weights and scalings, rounded, and sums of at most 12 products


def raw(path):
    """Return module -> B A · alpha / r of a file, in float64, by names alone."""
    tensors, found = load_file(path), {}
    for key, a in tensors.items():
        for down, up in ((".lora_down.", ".lora_up."), (".lora_A.", ".lora_B.")):
            if down in key:
                module, rank = key.partition(down)[0], a.shape[0]
                alpha = float(tensors.get(f"{module}.alpha", torch.tensor(float(rank))))
                found[module] = delta(a, tensors[key.replace(down, up)], alpha / rank)
    return found


def metadata(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"], content[8 + length :]


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= BOUND * float(value.norm()), name


def fuse(*arguments):
    cli.app(["fuse", *map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize("key", sorted(TABLES))
def test_two_kohya_files_are_fused_into_one_like_the_first(key, tmp_path, capsys):
    table = TABLES[key]
    one = kohya(tmp_path / "style.safetensors", table, 1)
    two = kohya(tmp_path / "character.safetensors", table, 2, rank=8, alpha=8.0)
    out = tmp_path / "both.safetensors"
    fuse(tmp_path / "style.safetensors", tmp_path / "character.safetensors", "--weights", "0.8,0.6", "--out", out)
    shown = capsys.readouterr().out
    assert f"format: kohya, of {load(out).details.file.title}" in shown
    assert "the file, read again, has" in shown
    close(raw(out), {name: 0.8 * one[site] + 0.6 * two[site] for name, (site, _, _) in table.items()})
    held = load_file(out)
    for name, (_, times, kernel) in table.items():  # the shapes of the layers, convolutions' too
        assert held[f"{name}.lora_down.weight"].shape == (12, WIDTH, *kernel)
        assert held[f"{name}.lora_up.weight"].shape == (times * WIDTH, 12, *(1,) * len(kernel))
    fused = load(out).metadata.fused
    assert fused.weights == [0.8, 0.6]
    assert [parent.name for parent in fused.parents] == ["style.safetensors", "character.safetensors"]


@pytest.mark.parametrize("format_name", ["comfy", "diffusers", "kohya"])
@pytest.mark.parametrize("key", sorted(TABLES))
def test_a_file_keeps_its_updates_in_every_format(key, format_name, tmp_path):
    added = kohya(tmp_path / "a.safetensors", TABLES[key], 3)
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    adapter = load(tmp_path / "a.safetensors")
    close({site: update.dense().double() for site, update in adapter.updates.items()}, added)
    adapter.save(there, format=format_name)
    assert format_of(there).name == format_name
    assert set(load(there).details.file.models) >= {key}
    load(there).save(back, format="kohya")
    close(raw(back), {name: added[site] for name, (site, _, _) in TABLES[key].items()})
    assert load_file(back).keys() == load_file(tmp_path / "a.safetensors").keys()


def test_names_of_comfy_and_diffusers_are_the_real_ones(tmp_path):
    kohya(tmp_path / "xl.safetensors", SDXL, 3)
    kohya(tmp_path / "flux.safetensors", FLUX, 3)
    for name in ("xl", "flux"):
        for format_name in ("comfy", "diffusers"):
            load(tmp_path / f"{name}.safetensors").save(
                tmp_path / f"{name}-{format_name}.safetensors", format=format_name
            )
    xl, flux = raw(tmp_path / "xl-comfy.safetensors"), raw(tmp_path / "flux-comfy.safetensors")
    assert xl.keys() >= {
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "diffusion_model.input_blocks.3.0.op",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.31.mlp.fc1",
    }
    assert flux.keys() >= {"diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.single_blocks.37.linear1"}
    parts = {
        f"transformer.single_transformer_blocks.37.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    }
    flux = raw(tmp_path / "flux-diffusers.safetensors")
    assert flux.keys() >= parts
    assert [len(flux[name]) for name in sorted(parts)] == [WIDTH, WIDTH, WIDTH, 4 * WIDTH]


def diffusers_flux(path, seed, default="", alpha=None):
    """Write a file of diffusers' names that has some parts of what the original fuses."""
    generator, tensors, added = torch.Generator().manual_seed(seed), {}, {}
    rows = {
        "transformer.transformer_blocks.0.attn.to_q": WIDTH,
        "transformer.transformer_blocks.0.attn.to_v": WIDTH,
        "transformer.single_transformer_blocks.37.proj_mlp": 4 * WIDTH,
        "transformer.norm_out.linear": 2 * WIDTH,
    }
    for name, count in rows.items():
        a, b = lora(generator, count, rank=3)
        tensors |= {f"{name}.lora_A{default}.weight": a, f"{name}.lora_B{default}.weight": b}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        added[name] = delta(a, b, 1.0 if alpha is None else alpha / 3)
    save_file(tensors, path)
    return added


def test_fused_and_separate_projections_of_flux_add_up(tmp_path):
    one = kohya(tmp_path / "a.safetensors", FLUX, 1)
    two = diffusers_flux(tmp_path / "b.safetensors", 2)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    d = WIDTH
    qkv, linear1 = one["transformer.double_blocks.0.img_attn.qkv"], one["transformer.single_blocks.37.linear1"]
    modulation = one["transformer.final_layer.adaLN_modulation.1"]
    block = "transformer.transformer_blocks.0.attn"
    separate = {f"{block}.to_{part}": qkv[i * d : (i + 1) * d] for i, part in enumerate("qkv")}
    single = "transformer.single_transformer_blocks.37"
    separate |= {f"{single}.attn.to_{part}": linear1[i * d : (i + 1) * d] for i, part in enumerate("qkv")}
    separate |= {f"{single}.proj_mlp": linear1[3 * d :]}
    separate["transformer.norm_out.linear"] = torch.cat(
        [modulation[d:], modulation[:d]]
    )  # shift and scale change places
    separate |= {site: value for site, value in one.items() if site.startswith("text") or "ff_context" in site}
    expected = {site: 0.5 * value + 2.0 * two.get(site, 0) for site, value in separate.items()}
    tangora.fuse(paths, weights=[0.5, 2.0]).save(tmp_path / "sum.safetensors", format="diffusers")
    close(raw(tmp_path / "sum.safetensors"), expected)

    fused = tangora.fuse(paths, weights=[0.5, 2.0])
    fused.save(tmp_path / "kohya.safetensors")
    assert format_of(tmp_path / "kohya.safetensors").name == "kohya"
    joined = raw(tmp_path / "kohya.safetensors")
    names = {site: name for name, (site, _, _) in FLUX.items()}
    close(
        {"qkv": joined[names["transformer.double_blocks.0.img_attn.qkv"]]},
        {"qkv": torch.cat([expected[f"{block}.to_{part}"] for part in "qkv"])},
    )
    norm = expected["transformer.norm_out.linear"]
    close(
        {"norm": joined[names["transformer.final_layer.adaLN_modulation.1"]]}, {"norm": torch.cat([norm[d:], norm[:d]])}
    )
    # q, k and v of the first share A, so that joining them again adds no rank: 4, and 3 each for q and v.
    assert (
        load_file(tmp_path / "kohya.safetensors")[
            f"{names['transformer.double_blocks.0.img_attn.qkv']}.lora_down.weight"
        ].shape[0]
        <= 3 * 4 + 2 * 3
    )


def test_equal_fused_projections_stay_fused_and_keep_the_sum_of_ranks(tmp_path):
    kohya(tmp_path / "a.safetensors", FLUX, 1)
    load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors", format="diffusers")
    load(tmp_path / "b.safetensors").save(tmp_path / "c.safetensors", format="kohya")
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    assert load_file(tmp_path / "c.safetensors")[f"{name}.lora_down.weight"].shape[0] == 4


@pytest.mark.parametrize("style", ["attn_procs", "lora", "lora_linear_layer", "peft"])
def test_older_names_of_diffusers_are_read(style, tmp_path):
    generator = torch.Generator().manual_seed(0)
    unet, text = (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1",
        "text_encoder.text_model.encoder.layers.0.self_attn",
    )
    q, out, te = lora(generator), lora(generator), lora(generator)
    keys = {
        "attn_procs": (
            f"{unet}.processor.to_q_lora.{{}}",
            f"{unet}.processor.to_out_lora.{{}}",
            f"{text}.to_q_lora.{{}}",
        ),
        "lora": (f"{unet}.to_q.lora.{{}}", f"{unet}.to_out.0.lora.{{}}", f"{text}.q_proj.lora.{{}}"),
        "lora_linear_layer": (
            f"{unet}.to_q.lora.{{}}",
            f"{unet}.to_out.0.lora.{{}}",
            f"{text}.q_proj.lora_linear_layer.{{}}",
        ),
        "peft": (f"{unet}.to_q.lora_{{}}", f"{unet}.to_out.0.lora_{{}}", f"{text}.q_proj.lora_{{}}.default"),
    }[style]
    down, up = ("A", "B") if style == "peft" else ("down", "up")
    tensors = {}
    for key, (a, b) in zip(keys, (q, out, te), strict=True):
        tensors |= {f"{key.format(down)}.weight": a, f"{key.format(up)}.weight": b}
    save_file(tensors, tmp_path / "a.safetensors")
    updates = load(tmp_path / "a.safetensors", lazily=True).updates
    sites = (f"{unet}.to_q", f"{unet}.to_out.0", f"{text}.q_proj")
    close(
        {s: u.dense().double() for s, u in updates.items()},
        {s: delta(*f) for s, f in zip(sites, (q, out, te), strict=True)},
    )


def test_unprefixed_names_and_alphas(tmp_path):
    added = diffusers_flux(tmp_path / "a.safetensors", 1, default=".default", alpha=1.5)
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(tmp_path / "a.safetensors").items()}
    save_file(tensors, tmp_path / "b.safetensors")
    for name in ("a", "b"):
        adapter = load(tmp_path / f"{name}.safetensors")
        assert (adapter.details.file.format, adapter.details.file.models) == ("diffusers", ("flux",))
        close({site: update.dense().double() for site, update in adapter.updates.items()}, added)


def test_the_metadata_are_kept_extended_and_never_wrong(tmp_path):
    about = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.hash_sha256": "0x00",
        "sshs_model_hash": "00",
        "sshs_legacy_hash": "00",
        "ss_tag_frequency": '{"a": 1}',
    }
    kohya(tmp_path / "a.safetensors", SDXL, 1, metadata=about | {"ss_output_name": "a"})
    kohya(tmp_path / "b.safetensors", SDXL, 2, metadata=about | {"ss_output_name": "b"})
    out = tmp_path / "out.safetensors"
    fuse(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--out", out)
    held, payload = metadata(out)
    total = hashlib.sha256(payload).hexdigest()
    assert held["sshs_model_hash"] == total
    assert held["modelspec.hash_sha256"] == f"0x{total}"
    assert "sshs_legacy_hash" not in held
    (alpha,) = {float(value) for key, value in load_file(out).items() if key.endswith(".alpha")}
    assert (held["ss_network_dim"], held["ss_network_alpha"]) == ("8", f"{alpha:g}")
    for key in ("ss_network_module", "ss_base_model_version", "ss_tag_frequency", "modelspec.architecture"):
        assert held[key] == about[key]
    assert "ss_output_name" not in held
    assert held["modelspec.merged_from"] == "a.safetensors, b.safetensors"
    parents = json.loads(held["tangora_parents"])
    assert [parents[f"{name}.safetensors"]["ss_output_name"] for name in "ab"] == ["a", "b"]
    assert json.loads(held["tangora"])["fused"]["method"] == "task_arithmetic"
    assert json.loads(held["tangora"])["verified"]["error"] < 1e-6
    fuse(out, "--weights", "2", "--out", tmp_path / "again.safetensors")  # nothing of the first fusion is lost
    assert "ss_output_name" in metadata(tmp_path / "again.safetensors")[0]["tangora_parents"]


def test_negative_and_odd_weights_are_exact_and_alphas_stay_positive(tmp_path):
    added = kohya(tmp_path / "a.safetensors", SDXL, 1, alpha=1.0)
    tangora.fuse([tmp_path / "a.safetensors"], weights=[-0.3]).save(tmp_path / "b.safetensors")
    close(raw(tmp_path / "b.safetensors"), {name: -0.3 * added[site] for name, (site, _, _) in SDXL.items()})
    assert all(value > 0 for key, value in load_file(tmp_path / "b.safetensors").items() if key.endswith(".alpha"))


def test_rank_and_dtype_state_their_errors(tmp_path, capsys):
    one, two = (kohya(tmp_path / f"{name}.safetensors", SDXL, seed) for seed, name in enumerate("ab"))
    out = tmp_path / "out.safetensors"
    fuse(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        "--weights",
        "1",
        "--rank",
        "5",
        "--dtype",
        "float16",
        "--out",
        out,
    )
    shown = capsys.readouterr().out
    stated = float(shown.partition("relative error of the truncation: ")[2].split()[0])
    found = raw(out)
    errors = {n: float((found[n] - one[s] - two[s]).norm()) ** 2 for n, (s, _, _) in SDXL.items()}
    size = sum(float((one[s] + two[s]).norm()) ** 2 for s, _, _ in SDXL.values())
    assert (sum(errors.values()) / size) ** 0.5 == pytest.approx(stated, rel=0.01)
    held = load_file(out)
    assert {t.dtype for key, t in held.items() if not key.endswith("alpha")} == {torch.float16}
    assert {t.shape[0] for key, t in held.items() if "lora_down" in key} == {5}


def test_inspect_names_format_and_model(tmp_path, capsys):
    kohya(tmp_path / "a.safetensors", SDXL, 1)
    kohya(tmp_path / "b.safetensors", FLUX, 1)
    diffusers_flux(tmp_path / "c.safetensors", 1)
    cli.app(["inspect", *(str(tmp_path / f"{n}.safetensors") for n in "bc"), "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert [(one["format"], one["layout"]) for one in document["folders"]] == [
        ("kohya", "Flux.1"),
        ("diffusers", "Flux.1"),
    ]
    assert "task_arithmetic" in document["fusable"]["spaces"]["delta"]
    assert document["fusable"]["routers"] == []
    cli.app(["inspect", *(str(tmp_path / f"{n}.safetensors") for n in "ab")], standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "format: kohya, of Stable Diffusion XL" in shown
    assert "a.safetensors is of Stable Diffusion XL (kohya names), b.safetensors of Flux.1 (kohya names)" in shown


def test_a_folder_of_peft_and_a_file_are_fused(tmp_path):
    generator = torch.Generator().manual_seed(0)
    site = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = lora(generator)
    Adapter({site: LowRank(b.float(), a.float(), 0.5)}).save(tmp_path / "folder")
    added = kohya(tmp_path / "a.safetensors", SDXL, 1)
    tangora.fuse([tmp_path / "a.safetensors", tmp_path / "folder"], weights=1.0).save(tmp_path / "out.safetensors")
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    close({name: raw(tmp_path / "out.safetensors")[name]}, {name: added[f"unet.{site}"] + delta(a, b, 0.5)})
    load(tmp_path / "folder").save(tmp_path / "one.safetensors", format="kohya")
    # The names fit several models: that of SDXL is in none of the first ones.
    assert set(raw(tmp_path / "one.safetensors")) == {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    }


def test_an_unknown_model_is_fused_in_its_own_names_only(tmp_path):
    table = {"lora_unet_blocks_0_self_attn_q": ("lora_unet_blocks_0_self_attn_q", 1, ())}
    one, two = (kohya(tmp_path / f"{name}.safetensors", table, seed) for seed, name in enumerate("ab"))
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    fused = tangora.fuse(paths, weights=1.0)
    fused.save(tmp_path / "out.safetensors")
    close(raw(tmp_path / "out.safetensors"), {name: one[name] + two[name] for name in table})
    with pytest.raises(AdapterError, match="names of an unknown model cannot be converted from kohya to diffusers"):
        fused.save(tmp_path / "other.safetensors", format="diffusers")
    kohya(tmp_path / "xl.safetensors", SDXL, 3)
    with pytest.raises(
        FusionError, match=r"a.safetensors is of an unknown model.*xl.safetensors of Stable Diffusion XL"
    ):
        tangora.fuse([paths[0], tmp_path / "xl.safetensors"])
    assert not (tmp_path / "other.safetensors").exists()


def test_what_a_file_declares_decides_between_models_of_equal_names(tmp_path):
    names = ["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"]
    table = {name: (name, 1, ()) for name in names}
    for declared, models in {"sd_v2_768_v": ("sd2",), "sdxl_base_v1-0": ("sdxl",), "hunyuan": ()}.items():
        kohya(tmp_path / f"{declared}.safetensors", table, 0, metadata={"ss_base_model_version": declared})
        assert load(tmp_path / f"{declared}.safetensors").details.file.models == models
    with pytest.raises(FusionError, match=r"Stable Diffusion 2 .*Stable Diffusion XL"):
        tangora.fuse([tmp_path / "sd_v2_768_v.safetensors", tmp_path / "sdxl_base_v1-0.safetensors"])


def test_peft_style_files_of_flux_and_of_others(tmp_path):
    added = kohya(tmp_path / "a.safetensors", {k: v for k, v in FLUX.items() if "te" not in k[:7]}, 1)
    adapter = load(tmp_path / "a.safetensors")
    adapter.save(tmp_path / "b.safetensors", format="peft")
    keys = load_file(tmp_path / "b.safetensors")
    assert "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight" in keys
    load(tmp_path / "b.safetensors").save(tmp_path / "c.safetensors", format="kohya")
    close(raw(tmp_path / "c.safetensors"), {n: added[s] for n, (s, _, _) in FLUX.items() if s in added})
    with pytest.raises(AdapterError, match="peft has no name for this in"):
        kohya(tmp_path / "te.safetensors", FLUX, 1)
        load(tmp_path / "te.safetensors").save(tmp_path / "d.safetensors", format="peft")
    a, b = lora(torch.Generator().manual_seed(0))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, tmp_path / "llm.safetensors")
    with pytest.raises(AdapterError, match="the scaling is not known"):
        load(tmp_path / "llm.safetensors")
    tensors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b, f"{prefix}.alpha": torch.tensor(8.0)}
    save_file(tensors, tmp_path / "llm.safetensors")
    load(tmp_path / "llm.safetensors").save(tmp_path / "folder")
    found = load(tmp_path / "folder").updates["model.layers.0.self_attn.q_proj"]
    close({"q": found.dense().double()}, {"q": delta(a, b, 2.0)})


def test_outputs_and_formats_that_do_not_go_together(tmp_path):
    kohya(tmp_path / "a.safetensors", SDXL, 1)
    adapter = load(tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match=r"the format kohya is one file.*Name a file: out.safetensors"):
        adapter.save(tmp_path / "out")
    with pytest.raises(ArgumentError, match=r"the format lora is a folder"):
        adapter.save(tmp_path / "out.safetensors", format="lora")
    with pytest.raises(ArgumentError, match=r"the format lora is a folder.*kohya or diffusers"):
        Adapter({"layer": LowRank(torch.ones(2, 1), torch.ones(1, 2))}).save(tmp_path / "out.safetensors")
    with pytest.raises(AdapterError, match="modules are those of no known model"):
        Adapter({"layer": LowRank(torch.ones(2, 1), torch.ones(1, 2))}).save(tmp_path / "o.safetensors", format="kohya")
    with pytest.raises(OutputError, match="--overwrite would replace a file that Tangora did not write"):
        adapter.save(tmp_path / "a.safetensors", overwrite=True)
    adapter.save(tmp_path / "b.safetensors")
    with pytest.raises(OutputError, match="the output exists"):
        adapter.save(tmp_path / "b.safetensors")
    adapter.save(tmp_path / "b.safetensors", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_method_that_is_not_linear_is_fused_and_evaluated_again(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        kohya(tmp_path / f"{name}.safetensors", SDXL, seed)
    out = tmp_path / "out.safetensors"
    fuse(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--method", "ties", "--set", "density=0.5", "--out", out
    )
    assert "re-evaluated at" in capsys.readouterr().out
    assert load(out).updates.keys() == {site for site, _, _ in SDXL.values()}
