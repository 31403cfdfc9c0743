"""`tangora fuse --method ROUTER`, `tangora inspect` and the card of what it writes."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch
from mlp_experts import expert as of_factors
from mlp_experts import whole as of_weights
from typer.testing import CliRunner

import tangora
from routing.experts import of_tiny
from tangora.cli import app
from tangora.support.seams import ROUTERS
from tangora.testing._tiny import tiny_base


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("experts")
    for adapter, name in zip(of_tiny(1, 2, 3, ranks=(1, 2, 3)), "abc", strict=True):
        adapter.save(home / name)
    return [home / name for name in "abc"]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def refused(*arguments):
    done = run(*arguments)
    assert done.exit_code == 2 or isinstance(done.exception, tangora.TangoraError), done.output
    return str(done.exception) + done.output


def test_fuse_writes_a_routed_adapter(folders, tmp_path):
    out = tmp_path / "routed"
    done = run("fuse", *folders, "--method", "smile", "--set", "top_k=2", "--set", "gate_rank=1", "--out", out)
    assert done.exit_code == 0, (done.output, done.exception)
    lines = done.stdout.splitlines()
    assert lines[0] == "routed 3 adapters by smile"
    assert lines[1] == "3 experts of rank 1 to 3 beside 8 layers: a, b, c"
    assert lines[2] == "router: smile (top_k 2, gate_rank 1)"
    assert "plain peft does not load it" in done.stdout
    made = tangora.load(out)
    expected = tangora.route(folders, "smile", top_k=2, gate_rank=1)
    assert made.fingerprint == expected.fingerprint
    assert made.metadata.fused == expected.metadata.fused
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "routed.safetensors", "tangora.json"]
    card = (out / "README.md").read_text()
    assert "| router | `smile` |" in card
    assert "tangora.load_model(" in card
    assert "peft" not in card.replace("plain peft", "")


def test_a_dry_run_writes_nothing_and_says_the_same(folders, tmp_path):
    options = ("fuse", *folders, "--method", "arrow", "--out", tmp_path / "routed")
    planned = json.loads(run(*options, "--dry-run", "--json").stdout)
    assert not (tmp_path / "routed").exists()
    assert run(*options, "--dry-run").stdout.splitlines()[0] == "would route 3 adapters by arrow"
    written = json.loads(run(*options, "--json").stdout)
    assert {**planned, "dry_run": False} == written
    assert written["size"] == 4 * sum(written["numbers"].values())
    # 8 layers; of each, 3 experts of 1 + 2 + 3 ranks and 3 prototypes of its input's width
    widths = [16] * 6 + [32] * 2
    assert written["numbers"]["gates"] == 3 * sum(widths)


def test_inspect_describes_it(folders, tmp_path):
    run("fuse", *folders, "--method", "smile", "--out", tmp_path / "routed")
    done = run("inspect", tmp_path / "routed", "--no-sites")
    assert done.exit_code == 0
    assert "a routed adapter" in done.stdout
    assert "3 experts of rank 1 to 3 beside 8 layers: a, b, c" in done.stdout
    assert "router: smile (top_k 1, gate_rank 4)" in done.stdout
    assert "cannot be fused" in done.stdout
    (one,) = json.loads(run("inspect", tmp_path / "routed", "--json").stdout)["folders"]
    assert one["routed"]["router"] == "smile"
    assert one["routed"]["gates"] == {"projection": 8}
    (one,) = json.loads(run("inspect", folders[0], "--json").stdout)["folders"]
    assert one["routed"] is None


def test_inspect_says_whether_adapters_can_be_routed(folders):
    fitting = [name for name in ROUTERS if name != "dyadic-experts"]  # which needs one A
    assert f"can be routed with fuse --method: {', '.join(fitting)}" in run("inspect", *folders).stdout
    assert json.loads(run("inspect", *folders, "--json").stdout)["fusable"]["routers"] == fitting


def test_inspect_says_which_routers_take_other_experts(tmp_path):
    whole = [tmp_path / name for name in "ab"]
    for folder, seed in zip(whole, (1, 2), strict=True):
        of_weights(tiny_base(), folder.name, seed).save(folder)
    assert json.loads(run("inspect", *whole, "--json").stdout)["fusable"]["routers"] == ["e-wemoe", "wemoe"]
    linear = [tmp_path / name for name in "cd"]
    for folder, seed in zip(linear, (1, 2), strict=True):
        of_factors(tiny_base(), folder.name, seed).save(folder)
    assert json.loads(run("inspect", *linear, "--json").stdout)["fusable"]["routers"] == list(ROUTERS)


def test_heads_that_were_saved_whole_are_kept_task_by_task(tmp_path):
    for adapter, name in zip(of_tiny(1, 2), "ab", strict=True):
        targets = {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"]}
        config = peft.LoraConfig(r=2, lora_alpha=1, task_type="SEQ_CLS", **targets).to_dict() | targets
        whole = {"classifier.weight": torch.full((3, 16), float(ord(name)))}
        replace(adapter, whole=whole).with_details(config=config).save(tmp_path / name)
    pair, out = (tmp_path / "a", tmp_path / "b"), tmp_path / "routed"
    assert "heads (modules_to_save) differ" in refused("fuse", *pair, "--method", "smile", "--out", out)
    assert "heads are not fused" in refused("fuse", *pair, "--method", "smile", "--heads", "fuse", "--out", out)
    assert run("fuse", *pair, "--method", "smile", "--heads", "keep", "--out", out).exit_code == 0
    heads = tangora.load(out).heads
    assert {name: float(named["classifier.weight"][0, 0]) for name, named in heads.items()} == {"a": 97.0, "b": 98.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "smil"], ["no such fusion method", "smil"]),
        (["--method", "smile", "--set", "top=2"], ["unknown setting 'top'", "top_k"]),
        (["--method", "smile", "--set", "top_k=0"], ["greater than or equal to 1"]),
        (["--method", "smile", "--set", "top_k"], ["name=value"]),
        (["--method", "smile", "--weights", "0.3"], ["smile is a router", "weights"]),
        (["--method", "smile", "--rank", "3"], ["smile is a router", "rank"]),
        (["--method", "arrow", "--space", "core"], ["arrow is a router", "space"]),
        (["--method", "arrow", "--uniform"], ["format of its own", "--uniform"]),
        (["--method", "arrow", "--dtype", "bfloat16"], ["format of its own", "--dtype"]),
        (["--method", "ties", "--dry-run"], ["--dry-run"]),
    ],
)
def test_what_does_not_go_together_is_refused(folders, options, words, tmp_path):
    message = refused("fuse", *folders, *options, "--out", tmp_path / "out")
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused_before_anything_is_read(folders, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert "--overwrite" in refused("fuse", *folders, "--method", "smile", "--out", tmp_path / "out")
