"""``tangora polish``: on rows of files, by what the adapters record, and on rows of a recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tangora
from tangora.cli import commands as cli
from tangora.config.recipe import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.modes.finetuning import finetune


def run(*arguments: object) -> int:
    """The program in this process; its exit code."""
    import sys

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tangora", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def expert(text_base, text_task, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "colors"
    training = TrainingSettings(steps=10, batch_size=8, checkpoint_every=None, learning_rate=1e-2)
    lora = LoraSettings(r=2, target_modules=["query", "value"])
    finetune(text_base, text_task, FinetuneConfig(mode="lora", lora=lora, training=training), out=folder)
    return folder


@pytest.fixture
def bare(text_data, tmp_path) -> Path:
    """Rows of the inputs without a column of labels."""
    from pyarrow import parquet

    table = parquet.read_table(text_data / "train.parquet").select(["text"])
    parquet.write_table(table, tmp_path / "bare.parquet")
    return tmp_path / "bare.parquet"


SMALL = ("--rank", 2, "--rows", 12, "--steps", 3, "--weights", 0.2, "--set", "recombined=20")


def test_rows_of_a_file_without_labels(expert, bare, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("polish", expert, "--data", f"colors={bare}", *SMALL, "--out", out, "--json", "-q") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == {"colors": 12}
    made = tangora.load(out)
    assert made.metadata.polished.experts == {"colors": tangora.load(expert).fingerprint}
    assert made.records.keys() == {"colors"}
    assert not list(tmp_path.glob(".out*"))
    assert run("polish", expert, "--data", f"colors={bare}", *SMALL, "--out", out, "-q") == 2
    assert "exists" in capsys.readouterr().err


def test_a_person_sees_rows_and_what_was_gained(expert, bare, tmp_path, capsys):
    assert run("polish", expert, "--data", f"colors={bare}", *SMALL, "--out", tmp_path / "out", "-q") == 0
    shown = capsys.readouterr().out
    assert "polished towards 1 expert on 12 rows each, without labels" in shown
    assert "→" in shown


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(expert, bare, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    arguments = (expert, "--data", f"colors={bare}", *SMALL, "--out", tmp_path / "out", "--dry-run", "-q")
    assert run("polish", *arguments) == 0
    # 20 rows answered; 3 steps of 5 rows, a backward pass counting as two; one held-out row judged twice
    assert "about 67 rows" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "polish needs rows"),
        (["--data", "colors"], "rows are NAME=FILE"),
        (["--data", "shapes=FILE"], "no rows for this task"),
        (["--data", "colors=FILE", "--data", "colors=FILE"], "two files for one task"),
        (["--data", "colors=nothing.csv"], "file not found"),
        (["--data", "colors=tangora.toml"], "the kind of the file is unknown"),
        (["--data", "colors=FILE", "--set", "steps=3"], "option of its own"),
        (["--data", "colors=FILE", "--set", "stepps=3"], "unknown key 'stepps'"),
        (["--data", "colors=FILE", "--recipe", "quickstart"], "polish needs rows"),
        (["--data", "colors=FILE", "--recipe-set", "seed=1"], "no recipe to change"),
        (["--data", "colors=FILE", "--start", "FILE"], "nothing is fused: the start is given"),
    ],
)
def test_refusals(expert, bare, tmp_path, capsys, arguments, said):
    given = [argument.replace("FILE", str(bare)) for argument in arguments]
    before = sorted(p for p in tmp_path.rglob("*"))
    assert run("polish", expert, *given, *SMALL, "--out", tmp_path / "out", "-q") == 2
    assert said in capsys.readouterr().err
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_start_that_is_not_there(expert, bare, tmp_path, capsys):
    arguments = ("--data", f"colors={bare}", "--start", "nowhere", "--rank", 2, "--out", tmp_path / "out", "-q")
    assert run("polish", expert, *arguments) == 2
    assert "no such folder" in capsys.readouterr().err


def test_another_column_is_named(expert, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("sentence\nred grass\nblue sea\n")
    assert run("polish", expert, "--data", f"colors={tmp_path / 'other.csv'}", *SMALL, "--out", tmp_path / "o") == 2
    assert "sentence" in capsys.readouterr().err


def test_an_adapter_of_peft_alone_needs_a_recipe(expert, bare, tmp_path, capsys):
    import shutil

    shutil.copytree(expert, tmp_path / "colors", ignore=shutil.ignore_patterns("heads"))
    assert run("polish", tmp_path / "colors", "--data", f"colors={bare}", *SMALL, "--out", tmp_path / "o") == 2
    assert "--recipe" in capsys.readouterr().err


def test_what_an_adapter_records_decides_neither_the_model_nor_whether_its_code_runs(expert, bare, tmp_path):
    """A record from somebody else cannot name another model, or have its code run."""
    import shutil

    from tangora.tasks import load_base

    folder = tmp_path / "colors"
    shutil.copytree(expert, folder)
    path = folder / "heads" / "colors.json"
    record = json.loads(path.read_text())
    record["base"] |= {"trust_remote_code": True, "model": "somebody/else", "revision": "evil"}
    path.write_text(json.dumps(record))
    loaded = []

    def seen(config, machine):
        loaded.append(config)
        return load_base(config, machine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.tasks.recorded.load_base", seen)
        run("polish", folder, "--data", f"colors={bare}", *SMALL, "--out", tmp_path / "out", "--dry-run", "-q")
    (config,) = loaded
    assert (config.trust_remote_code, config.model, config.revision) == (
        False,
        tangora.load(expert).metadata.base.model,
        None,
    )


def test_a_recipe_without_the_task_is_refused(expert, tmp_path, capsys):
    assert run("polish", expert, "--recipe", "quickstart", "--out", tmp_path / "out", "-q") == 2
    assert "the recipe has no such task" in capsys.readouterr().err


def test_a_task_is_added_to_a_fused_adapter(expert, bare, text_base, text_task, tmp_path, capsys):
    """The present adapter names its tasks, and how their rows are read; the new one comes from its expert."""
    out, again = tmp_path / "first", tmp_path / "second"
    assert run("polish", expert, "--data", f"colors={bare}", *SMALL, "--out", out, "-q") == 0
    new = tmp_path / "hues"
    training = TrainingSettings(steps=5, batch_size=8, checkpoint_every=None, learning_rate=1e-2)
    config = FinetuneConfig(mode="lora", lora=LoraSettings(r=2, target_modules=["query"]), training=training)
    finetune(text_base, replace(text_task, name="hues"), config, out=new)
    capsys.readouterr()
    rows = ("--data", f"colors={bare}", "--data", f"hues={bare}")
    assert run("polish", new, "--present", out, *rows, *SMALL, "--out", again, "--json", "-q") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["experts"] == {"hues": tangora.load(new).fingerprint, "colors": tangora.load(out).fingerprint}
    assert tangora.load(again).records.keys() == {"colors", "hues"}
    assert run("polish", new, "--present", out, *rows[2:], *SMALL, "--out", tmp_path / "third", "-q") == 2
    assert "no rows for this task" in capsys.readouterr().err
    bad = ("--present", bare, *rows, *SMALL, "--out", tmp_path / "third", "-q")
    assert run("polish", new, *bad) == 2
    assert "no such folder" in capsys.readouterr().err
    less = ("--start", again, *rows[:2], *SMALL[:6], *SMALL[8:], "--out", tmp_path / "less", "-q")
    assert run("polish", expert, *less) == 0
    dropped = tangora.load(tmp_path / "less")
    assert dropped.records.keys() == {"colors"}  # nobody followed the other task: it is not promised any more
    assert dropped.heads.keys() <= {"colors"}


def test_the_output_is_a_folder(expert, bare, tmp_path, capsys):
    for more in ((), ("--dry-run",)):
        out = tmp_path / "out.safetensors"
        assert run("polish", expert, "--data", f"colors={bare}", *SMALL, *more, "--out", out, "-q") == 2
        assert "written as a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bare.parquet"]


def test_two_experts_of_one_task_are_named(expert, bare, tmp_path, capsys):
    import shutil

    shutil.copytree(expert, tmp_path / "again")
    rows = ("--data", f"colors={bare}")
    assert run("polish", expert, tmp_path / "again", *rows, *SMALL, "--out", tmp_path / "out", "-q") == 2
    said = capsys.readouterr().err
    assert "two experts of one task" in said
    assert str(tmp_path / "again") in said
    assert run("polish", expert, expert, *rows, *SMALL, "--out", tmp_path / "out", "-q") == 2
    assert "it is given twice" in capsys.readouterr().err


def test_a_fusion_of_adapters_of_peft_alone_has_the_tasks_of_their_names(expert, bare, tmp_path, capsys):
    """It has no records, so that the rows must be a recipe's."""
    import shutil

    for name in ("one", "two"):
        shutil.copytree(expert, tmp_path / name, ignore=shutil.ignore_patterns("heads", "tangora.json"))
    present = tmp_path / "present"
    tangora.fuse([tmp_path / "one", tmp_path / "two"]).save(present)
    rows = [f"--data={name}={bare}" for name in ("colors", "one")]
    assert run("polish", expert, "--present", present, *rows, *SMALL, "--out", tmp_path / "out", "-q") == 2
    assert "name the tasks colors, one, two" in capsys.readouterr().err.lower()
    rows.append(f"--data=two={bare}")
    assert run("polish", expert, "--present", present, *rows, *SMALL, "--out", tmp_path / "out", "-q") == 2
    assert "give --recipe" in capsys.readouterr().err.lower()


def test_adapters_of_peft_alone_are_added_on_rows_of_a_recipe(expert, bare, tiny_bert, text_data, tmp_path, capsys):
    """Folders name the tasks of the new ones, and parents those of the fusion."""
    import shutil

    import yaml

    files = {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}
    named = ("one", "two", "new")
    recipe = {
        "name": "small",
        "base": {"family": "text-zero-shot", "model": str(tiny_bert)},
        "tasks": [{"name": n, "source": {"parquet": files}, "labels": ["red", "green", "blue"]} for n in named],
        "modes": {"lora": {}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    for name in named:
        shutil.copytree(expert, tmp_path / name, ignore=shutil.ignore_patterns("heads", "tangora.json"))
    present, out = tmp_path / "present", tmp_path / "out"
    tangora.fuse([tmp_path / "one", tmp_path / "two"]).save(present)
    rows = ("--recipe", tmp_path / "small.yaml")
    assert run("polish", tmp_path / "new", "--present", present, *rows, *SMALL, "--out", out, "-q") == 0
    experts = tangora.load(out).metadata.polished.experts
    assert list(experts) == ["new", "one", "two"]
    assert experts["one"] == experts["two"] == tangora.load(present).fingerprint
    assert experts["new"] == tangora.load(tmp_path / "new").fingerprint
