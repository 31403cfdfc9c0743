"""The mode `pha`: joint training, the adapters of its tasks, and new tasks that start from the nearest prototype."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

import tangora
from tangora.adapters.adapter import load
from tangora.config.settings import FinetuneConfig
from tangora.errors import AdapterError, FileError, ModelError, RecipeError
from tangora.modes.contract import Bench, mode_of
from tangora.modes.finetuning import finetune
from tangora.modes.mixture import one_or_mixed
from tangora.modes.prototype_parts import joint_part, load_start
from tangora.modes.prototypes import PrototypeMixture, PrototypeTaskModel, new_network
from tangora.modes.stage import stage_key
from tangora.modular.network import attached
from tangora.modular.pha.losses import instance_loss, nearest_prototype, prototype_loss
from tangora.modular.pha.networks import PrototypeNetwork
from tangora.modular.pha.places import halves_of
from tangora.support.seams import MODES
from tangora.tasks.model import TaskModel, collate, make_readout
from tangora.testing._tiny import tiny_base, tiny_tasks

SIZES = {"bottleneck": 4, "prototype": 6, "layer": 5, "hidden": 7, "code": 3}
TRAINING = {"steps": 4, "batch_size": 8, "learning_rate": 0.02}


def settings(**changes):
    training = {**TRAINING, **changes.pop("training", {})}
    return FinetuneConfig(**{"mode": "pha", "train": "pha", "training": training, **SIZES, **changes})


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def tasks():
    return tiny_tasks(3)


@pytest.fixture(scope="module")
def trained(base, tasks, tmp_path_factory):
    """Folder of the adapters of the first two tasks."""
    folder = tmp_path_factory.mktemp("trained")
    finetune(base, tasks[:2], settings(), out=folder / "both")
    return folder / "both"


@pytest.fixture(scope="module")
def answer_tasks(answer_base, text_data):
    files = {split: str(text_data / f"{split}.jsonl") for split in ("train", "test")}
    common = {"labels": ["red", "green", "blue"], "metric": "exact_match"}
    prompts = {"one": "is this good {text}", "two": "{text}"}
    return [tangora.load_task(n, answer_base, files, prompt=p, **common) for n, p in prompts.items()]


def weights(base):
    return {name: value.clone() for name, value in base.backbone.state_dict().items()}


@torch.no_grad()
def logits(model, task):
    model.eval()
    found = []
    for rows, batch in task.splits["test"].batches(5, model.collator):
        assert rows
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        found.append(model.logits(inputs, batch["labels"]).flatten())
    return torch.cat(found)


def answered(base, adapter, task):
    with mode_of(adapter).answering(base, adapter, {}) as model_of:
        return logits(model_of(task), task)


def joint_network(base, adapter):
    """The network that an adapter contains, and the names of its prototypes' tasks."""
    joint = joint_part(adapter)
    network = PrototypeNetwork(halves_of(base.backbone), len(joint.tasks), joint.sizes)
    load_start(network, adapter)
    with torch.no_grad():
        network.prototypes.copy_(network.earlier)
    return network.requires_grad_(False), joint.tasks


def dynamic(base, adapter, task):
    """The logits with the hypernetwork, as in training."""
    network, names = joint_network(base, adapter)
    with attached(base.backbone, network):
        chosen = {"network": network, "index": names.index(task.name), "smoothing": 0.1}
        model = PrototypeTaskModel(base.backbone, task, base, make_readout(task, base, adapter), **chosen)
        return logits(model, task)


def test_a_task_answers_without_the_hypernetwork_as_it_was_trained(base, tasks, trained):
    own = []
    for task in tasks[:2]:
        adapter = load(trained / task.name)
        found = answered(base, adapter, task)
        assert torch.allclose(found, dynamic(base, adapter, task), rtol=1e-5, atol=1e-4)
        assert not torch.allclose(found, logits(TaskModel(base.backbone, task, base), task), atol=1e-3)
        own.append({n: u.dense() for n, u in adapter.updates.items()})
    same = {name for name, value in own[0].items() if torch.equal(value, own[1][name])}
    assert same == {name for name in own[0] if name.startswith(("shared.", "joint."))}


def test_text_to_text(answer_base, answer_tasks, tmp_path):
    before = weights(answer_base)
    made = finetune(answer_base, answer_tasks, settings(), out=tmp_path / "out")
    assert all(torch.equal(value, before[name]) for name, value in weights(answer_base).items())
    for task in answer_tasks:
        read = load(tmp_path / "out" / task.name)
        found = answered(answer_base, read, task)
        assert torch.equal(found, answered(answer_base, made[task.name], task))
        assert torch.allclose(found, dynamic(answer_base, read, task), rtol=1e-5, atol=1e-4)
        loaded = tangora.load_model(tmp_path / "out" / task.name)
        model = TaskModel(loaded, task, answer_base)
        assert torch.allclose(logits(model, task), found, atol=1e-5)
        with mode_of(read).answering(answer_base, read, {}) as model_of:
            texts = tangora.tasks.predict(model_of(task), task.splits["test"], 8).values
        assert len(texts) == len(task.splits["test"]), "generated with the adapters in encoder and decoder"


@pytest.mark.parametrize("bf16", [False, True])
def test_weights_in_half_precision(tiny_t5, text_data, bf16, tmp_path):
    """Adapters stay in float32; forward passes of the training may be in half precision too."""
    base = tangora.load_base(tiny_t5, family="text-to-text", max_length=16, max_new_tokens=5, weights_dtype="bfloat16")
    files = {split: str(text_data / f"{split}.jsonl") for split in ("train", "test")}
    common = {"labels": ["red", "green", "blue"], "metric": "exact_match"}
    pair = [tangora.load_task(n, base, files, prompt=n + " {text}", **common) for n in ("this", "that")]
    made = finetune(base, pair, settings(training={"bf16": bf16}))
    for task in pair:
        found = answered(base, made[task.name], task)
        assert torch.allclose(found, dynamic(base, made[task.name], task), rtol=1e-5, atol=1e-4)


def test_validation_between_steps_changes_no_step(base, tasks, trained):
    config = settings(training={"evaluate_every": 1, "early_stopping": 4})
    bench = Bench(base)
    made = mode_of(config).train(bench, tasks[:2], config)
    record = bench.records["task0"]
    assert [one["step"] for one in record["validation"]] == [1, 2, 3, 4]
    losses = json.loads((trained / "task0" / "training.json").read_text())["loss"]
    assert record["loss"] == losses
    assert all(adapter.metadata.kind == "modules" for adapter in made.values())


def test_text_classification_trains_heads_too(tiny_bert, tmp_path):
    import tiny

    desk = tiny.desk(tmp_path / "desk")
    base = tangora.load_base(tiny_bert, family="text-classification", max_length=16)

    def files(name):
        return {split: str(desk / name / f"{split}.csv") for split in ("train", "test")}

    tasks = [
        tangora.load_task("topic", base, files("topic")),
        tangora.load_task("themes", base, files("themes"), problem="multi", label="themes", separator="|"),
        tangora.load_task("stars", base, files("stars"), problem="regression", label="stars"),
    ]
    finetune(base, tasks, settings(), out=tmp_path / "out")
    for task in tasks:
        adapter = load(tmp_path / "out" / task.name)
        assert sorted(adapter.heads) == ["stars", "themes", "topic"]
        found = answered(base, adapter, task)
        assert torch.allclose(found, dynamic(base, adapter, task), rtol=1e-5, atol=1e-4)
    rows = ["this is sky", "a fire"]
    model = tangora.load_model(tmp_path / "out" / "topic", task="topic")
    found = model(**model.encode(rows)).argmax(-1).tolist()
    answer = tangora.predictor(tmp_path / "out" / "topic", task="topic")(rows)
    assert list(answer.answers) == [model.labels[number] for number in found]


def test_the_loss_of_a_batch_is_that_of_its_parts_and_the_two_of_the_paper(base, tasks):
    config = settings(instance_weight=0.3, prototype_weight=0.7, temperature=0.2).settings
    network = new_network(base, config, 3, seed=5)
    rows, mixed, _ = one_or_mixed(base, tasks, 24, 8, 0, config.sampling)
    batch = mixed([rows[i] for i in range(8)])
    assert len(batch["parts"]) == 3, "rows of all tasks"
    with attached(base.backbone, network):
        models = [
            PrototypeTaskModel(base.backbone, task, base, network=network, index=i, smoothing=0.1)
            for i, task in enumerate(tasks)
        ]
        for model in models:
            model.losses_only = True
        loss = PrototypeMixture(models, network, config)(**batch)["loss"]
        losses, hidden, numbers = [], [], []
        for part in batch["parts"]:
            number = int(part["task"][0])
            inputs = {n: v for n, v in part.items() if n not in ("task", "labels")}
            with network.collecting() as pooled:
                found = models[number].logits(inputs)
            losses.append(cross_entropy(found, part["labels"], label_smoothing=0.1, reduction="none"))
            hidden.extend(pooled)
            numbers.append(part["task"])
        z, numbers = network.retriever(torch.cat(hidden)), torch.cat(numbers)
        expected = torch.cat(losses).mean() + 0.3 * instance_loss(z, numbers, 0.2)
        expected = expected + 0.7 * prototype_loss(z, numbers, network.prototypes, 0.2)
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert not without, "every part is trained"
    network.zero_grad()


def test_smoothing_is_of_the_training_alone(base, tasks):
    network = new_network(base, settings().settings, 1, seed=5)
    with attached(base.backbone, network):
        models = [
            PrototypeTaskModel(base.backbone, tasks[0], base, network=network, index=0, smoothing=s) for s in (0.0, 0.2)
        ]
        batch = collate(tasks[0], base)([tasks[0].splits["train"].dataset()[i] for i in range(4)])
        inputs, labels = {n: v for n, v in batch.items() if n != "labels"}, batch["labels"]
        plain, smooth = (model.losses(inputs, labels) for model in models)
        found = models[0].logits(inputs)
        assert torch.allclose(plain, cross_entropy(found, labels, reduction="none"))
        expected = cross_entropy(found, labels, reduction="none", label_smoothing=0.2)
        assert torch.allclose(smooth, expected, rtol=1e-5, atol=1e-6)
        predicted = [model.predict_batch(batch)[1] for model in models]
        assert torch.equal(*predicted)


def test_every_key_decides(base, tasks):
    changes = [
        {},
        {"smoothing": 0.3},
        {"instance_weight": 0.0},
        {"prototype_weight": 0.0},
        {"temperature": 0.5},
        {"contrast": "released"},
        {"sampling": {"by": "turns"}},
        {"sampling": {"by": "uncertainty"}},
        {"seed": 1},
    ]
    made = [finetune(base, tasks[:2], settings(**change))["task0"].fingerprint for change in changes]
    assert len(set(made)) == len(made)


def test_rows_of_all_tasks_are_mixed_by_default():
    assert settings().settings.sampling.mixed
    assert settings(sampling={"by": "temperature"}).settings.sampling.mixed
    assert settings(sampling={}).settings.sampling.by == "proportional"
    with pytest.raises(RecipeError, match=r"needs rows of several tasks in a batch: set sampling\.mixed: true"):
        settings(sampling={"mixed": False})
    chosen = settings(sampling={"mixed": False}, instance_weight=0).settings
    assert not chosen.sampling.mixed


class Killed(BaseException):
    pass


def test_a_killed_training_ends_with_the_same_adapters(base, tasks, trained, tmp_path):
    config = settings(training={"checkpoint_every": 2})
    common = {"out": tmp_path / "again", "scratch": tmp_path / "scratch"}

    def kill(step, *_):
        if step == 3:
            raise Killed

    before = weights(base)
    with pytest.raises(Killed):
        finetune(base, tasks[:2], config, on_step=kill, **common)
    assert all(torch.equal(value, before[name]) for name, value in weights(base).items())
    steps = []
    again = finetune(base, tasks[:2], config, on_step=lambda step, *_: steps.append(step), **common)
    assert steps == [3, 4]
    for name, adapter in again.items():
        assert adapter.fingerprint == load(trained / name).fingerprint


def test_an_adapter_may_be_without_the_network(base, tasks, tmp_path):
    kept, bare = (finetune(base, tasks[:2], settings(keep=keep), out=tmp_path / str(keep)) for keep in (True, False))
    size = MODES.get("pha").footprint(base, settings(keep=False)).size
    numbers = sum(u.dense().numel() for u in bare["task0"].updates.values())
    assert size == 4 * numbers
    assert torch.equal(answered(base, kept["task1"], tasks[1]), answered(base, bare["task1"], tasks[1]))
    read = load(tmp_path / "True" / "task0")
    numbers = sum(u.dense().numel() for u in read.updates.values())
    assert MODES.get("pha").footprint(base, settings()).size == 4 * (numbers - SIZES["prototype"]), "one prototype more"
    with pytest.raises(AdapterError, match=r"does not contain the generator.*keep: true"):
        finetune(base, tasks[2], settings(start=str(tmp_path / "False" / "task0")))


def test_a_new_task_starts_from_the_nearest_prototype(base, tasks, trained, tmp_path):
    start = settings(start=str(trained / "task1"), training={"steps": 1, "learning_rate": 1e-30})
    adapter = finetune(base, tasks[2], start)
    earlier, names = joint_network(base, load(trained / "task0"))
    split, model = tasks[2].splits["train"], TaskModel(base.backbone, tasks[2], base)
    with torch.no_grad(), attached(base.backbone, earlier), earlier.collecting() as pooled:
        for _, batch in split.batches(3, model.collator):
            model.logits({n: v for n, v in batch.items() if n != "labels"})
        number = nearest_prototype(earlier.retriever(torch.cat(pooled)), earlier.prototypes)
    shapes = adapter.metadata.modules
    assert (shapes["nearest"], shapes["joint"]["tasks"]) == (names[number], ["task0", "task1", "task2"])
    prototypes = adapter.updates["joint.prototypes"].dense()
    assert torch.equal(prototypes[:2], earlier.prototypes)
    assert torch.equal(prototypes[2], earlier.prototypes[number])  # a rate of 1e-30 moves no float32 of about 1
    other = load(trained / names[number])
    assert torch.allclose(answered(base, adapter, tasks[2]), answered(base, other, tasks[2]), atol=1e-5)


@pytest.mark.parametrize("tuned", ["prototype", "all"])
def test_what_a_new_task_trains(base, tasks, trained, tuned, tmp_path):
    config = settings(start=str(trained / "task0"), tuned=tuned)
    bench = Bench(base)
    before = weights(base)
    adapter = mode_of(config).train(bench, tasks[2:], config)["task2"]
    assert all(torch.equal(value, before[name]) for name, value in weights(base).items())
    size = MODES.get("pha").footprint(base, config)
    assert bench.records["task2"]["trainable"] == size.trainable
    old = {name: update.dense() for name, update in load(trained / "task0").updates.items()}
    new = {name: update.dense() for name, update in adapter.updates.items()}
    fixed = [n for n in old if n.startswith(("shared.", "joint.generator.", "joint.retriever."))]
    assert torch.equal(new["joint.prototypes"][:2], old["joint.prototypes"]), "earlier prototypes have no rows"
    moved = [name for name in fixed if not torch.equal(old[name], new[name])]
    if tuned == "prototype":
        assert size.trainable == SIZES["prototype"]
        assert not moved
    else:
        assert len(moved) == len(fixed)
    found = answered(base, adapter, tasks[2])
    assert torch.allclose(found, dynamic(base, adapter, tasks[2]), rtol=1e-5, atol=1e-4)
    again = mode_of(config).train(Bench(base), tasks[2:], config)["task2"]
    assert again.fingerprint == adapter.fingerprint


def test_a_start_must_fit(base, tasks, trained, tmp_path):
    fine = {"start": str(trained / "task0")}

    def refused(error, match, chosen=tasks[2:], on=base, **changes):
        before = weights(on)
        with pytest.raises(error, match=match):
            finetune(on, chosen, settings(**{**fine, **changes}), out=tmp_path / "none")
        assert not (tmp_path / "none").exists()
        assert all(torch.equal(value, before[name]) for name, value in weights(on).items())

    refused(FileError, "no such folder", start=str(tmp_path / "nowhere"))
    refused(ModelError, "another size, got 9 at hidden. Set hidden: 7", hidden=9)
    refused(ModelError, "has a prototype of this task, got 'task1'", chosen=tasks[1:])
    refused(ModelError, "made for other base weights", on=replace(base, fingerprint="0" * 64))
    finetune(base, tasks[0], FinetuneConfig(lora={"r": 2}, training={"steps": 1}), out=tmp_path / "lora")
    refused(AdapterError, "not an adapter of pha, got 'lora'", start=str(tmp_path / "lora"))
    shutil.copytree(trained / "task0", tmp_path / "broken")
    file = tmp_path / "broken" / "tangora.json"
    content = json.loads(file.read_text())
    content["modules"]["joint"]["tasks"].append("another")
    file.write_text(json.dumps(content))
    refused(AdapterError, r"prototypes must have the shape \(3, 6\), got \(2, 6\)", start=str(tmp_path / "broken"))
    content["modules"]["joint"]["sizes"]["width"] = 3
    file.write_text(json.dumps(content))
    refused(AdapterError, "unknown key 'width'", start=str(tmp_path / "broken"))


def test_what_cannot_be_trained_is_refused(base, tasks, text_base, tiny_vit, tiny_llama):
    mode = MODES.get("pha")
    with pytest.raises(ModelError, match=r"recomputed after the last task.*training\.gradient_checkpointing"):
        mode.check(base, settings(training={"gradient_checkpointing": True}))
    with pytest.raises(ModelError, match="no half of it encodes the prompt alone, got 'causal-lm'"):
        mode.check(tangora.load_base(tiny_llama, family="causal-lm"), settings())
    with pytest.raises(ModelError, match="two halves of a model of texts, got 'image-classification'"):
        mode.check(tangora.load_base(tiny_vit, family="image-classification"), settings())
    with pytest.raises(ModelError, match=r"no prototype to compare with, got 1 at contrast\. Set contrast: ordinary"):
        finetune(base, tasks[0], settings(contrast="released"))
    with pytest.raises(RecipeError, match="tuned is of a training with start"):
        settings(tuned="all")
    with pytest.raises(ValidationError, match=r"smoothing\n  Input should be less than 1"):
        settings(smoothing=1.0)


def test_one_task_alone_is_trained(base, tasks):
    adapter = finetune(base, tasks[0], settings())
    assert adapter.metadata.modules["joint"]["tasks"] == ["task0"]
    assert torch.allclose(answered(base, adapter, tasks[0]), dynamic(base, adapter, tasks[0]), rtol=1e-5, atol=1e-4)


def test_the_key_of_a_training_covers_what_its_start_contains(base, tasks, trained, tmp_path):
    shutil.copytree(trained / "task0", tmp_path / "start")
    config = settings(start=str(tmp_path / "start"))

    def key():
        return stage_key(config, "base", {"a": "rows"}, "text-zero-shot")

    before = key()
    assert key() == before
    finetune(base, tasks[:2], settings(seed=3), out=tmp_path / "other")
    shutil.rmtree(tmp_path / "start")
    shutil.copytree(tmp_path / "other" / "task0", tmp_path / "start")
    assert key() != before


def test_an_adapter_whose_modules_are_not_described_is_refused(base, tasks, trained):
    adapter = load(trained / "task0")
    for modules, match in (({"width": 16}, "a key is missing"), (None, "not an adapter of pha")):
        odd = replace(adapter, metadata=adapter.metadata.model_copy(update={"modules": modules}))
        with pytest.raises(AdapterError, match=match), mode_of(odd).answering(base, odd, {}):
            pass
