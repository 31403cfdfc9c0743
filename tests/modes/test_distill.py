"""A LoRA student of a tangent teacher: what it follows, what it is as a file, what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import tangora
from tangora.cli import commands as cli
from tangora.config.recipe import BaseConfig, FinetuneConfig, LoraSettings, TaskConfig, TrainingSettings
from tangora.errors import ModelError
from tangora.evaluation.evaluator import Evaluator
from tangora.modes.distillation import _features, _mixed, distill
from tangora.modes.finetuning import finetune
from tangora.progress import Progress
from tangora.tangent import make_columns
from tangora.tasks import load_base, load_task

TARGETS = ["query", "value", "dense"]


@pytest.fixture(scope="module")
def base(tiny_bert):
    return load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert), max_length=16))


@pytest.fixture(scope="module")
def task(base, text_data):
    source = {"parquet": {s: str(text_data / f"{s}.parquet") for s in ("train", "test")}}
    return load_task(TaskConfig(name="colors", source=source, labels_from=str(text_data / "info.json")), base, 0)


def config(linearize="none", steps=60, rate=1e-2):
    training = TrainingSettings(steps=steps, batch_size=8, checkpoint_every=None, learning_rate=rate)
    return FinetuneConfig(
        mode=linearize, linearize=linearize, lora=LoraSettings(r=4, target_modules=TARGETS), training=training
    )


@pytest.fixture(scope="module")
def teacher(base, task):
    return finetune(base, task, config("model", rate=2e-2, steps=40))


def features(base, tasks, teacher, student):
    """Cosine of the student's features to the teacher's, and of the base's, on the rows that were looked at."""
    mixed = _mixed(tasks, [teacher], 1000, 0)
    columns = make_columns(base, mixed, "train", {"teacher": teacher})
    wanted = torch.nn.functional.normalize(columns.origin + columns.columns[0], dim=-1)
    from tangora.tasks import TaskModel

    def of(adapter):
        from tangora.adapters.application import applied

        with applied(base.backbone, adapter), torch.no_grad():
            model = TaskModel(base.backbone, mixed, base)
            found = torch.empty_like(wanted)
            for rows, batch in mixed.splits["train"].batches(16, model.collator):
                batch.pop("labels")
                found[rows] = model.logits(batch)
        return float((found * wanted).sum(-1).mean())

    return of(student), float((columns.origin * wanted).sum(-1).mean())


@pytest.mark.parametrize("linearize", ["none", "module"])
def test_the_student_follows_the_teacher(linearize, base, task, teacher, tmp_path):
    student = distill(base, [task], teacher, config(linearize), out=tmp_path / "s")
    close, before = features(base, [task], teacher, student)
    assert 1 - close < 0.25 * (1 - before)
    evaluator = Evaluator(base, [task])
    scores = {
        name: evaluator.evaluate(name, lambda a=a: a, ["colors"], "test")["colors"].score
        for name, a in {"teacher": teacher, "student": student}.items()
    }
    assert abs(scores["student"] - scores["teacher"]) < 0.15
    back = tangora.load(tmp_path / "s")
    assert back.metadata.linearize == linearize
    assert back.metadata.distilled.teacher == teacher.fingerprint
    assert back.metadata.distilled.rows == len(task.splits["train"])
    assert "distilled from" in (tmp_path / "s" / "README.md").read_text()


def test_every_task_may_have_a_teacher_of_its_own(base, text_data, teacher, tmp_path):
    source = {"parquet": {s: str(text_data / f"{s}.parquet") for s in ("train", "test")}}
    labels = str(text_data / "info.json")
    tasks = [load_task(TaskConfig(name=n, source=source, labels_from=labels), base, 0) for n in ("colors", "again")]
    other = finetune(base, tasks[1], config("model", rate=2e-2, steps=10))
    origin, moved = _features(base, [([tasks[0]], teacher), ([tasks[1]], other)], 6, 0, Progress())
    for i, (task, adapter) in enumerate(zip(tasks, (teacher, other), strict=True)):
        alone = _features(base, [([task], adapter)], 6, 0, Progress())
        assert torch.allclose(origin[6 * i : 6 * i + 6], alone[0], atol=1e-6)
        assert torch.allclose(moved[6 * i : 6 * i + 6], alone[1], atol=1e-6)
    assert not torch.allclose(moved[:6], moved[6:], atol=1e-3)
    student = distill(base, tasks, [other, teacher], config(steps=3), rows=6, out=tmp_path / "s")  # in any order
    assert student.metadata.distilled.teacher == {"colors": teacher.fingerprint, "again": other.fingerprint}
    assert other.fingerprint[:16] in (tmp_path / "s/README.md").read_text()
    assert tangora.load(tmp_path / "s").metadata.distilled == student.metadata.distilled
    with pytest.raises(ModelError, match=r"several teachers must be those of colors, again, got 'colors, colors'"):
        distill(base, tasks, [teacher, teacher], config())


class Heard(Progress):
    def __init__(self):
        self.calls = []

    def begin(self, label, total):
        self.calls.append((label, total))

    def advance(self, steps=1, detail=""):
        self.calls.append(detail)

    def update(self, done, detail=""):
        self.calls.append(done)

    def end(self):
        self.calls.append("end")


def test_it_shows_how_far_it_is(base, task, teacher, monkeypatch, capsys):
    progress, steps = Heard(), []
    watch = {"on_step": lambda step, total, loss: steps.append((step, total)), "progress": progress}
    distill(base, [task], teacher, config(steps=2), rows=4, **watch)
    assert progress.calls[:3] == [("features of the teachers", 1), "colors", "end"]
    assert progress.calls[3][1:] == (2,)
    assert progress.calls[4:] == [1, 2, "end"]
    assert steps == [(1, 2), (2, 2)]
    monkeypatch.setattr("tangora.progress.watched", lambda: True)
    distill(base, [task], teacher, config(steps=2), rows=4)
    assert "2/2" in capsys.readouterr().err
    distill(base, [task], teacher, config(steps=2), rows=4, progress=False)
    assert not capsys.readouterr().err


def test_the_same_seed_gives_the_same_student(base, task, teacher):
    one, other = (distill(base, [task], teacher, config(steps=4), rows=10) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert one.metadata.distilled.rows == 10


def test_what_is_refused(base, task, teacher, tmp_path):
    with pytest.raises(ModelError, match="teacher is not a tangent adapter"):
        distill(base, [task], distill(base, [task], teacher, config(steps=1)), config())
    with pytest.raises(ModelError, match="student is a LoRA or L-LoRA adapter"):
        distill(base, [task], teacher, config("model"))


def test_from_the_command_line(tiny_bert, text_data, teacher, tmp_path, monkeypatch, capsys):
    teacher.save(tmp_path / "teacher")
    recipe = {
        "name": "small",
        "base": {"family": "text-zero-shot", "model": str(tiny_bert), "max_length": 16},
        "tasks": [
            {
                "name": "colors",
                "source": {"parquet": {s: str(text_data / f"{s}.parquet") for s in ("train", "test")}},
                "labels_from": str(text_data / "info.json"),
            }
        ],
        "lora": {"r": 2, "target_modules": TARGETS},
        "training": {"steps": 3, "batch_size": 4},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    arguments = ["distill", str(tmp_path / "r.yaml"), str(tmp_path / "teacher"), "--out", str(tmp_path / "s")]
    cli.app(arguments, standalone_mode=False)
    assert "adapter:" in capsys.readouterr().out
    assert tangora.load(tmp_path / "s").metadata.mode == "lora"
