"""mergekit's extraction of a LoRA, called as a program, beside `tangora.extract` on the same two checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from little_models import read, weights, write
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

import tangora

PROGRAM = Path(sys.executable).with_name("mergekit-extract-lora")
pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="mergekit is not installed: make peers")

Measured = Callable[[str, float], float]
RANK = 4
PROJECTION = "_proj.weight"
# Noise of relative size n, orthogonal to what a rank leaves out, adds n² / 2e to an error of e. Differences of float32
# weights have n = 6e-8 · 1 / 0.05, factors of float32 6e-8: about 1e-12. Factors of bfloat16 have n = 2e-3: about 2e-6.
EXACT = 1e-9


def pair(folder: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """The tuned model and its base on disk, in a dtype."""
    base = {name: tensor.to(dtype).float() for name, tensor in weights(0).items()}
    return write(folder / "tuned", weights(1, 0.05, base), dtype), write(folder / "base", base, dtype)


def changes(tuned: Path, base: Path) -> dict[str, Tensor]:
    """Adapted weight -> what tuning changed, in float64."""
    new, old = read(tuned), read(base)
    return {name: new[name].double() - old[name].double() for name in new if name.endswith(PROJECTION)}


def by_mergekit(tuned: Path, base: Path, out: Path) -> Path:
    arguments = ["--model", tuned, "--base-model", base, "--out-path", out, "--max-rank", str(RANK)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def by_tangora(tuned: Path, base: Path, out: Path, dtype: str = "float32") -> Path:
    tangora.extract(tuned, base, out, rank=RANK, dtype=dtype)
    return out


def error(adapter: Path, base: Path, wanted: Mapping[str, Tensor]) -> float:
    """How far what stock peft reads is from the change, relative to it, over all projections; in float64."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), adapter).double()
    lost = 0.0
    for name, change in wanted.items():
        found = model.get_submodule(f"base_model.model.{name.removesuffix('.weight')}").get_delta_weight("default")
        assert found.dtype == torch.float64
        lost += float((found - change).square().sum())
    return (lost / sum(float(change.square().sum()) for change in wanted.values())) ** 0.5


def best(wanted: Mapping[str, Tensor]) -> float:
    """The least error of that rank, by Eckart and Young."""
    lost = sum(float(torch.linalg.svdvals(change)[RANK:].square().sum()) for change in wanted.values())
    return (lost / sum(float(change.square().sum()) for change in wanted.values())) ** 0.5


def test_extraction_agrees_in_float32(tmp_path: Path, measured: Measured) -> None:
    tuned, base = pair(tmp_path, torch.float32)
    wanted = changes(tuned, base)
    theirs = error(by_mergekit(tuned, base, tmp_path / "theirs"), base, wanted)
    ours = error(by_tangora(tuned, base, tmp_path / "ours"), base, wanted)
    least = measured("the least error of the rank", best(wanted))
    assert measured("theirs above it", theirs - least) < EXACT
    assert measured("ours above it", ours - least) < EXACT
    assert ours <= theirs + EXACT


def test_extraction_of_bfloat16(tmp_path: Path, measured: Measured) -> None:
    """mergekit rounds the difference and the factors to bfloat16; ours are exact differences, as factors of float32."""
    tuned, base = pair(tmp_path, torch.bfloat16)
    wanted = changes(tuned, base)
    least = measured("the least error of the rank", best(wanted))
    theirs = error(by_mergekit(tuned, base, tmp_path / "theirs"), base, wanted)
    ours = error(by_tangora(tuned, base, tmp_path / "ours"), base, wanted)
    short = error(by_tangora(tuned, base, tmp_path / "short", "bfloat16"), base, wanted)
    assert measured("ours above it", ours - least) < EXACT
    assert measured("theirs above it", theirs - least) > EXACT
    measured("ours in bfloat16 above it", short - least)
