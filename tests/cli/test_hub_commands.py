"""Commands and functions with names on the Hub in place of folders: the same results, and lineage with the commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tangora
from hub_server import OWNER, Hub, serving
from hub_worker import Worker


@pytest.fixture(scope="module")
def hub(workshop: Path) -> Iterator[Hub]:
    with serving() as made:
        for name in ("one", "two"):
            made.add(f"org/{name}", workshop / "adapters" / name)
        made.repositories["org/one"].refs["v1"] = made.repositories["org/one"].refs["main"]
        folder = workshop / "run" / "adapters" / "tangent" / "one"
        made.add("org/several", {f"tangent/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in files(folder)})
        made.add("org/encoder", workshop / "encoder")
        made.repositories["org/encoder"].refs["v1"] = made.repositories["org/encoder"].refs["main"]
        made.add("org/within", {f"sub/{p.name}": p.read_bytes() for p in files(workshop / "encoder")})
        for name in ("base", "m0"):
            made.add(f"org/{name}", workshop / "models" / name)
        yield made


@pytest.fixture(scope="module")
def worker(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(hub.address, tmp_path_factory.mktemp("hub") / "home", HF_HUB_DISABLE_XET="1")
    yield made
    made.close()


def files(folder: Path) -> list[Path]:
    """The files of a folder and below."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def done(worker: Worker, *arguments: object, cwd: Path | None = None) -> str:
    """What a command prints that succeeds."""
    code, out, err = worker.command(*arguments, cwd=cwd)
    assert code in (0, None), err
    return out


def test_fuse(hub: Hub, worker: Worker, workshop: Path, tmp_path: Path) -> None:
    done(worker, "fuse", "org/one@v1", "org/two", "-w", "0.5", "--out", tmp_path / "fused")
    folders = [workshop / "adapters" / name for name in ("one", "two")]
    expected = tangora.fuse([str(folder) for folder in folders], weights=0.5)
    written = tangora.load(tmp_path / "fused")
    assert written.fingerprint == expected.fingerprint
    assert written.metadata.fused is not None
    commits = [hub.repositories[f"org/{name}"].refs["main"] for name in ("one", "two")]
    assert [p.source for p in written.metadata.fused.parents] == [f"org/one@{commits[0]}", f"org/two@{commits[1]}"]
    assert [p.name for p in written.metadata.fused.parents] == ["one", "two"]
    card = (tmp_path / "fused" / "README.md").read_text()
    assert f"org/one@{commits[0]}" in card
    texts = [path.read_bytes() for path in files(tmp_path / "fused")]
    assert not any(b"snapshots" in text or str(worker.place).encode() in text for text in texts)


def test_inspect(hub: Hub, worker: Worker) -> None:
    out = done(worker, "inspect", "org/one", "org/two@main", "--json")
    first, second = json.loads(out)["folders"]
    assert first["path"] == f"org/one@{hub.repositories['org/one'].refs['main'][:12]}"
    assert second["task"] == "two"
    code, out, _ = worker.command("inspect", "org/nowhere", "org/one")
    assert code == 2
    assert "cannot be read: no such folder here, and no such repository on the Hub" in " ".join(out.split())


def test_predict_with_a_base_on_the_hub(worker: Worker, workshop: Path) -> None:
    arguments = ["predict", "org/one", "--text", "a red photo", "--probabilities", "--json"]
    found = [
        json.loads(done(worker, *arguments, "--base", base))["answers"]
        for base in ("org/encoder", "org/encoder@v1", "org/within/sub", "org/within/sub@main")
    ]
    known = tangora.predictor(workshop / "adapters" / "one", base=str(workshop / "encoder"))(["a red photo"])
    for answers in found:
        assert answers == found[0]
        assert answers[0]["answer"] == known[0]
    code, _, err = worker.command(*arguments, "--base", "org/encoder@v7")
    assert code == 2
    assert "org/encoder" in err
    assert "Traceback" not in err


def test_evaluate(worker: Worker, workshop: Path) -> None:
    where = ["recipe.yaml", "org/one", "org/several/tangent"]
    out = done(worker, "evaluate", *where, "--json", cwd=workshop)
    scores = json.loads(out)["scores"]
    names = [name for name in scores if name != "zero-shot"]
    assert [name.rpartition("@")[0] for name in names] == ["org/one", "org/several/tangent"]
    local = ["adapters/one", "run/adapters/tangent/one"]
    expected = json.loads(done(worker, "evaluate", "recipe.yaml", *local, "--json", cwd=workshop))["scores"]
    assert [scores[name]["tasks"] for name in names] == [expected[name]["tasks"] for name in local]


def test_merge_checkpoints_and_adapters(hub: Hub, worker: Worker, workshop: Path, tmp_path: Path) -> None:
    done(worker, "merge", "org/base", "org/m0", "-w", "0.5", "--out", tmp_path / "merged")
    models = workshop / "models"
    tangora.fuse_checkpoints(models / "base", [models / "m0"], tmp_path / "local", weights=0.5)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "local"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    lineage = json.loads((tmp_path / "merged" / "tangora_fusion.json").read_text())
    commits = {name: hub.repositories[f"org/{name}"].refs["main"] for name in ("base", "m0")}
    assert lineage["base"]["source"] == f"org/base@{commits['base']}"
    assert lineage["parents"][0]["source"] == f"org/m0@{commits['m0']}"
    assert f"org/m0@{commits['m0']}" in (tmp_path / "merged" / "README.md").read_text()
    done(worker, "merge", "org/one", "--base", "org/encoder", "--out", tmp_path / "whole")
    lineage = json.loads((tmp_path / "whole" / "tangora_fusion.json").read_text())
    assert lineage["base"]["model"] == "org/encoder"
    assert lineage["parents"][0]["source"].startswith("org/one@")
    assert not any(b"snapshots" in path.read_bytes() for path in files(tmp_path / "whole"))


def test_polish_and_statistics_and_distill(worker: Worker, workshop: Path, tmp_path: Path) -> None:
    recipe = ["--recipe", "recipe.yaml"]
    out = tmp_path / "polished"
    done(worker, "polish", "org/one", "org/two", *recipe, "--steps", 1, "--rows", 4, "--out", out, cwd=workshop)
    polished = tangora.load(out).metadata.polished
    assert polished is not None
    expected = {name: tangora.load(workshop / "adapters" / name).fingerprint for name in ("one", "two")}
    assert polished.experts == expected
    done(worker, "statistics", "recipe.yaml", "org/one", "--rows", 4, "--out", tmp_path / "s.safetensors", cwd=workshop)
    assert json.loads((tmp_path / "s.json").read_text())["task"] == "one"
    arguments = ["distill", "recipe.yaml", "org/several/tangent", "--rows", 4, "--out", tmp_path / "student"]
    done(worker, *arguments, "--set", "tasks.0.limit.train=8", cwd=workshop)
    assert (tmp_path / "student" / "adapter_model.safetensors").is_file()


def test_export(worker: Worker, workshop: Path, tmp_path: Path) -> None:
    done(worker, "export", "org/one", "--to", "peft", "--out", tmp_path / "served")
    known = tangora.load(workshop / "adapters" / "one").updates
    served = tangora.load(tmp_path / "served").updates
    assert served.keys() == known.keys()
    for site, update in served.items():
        torch.testing.assert_close(update.dense(), known[site].dense(), rtol=1e-6, atol=1e-6)


def test_python(worker: Worker, workshop: Path) -> None:
    code = "import tangora\n"
    assert (
        worker(f"{code}result = tangora.load('org/one@v1').fingerprint")
        == tangora.load(workshop / "adapters" / "one").fingerprint
    )
    assert worker(f"{code}result = type(tangora.load_model('org/one', 'org/encoder@v1')).__name__") == "PeftModel"
    assert worker(f"{code}result = tangora.fuse(['org/one', 'org/two']).metadata.fused.parents[1].name") == "two"
    text = worker(f"{code}result = tangora.fuse(['org/one', 'org/base'])")
    assert text.startswith("AdapterError: a full checkpoint where an adapter is needed at org/base")
    settings = "model='org/encoder@v1', family='text-zero-shot', max_length=16"
    base = worker(f"{code}base = tangora.load_base({settings})\nresult = [base.config.model, base.config.revision]")
    assert base == ["org/encoder", "v1"]
    text = worker(f"{code}result = tangora.load_base({settings}, revision='v2')")
    assert "model and revision name two revisions: v1 and v2" in text


def test_an_adapter_that_is_trained_records_the_commit_of_its_base(
    hub: Hub, worker: Worker, workshop: Path, tmp_path: Path
) -> None:
    settings = ["--set", "base.model=org/encoder@v1", "--set", "training.steps=1"]
    done(
        worker,
        "finetune",
        "recipe.yaml",
        "--task",
        "one",
        "--mode",
        "lora",
        *settings,
        "--out",
        tmp_path / "a",
        cwd=workshop,
    )
    trained = tangora.load(tmp_path / "a").metadata.base
    assert (trained.model, trained.revision) == ("org/encoder", hub.repositories["org/encoder"].refs["v1"])
    out = done(worker, "predict", tmp_path / "a", "--text", "a red photo", "--json")  # the base is found by both
    assert json.loads(out)["rows"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "recipe.yaml", "org/one@v9"], "the repository has no such revision, got 'v9'"),
        (["fuse", "org/nowhere", "--out", "out"], "no such folder here, and no such repository on the Hub"),
        (["fuse", "./org/nowhere", "--out", "out"], "no such folder at org/nowhere"),
        (["merge", "org/one", "--base", "org/two", "--out", "out"], "an adapter where a full checkpoint is needed"),
        (["predict", "org/one/sub", "--text", "a"], "the repository has no such folder, got 'sub'"),
    ],
)  # fmt: skip
def test_errors_are_one_line(worker: Worker, workshop: Path, arguments: list[str], expected: str) -> None:
    code, out, err = worker.command(*arguments, cwd=workshop)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("fetch org/")]
    assert len(lines) == 1


def test_push_and_load_again(hub: Hub, worker: Worker, workshop: Path, tmp_path: Path) -> None:
    worker("import os\nos.environ['HF_TOKEN'] = token", token=OWNER)
    fused = tmp_path / "fused"
    done(worker, "fuse", "org/one", "org/two", "-w", "0.5", "--out", fused)
    code, _, err = worker.command("push", fused, "me/fused", cwd=workshop)
    assert code == 2
    assert "a path of this machine would be published, got 'encoder'" in err
    assert "--base org/name" in err
    assert "me/fused" not in hub.repositories
    out = done(
        worker, "push", fused, "me/fused", "--private", "--base", "org/encoder", "--message", "a first", cwd=workshop
    )
    commit = hub.repositories["me/fused"].refs["main"]
    assert out.splitlines()[-2:] == [f"pushed {len(files(fused))} files: me/fused@{commit}", f"{hub.address}/me/fused"]
    assert hub.repositories["me/fused"].private
    there = hub.repositories["me/fused"].commits[commit]
    assert there.keys() == {p.relative_to(fused).as_posix() for p in files(fused)} | {".gitattributes"}
    assert there["adapter_model.safetensors"] == (fused / "adapter_model.safetensors").read_bytes()
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == "org/encoder"
    assert json.loads(there["tangora.json"])["base"]["model"] == "org/encoder"
    card = there["README.md"].decode()
    assert "base_model: org/encoder\n" in card
    assert '"me/fused"' in card
    assert "path/to/this/folder" not in card
    code = "import tangora\nresult = tangora.load('me/fused').fingerprint"
    assert worker(code) == tangora.load(fused).fingerprint
    out = done(worker, "predict", "me/fused", "--task", "one", "--text", "a red photo", "--json")
    assert json.loads(out)["rows"] == 1
