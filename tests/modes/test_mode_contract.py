"""The contract of modes, over the registry; that a broken one is caught; that adapters find their mode."""

from __future__ import annotations

import contextlib

import pytest
from pydantic import Field

from tangora.adapters.adapter import Adapter, Metadata
from tangora.config.mode import ModeConfig
from tangora.config.recipe import load_recipe
from tangora.config.settings import AdapterSettings, FinetuneConfig
from tangora.errors import ArgumentError, PluginError, RecipeError
from tangora.modes import stage
from tangora.modes.contract import mode_of
from tangora.modes.finetuning import finetune
from tangora.modes.low_rank import train_lora
from tangora.modes.mixture import Mixture, one_or_mixed
from tangora.modes.stage import stage_key
from tangora.support.seams import MODES
from tangora.tasks.model import TaskModel
from tangora.testing import check_mode
from tangora.testing._tiny import tiny_base, tiny_tasks

LORA = type(MODES.get("lora"))


@pytest.mark.parametrize("name", MODES)
def test_every_mode_keeps_its_promises(name):
    check_mode(MODES.get(name))


class Moves(LORA):
    """Leaves the base changed."""

    name = "moves"

    def train(self, bench, tasks, config):
        made = super().train(bench, tasks, config)
        next(bench.base.backbone.parameters()).data.add_(1.0)
        return made


class Forgets(LORA):
    """Answers without the adapter."""

    name = "forgets"

    @contextlib.contextmanager
    def answering(self, base, adapter, saved):
        yield lambda task: TaskModel(base.backbone, task, base)


class Boasts(LORA):
    """Says that its logits are linear."""

    name = "boasts"
    linear_in_coefficients = True


class Draws(LORA):
    """Trains another adapter every time."""

    name = "draws"
    count = 0

    def train(self, bench, tasks, config):
        type(self).count += 1
        return super().train(bench, tasks, config.model_copy(update={"seed": self.count}))


class Swaps(LORA):
    """Loads the base as it is."""

    name = "swaps"

    def load_model(self, folder, model):
        return model.eval()


class Odd(LORA):
    """Declares a kind that does not exist."""

    name = "odd"
    kind = "unknown"


BROKEN = {
    Moves: "train changes the base's weight",
    Forgets: "the adapter answers as the base does",
    Boasts: "logits are not linear",
    Draws: "the same seed gives another adapter",
    Swaps: "load_model gives other logits",
    Odd: "kind must be one of lora, full, modules, routed, got 'unknown'",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.name)
def test_a_broken_mode_is_caught(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_mode(broken())
    assert broken.name not in MODES


class WideSettings(AdapterSettings):
    """A key more than LoRA has."""

    factor: int = Field(default=2, ge=1)


class Wide(LORA):
    """Has a key of its own, and trains all tasks at once."""

    name = "wide"
    settings = WideSettings
    joint = True

    def train(self, bench, tasks, config):
        lora = config.lora.model_copy(update={"r": config.lora.r * config.settings.factor})
        return train_lora(bench, tasks, config.model_copy(update={"lora": lora}))


@pytest.fixture
def wide():
    MODES.register("wide", Wide())
    yield MODES.get("wide")
    MODES.unregister("wide")


RECIPE = """
name: tiny
base: {family: text-zero-shot, model: somewhere}
tasks: [{name: a, source: {hub: org/set}}, {name: b, source: {hub: org/other}}]
modes: {m: {train: wide, factor: 3, lora: {r: 4}}}
"""


def test_a_mode_may_have_keys_of_its_own(wide, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.yaml")
    config = recipe.finetune_config("m")
    assert (config.train, config.settings.factor, config.settings.lora.r) == ("wide", 3, 4)
    assert config.learning_rate == wide.default_rate
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    other = load_recipe(tmp_path / "r.yaml", ["modes.m.factor=1"]).finetune_config("m")
    assert stage_key(config, "base", {"a": "x"}, "text-zero-shot") != stage_key(
        other, "base", {"a": "x"}, "text-zero-shot"
    )
    with pytest.raises(RecipeError, match=r"greater than or equal to 1.*factor"):
        load_recipe(tmp_path / "r.yaml", ["modes.m.factor=0"])
    with pytest.raises(RecipeError, match=r"has no key 'factr'.*factor"):
        load_recipe(tmp_path / "r.yaml", ["modes.m.factr=2"])


def test_a_joint_mode_trains_several_tasks_in_one_job(wide, tmp_path):
    base, tasks = tiny_base(), tiny_tasks(3)
    settings = {"lora": {"r": 2, "target_modules": ["query"]}, "training": {"steps": 6, "batch_size": 2}}
    steps = []
    config = FinetuneConfig(mode="m", train="wide", **settings)
    made = finetune(base, tasks, config, out=tmp_path, on_step=lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]
    assert list(made) == ["task0", "task1", "task2"]
    assert len({adapter.fingerprint for adapter in made.values()}) == 1
    assert {u.factors().rank for u in made["task0"].updates.values()} == {4}
    for name, adapter in made.items():
        assert (adapter.metadata.task, adapter.metadata.joint) == (name, ["task0", "task1", "task2"])
        assert (tmp_path / name / "training.json").is_file()
    with pytest.raises(ArgumentError, match="mode lora trains one task at a time, got 3"):
        finetune(base, tasks, FinetuneConfig(**settings))


def test_the_tasks_of_a_mixture_take_turns():
    base, tasks = tiny_base(), tiny_tasks(2)
    rows, collate, combine = one_or_mixed(base, tasks, 12, 3, seed=0)
    assert [rows[i]["task"] for i in range(len(rows))] == [0, 0, 0, 1, 1, 1] * 2
    model = combine([TaskModel(base.backbone, task, base) for task in tasks])
    assert isinstance(model, Mixture)
    for start, task in ((0, tasks[0]), (3, tasks[1])):
        batch = collate([rows[i] for i in range(start, start + 3)])
        alone = TaskModel(base.backbone, task, base)
        (part,) = batch["parts"]
        assert model(**batch)["loss"] == alone(**{k: v for k, v in part.items() if k != "task"})["loss"]


def test_adapters_and_configurations_of_earlier_versions_find_their_mode():
    pairs = {
        ("lora", "none"): "lora",
        ("lora", "module"): "l-lora",
        ("lora", "model"): "tangent",
        ("full", "none"): "full",
        ("full", "model"): "full-tangent",
    }
    for (kind, linearize), name in pairs.items():
        about = Metadata(kind=kind, linearize=linearize)
        assert mode_of(about).name == mode_of(Adapter({}, about)).name == name
        old = {"train": "full" if kind == "full" else "adapter", "linearize": linearize}
        assert mode_of(FinetuneConfig(**old)).name == mode_of(ModeConfig(**old)).name == name


def test_an_adapter_of_a_mode_that_is_not_installed():
    adapter = Adapter({}, Metadata(train="of-another-package", linearize="module"))
    with pytest.raises(PluginError, match="no such mode, got 'of-another-package'"):
        mode_of(adapter)
    assert adapter.metadata.linear_in_factors, "what fusion asks needs no package"


def test_the_key_of_a_training_covers_what_decides_it_and_nothing_else():
    def key(base="base", tasks=None, **changes):
        return stage_key(FinetuneConfig(**changes), base, tasks or {"a": "rows"}, "text-zero-shot")

    assert key() == key(training={"workers": 3, "report_to": ["wandb"], "checkpoint_every": 7})
    assert key() == key(training={"learning_rate": 1e-3}), "the default rate, written out"
    assert key(train="full") == key(train="full", lora={"r": 3}), "full fine-tuning has no LoRA"
    different = [key(), key(base="other"), key(tasks={"a": "others"}), key(tasks={"b": "rows"}), key(seed=1)]
    different += [key(mode="m"), key(lora={"r": 3}), key(train="l-lora"), key(training={"steps": 3})]
    assert len(set(different)) == len(different)


def test_the_key_of_a_training_changes_with_the_code_of_its_mode(monkeypatch):
    before = stage_key(FinetuneConfig(), "base", {"a": "rows"}, "text-zero-shot")
    monkeypatch.setattr(stage, "source_digest", lambda *_, **__: "other code")
    assert stage_key(FinetuneConfig(), "base", {"a": "rows"}, "text-zero-shot") != before
