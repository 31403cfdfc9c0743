"""Labels beside the experts' answers: what the loss is, which rows have one, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from test_polish_command import run
from torch.nn.functional import cross_entropy

import tangora
from tangora.config.polish import PolishSettings
from tangora.config.recipe import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.errors import ArgumentError, DataError
from tangora.modes.finetuning import finetune
from tangora.polishing.following import Follower
from tangora.polishing.polish import polish
from tangora.polishing.rows import choose_rows
from tangora.polishing.teaching import Teaching
from tangora.progress import Progress
from tangora.tasks.batches import IGNORED
from tangora.tasks.model import TaskModel

SETTINGS = {"rank": 2, "rows": 12, "recombined": 20, "steps": 3, "held_out": 0.25}


def expert_of(base, task, seed=0, out=None):
    training = TrainingSettings(steps=10, batch_size=8, checkpoint_every=None, learning_rate=1e-2)
    lora = LoraSettings(r=2, target_modules=["query", "value", "dense"])
    return finetune(base, task, FinetuneConfig(mode="lora", lora=lora, training=training, seed=seed), out=out)


@pytest.fixture(scope="module")
def expert(text_base, text_task):
    return expert_of(text_base, text_task)


@pytest.fixture(scope="module")
def folder(text_base, text_task, tmp_path_factory):
    place = tmp_path_factory.mktemp("experts") / "colors"
    expert_of(text_base, text_task, out=place)
    return place


def lesson_of(base, task, expert, **settings):
    chosen = PolishSettings(**{**SETTINGS, **settings})
    (one,) = Teaching(base, chosen, 0, None, False).lessons([task], {task.name: lambda: expert}, expert, Progress())
    return one, chosen


def test_drawn_rows_have_their_labels_and_made_ones_none(text_base, text_task, expert):
    one, _ = lesson_of(text_base, text_task, expert, labels=0.5)
    train = text_task.splits["train"]
    drawn = choose_rows(text_task, "train", 12, 0)
    assert (one.drawn, one.held, len(one.rows)) == (12, 3, 20)
    assert one.labels[:9].tolist() == [train.targets[row] for row in drawn[:9]]
    assert one.labels[9:17].tolist() == [IGNORED] * 8
    assert one.labels[17:].tolist() == [train.targets[row] for row in drawn[9:]]
    for place, row in enumerate([*drawn[:9], *[None] * 8, *drawn[9:]]):
        if row is not None:
            assert torch.equal(one.rows.inputs["input_ids"][place], train.inputs["input_ids"][row])
    assert lesson_of(text_base, text_task, expert)[0].labels is None


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_loss_is_the_weighted_mean_of_divergence_and_cross_entropy(text_base, text_task, expert, share):
    one, chosen = lesson_of(text_base, text_task, expert, labels=share, temperature=2.0)
    plain = replace(one, labels=None)
    rows = torch.arange(len(one.rows))
    batch = next(iter(one.rows.batches(len(one.rows), TaskModel(text_base.backbone, text_task, text_base).collator)))
    inputs = {name: values[torch.tensor(batch[0]).argsort()] for name, values in batch[1].items()}
    losses = {}
    with torch.no_grad():
        for name, lesson in (("labels", one), ("answers", plain)):
            follower = Follower(TaskModel(text_base.backbone, text_task, text_base), lesson, text_base, chosen)
            follower.eval()
            losses[name] = follower.divergence(rows, **inputs)
            losses[f"mean {name}"], logits = (follower(rows, **inputs)[key] for key in ("loss", "logits"))
        logits = logits[:, : len(text_task.labels)]
        has = one.labels != IGNORED
        certain = cross_entropy(logits, one.labels.clamp_min(0), reduction="none")
    wanted = torch.where(has, (1 - share) * losses["answers"] + share * certain, losses["answers"])
    torch.testing.assert_close(losses["labels"], wanted)
    assert (losses["labels"][has] - losses["answers"][has]).abs().max() > 1e-3
    assert losses["mean labels"] != losses["mean answers"]


def test_with_labels_alone_the_experts_answers_count_for_nothing(text_base, text_task, expert):
    other = expert_of(text_base, text_task, seed=3)
    start = tangora.fuse([expert], weights=0.1)
    alone = {**SETTINGS, "recombined": 0, "labels": 1.0, "start": start, "progress": False}
    one, two = (polish([teacher], text_base, [text_task], **alone) for teacher in (expert, other))
    assert one.metadata.polished.experts != two.metadata.polished.experts
    for site, update in one.updates.items():
        assert torch.equal(update.dense(), two.updates[site].dense())
    followed = polish([expert], text_base, [text_task], **{**alone, "labels": 0.0})
    assert any(not torch.equal(update.dense(), followed.updates[site].dense()) for site, update in one.updates.items())


def test_the_card_says_it(text_base, text_task, expert, tmp_path):
    made = polish([expert], text_base, [text_task], **SETTINGS, labels=0.5, progress=False)
    made.save(tmp_path / "made")
    card = (tmp_path / "made" / "README.md").read_text()
    assert "12 train rows a task, with their labels, which have 0.5 of the loss, and 8 made of parts of them" in card
    assert "loss before, nats" in card


def test_labels_of_a_file_are_read_by_the_names_of_the_classes(folder, tmp_path, capsys):
    lines = ["text,label", *(f"{color} {i},{color}" for i in range(6) for color in ("red", "green"))]  # none is blue
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    data = ("--data", f"colors={tmp_path / 'rows.csv'}", "--rank", 2, "--rows", 12, "--steps", 2)
    assert run("polish", folder, *data, "--set", "labels=0.5", "--out", tmp_path / "out", "-q") == 0
    shown = capsys.readouterr().out
    assert "on 12 rows each, whose labels have 0.5 of the loss" in shown
    assert "loss from answers and labels, in nats" in shown
    (tmp_path / "rows.csv").write_text("\n".join([*lines, "mauve 1,mauve"]) + "\n")
    assert run("polish", folder, *data, "--set", "labels=0.5", "--out", tmp_path / "no", "-q") == 2
    assert "'mauve'" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text("\n".join(line.split(",")[0] for line in lines) + "\n")
    assert run("polish", folder, *data, "--set", "labels=0.5", "--out", tmp_path / "no", "-q") == 2
    assert "label" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert run("polish", folder, *data, "--out", tmp_path / "without", "-q") == 0, "without labels they may be missing"


def test_what_has_no_labels_is_refused(text_base, text_task, answer_base, answer_task, expert):
    rows = replace(text_task.splits["train"], labelled=False)
    bare = replace(text_task, splits={"train": rows})
    with pytest.raises(DataError, match=r"polish\.labels needs labels, and the rows have none .*Give --recipe"):
        polish([expert], text_base, [bare], **SETTINGS, labels=0.5, progress=False)
    with pytest.raises(ArgumentError, match=r"labels are read of classes alone.*polish\.labels"):
        teaching = Teaching(answer_base, PolishSettings(labels=0.5), 0, None, False)
        teaching.lessons([answer_task], {answer_task.name: lambda: expert}, expert, Progress())
    with pytest.raises(ArgumentError, match="labels is about steps"):
        settings = {**SETTINGS, "steps": 0, "initial": "layers", "labels": 0.5}
        polish([expert], text_base, [text_task], **settings, progress=False)
    with pytest.raises(ArgumentError, match="labels is about answers, and objective: layers follows none"):
        polish([expert], text_base, [text_task], **SETTINGS, labels=0.5, objective="layers", progress=False)


def test_a_router_does_not_learn_from_placeholders(folder, tmp_path, capsys):
    (tmp_path / "bare.csv").write_text("text\n" + "red\ngreen\n" * 6)
    data = ("--data", f"colors={tmp_path / 'bare.csv'}", "--data", f"again={tmp_path / 'bare.csv'}")
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    about = json.loads((again / "tangora.json").read_text())
    (again / "tangora.json").write_text(json.dumps({**about, "task": "again"}))
    (again / "heads" / "colors.json").rename(again / "heads" / "again.json")
    method = ("--method", "wemoe", "--set", "objective=labels", "--set", "steps=1")
    assert run("fuse", folder, again, *method, *data, "--out", tmp_path / "out", "-q") == 2
    assert "label" in capsys.readouterr().err
