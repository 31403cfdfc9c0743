"""Recipes: what is read, what is refused, and how the refusal reads."""

from __future__ import annotations

import pytest
import yaml

from tangora.config.recipe import Recipe, bundled_recipes, load_recipe
from tangora.errors import FileError, RecipeError
from tangora.support.seams import MODES

MINIMAL = """
name: tiny
base: {family: text-zero-shot, model: somewhere}
tasks:
  - {name: a, source: {csv: {train: "${data.root}/a.csv", test: "${data.root}/b.csv"}}}
  - {name: b, source: {hub: org/set}}
data: {root: /data}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(MINIMAL)
    return file


def test_every_bundled_recipe_is_valid():
    names = bundled_recipes()
    assert {"quickstart", "text7"} <= set(names)
    for name in names:
        assert load_recipe(name, ["data.root=/data"]).name == name


def test_the_resolved_recipe_reads_back_as_itself(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_data_folders_are_filled_in(path):
    assert load_recipe(path, ["data.root=/other"]).tasks[0].source.csv == {
        "train": "/other/a.csv",
        "test": "/other/b.csv",
    }


def test_settings_reach_mappings_list_items_and_named_items(path):
    recipe = load_recipe(
        path,
        ["seed=7", "tasks.1.metric=macro_f1", "tasks.a.limit.test=5", "training.learning_rate=1e-3", "modes.x={}"],
    )
    assert recipe.seed == 7
    assert [t.metric for t in recipe.tasks] == ["accuracy", "macro_f1"]
    assert recipe.tasks[0].limit == {"test": 5}
    assert recipe.training.learning_rate == 1e-3
    assert list(recipe.modes) == ["x"]


def test_a_mode_lays_its_changes_over_the_defaults(path):
    recipe = load_recipe(path, ["lora.r=4", "modes.m={linearize: module, lora: {alpha: 3}, training: {steps: 9}}"])
    config = recipe.finetune_config("m")
    assert (config.train, config.lora.r, config.lora.alpha, config.training.steps) == ("l-lora", 4, 3, 9)
    assert config.training.batch_size == recipe.training.batch_size


def test_the_default_rate_of_what_is_trained_is_written_out(path):
    recipe = load_recipe(path, ["modes={a: {}, b: {linearize: module}, c: {train: full}}"])
    rates = [recipe.finetune_config(mode).training.learning_rate for mode in recipe.modes]
    assert rates == [MODES.get(name).default_rate for name in ("lora", "l-lora", "full")] == [1e-3, 5e-3, 5e-5]
    given = load_recipe(path, ["modes={b: {linearize: module}}", "training.learning_rate=0.5"])
    assert given.finetune_config("b").learning_rate == 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lora.rnk=3", r"unknown key 'rnk' at lora\.rnk.*Valid: r, alpha"),
        ("tasks.a.metrik=f1", r"unknown key 'metrik' at tasks\.0\.metrik.*Did you mean 'metric'"),
        ("tasks.a.metric=macro_f2", r"no such metric, got 'macro_f2' at tasks\.0\.metric .*Did you mean 'macro_f1'"),
        ("tasks.a.metrics=[accuracy, f2]", r"no such metric, got 'f2'.* at tasks\.0\.metrics"),
        ("tasks.a.metrics=[]", r"at tasks\.0\.metrics"),
        ("tasks.a.metrics=[matthews, matthews]", r"metrics: each once; got matthews, matthews"),
        ("tasks.a.source.parket=x", r"Did you mean 'parquet'"),
        ("fusion.methods=[{method: ties, weight: 3}]", r"Did you mean 'weights'"),
        ("modes.m={training: {step: 3}}", r"unknown key 'step' at modes\.m\.training\.step .*Did you mean 'steps'"),
        ("seed=abc", r"valid integer.*got 'abc' at seed"),
        ("seed=-1", r"greater than or equal to 0.*at seed"),
        ("training.steps=1.5", r"got a number with a fractional part, got 1\.5 at training\.steps"),
        ("lora.rank_pattern={query: 0}", r"greater than or equal to 1.*at lora\.rank_pattern\.query"),
        ("fusion.subsets.per_size=0", r"greater than or equal to 1.*at fusion\.subsets\.per_size"),
        ("lora.dropout=1.0", r"less than 1.*at lora\.dropout"),
        ("training.learning_rate=.nan", r"finite number.*at training\.learning_rate"),
        ("base.family=text", r"no such family, got 'text' at base\.family.*Did you mean 'text-to-text'"),
        ("lora.r=true", r"a number, not true or false.*at lora\.r"),
        ("training.learning_rate=true", r"a number, not true or false.*at training\.learning_rate"),
        ("training.learning_rate=yes", r"unable to parse string as a number, got .yes. at training\.learning_rate"),
        ("lora.alpha_pattern.query=true", r"a number, not true or false.*at lora\.alpha_pattern"),
        ("fusion.subsets.sizes=[true, 2]", r"a number, not true or false.*at fusion\.subsets\.sizes"),
        (
            "fusion.methods=[{method: ties, sizes: [9]}]",
            r"for subsets of \[9\] tasks, but subsets have \[2\]",
        ),
        ("fusion.subsets.sizes=[1]", r"each at least 2"),
        ("fusion.subsets.sizes=[3]", r"there are 2 tasks"),
        ("tasks.b.name=a", r"names must differ"),
        ("tasks.b.name=../evil", r"at tasks\.1\.name"),
        ("tasks.b.source={}", r"exactly one of hub"),
        ("tasks.b.source={csv: {train: x}}", r"needs a train and a test split"),
        ("modes.m={train: full, linearize: module}", r"train: full has no adapter"),
        ("modes.m={train: full, lora: {r: 3}}", r"train: full has no adapter, so no lora at modes\.m"),
        ("modes.m={train: l-lorra}", r"no such mode: 'l-lorra'; did you mean 'l-lora'"),
        ("modes.m={train: tangent, linearize: model}", r"train: tangent determines what is linearized"),
        ("modes.m={linearize: layer}", r"none, module or model; got 'layer'"),
        (
            "modes.m={train: full, share: 3}",
            r"train: full has no key 'share'; valid: experts, lora, same_base, train, training",
        ),
        ("training.early_stopping=3", r"early_stopping needs evaluate_every"),
        ("fusion.methods=[{method: ties, modes: [nope]}]", r"unknown modes nope"),
        ("fusion.methods=[{method: ties}, {method: ties}]", r"two entries are called 'ties'"),
        ("fusion.methods=[{method: ties, weights: []}]", r"needs at least one value"),
        ("fusion.methods=[{method: ties, parameters: {density: []}}]", r"needs at least one value"),
        ("fusion.methods=[{method: ties, search: lorahub, weights: 0.3}]", r"leave out weights, or search"),
        (
            "fusion.methods=[{method: ties, search: lorahub, parameters: {density: [0.2, 0.5]}}]",
            r"one value a parameter",
        ),
        ("tasks.a.templates=[nothing]", r"needs a '\{\}'"),
        ("data.root=", r"data\.root is not set"),
        ("tasks.9.name=x", r"no item '9'"),
        ("seed", r"a setting is key\.path=value"),
        ("seed={", r"must be YAML"),
        ("name.x.y=3", r"must lead into a mapping"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(path, setting, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path, [setting])
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(path):
    raw = yaml.safe_load(path.read_text())
    del raw["base"]["model"]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError, match=r"a key is missing at base\.model"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_files_that_are_no_recipe(path, text):
    path.write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(RecipeError, match=r"Did you mean 'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(FileError, match=r"cannot be read"):
        load_recipe(tmp_path / "absent.yaml")


def test_recipes_are_frozen(path):
    recipe = load_recipe(path)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
    assert isinstance(recipe, Recipe)


def test_several_metrics_the_first_of_which_is_primary(path, tmp_path):
    recipe = load_recipe(path, ["tasks.a.metrics=[macro_f1, accuracy]"])
    assert (recipe.tasks[0].metric, recipe.tasks[0].all_metrics) == ("macro_f1", ("macro_f1", "accuracy"))
    assert recipe.tasks[1].all_metrics == ("accuracy",)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    with pytest.raises(RecipeError, match="the first is the primary one, but metric is matthews"):
        load_recipe(path, ["tasks.a.metrics=[macro_f1, accuracy]", "tasks.a.metric=matthews"])
