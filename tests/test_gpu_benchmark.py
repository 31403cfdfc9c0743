"""The benchmark on a GPU: every section at tiny sizes on the CPU, what becomes of failures, and its tables."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fuse_work  # noqa: E402
import gpu  # noqa: E402
import gpu_merge  # noqa: E402
import gpu_sections  # noqa: E402
import gpu_steps  # noqa: E402
import gpu_table  # noqa: E402
import gpu_turns  # noqa: E402
import step_models  # noqa: E402
import step_worker  # noqa: E402

SLOW = pytest.mark.slow
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
TINY = ["--device", "cpu", "--tiny"]


def here(command: Sequence[str], limit: float) -> str | None:
    """Do a section in this process."""
    gpu_sections.main(command)
    return None


def spawned(command: list[str]) -> str:
    """Do in this process what the section of checkpoints starts processes for."""
    mains = {"fuse_work.py": fuse_work.main, "gpu_sections.py": gpu_sections.main}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        mains[Path(command[0]).name](command[1:])
    return said.getvalue()


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[dict[str, Any], str]:
    """What a whole run at tiny sizes writes, and the page with it; one of its processes is a real one."""
    place = tmp_path_factory.mktemp("gpu")
    page, result, whole = place / "page.md", place / "gpu.json", gpu_merge._process
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*gpu_table.MARKS), encoding="utf-8")
    processes: list[dict[str, Any]] = []

    def process(*arguments: Any) -> dict[str, Any]:
        processes[:] = processes or [whole(*arguments)]
        return processes[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "run", here)
        patch.setattr(gpu_merge, "spawn", spawned)
        patch.setattr(gpu_merge, "_process", process)
        gpu.main([*TINY, "--result", str(result), "--docs", str(page)])
    return json.loads(result.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")


@SLOW
def test_every_section_has_samples_of_both_sides(measured):
    found, _ = measured
    sections = found["sections"]
    assert list(sections) == list(gpu.SHARES)
    assert gpu_table.failures(found) == []
    compared = [c["contenders"] for c in sections["steps"]["shapes"].values()]
    compared += [
        c["contenders"] for name in ("scoring", "columns", "adapters") for c in sections[name]["works"].values()
    ]
    compared.append(sections["merge"]["calls"])
    assert [len(contenders) for contenders in compared] == [5, 5, 5, 4, 4, 3, 3, 4, 4, 4]
    for contenders in compared:
        assert all(len(taken["seconds"]) == 2 and min(taken["seconds"]) > 0 for taken in contenders.values())
    assert sections["merge"]["processes"]["task_arithmetic/host"]["peak"] > 2**20


@SLOW
def test_contenders_of_a_whole_run_compute_the_same(measured):
    found, _ = measured
    for shape in found["sections"]["steps"]["shapes"].values():
        checks = [taken["check"] for taken in shape["contenders"].values()]
        assert max(value for check in checks for key, value in check.items() if key != "effect_of_b") < 1e-4
        assert min(check["effect_of_b"] for check in checks) > 1e-2
    for name in ("scoring", "columns"):  # in bfloat16
        for work in found["sections"][name]["works"].values():
            assert work["difference"] < work["effect"] / 4
    for work in found["sections"]["adapters"]["works"].values():
        errors = work["errors"]
        assert errors["tangora/device"] == pytest.approx(errors["tangora/host"], abs=1e-5)
        assert errors["tangora/host"] == pytest.approx(errors["peft/host"], abs=1e-2)
    assert found["sections"]["merge"]["differing"] == {"task_arithmetic": 0.0, "ties_per_tensor": 0.0}


@pytest.mark.parametrize(("section", "most"), [("scoring", 1e-5), ("columns", 1e-4)])
def test_in_float32_scores_and_columns_are_the_peers(tmp_path, section, most):
    out = tmp_path / "found.json"
    gpu_sections.main([section, "--out", str(out), "--folder", str(tmp_path), "--size", "tiny", "--device", "cpu",
                       "--dtype", "float32", "--seconds", "1"])  # fmt: skip
    for work in json.loads(out.read_text(encoding="utf-8"))["works"].values():
        assert work["difference"] < most
        assert work["effect"] > 100 * most


@SLOW
def test_the_tables_show_every_part(measured):
    _, page = measured
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    for title in ("A step: a tiny CLIP", "An adapter scored: a tiny Llama", "Columns: a tiny CLIP", "Adapters fused"):
        assert f"**{title}" in page
    assert "measure nothing" in page
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3 + 2 + 2 + 1 + 1
    assert all(len({row.count("|") for row in block.splitlines()}) == 1 for block in tables)


@SLOW
def test_ratios_are_those_of_rounds(measured):
    found, _ = measured
    sections = json.loads(json.dumps(found["sections"]))
    scored = sections["scoring"]["works"]["tiny-clip"]
    scored["contenders"]["peft"]["seconds"], scored["contenders"]["tangora"]["seconds"] = [1.0, 10.0], [2.0, 20.0]
    table = gpu_table.table({**found, "sections": sections})
    assert "| **Tangora**, `Evaluator` | 1 | 0 – 1 | 0.50 (0.50 – 0.50) |" in table
    fused = sections["adapters"]["works"]["svd"]["contenders"]  # peft does one layer of two
    fused["peft/device"]["seconds"], fused["tangora/device"]["seconds"] = [3.0, 3.0], [2.0, 2.0]
    assert "| sum, cut by SVD: **Tangora**, GPU | 2 | 2 – 2 | 3.00 (3.00 – 3.00) |" in gpu_table.table(
        {**found, "sections": sections}
    )


@SLOW
def test_failures_stand_in_the_table_and_end_the_run(measured, monkeypatch, tmp_path):
    found, _ = measured
    sections = json.loads(json.dumps(found["sections"]))
    sections["steps"]["shapes"]["tiny-t5"]["contenders"]["tangent"] = {"error": "RuntimeError: no kernel"}
    sections["merge"] = {"error": "stopped after 9 seconds"}
    broken = {**found, "sections": sections}
    assert gpu_table.failures(broken) == [
        "- steps, shapes, tiny-t5, contenders, tangent: RuntimeError: no kernel",
        "- merge: stopped after 9 seconds",
    ]
    table = gpu_table.table(broken)
    assert table.endswith("- merge: stopped after 9 seconds")
    assert "Checkpoints merged" not in table
    monkeypatch.setattr(gpu, "measure", lambda options: broken)
    with pytest.raises(SystemExit, match="not measured:\n- steps"):
        gpu.main([*TINY, "--result", str(tmp_path / "gpu.json")])


@pytest.mark.parametrize("name", ["lora", "l_lora", "tangent", "tangent_jvp"])
def test_a_step_in_bfloat16_trains_adapters_in_float32(name):
    options = argparse.Namespace(contender=name, device="cpu", dtype="bfloat16", seed=0)
    trainer = step_worker.Trainer(step_models.SHAPES["tiny-llama"], options)
    base = next(p for n, p in trainer.model.named_parameters() if "base_layer" in n)
    assert base.dtype == torch.bfloat16
    assert {p.dtype for p in trainer.trainable} == {torch.float32}
    trainer.step()
    assert all(p.detach().any() for p in trainer.trainable)


def test_memory_is_that_of_the_contender_alone(monkeypatch):
    monkeypatch.setattr(step_worker, "_occupied", lambda device: 700)
    monkeypatch.setattr(step_worker, "_peak", lambda device: 1000)
    trainer = argparse.Namespace(device="cuda", step=lambda: None, wait=lambda: None)
    assert gpu_steps._memory(trainer, 100) == {"memory": [{"built": 600, "step": 300, "peak": 900}]}
    assert gpu_steps._memory(trainer, None) == {"memory": []}


def test_a_contender_that_fails_is_left_out(capsys):
    calls = {"good": 0, "bad": 0}

    def sample(name: str) -> float:
        calls[name] += 1
        if name == "bad" and calls[name] == 2:
            raise RuntimeError("out of\nmemory")
        return float(calls[name])

    options = argparse.Namespace(size="tiny", seed=0)
    works = {name: lambda name=name: sample(name) for name in calls}
    found = gpu_turns.in_turns(works, time.monotonic() + 1000, options)
    assert found == {"good": {"seconds": [2.0, 3.0]}, "bad": {"error": "RuntimeError: out of memory"}}
    assert "Traceback" in capsys.readouterr().err
    late = gpu_turns.in_turns({"good": works["good"]}, time.monotonic() - 1, options, warm=False)
    assert late == {"good": {"seconds": [4.0]}}  # one round in any case


def test_a_section_that_takes_too_long_is_stopped(tmp_path):
    command = ["about", "--out", str(tmp_path / "found.json"), "--folder", str(tmp_path), "--device", "cpu"]
    assert gpu.run(command, 0.01) == "stopped after 0 seconds"
    assert not (tmp_path / "found.json").exists()


@NO_GPU
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    with pytest.raises(SystemExit) as refused:
        gpu.main(["--result", str(tmp_path / "gpu.json")])
    assert str(refused.value).startswith("there is no CUDA device here (torch ")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize(("flags", "words"), [(["--tiny"], "give --result"), (["--device", "cpu"], "add --tiny")])
def test_what_would_measure_nothing_is_refused(flags, words):
    with pytest.raises(SystemExit, match=words):
        gpu.main(flags)


def test_the_page_has_the_tables_of_the_results_file(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text(gpu.DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    gpu.main(["--render", "--docs", str(page)])
    assert page.read_text(encoding="utf-8") == gpu.DOCS.read_text(encoding="utf-8")


def test_checkpoints_have_the_shape_that_is_told_and_fit_the_disk(monkeypatch, tmp_path):
    whole = sum(math.prod(shape) for _, shape in fuse_work.shapes(gpu_table.WHOLE, fuse_work.WIDTHS["7b"]))
    assert round(whole / 1e9, 2) == 6.74
    options = argparse.Namespace(folder=tmp_path, layers=4, size="full")
    for free, layers in ((10**12, 4), (20 * 10**9, 3), (1, 1)):
        monkeypatch.setattr(gpu_merge.shutil, "disk_usage", lambda _, free=free: argparse.Namespace(free=free))
        assert gpu_merge._layers(options) == layers
