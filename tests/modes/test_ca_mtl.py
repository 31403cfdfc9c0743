"""The mode ``ca-mtl``: promises of each variant, families, fusion, sizes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertModel

import tangora
import tiny
from tangora.adapters.adapter import load
from tangora.config.settings import FinetuneConfig
from tangora.errors import FusionError, ModelError
from tangora.modes.contract import Bench, is_fusable
from tangora.modes.finetuning import finetune
from tangora.support.seams import MODES
from tangora.tasks.model import TaskModel, predict
from tangora.testing import check_mode
from tangora.testing._tiny import tiny_base, tiny_tasks

MODE = MODES.get("ca-mtl")
TRAINING = {"steps": 4, "batch_size": 4, "learning_rate": 0.02, "checkpoint_every": None}
FREE = {"bottleneck": False}
ONE = {"alignment": True, "attention": False, "norms": False, "bottleneck": False}


def config(**keys):
    return FinetuneConfig(mode="m", train="ca-mtl", **{"training": TRAINING, **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {"variant": "large"},
        {"top": "new"},
        {"unfreeze_from": 1},
        {"top": "new", "unfreeze_from": 0, "loss": "rows", "sampling": {"by": "uniform", "mixed": True}},
        ONE,
        {**ONE, "alignment": False, "norms": True},
    ],
    ids=str,
)
def test_every_variant_keeps_the_promises_of_a_mode(keys):
    check_mode(MODE, **keys)


@pytest.mark.parametrize("keys", [{}, {"variant": "large"}, {"top": "new", "unfreeze_from": 1}], ids=str)
def test_the_numbers_of_parameters_are_those_of_the_program(keys):
    base, tasks = tiny_base(), tiny_tasks(3)
    size = MODE.footprint(base, config(**keys))
    bench = Bench(base)
    made = MODE.train(bench, tasks, config(**keys))
    of_more_tasks = 2 * 16  # an embedding of width d for each task but the first
    assert bench.records["task0"]["trainable"] == size.trainable + of_more_tasks
    numbers = sum(update.dense().numel() for update in made["task0"].updates.values())
    assert size.size == 4 * numbers
    per_layer = sum(p.numel() for p in base.backbone.encoder.layer[1].parameters())
    assert size.adapted == (per_layer if "top" in keys else 0)


def test_the_footprint_by_formula():
    d, n, length = 16, 2, 16  # of the tiny encoder: one block of side 16
    per_film, linear = 2 * d * (d + 1), d * d + d
    bottleneck = linear + per_film + 2 * d * (d // 3) + d // 3 + d
    expected = d + linear + per_film + n * (length * 16 + 2 * 16 * (d + 1)) + 2 * per_film
    expected += bottleneck + 2 * d + per_film
    assert MODE.footprint(tiny_base(), config()).trainable == expected
    fixed = 2 * d + n * length * 16 + 2 * d + (2 * d * (d // 3) + d // 3 + d + 2 * d) + 2 * d
    assert MODE.footprint(tiny_base(), config()).size == 4 * fixed
    assert MODE.footprint(tiny_base(), config()).sites == 1 + n + 2 + 1


@pytest.mark.parametrize("frozen", [True, False])
def test_the_footprint_at_the_size_of_bert_base(frozen):
    """As the paper trains it: layers 0 to 4 are frozen, the others trained, the top one from new values."""
    with torch.device("meta"):
        backbone = BertModel(BertConfig(), add_pooling_layer=False)
    tiny_one = tiny_base()
    settings = tiny_one.config.model_copy(update={"max_length": 128})
    base = replace(tiny_one, backbone=backbone, config=settings)
    size = MODE.footprint(base, config(**({} if frozen else {"unfreeze_from": 5, "top": "new"})))
    d, layer = 768, 7_087_872  # 12 d² + 13 d in each layer
    own = 0 if frozen else 7 * layer
    assert layer == 12 * d * d + 13 * d
    assert size.adapted == own
    assert size.trainable == 19_740_688 - 7 * d + own, "one task, rather than eight"
    assert size.size == 4 * (441_856 + own)


def test_tasks_get_adapters_of_their_own_without_the_hypernetwork(tmp_path):
    base, tasks = tiny_base(), tiny_tasks(2)
    made = finetune(base, tasks, config(), out=tmp_path)
    first, second = (made[task.name].updates for task in tasks)
    assert first.keys() == second.keys()
    assert not torch.equal(first["attention.0"].dense(), second["attention.0"].dense())
    assert torch.equal(first["bottlenecks.1.down.weight"].dense(), second["bottlenecks.1.down.weight"].dense())
    assert not any("film" in name or name.startswith("tasks") for name in first)
    one = load(tmp_path / "task0")
    assert one.metadata.modules["length"] == 16
    assert one.fingerprint == made["task0"].fingerprint


def test_the_adapter_answers_as_the_network_did_at_the_end_of_the_training():
    """The validation after the last step is by the hypernetwork, with dropout off."""
    base, tasks = tiny_base(), tiny_tasks(2)
    for keys in ({}, {"variant": "large"}, {"top": "new"}):
        bench = Bench(base)
        made = MODE.train(bench, tasks, config(**keys))
        losses = []
        for task in tasks:
            with MODE.answering(base, made[task.name], {}) as model_of:
                losses.append(float(predict(model_of(task), task.splits["validation"], 64).losses.mean()))
        expected = bench.records["task0"]["validation"][-1]["loss"]
        assert sum(losses) / 2 == pytest.approx(expected, rel=1e-4)


def test_a_new_top_layer_does_not_depend_on_the_bases():
    base, tasks = tiny_base(), tiny_tasks(2)
    keys = {**ONE, "top": "new", "training": {**TRAINING, "steps": 1, "learning_rate": 1e-9}}
    made = MODE.train(Bench(base), tasks, config(**keys))["task0"].updates
    top = base.backbone.encoder.layer[1]
    weight = top.output.dense.weight + made["changes.encoder.layer.1.output.dense.weight"].dense()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.2)  # 512 draws: a relative error of 3 %
    norm = top.output.LayerNorm.weight + made["changes.encoder.layer.1.output.LayerNorm.weight"].dense()
    torch.testing.assert_close(norm, torch.ones(16))
    assert not any(name.startswith("changes.encoder.layer.0") for name in made)


def test_adapters_without_a_bottleneck_are_fused_to_the_mean_of_their_film_vectors():
    base, tasks = tiny_base(), tiny_tasks(2)
    made = MODE.train(Bench(base), tasks, config(**FREE))
    fused = tangora.fuse(list(made.values()), weights=0.5)
    for name, update in fused.updates.items():
        mean = sum(adapter.updates[name].dense() for adapter in made.values()) / 2
        torch.testing.assert_close(update.dense(), mean)
    with MODE.answering(base, fused, {}) as model_of:
        between = predict(model_of(tasks[0]), tasks[0].splits["test"], 8).losses
    assert between.shape == (9,)
    again = tangora.fuse([fused, made["task0"]], weights=[1.0, 0.0])
    assert again.metadata.modules == fused.metadata.modules
    nothing = tangora.fuse(list(made.values()), weights=0.0)
    with MODE.answering(base, nothing, {}) as model_of:
        losses = predict(model_of(tasks[0]), tasks[0].splits["test"], 8).losses
    bare = predict(TaskModel(base.backbone, tasks[0], base), tasks[0].splits["test"], 8).losses
    assert losses == pytest.approx(bare, abs=1e-5), "a weight of zero is the base"


def test_adapters_with_a_bottleneck_are_not_fused():
    made = MODE.train(Bench(tiny_base()), tiny_tasks(2), config())
    with pytest.raises(FusionError, match="adds modules to the network, whose sum is no function"):
        tangora.fuse(list(made.values()))
    assert not is_fusable(MODE, {})
    assert is_fusable(MODE, FREE)
    assert is_fusable(MODES.get("lora"), {})
    assert not is_fusable(MODES.get("joint-lora"), {})


@pytest.mark.parametrize(
    ("family", "sets"),
    [("text-classification", ["topic", "themes", "stars"]), ("token-classification", ["words"])],
    ids=["text", "token"],
)
def test_heads_are_trained_with_it(family, sets, tiny_bert, tmp_path):
    tiny.desk(tmp_path, train=24)
    base = tangora.load_base(tiny_bert, family=family, max_length=24)
    problems = {"themes": {"problem": "multi", "label": "themes", "separator": "|"}}
    problems |= {"stars": {"problem": "regression", "label": "stars"}, "words": {}}
    suffix = "jsonl" if family == "token-classification" else "csv"
    tasks = [
        tangora.load_task(
            name, base, {s: str(tmp_path / name / f"{s}.{suffix}") for s in ("train", "test")}, **problems.get(name, {})
        )
        for name in sets
    ]
    made = finetune(base, tasks, config(top="new"), out=tmp_path / "out")
    for task in tasks:
        assert sorted(made[task.name].heads) == sorted(sets)
        with MODE.answering(base, made[task.name], {}) as model_of:
            expected = predict(model_of(task), task.splits["test"], 8)
        read = load(tmp_path / "out" / task.name)
        with MODE.answering(base, read, {}) as model_of:
            again = predict(model_of(task), task.splits["test"], 8)
        assert again.plain == expected.plain


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="at least one must be true"):
        MODE.settings(**{**ONE, "alignment": False})
    with pytest.raises(ValidationError, match="variant: large keeps its top layer"):
        MODE.settings(variant="large", top="new")
    with pytest.raises(ValidationError, match="without bottleneck, the variants do not differ"):
        MODE.settings(variant="large", bottleneck=False)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"unfreeze_from": 2}, r"has 2 layers, counted from 0, got 2.*unfreeze_from.*from 0 to 1"),
        ({"length": 8}, r"reads up to 16 tokens, and the bias is for fewer, got 8.*base\.max_length: 8"),
        ({"training": {"gradient_checkpointing": True}}, r"would be of another task.*gradient_checkpointing"),
    ],
    ids=["layer", "length", "checkpointing"],
)
def test_keys_that_do_not_fit_are_refused_before_training(keys, reason):
    with pytest.raises(ModelError, match=reason):
        MODE.check(tiny_base(), config(**keys))


@pytest.mark.parametrize(
    ("held", "keys", "reason"),
    [
        ({"device_map": "auto"}, {}, r"needs the model on one device.*device_map"),
        ({"weights_dtype": "bfloat16"}, {"unfreeze_from": 1}, r"needs the base's weights in float32.*weights_dtype"),
        ({"quantization": "8bit"}, {"top": "new"}, r"weights in float32|changes every weight"),
    ],
    ids=["spread", "half", "quantized"],
)
def test_a_base_that_is_held_in_another_form_is_refused_if_it_is_changed(held, keys, reason):
    base = tiny_base()
    other = replace(base, config=base.config.model_copy(update=held))
    with pytest.raises(ModelError, match=reason):
        MODE.check(other, config(**keys))
    if "device_map" not in held:
        MODE.check(other, config())


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_training_in_half_precision(kernel):
    """Both kernels take a bias in another dtype than their scores."""
    found = []
    for bf16 in (False, True):
        base, bench_tasks = tiny_base(), tiny_tasks(2)
        base.backbone.set_attn_implementation(kernel)
        bench = Bench(base)
        MODE.train(bench, bench_tasks, config(**FREE, training={**TRAINING, "bf16": bf16}, sampling={"by": "turns"}))
        found.append(bench.records["task0"]["loss"])
    # a relative error of 2^-8 in features, times the scale of 20, on the first step, before weights differ
    assert found[1][0] == pytest.approx(found[0][0], abs=20 * 2**-8)
    assert found[1] != found[0]


def test_a_part_lowers_the_loss_by_itself():
    """All but the attention's: the values of this encoder are all alike, so that their weights hardly matter."""
    off = dict.fromkeys(("alignment", "attention", "norms", "bottleneck"), False)
    for part in ("alignment", "norms", "bottleneck"):
        bench = Bench(tiny_base())
        training = {**TRAINING, "steps": 40, "batch_size": 8, "warmup": 0.0}
        MODE.train(bench, tiny_tasks(2), config(**{**off, part: True}, training=training, sampling={"by": "turns"}))
        losses = bench.records["task0"]["loss"]
        assert sum(losses[-8:]) < 0.9 * sum(losses[:8]), part


def test_an_attention_without_bias_is_refused_only_if_it_is_needed():
    base = tiny_base()
    base.backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="got 'flash_attention_2' at attention"):
        MODE.check(base, config())
    MODE.check(base, config(attention=False))


def test_a_base_of_another_kind_is_refused(tiny_t5):
    base = tangora.load_base(tiny_t5, family="text-to-text")
    with pytest.raises(ModelError, match="ca-mtl needs an encoder with the layers of BERT"):
        MODE.check(base, config())


def test_a_bias_that_is_longer_than_the_base_reads():
    base, tasks = tiny_base(), tiny_tasks(2)
    made = MODE.train(Bench(base), tasks, config(length=32))
    assert made["task0"].updates["attention.1"].shape == (32, 32)
