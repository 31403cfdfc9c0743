"""LoCon, LoHa and LoKr: their updates against LyCORIS' equations in float64, entry by entry, and its own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tangora
from tangora.adapters.adapter import load
from tangora.errors import AdapterError

OUT, IN, R = 12, 10, 2
LINEAR = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def draw(seed, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def saved(path, parts, module, alpha=1.0):
    tensors = {f"{module}.{name}": value for name, value in parts.items()}
    if alpha is not None:
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    adapter = load(path)
    ((site, update),) = adapter.updates.items()
    return update, adapter.kernels.get(site)


def numbers(parts):
    return {name: value.double().numpy() for name, value in parts.items()}


def check(update, expected):
    expected = torch.as_tensor(expected).double().flatten(1)
    # Factors are rounded to float32 once, and multiplied in float32: sums of at most R² products of a few of them.
    torch.testing.assert_close(
        update.dense().double(), expected, rtol=0, atol=32 * 2.0**-24 * float(expected.abs().max())
    )


LOHA = {"hada_w1_a": (OUT, R), "hada_w1_b": (R, IN), "hada_w2_a": (OUT, R), "hada_w2_b": (R, IN)}


@pytest.mark.parametrize("rank", [2, 4])
def test_loha_of_a_linear_layer(rank, tmp_path):
    shapes = {name: tuple(rank if size == R else size for size in shape) for name, shape in LOHA.items()}
    parts = draw(0, **shapes)
    update, kernel = saved(tmp_path / "a.safetensors", parts, LINEAR)
    w = numbers(parts)
    check(update, (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"]) / rank)
    assert kernel is None
    assert (update.factors() is not None) == (rank == 2)  # of rank 4; 16 would be more than the matrix has
    if rank == 2:
        assert update.factors().rank == 4


def test_loha_of_a_convolution_without_its_kernel_in_the_file(tmp_path):
    parts = draw(0, **(LOHA | {"hada_w1_b": (R, 3 * 9), "hada_w2_b": (R, 3 * 9)}))
    update, kernel = saved(tmp_path / "a.safetensors", parts, CONV)
    w = numbers(parts)
    check(update, (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"]) / R)
    assert kernel == (3, 3, 3)
    with pytest.raises(AdapterError, match="LoHa's tensors do not tell a convolution's kernel"):
        saved(tmp_path / "b.safetensors", parts, "lora_unet_other_conv1")


def test_loha_with_tuckers_cores(tmp_path):
    shapes = {"hada_w1_a": (R, OUT), "hada_w1_b": (R, IN), "hada_w2_a": (R, OUT), "hada_w2_b": (R, IN)}
    parts = draw(0, **shapes, hada_t1=(R, R, 3, 3), hada_t2=(R, R, 3, 3))
    update, kernel = saved(tmp_path / "a.safetensors", parts, CONV)
    w = numbers(parts)
    halves = np.zeros((2, OUT, IN, 3, 3))
    for half, i in enumerate("12"):
        for m in range(R):
            for n in range(R):
                outer = np.multiply.outer(w[f"hada_w{i}_a"][m], w[f"hada_w{i}_b"][n])
                halves[half] += np.multiply.outer(outer, w[f"hada_t{i}"][m, n])
    check(update, halves[0] * halves[1] / R)
    assert kernel == (IN, 3, 3)


def test_locon_with_tuckers_core(tmp_path):
    shapes = {"lora_up.weight": (OUT, R, 1, 1), "lora_mid.weight": (R, R, 3, 3), "lora_down.weight": (R, IN, 1, 1)}
    parts = draw(0, **shapes)
    update, kernel = saved(tmp_path / "a.safetensors", parts, CONV)
    up, mid, down = (value.double().numpy().reshape(shapes[name]) for name, value in parts.items())
    expected = np.zeros((OUT, IN, 3, 3))
    for m in range(R):
        for n in range(R):
            outer = np.multiply.outer(up[:, m, 0, 0], down[n, :, 0, 0])
            expected += np.multiply.outer(outer, mid[m, n])
    check(update, expected / R)
    assert update.factors().rank == R
    assert kernel == (IN, 3, 3)


LOKR = {
    "both whole": ({"lokr_w1": (3, 2), "lokr_w2": (4, 5)}, 1.0),
    "first whole": ({"lokr_w1": (3, 2), "lokr_w2_a": (4, R), "lokr_w2_b": (R, 5)}, 1 / R),
    "first wide": ({"lokr_w1": (2, 3), "lokr_w2_a": (4, R), "lokr_w2_b": (R, 5)}, 1 / R),
    "second whole": ({"lokr_w1_a": (3, R), "lokr_w1_b": (R, 2), "lokr_w2": (4, 5)}, 1 / R),
    "neither": ({"lokr_w1_a": (3, R), "lokr_w1_b": (R, 2), "lokr_w2_a": (4, R), "lokr_w2_b": (R, 5)}, 1 / R),
}


@pytest.mark.parametrize("form", sorted(LOKR))
def test_lokr_of_a_linear_layer(form, tmp_path):
    shapes, scale = LOKR[form]
    parts = draw(0, **shapes)
    update, _ = saved(tmp_path / "a.safetensors", parts, LINEAR)
    w = numbers(parts)
    first, second = (w[f"lokr_w{i}"] if f"lokr_w{i}" in w else w[f"lokr_w{i}_a"] @ w[f"lokr_w{i}_b"] for i in "12")
    check(update, np.kron(first, second) * scale)


@pytest.mark.parametrize("form", ["factors", "tucker", "whole"])
def test_lokr_of_a_convolution(form, tmp_path):
    shapes = {
        "whole": {"lokr_w2": (4, 5, 3, 3)},
        "factors": {"lokr_w2_a": (4, R), "lokr_w2_b": (R, 5, 3, 3)},
        "tucker": {"lokr_w2_a": (R, 4), "lokr_w2_b": (R, 5), "lokr_t2": (R, R, 3, 3)},
    }[form]
    parts = draw(0, lokr_w1=(3, 2), **shapes)
    update, kernel = saved(tmp_path / "a.safetensors", parts, CONV)
    w = numbers(parts)
    if form == "factors":
        second = np.tensordot(w["lokr_w2_a"], w["lokr_w2_b"], 1)
    elif form == "tucker":
        second = np.einsum("mnkl,mo,ni->oikl", w["lokr_t2"], w["lokr_w2_a"], w["lokr_w2_b"])
    else:
        second = w["lokr_w2"]
    expected = np.zeros((12, 10, 3, 3))
    for a in range(3):
        for c in range(2):
            expected[4 * a : 4 * a + 4, 5 * c : 5 * c + 5] = w["lokr_w1"][a, c] * second
    check(update, expected * (1.0 if form == "whole" else 1 / R))
    assert kernel == (10, 3, 3)


def test_loha_and_lora_are_fused_into_a_lora_with_a_stated_error(tmp_path):
    parts = draw(0, **LOHA)
    loha, _ = saved(tmp_path / "loha.safetensors", parts, LINEAR)
    lora = draw(1, **{"lora_up.weight": (OUT, 3), "lora_down.weight": (3, IN)})
    plain, _ = saved(tmp_path / "lora.safetensors", lora, LINEAR)
    paths = [tmp_path / "loha.safetensors", tmp_path / "lora.safetensors"]
    expected = 0.5 * loha.dense().double() + 2.0 * plain.dense().double()
    exact = tangora.fuse(paths, weights=[0.5, 2.0])
    exact.save(tmp_path / "exact.safetensors")
    check(load(tmp_path / "exact.safetensors").updates.popitem()[1], expected)
    short = tangora.fuse(paths, weights=[0.5, 2.0], rank=3)
    short.save(tmp_path / "short.safetensors")
    found = load(tmp_path / "short.safetensors").updates.popitem()[1].dense().double()
    values = torch.linalg.svdvals(expected)
    least = float(values[3:].norm() / values.norm())
    assert short.metadata.fused.truncation_error == pytest.approx(least, rel=1e-4)
    assert float((found - expected).norm() / expected.norm()) == pytest.approx(least, rel=1e-4)


def test_what_is_written_of_lycoris_is_a_plain_lora_and_says_so(tmp_path):
    from safetensors import safe_open

    tensors = {f"{LINEAR}.{name}": value for name, value in draw(0, **LOHA).items()}
    about = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha"}', "ss_network_dim": "2"}
    save_file(tensors, tmp_path / "a.safetensors", metadata=about)
    load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert all("lora_" in key or key.endswith(".alpha") for key in file.keys())  # noqa: SIM118
        held = file.metadata()
    assert held["ss_network_module"] == "networks.lora"
    assert held["ss_network_dim"] == "4"
    assert "ss_network_args" not in held


BAD = {
    "a half is missing": ({"lokr_w1": (3, 2), "lokr_w2_a": (4, R)}, "lokr_w2_b is missing"),
    "a half twice": ({"lokr_w1": (3, 2), "lokr_w1_a": (3, R), "lokr_w1_b": (R, 2), "lokr_w2": (4, 5)}, "whole and as"),
    "another rank": (
        {"lokr_w1_a": (3, 3), "lokr_w1_b": (3, 2), "lokr_w2_a": (4, R), "lokr_w2_b": (R, 5)},
        "different ranks",
    ),
    "factors of LoHa": (LOHA | {"hada_w2_b": (R, IN + 1)}, "the shapes do not fit"),
    "ranks of LoHa": (LOHA | {"hada_w1_a": (OUT, 3), "hada_w2_a": (OUT, 3)}, "the ranks of the factors disagree"),
    "two kinds": (LOHA | {"lokr_w1": (3, 2)}, "several kinds"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_parts_that_do_not_fit_are_refused(case, tmp_path):
    shapes, message = BAD[case]
    with pytest.raises(AdapterError, match=message):
        saved(tmp_path / "a.safetensors", draw(0, **shapes), LINEAR)


def test_lycoris_own_functions_agree(tmp_path):
    functional = pytest.importorskip("lycoris.functional")
    parts = draw(0, **LOHA)
    update, _ = saved(tmp_path / "a.safetensors", parts, LINEAR)
    gamma = torch.tensor(1 / R)
    names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a")
    check(update, functional.loha.diff_weight(*(parts[name] for name in names), None, None, gamma=gamma))
    parts = draw(0, lokr_w1=(3, 2), lokr_w2_a=(4, R), lokr_w2_b=(R, 5))
    update, _ = saved(tmp_path / "b.safetensors", parts, LINEAR)
    weights = (parts["lokr_w1"], None, None, None, parts["lokr_w2_a"], parts["lokr_w2_b"], None)
    check(update, functional.lokr.diff_weight(*weights, gamma=1 / R))
    shapes = {"hada_w1_a": (R, OUT), "hada_w1_b": (R, IN), "hada_w2_a": (R, OUT), "hada_w2_b": (R, IN)}
    parts = draw(0, **shapes, hada_t1=(R, R, 3, 3), hada_t2=(R, R, 3, 3))
    update, _ = saved(tmp_path / "c.safetensors", parts, CONV)
    check(update, functional.loha.diff_weight(*(parts[n] for n in (*names, "hada_t1", "hada_t2")), gamma=gamma))
