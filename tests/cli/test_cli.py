"""The command line: what it prints, its exit codes, and that bad input writes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from tangora.cli import commands as cli


@pytest.fixture
def tangora(monkeypatch, capsys):
    """Run a command in this process -> (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tangora", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))


def make(folder, seed=1, width=8, name="org/base", **config):
    model = get_peft_model(network(width), LoraConfig(**{"r": 2, "target_modules": ["0"], **config}))
    torch.manual_seed(seed)  # after the network, which seeds too
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter)
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def pair(tmp_path):
    return make(tmp_path / "a", 1), make(tmp_path / "b", 2)


def refused(result, *words):
    code, out, err = result
    assert code == 2, err
    said = [line for line in err.splitlines() if not re.search(r": done in [\d.]+ s$", line)]
    assert len(said) == 1, "one line after those of the stages that are done"
    assert said[0].startswith("error: ")
    for word in words:
        assert word in err, err
    assert out == ""


def test_help_is_quick_and_imports_nothing_heavy():
    probe = (
        "import sys; sys.argv = ['tangora', '--help']\n"
        "from tangora.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'pydantic', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fuse" in done.stdout


def test_version_and_no_arguments(tangora):
    assert tangora("--version")[1].startswith("tangora ")
    code, out, _ = tangora()
    assert code == 0
    assert "Usage" in out


def test_fuse_writes_an_adapter_and_says_where(tangora, pair, tmp_path):
    code, out, err = tangora("fuse", *pair, "--weights", "0.5", "--out", tmp_path / "fused")
    assert (code, err) == (0, "")
    assert "fused 2 adapters by task_arithmetic" in out
    assert str(tmp_path / "fused") in out
    about = json.loads((tmp_path / "fused" / "tangora.json").read_text())
    assert about["fused"]["weights"] == [0.5, 0.5]
    assert "0.5" in (tmp_path / "fused" / "README.md").read_text()


def test_fuse_reports_the_truncation(tangora, pair, tmp_path):
    code, out, _ = tangora("fuse", *pair, "--weights=1,-0.5", "--rank", "1", "--out", tmp_path / "fused")
    assert code == 0
    assert "rank 1, " in out
    assert "relative error of the truncation: 0." in out


def test_a_folder_in_which_nothing_can_be_made(tangora, pair):
    refused(tangora("fuse", *pair, "--out", "/proc/tangora"), "cannot be written", "/proc/tangora", "--out")


def test_numbers_as_people_write_them(tangora, pair, tmp_path):
    assert tangora("fuse", *pair, "--method", "ties", "--set", "density=5e-1", "--out", tmp_path / "f")[0] == 0
    assert json.loads((tmp_path / "f" / "tangora.json").read_text())["fused"]["parameters"] == {"density": 0.5}


def test_fuse_passes_parameters_on(tangora, pair, tmp_path):
    assert tangora("fuse", *pair, "--method", "ties", "--set", "density=0.3", "--out", tmp_path / "f")[0] == 0
    assert json.loads((tmp_path / "f" / "tangora.json").read_text())["fused"]["parameters"] == {"density": 0.3}


def test_methods_lists_the_registry(tangora):
    import tangora as package
    from tangora.support.seams import ROUTERS

    code, out, _ = tangora("methods")
    assert code == 0
    for name in (*package.methods(), *ROUTERS):
        assert name in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "1,2,3"], ["3", "2 adapters"]),
        (["--weights", "nan"], ["nan"]),
        (["--weights", "inf,1"], ["inf"]),
        (["--weights", "half"], ["weights must be numbers", "half"]),
        (["--method", "tie"], ["tie", "ties"]),
        (["--method", "ties", "--set", "density=20"], ["density must be in (0, 1]", "20", "0.20"]),
        (["--method", "ties", "--set", "density=0"], ["density must be in (0, 1]"]),
        (["--method", "ties", "--set", "densty=0.2"], ["densty", "density"]),
        (["--set", "density"], ["name=value"]),
        (["--space", "gamma"], ["gamma", "delta"]),
        (["--space", "factors"], ["factors"]),
        (["--rank", "0"], ["rank"]),
    ],
)
def test_bad_options_of_fuse(tangora, pair, tmp_path, options, words):
    refused(tangora("fuse", *pair, *options, "--out", tmp_path / "fused"), *words)
    assert not (tmp_path / "fused").exists()


def corrupt(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def set_first(tensors, value):
    next(iter(tensors.values()))[0, 0] = value


def to_pickle(folder):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: corrupt(f, lambda t: set_first(t, float("nan"))), ["0.lora_"]),
        (lambda f: corrupt(f, lambda t: set_first(t, float("inf"))), ["0.lora_"]),
        (truncate, ["truncated or corrupt"]),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), ["truncated or corrupt"]),
        (to_pickle, ["adapter_model.bin", "safetensors"]),
        (lambda f: (f / "adapter_config.json").unlink(), ["adapter_config.json"]),
        (lambda f: (f / "adapter_config.json").write_text("{"), ["JSON"]),
        (shutil.rmtree, ["b"]),
    ],
)
def test_bad_adapters_of_fuse(tangora, pair, tmp_path, damage, words):
    damage(pair[1])
    refused(tangora("fuse", *pair, "--out", tmp_path / "fused"), *words)
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"name": "org/other"}, ["org/base", "org/other"]),
        ({"width": 6}, ["(8, 8)", "(6, 6)"]),
        ({"use_dora": True}, ["DoRA"]),
        ({"modules_to_save": ["2"]}, ["modules_to_save"]),
        ({"bias": "lora_only"}, ["bias"]),
    ],
)
def test_adapters_that_do_not_go_together(tangora, tmp_path, other, words):
    pair = make(tmp_path / "a", 1), make(tmp_path / "b", 2, **other)
    refused(tangora("fuse", *pair, "--out", tmp_path / "fused"), *words)
    assert not (tmp_path / "fused").exists()


def test_an_existing_output_is_kept(tangora, pair, tmp_path):
    out = tmp_path / "fused"
    out.mkdir()
    (out / "mine").write_text("1")
    refused(tangora("fuse", *pair, "--out", out), "exists", "--overwrite")
    assert [p.name for p in out.iterdir()] == ["mine"]
    refused(tangora("fuse", *pair, "--out", out, "--overwrite"), "did not write", "mine")
    assert [p.name for p in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    assert tangora("fuse", *pair, "--out", out)[0] == 0
    assert tangora("fuse", *pair, "--out", out, "--overwrite")[0] == 0
    assert not (out / "mine").exists()


def test_a_full_disk_is_one_line(tangora, pair, tmp_path, monkeypatch):
    import errno

    import tangora.adapters.adapter as module

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_safetensors", full, raising=False)
    monkeypatch.setattr("tangora.support.files.write_safetensors", full)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    refused(tangora("fuse", *pair, "--out", tmp_path / "fused"), "disk is full")
    assert not (tmp_path / "fused").exists()
    assert not list(tmp_path.glob(".fused*"))


def test_usage_errors_are_two_lines(tangora):
    code, _, err = tangora("fuse", "--nope")
    assert code == 2
    assert "no such option" in err.lower()
    assert "Traceback" not in err


@pytest.fixture
def recipe(tiny_bert, text_data, tmp_path):
    files = {"train": f"{text_data}/train.parquet", "test": f"{text_data}/test.parquet"}
    labels = ["red", "green", "blue"]
    raw = {
        "name": "small",
        "base": {"family": "text-zero-shot", "model": str(tiny_bert)},
        "tasks": [{"name": n, "source": {"parquet": files}, "labels": labels} for n in ("one", "two")],
        "lora": {"r": 2},
        "training": {"steps": 2, "batch_size": 4},
        "modes": {"lora": {}},
        "fusion": {"methods": [{"method": "average"}]},
        "evaluation": {"bootstrap": 100},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_run_ends_in_a_table_and_the_report(tangora, recipe, tmp_path):
    code, out, err = tangora("run", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    assert "zero-shot" in out
    assert out.strip().endswith(str(tmp_path / "run" / "report.html"))
    for stage in ("load base and data", "lora · one", "lora · two", "score · lora · one", "fuse · lora", "report"):
        assert stage in err
    (tmp_path / "run" / "report.html").unlink()
    assert tangora("report", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("arguments", [("jobs",), ("job", "3f2a91c04b7d"), ("explore",)])
def test_a_folder_that_is_no_run(tangora, tmp_path, arguments):
    name, *others = arguments
    refused(tangora(name, tmp_path, *others), "not a run", str(tmp_path), "tangora run")


def test_dry_run_says_what_and_writes_nothing(tangora, recipe, tmp_path):
    code, out, err = tangora("run", recipe, "--out", tmp_path / "run", "--dry-run")
    assert code == 0
    assert "2 tasks, 1 subset, 1 comparison" in out
    assert "9 jobs, 0 done; how long they take is known after the first ones" in out
    # 2 layers x (query, value) = 4 sites, r 2, width 32: 4 * 2 * (32 + 32) numbers
    assert "512" in out
    assert "0.001" in out, "the rate"
    assert all(line.endswith(" s") for line in err.splitlines()), "no library says anything"
    assert not (tmp_path / "run").exists()


def test_dry_run_of_another_recipe_in_a_runs_folder(tangora, recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("of another run")
    refused(tangora("run", recipe, "--out", run, "--dry-run"), "another recipe", "--overwrite")
    assert tangora("run", recipe, "--out", run, "--dry-run", "--overwrite")[0] == 0
    assert (run / "recipe.yaml").read_text() == "of another run"


def test_finetune_then_evaluate_then_fuse(tangora, recipe, tmp_path):
    for task in ("one", "two"):
        code, out, err = tangora("finetune", recipe, "--task", task, "--out", tmp_path / task)
        assert code == 0, err
        assert str(tmp_path / task) in out
    assert tangora("fuse", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both", "--space", "factors")[0] == 0
    code, out, err = tangora("evaluate", recipe, tmp_path / "one", tmp_path / "both")
    assert code == 0, err
    assert "zero-shot" in out
    assert "mean" in out
    refused(tangora("finetune", recipe, "--task", "one", "--out", tmp_path / "one"), "exists")


def test_a_run_does_not_train_again_what_finetune_has_trained(tangora, recipe, tmp_path):
    home = tmp_path / "run" / "adapters"
    settings = ["--set", "modes={lora: {}, l-lora: {train: l-lora}}"]
    for mode in ("lora", "l-lora"):
        asked = ["--mode", mode, "--task", "one", "--out", home / mode / "one", *settings]
        assert tangora("finetune", recipe, *asked)[0] == 0
    trained = {mode: (home / mode / "one" / "training.json").stat() for mode in ("lora", "l-lora")}
    code, _, err = tangora("run", recipe, "--out", tmp_path / "run", *settings)
    assert code == 0, err
    trained_now = [line for line in err.splitlines() if line.startswith(("lora ·", "l-lora ·"))]
    assert len(trained_now) == 2
    assert all(" · two: done" in line for line in trained_now)
    for mode, before in trained.items():
        after = (home / mode / "one" / "training.json").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    refused(tangora("finetune", recipe, "--out", tmp_path / "x"), "one task at a time", "one, two")


def test_statistics_then_a_fusion_that_needs_them(tangora, recipe, tmp_path):
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "fused"
    for adapter in (one, two):
        assert tangora("finetune", recipe, "--task", adapter.name, "--out", adapter)[0] == 0
        code, said, err = tangora("statistics", recipe, adapter, "--rows", 12, "--out", f"{adapter}.safetensors")
        assert code == 0, err
        assert f"gram and fisher of 12 train rows of {adapter.name}: 8 tensors" in said
    known = ["--statistics", f"{one}.safetensors", "--statistics", f"{two}.safetensors"]
    for method in ("regmean", "fisher"):
        code, said, err = tangora("fuse", one, two, "--method", method, *known, "--out", out / method)
        assert code == 0, err
        assert f"fused 2 adapters by {method}" in said
    told = json.loads((out / "regmean" / "tangora.json").read_text())["fused"]["statistics"]
    assert [(t["kind"], t["task"], t["split"], t["rows"]) for t in told] == [
        ("gram", "one", "train", 12),
        ("gram", "two", "train", 12),
    ]
    refused(tangora("fuse", one, two, "--method", "fisher", *known[:2], "--out", out / "x"), "two", "is of")
    refused(tangora("fuse", one, two, *known, "--out", out / "x"), "task_arithmetic needs no statistics")
    refused(tangora("fuse", one, two, "--full", *known, "--out", out / "x"), "statistics are of adapters")
    refused(tangora("statistics", recipe, one, "--out", f"{one}.safetensors"), "exists")
    refused(tangora("statistics", recipe, one, "--task", "onne", "--out", out / "x.safetensors"), "Did you mean 'one'")
    refused(tangora("statistics", recipe, one, "--kind", "grm", "--out", out / "x.safetensors"), "Did you mean 'gram'")
    assert sorted(path.name for path in out.iterdir()) == ["fisher", "regmean"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "lora.rank=3"], ["unknown key 'rank'", "r"]),
        (["--set", "lora.r=x"], ["valid integer", "'x'"]),
        (["--set", "base.model=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--set", "tasks.one.source.parquet.test=/nowhere.parquet"], ["/nowhere.parquet"]),
        (["--set", "tasks.one.text=txt"], ["txt", "text"]),
        (["--set", "tasks.one.label=lable"], ["lable", "label"]),
        (["--set", "tasks.one.labels=[red, green]"], ["label"]),
        (["--set", "tasks.one.labels=[red, green, blue, mauve]"], ["mauve"]),
        (["--set", "lora.target_modules=[query, kye]"], ["kye"]),
        (["--set", "fusion.methods.0.method=averge"], ["averge", "average"]),
        (["--set", "lora.init=pissa"], ["pissa", "base weights"]),
    ],
)
def test_bad_recipes_and_data_of_run(tangora, recipe, tmp_path, arguments, words):
    refused(tangora("run", recipe, "--out", tmp_path / "run", *arguments), *words)
    left = [p for p in (tmp_path / "run").rglob("*") if p.is_file()] if (tmp_path / "run").exists() else []
    whole = {"run.log", ".lock", "seconds.json", "threads.json", "recipe.yaml"}
    assert {p.name for p in left} <= whole, "nothing half-made"


def test_a_mode_that_cannot_be_is_told_before_another_is_trained(tangora, recipe, tmp_path):
    out = tmp_path / "run"
    wrong = "modes={a: {}, b: {lora: {target_modules: [kye]}}}"
    refused(tangora("run", recipe, "--out", out, "--set", wrong), "kye")
    assert not (out / "adapters").exists()
    assert not (out / "recipe.yaml").exists(), "the corrected recipe may take the folder"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quikstart"], ["quikstart", "quickstart"]),
        (["run", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["report", "/nowhere"], ["not a run"]),
        (["evaluate", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["fuse", "/nowhere", "--out", "/tmp/never"], ["/nowhere"]),
    ],
)
def test_missing_files(tangora, arguments, words):
    refused(tangora(*arguments), *words)


def test_an_unknown_split_of_evaluate(tangora, recipe):
    refused(tangora("evaluate", recipe, "--split", "tset"), "no such split", "tset", "train, validation, test")


def test_an_adapter_that_cannot_be_written(tangora, recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(tangora("finetune", recipe, "--task", "one", "--out", tmp_path / "file" / "a"), "cannot be written", "file")


def test_a_full_disk_under_the_log_hides_nothing(tangora, recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.log").symlink_to("/dev/full")
    refused(tangora("run", recipe, "--out", tmp_path / "run", "--set", "lora.target_modules=[kye]"), "kye")


@pytest.mark.slow
def test_two_processes_under_accelerate_launch(recipe, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = ["-m", "tangora", "finetune", str(recipe), "--task", "one", "--out", str(tmp_path / "one")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("adapter: ") == 1, "one process speaks"
    assert (tmp_path / "one" / "tangora.json").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_unknown_task_and_mode_of_finetune(tangora, recipe, tmp_path):
    refused(tangora("finetune", recipe, "--task", "oen", "--out", tmp_path / "x"), "oen", "one")
    refused(tangora("finetune", recipe, "--task", "one", "--mode", "lroa", "--out", tmp_path / "x"), "lroa", "lora")
    assert not (tmp_path / "x").exists()


def test_an_unexpected_error_leaves_its_traceback_in_the_log(tangora, recipe, tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module("tangora.runs.loading")

    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "load_base", broken)
    code, _, err = tangora("run", recipe, "--out", tmp_path / "run")
    assert code == 1
    assert "ZeroDivisionError: a bug" in err
    assert err.count("\n") == 1
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(recipe, tmp_path):
    command = [
        sys.executable,
        "-m",
        "tangora",
        "run",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "training.steps=100000",
    ]
    # A shell's background job ignores the signal, and its children would too.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "recipe.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "run").rglob(".*.tmp-*"))


COMMANDS = [
    ("fuse", "{a}", "{path}", "--out", "{out}"),
    ("fuse", "{a}", "{b}", "--out", "{path}"),
    ("merge", "{a}", "--base", "{path}", "--out", "{out}"),
    ("inspect", "{path}"),
    ("report", "{path}"),
    ("analyze", "{path}"),
    ("explore", "{path}"),
    ("jobs", "{path}"),
    ("run", "{path}"),
    ("finetune", "quickstart", "--task", "digits", "--out", "{path}"),
]


@pytest.mark.parametrize("path", ["n" * 300, "loop/x", "file/x"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_path_that_the_system_refuses_is_one_line(tangora, pair, tmp_path, command, path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    places = {"a": pair[0], "b": pair[1], "out": tmp_path / "out", "path": tmp_path / path}
    code, out, err = tangora(*(word.format_map(places) for word in command))
    assert code == 2
    if command[0] == "inspect":  # what is wrong with a folder is its result
        assert path.rpartition("/")[2][:50] in out
    else:
        assert err.count("error: ") == 1
    assert "Traceback" not in out + err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 16777216")])
def test_memory_that_is_used_up_is_one_line(tangora, pair, tmp_path, monkeypatch, error):
    import tangora.adapters.adapter as module

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(module.Adapter, "save", fail)
    refused(tangora("fuse", *pair, "--out", tmp_path / "out"), "memory is used up")
    assert not (tmp_path / "out").exists()
