"""Fine-tuning end to end on tiny checkpoints of the real classes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn

from tangora.adapters import initial
from tangora.adapters.adapter import load
from tangora.config.recipe import (
    BaseConfig,
    FinetuneConfig,
    LoraSettings,
    Source,
    TaskConfig,
    TrainingSettings,
)
from tangora.errors import MissingExtraError, ModelError, OutputError
from tangora.modes import session
from tangora.modes.finetuning import finetune
from tangora.support.files import read_json
from tangora.tasks import TaskModel, load_base, load_task

COLORS = ["red", "green", "blue"]


def source(folder, kind="parquet"):
    return Source(**{kind: {split: str(folder / f"{split}.{kind}") for split in ("train", "test")}})


@pytest.fixture(scope="module")
def base(tiny_bert):
    return load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert)))


@pytest.fixture(scope="module")
def task(base, text_data):
    return load_task(TaskConfig(name="colors", source=source(text_data), labels=COLORS), base, 0)


def config(*, lora=None, training=None, **settings):
    lora = {"r": 4, "target_modules": ["query", "value"], **(lora or {})}
    training = {"steps": 6, "batch_size": 8, "checkpoint_every": 2, **(training or {})}
    return FinetuneConfig(lora=LoraSettings(**lora), training=TrainingSettings(**training), **settings)


MODES = {
    "lora": {},
    "l-lora": {"linearize": "module"},
    "l-lora, both factors": {"linearize": "module", "lora": {"init": "orthogonal"}},
    "full": {"train": "full"},
}


def same(one, other):
    return one.updates.keys() == other.updates.keys() and all(
        torch.equal(update.dense(), other.updates[site].dense()) for site, update in one.updates.items()
    )


def logits(base, task, backbone=None):
    model = TaskModel(backbone or base.backbone, task, base)
    training = model.training
    rows = task.splits["test"].dataset()
    batch = model.collator([rows[i] for i in range(8)])
    with torch.no_grad():
        found = model.eval()(**batch)["logits"]
    model.train(training)
    return found


def snapshot(backbone):
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    modules = {name: id(module) for name, module in backbone.named_modules()}
    return state, modules, {name: p.requires_grad for name, p in backbone.named_parameters()}, backbone.training


def unchanged(backbone, before):
    state, *rest = snapshot(backbone)
    equal = state.keys() == before[0].keys() and all(torch.equal(value, before[0][n]) for n, value in state.items())
    return equal and rest == list(before[1:])


@pytest.mark.parametrize("mode", MODES)
def test_the_adapter_holds_what_was_trained_and_the_base_is_as_before(mode, base, task, tmp_path):
    before = snapshot(base.backbone)
    start, trained = logits(base, task), {}

    def on_step(step, total, loss):
        trained[step] = (total, loss, logits(base, task))

    out = tmp_path / "adapter"
    adapter = finetune(base, task, config(mode="mine", **MODES[mode]), out=out, on_step=on_step, stage="abc")
    assert unchanged(base.backbone, before)
    assert torch.equal(logits(base, task), start)
    assert list(trained) == [1, 2, 3, 4, 5, 6]
    assert not near(trained[6][2], start)

    record = read_json(out / "training.json")
    assert record["steps"] == [1, 2, 3, 4, 5, 6]
    assert record["loss"] == [loss for _, loss, _ in trained.values()]
    assert [v["step"] for v in record["validation"]] == [6]
    assert record["trainable"] <= record["total"]
    assert record["seconds"] > 0

    loaded = load(out)
    assert same(adapter, loaded)
    meta = loaded.metadata
    assert (meta.mode, meta.task, meta.stage, meta.seed) == ("mine", "colors", "abc", 0)
    assert meta.base.fingerprint == base.fingerprint
    assert meta.recipe["training"]["steps"] == 6
    if mode == "full":
        assert (meta.kind, meta.initial, adapter.config) == ("full", None, None)
        _check_full(base, task, adapter, trained[6][2])
        return
    assert meta.initial.fingerprint == initial.fingerprint(adapter.initial)
    fresh = load_base(base.config)
    stock = peft.PeftModel.from_pretrained(fresh.backbone, out)
    assert near(logits(base, task, stock), trained[6][2])
    assert next(iter(adapter.updates.values())).rank == (8 if "both" in mode else 4)


def near(found, expected):
    """Logits up to the rounding of forward passes in float32, some 1e-6 of the largest; training moves them by more."""
    return float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def _check_full(base, task, adapter, expected):
    assert len(adapter.updates) > 20
    assert not [name for name in adapter.updates if "pooler" in name]  # the task does not use it
    fresh = load_base(base.config)
    with torch.no_grad():
        for name, update in adapter.updates.items():
            fresh.backbone.get_parameter(name).add_(update.dense())
    assert near(logits(base, task, fresh.backbone), expected)


def test_l_lora_shares_a_and_trains_b_alone(base, task):
    adapter = finetune(base, task, config(linearize="module", training={"weight_decay": 0.5}))
    for site, update in adapter.updates.items():
        assert torch.equal(update.a, initial.draw(0, site, 4, 32))
        assert update.b.any()


def test_per_task_values_and_another_seed_start_elsewhere(base, task):
    shared = finetune(base, task, config(training={"steps": 1}))
    own = finetune(base, task, config(lora={"a_init": "per_task"}, training={"steps": 1}))
    other = finetune(base, task, config(seed=1, training={"steps": 1}))
    prints = {adapter.metadata.initial.fingerprint for adapter in (shared, own, other)}
    assert len(prints) == 3
    site = next(iter(own.initial))
    assert torch.equal(own.initial[site].a, initial.draw(0, site, 4, 32, task="colors"))


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_adapter_whatever_ran_before(mode, base, task):
    settings = config(**MODES[mode], training={"steps": 3})
    one = finetune(base, task, settings)
    torch.manual_seed(1234)
    np.random.seed(5)
    finetune(base, task, config(training={"steps": 1, "bf16": True}))
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    other = finetune(base, task, settings)
    assert same(one, other)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    assert state[2] == random.getstate()
    assert not same(one, finetune(base, task, settings.model_copy(update={"seed": 2})))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("mode", ["lora", "l-lora", "full"])
def test_a_killed_run_ends_with_the_same_adapter(mode, base, task, tmp_path):
    dropout = {} if mode == "full" else {"lora": {"dropout": 0.3}}
    settings = config(**MODES[mode], **dropout, training={"gradient_accumulation": 2, "batch_size": 4})
    whole = finetune(base, task, settings, out=tmp_path / "whole")
    before, scratch, steps = snapshot(base.backbone), tmp_path / "scratch", []

    def kill(step, total, loss):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        finetune(base, task, settings, out=tmp_path / "again", scratch=scratch, on_step=kill)
    assert unchanged(base.backbone, before)
    assert not (tmp_path / "again").exists()
    (state,) = scratch.glob("*/checkpoint-4/trainer_state.json")
    assert not list(state.parent.glob("*.bin"))
    again = finetune(
        base, task, settings, out=tmp_path / "again", scratch=scratch, on_step=lambda step, *_: steps.append(step)
    )
    assert steps == [5, 6]
    assert same(whole, again)
    assert not scratch.exists()
    records = [read_json(tmp_path / name / "training.json") for name in ("whole", "again")]
    for record in records:
        del record["seconds"]
    assert records[0] == records[1]


def test_a_half_written_checkpoint_and_those_of_other_settings_are_passed_over(base, task, tmp_path):
    def kill(step, total, loss):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        finetune(base, task, config(), scratch=tmp_path, on_step=kill)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-6").mkdir()
    (folder / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": ')
    steps = []
    finetune(base, task, config(seed=7), on_step=lambda step, *_: steps.append(step))
    assert steps[0] == 1
    with pytest.raises(Killed):
        finetune(base, task, config(), scratch=tmp_path, on_step=lambda step, *_: steps.append(step) or kill(5, 0, 0))
    assert steps[-1] == 5


def test_a_kill_while_the_checkpoints_are_removed_does_not_leave_half_of_one_to_go_on_from(
    base, task, tmp_path, monkeypatch
):
    def removed_in_part(scratch):
        for weights in scratch.glob("*/checkpoint-*/trained.safetensors"):
            weights.unlink()
        raise Killed

    whole = finetune(base, task, config(), out=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("tangora.modes.finetuning.remove_claimed", removed_in_part)
        with pytest.raises(Killed):
            finetune(base, task, config(), out=tmp_path / "out", scratch=tmp_path / "scratch", overwrite=True)
    assert list(tmp_path.glob("scratch/*/checkpoint-*"))
    again = finetune(base, task, config(), out=tmp_path / "out", scratch=tmp_path / "scratch", overwrite=True)
    assert same(whole, again)
    assert os.listdir(tmp_path) == ["out"]


def test_early_stopping_keeps_the_best_weights_also_over_a_kill(base, task, tmp_path, monkeypatch):
    scores = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.9, 5: 0.8, 6: 0.95}
    steady = {"warmup": 0.0, "schedule": "constant_with_warmup"}
    best = finetune(base, task, config(training={**steady, "steps": 3}))

    def run(out, scratch=None, kill=None):
        seen = []

        def on_step(step, total, loss):
            seen.append(step)
            if step == kill:
                raise Killed

        monkeypatch.setattr(session, "_validation", lambda *_: lambda: (scores[seen[-1]], 1.0))
        early = {"evaluate_every": 1, "early_stopping": 2, "checkpoint_every": 1}
        settings = config(training={**steady, **early})
        return finetune(base, task, settings, out=out, scratch=scratch, on_step=on_step), seen

    adapter, seen = run(tmp_path / "out")
    assert seen == [1, 2, 3, 4, 5]
    assert same(adapter, best)
    record = read_json(tmp_path / "out" / "training.json")
    assert [v["score"] for v in record["validation"]] == [0.5, 0.7, 0.9, 0.9, 0.8]
    with pytest.raises(Killed):
        run(None, tmp_path / "scratch", kill=5)
    resumed, seen = run(None, tmp_path / "scratch")
    assert seen == [5]
    assert same(resumed, best)


def quiet_dropout(base):
    for module in base.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return base


def test_accumulation_checkpointing_bf16_and_workers_train_the_same(tiny_bert, text_data):
    base = quiet_dropout(load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert))))
    task = load_task(TaskConfig(name="colors", source=source(text_data), labels=COLORS), base, 0)
    plain = finetune(base, task, config())
    norm = plain.task_vector.norm()
    close = {
        "gradient_accumulation": {"gradient_accumulation": 2, "batch_size": 4},
        "gradient_checkpointing": {"gradient_checkpointing": True},
        "workers": {"workers": 1},
    }
    for name, training in close.items():
        other = finetune(base, task, config(training=training))
        assert (other.task_vector - plain.task_vector).norm() < 1e-3 * norm, name
    rough = finetune(base, task, config(training={"bf16": True}))
    assert 0 < (rough.task_vector - plain.task_vector).norm() < 0.5 * norm
    assert {u.a.dtype for u in rough.updates.values()} == {torch.float32}
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.backbone.modules())


def test_patterns_and_rslora_reach_the_adapter(base, task, tmp_path):
    lora = {"rank_pattern": {"layer.0.attention.self.query": 2}, "alpha_pattern": {"value": 8.0}, "rslora": True}
    adapter = finetune(base, task, config(lora=lora, training={"steps": 2}), out=tmp_path / "a")
    found = {site.split(".", 2)[2]: (u.rank, round(u.scaling, 4)) for site, u in adapter.updates.items()}
    assert found == {
        "0.attention.self.query": (2, 11.3137),
        "0.attention.self.value": (4, 4.0),
        "1.attention.self.query": (4, 8.0),
        "1.attention.self.value": (4, 4.0),
    }
    stock = peft.PeftModel.from_pretrained(load_base(base.config).backbone, tmp_path / "a")
    layer = stock.base_model.model.encoder.layer[0].attention.self.query
    assert layer.scaling["default"] == pytest.approx(11.3137, abs=1e-4)


def test_all_linear_layers(base, task):
    adapter = finetune(base, task, config(lora={"target_modules": "all-linear"}, training={"steps": 1}))
    linear = [name for name, module in base.backbone.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(adapter.updates) == sorted(linear)


BAD = {
    "no match": ({"target_modules": ["query", "valu"]}, r"matches nothing, got 'valu'.*Did you mean 'value'"),
    "container": ({"target_modules": ["attention"]}, r"matches a BertAttention, not a layer to adapt"),
    "rank pattern": ({"rank_pattern": {"quer": 2}}, r"a pattern matches no adapted layer, got 'quer' at lora.rank"),
    "alpha pattern": ({"alpha_pattern": {"key": 2.0}}, r"got 'key' at lora.alpha_pattern"),
    "not a pattern": ({"rank_pattern": {"(": 2}}, r"not a regular expression"),
    "pissa": ({"init": "pissa"}, r"Pissa changes the base weights"),
    "eva": ({"init": "eva"}, r"Eva needs training data"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_adapted_is_refused_and_nothing_is_left_behind(bad, base, task, tmp_path):
    lora, message = BAD[bad]
    before = snapshot(base.backbone)
    with pytest.raises(ModelError, match=message):
        finetune(base, task, config(lora=lora), out=tmp_path / "out")
    assert unchanged(base.backbone, before)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_loss_that_is_not_finite_names_task_mode_step_and_rate(mode, base, task, tmp_path):
    settings = config(mode="hot", **MODES[mode], training={"learning_rate": 1e30, "max_grad_norm": 1e30, "steps": 20})
    before = snapshot(base.backbone)
    with pytest.raises(ModelError, match=r"not finite.*task colors, mode hot.*rate \(now 1e\+30\)"):
        finetune(base, task, settings, out=tmp_path / "out", scratch=tmp_path / "scratch")
    assert unchanged(base.backbone, before)
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused_before_training(base, task, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="the output exists"):
        finetune(base, task, config(), out=tmp_path, on_step=lambda *_: pytest.fail("it trained"))
    with pytest.raises(OutputError, match=r"did not write.*file"):
        finetune(base, task, config(), out=tmp_path, overwrite=True, on_step=lambda *_: pytest.fail("it trained"))
    assert (tmp_path / "file").read_text() == "mine"
    for steps in (1, 2):
        finetune(base, task, config(training={"steps": steps}), out=tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == [1, 2]


def test_nothing_is_printed(base, task, capfd):
    finetune(base, task, config(training={"steps": 2}))
    assert capfd.readouterr() == ("", "")


def test_tensorboard_is_written_where_asked_and_a_missing_tracker_is_named(base, task, tmp_path, monkeypatch):
    finetune(base, task, config(training={"report_to": ["tensorboard"], "steps": 2}), logs=tmp_path / "logs")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [e.step for e in seen.Scalars("train/loss")] == [1, 2]
    assert [e.step for e in seen.Scalars("eval/score")] == [2], "the validation after the last step too"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"not installed, got 'wandb'.*pip install 'tangora\[wandb\]'"):
        finetune(base, task, config(training={"report_to": ["wandb"]}))


WANDB = """
run, log_of = None, []
class Run:
    def __init__(self): self.summary = {}
    def _label(self, **_): pass
class Config(dict):
    def update(self, values, allow_val_change): dict.update(self, values)
config = Config()
def init(project, name):
    global run
    run = Run()
    log_of.append((name, []))
def log(values, **_): log_of[-1][1].append(values)
def finish():
    global run
    run = None
"""


def test_weights_and_biases_gets_a_run_for_each_adapter(base, task, tmp_path, monkeypatch):
    folder = tmp_path / "wandb" / "sdk" / "lib"
    folder.mkdir(parents=True)
    (tmp_path / "wandb" / "__init__.py").write_text(WANDB)
    (folder / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for mode in ("one", "two"):
        finetune(base, task, config(mode=mode, training={"report_to": ["wandb"], "steps": 2}))
    import wandb

    assert wandb.run is None
    assert [name for name, _ in wandb.log_of] == ["one/colors", "two/colors"]
    for _, logged in wandb.log_of:
        assert sum("train/loss" in values for values in logged) == 2
        assert "eval/score" in logged[-1]


def test_a_disk_that_fills_up_while_it_trains_is_one_line(base, task, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"the disk is full at .*scratch"):
        finetune(base, task, config(), out=tmp_path / "out", scratch=tmp_path / "scratch")
    assert not (tmp_path / "out").exists()


def test_a_scratch_folder_that_cannot_be_made(base, task, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot be written \((Not a directory|File exists)"):
        finetune(base, task, config(), scratch=tmp_path / "file" / "scratch")


def test_the_rate_that_was_used_is_recorded(base, task):
    adapter = finetune(base, task, config(training={"steps": 1}))
    assert adapter.metadata.recipe["training"]["learning_rate"] == 1e-3


def test_images_and_text_to_text(tiny_clip, tiny_t5, image_data, text_data, tmp_path):
    clip = load_base(BaseConfig(family="image-zero-shot", model=str(tiny_clip)))
    pixels = TaskConfig(name="pixels", source=source(image_data, "npz"), image="images", label="labels", labels=COLORS)
    t5 = load_base(BaseConfig(family="text-to-text", model=str(tiny_t5), max_length=16, max_new_tokens=3))
    words = TaskConfig(name="words", source=source(text_data), prompt="{text}", target="{name}", metric="exact_match")
    for base, task_config, targets in ((clip, pixels, ["q_proj", "v_proj"]), (t5, words, ["q", "v"])):
        task = load_task(task_config, base, 0)
        out, settings = tmp_path / task.name, config(linearize="module", lora={"target_modules": targets})
        bare, last = answers(base, task), Last(base, task)
        adapter = finetune(base, task, settings, out=out, on_step=last)
        assert adapter.task_vector.norm() > 0
        stock = peft.PeftModel.from_pretrained(load_base(base.config).backbone, out)
        assert near(answers(base, task, stock), last.logits)
        assert not near(bare, last.logits)


class Last:
    """Remembers the logits after the last step."""

    def __init__(self, base, task):
        self.base, self.task = base, task

    def __call__(self, step, total, loss):
        if step == total:
            self.logits = answers(self.base, self.task)


def answers(base, task, backbone=None):
    model = TaskModel(backbone or base.backbone, task, base)
    rows = task.splits["test"].dataset()
    with torch.no_grad():
        return model.eval()(**model.collator([rows[i] for i in range(4)]))["logits"]


@pytest.mark.slow
def test_two_processes_make_one_adapter(tiny_bert, text_data, tmp_path):
    script = Path(__file__).parents[1] / "two_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(tiny_bert), str(text_data), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    adapter = load(tmp_path / "out")
    assert adapter.metadata.task == "colors"
    prints = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert prints[0] == prints[1]
    assert prints[0]["world"] == 2
    assert prints[0]["norm"] == pytest.approx(adapter.task_vector.norm(), rel=1e-6)
    assert prints[0]["l-lora norm"] > 0
    assert prints[0]["tangent norm"] > 0
    assert len(read_json(tmp_path / "out" / "training.json")["steps"]) == 4
    assert not (tmp_path / "scratch").exists()
