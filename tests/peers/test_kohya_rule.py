"""The rules of the merge scripts in kohya's sd-scripts, computed in float64, beside `tangora fuse` on the same files.

sd-scripts are run from a checkout and are in no package that pip installs. What `networks/merge_lora.py` and
`networks/svd_merge_lora.py` compute is written down here as mathematics, with U the ``lora_up``, D the ``lora_down``:

    into a model         W + Σ rᵢ (αᵢ / dᵢ) Uᵢ Dᵢ
    two LoRAs, default   U = Σ |rᵢ| √(αᵢ / α₁) Uᵢ,  D = Σ rᵢ √(αᵢ / α₁) Dᵢ,  with α₁
    ``--concat``         the same factors, side by side
    by SVD               the best of the rank for Σ rᵢ (αᵢ / dᵢ) Uᵢ Dᵢ, all entries of both factors cut off at ± q₀.₉₉
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import tangora

Measured = Callable[[str, float], float]
Matrix = NDArray[np.float64]
RATIOS = (0.8, 0.6)
WIDTH, RANK, ALPHAS = 48, 4, (2.0, 4.0)
BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
NAMES = (f"{BLOCK}_attn1_to_q", f"{BLOCK}_attn1_to_v", f"{BLOCK}_attn2_to_q")
# Factors in float32, with a weight and a scaling multiplied into them, and sums of 8 products.
EXACT = 16 * 2.0**-24


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files with kohya's names for Stable Diffusion 1."""
    made = []
    for seed, alpha in enumerate(ALPHAS):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name in NAMES:
            tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, WIDTH, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(WIDTH, RANK, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        made.append(tmp_path / f"{seed}.safetensors")
        save_file(tensors, made[-1], metadata={"ss_base_model_version": "sd_v1"})
    return made


def factors(path: Path) -> dict[str, tuple[Matrix, Matrix, float]]:
    """Name -> U, D and α."""
    held = {name: tensor.double().numpy() for name, tensor in load_file(path).items()}
    return {n: (held[f"{n}.lora_up.weight"], held[f"{n}.lora_down.weight"], float(held[f"{n}.alpha"])) for n in NAMES}


def update(up: Matrix, down: Matrix, alpha: float) -> Matrix:
    return alpha / len(down) * (up @ down)


def into_a_model(files: list[Path]) -> dict[str, Matrix]:
    read = [factors(path) for path in files]
    return {n: sum(r * update(*one[n]) for r, one in zip(RATIOS, read, strict=True)) for n in NAMES}


def of_factors(files: list[Path], concat: bool) -> dict[str, Matrix]:
    read, found = [factors(path) for path in files], {}
    for name in NAMES:
        first = read[0][name][2]
        parts = [(r * (one[name][2] / first) ** 0.5, *one[name][:2]) for r, one in zip(RATIOS, read, strict=True)]
        ups, downs = [s * up for s, up, _ in parts], [s * down for s, _, down in parts]
        up, down = (np.hstack(ups), np.vstack(downs)) if concat else (sum(ups), sum(downs))
        # --concat keeps alpha, and the rank has doubled: readers divide by that.
        found[name] = update(up, down, first)
    return found


def by_svd(files: list[Path], rank: int) -> dict[str, Matrix]:
    found = {}
    for name, total in into_a_model(files).items():
        u, s, vh = np.linalg.svd(total)
        up, down = u[:, :rank] * s[:rank], vh[:rank]
        bound = np.quantile(np.concatenate([up.ravel(), down.ravel()]), 0.99)
        found[name] = up.clip(-bound, bound) @ down.clip(-bound, bound)
    return found


def apart(found: dict[str, Matrix], wanted: dict[str, Matrix]) -> float:
    """Relative, over all modules."""
    lost = sum(float(np.square(found[name] - value).sum()) for name, value in wanted.items())
    return float((lost / sum(float(np.square(value).sum()) for value in wanted.values())) ** 0.5)


def fused(files: list[Path], out: Path, **options: object) -> dict[str, Matrix]:
    """What a file holds that `tangora fuse` has written."""
    tangora.fuse([str(path) for path in files], weights=list(RATIOS), **options).save(out)
    return {name: update(*one) for name, one in factors(out).items()}


def test_merging_kohya_files_into_a_model_agrees(files: list[Path], tmp_path: Path, measured: Measured) -> None:
    found = fused(files, tmp_path / "out.safetensors")
    assert measured("apart", apart(found, into_a_model(files))) < EXACT


def test_merge_lora_of_two_files(files: list[Path], tmp_path: Path, measured: Measured) -> None:
    """Sums of factors have cross terms, and a ratio that is in both factors is squared."""
    wanted = into_a_model(files)
    assert measured("the default, from the merge into the model", apart(of_factors(files, False), wanted)) > 0.5
    assert measured("--concat, from the merge into the model", apart(of_factors(files, True), wanted)) > 0.5
    found = fused(files, tmp_path / "out.safetensors")
    assert measured("ours", apart(found, wanted)) < EXACT


def test_svd_merge_lora_cuts_entries_off(files: list[Path], tmp_path: Path, measured: Measured) -> None:
    wanted, rank = into_a_model(files), 6
    values = [np.linalg.svd(value, compute_uv=False) for value in wanted.values()]
    least = np.sqrt(sum(np.square(s[rank:]).sum() for s in values) / sum(np.square(s).sum() for s in values))
    measured("the least error of the rank", float(least))
    ours = measured("ours", apart(fused(files, tmp_path / "out.safetensors", rank=rank), wanted))
    assert ours == pytest.approx(float(least), abs=1e-6)  # factors and their SVD in float32 at worst
    assert measured("by the script's rule", apart(by_svd(files, rank), wanted)) > ours + 0.01
