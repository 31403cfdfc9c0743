"""Polish: a fused adapter is trained towards its experts without a label, and comes out as a plain adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tangora
from tangora.adapters.heads import HeadRecord
from tangora.config.polish import PolishSettings
from tangora.config.recipe import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.errors import ArgumentError, DataError, FusionError, ModelError, OutputError
from tangora.evaluation.evaluator import evaluate
from tangora.modes.finetuning import finetune
from tangora.polishing.following import Follower
from tangora.polishing.lessons import lesson
from tangora.polishing.polish import _by_task, polish
from tangora.polishing.recombination import recombined
from tangora.polishing.rows import choose_rows
from tangora.polishing.training import polished as train
from tangora.tasks.values import Split

TARGETS = ["query", "value", "dense"]


def config(mode, steps=40, rate=2e-2, seed=0):
    training = TrainingSettings(steps=steps, batch_size=8, checkpoint_every=None, learning_rate=rate)
    settings = {} if mode == "full" else {"lora": LoraSettings(r=4, target_modules=TARGETS)}
    return FinetuneConfig(mode=mode, train=mode, training=training, seed=seed, **settings)


def swapped(task, name):
    """A second task on the same rows: the classes change places, so that its expert contradicts the first one's."""
    splits = {split: Split(rows.inputs, [(t + 1) % 3 for t in rows.targets]) for split, rows in task.splits.items()}
    return replace(task, name=name, splits=splits, fingerprint=f"{task.fingerprint}-{name}")


@pytest.fixture(scope="module")
def tasks(text_task):
    return [replace(text_task, name="one"), swapped(text_task, "two")]


@pytest.fixture(scope="module")
def experts(text_base, tasks):
    return [finetune(text_base, task, config("lora", rate=1e-2)) for task in tasks]


def polished(experts, base, tasks, **settings):
    chosen = {"rank": 4, "rows": 24, "steps": 30, "batch_size": 4, "learning_rate": 3e-2, "evaluate_every": 10}
    chosen |= {"follow": "probabilities", "recombined": 0}
    return polish(experts, base, tasks, progress=False, **{**chosen, **settings})


@pytest.fixture(scope="module")
def made(experts, text_base, tasks):
    return polished(experts[:1], text_base, tasks[:1], start=tangora.fuse(experts[:1], weights=0.1))


def test_the_divergence_from_the_expert_falls_and_the_result_is_a_plain_adapter_of_the_rank(made, tmp_path):
    info = made.metadata.polished
    assert info.after["one"] < 0.5 * info.before["one"]
    assert info.rows == {"one": 24}
    assert info.measured_on == "held-out"
    assert all(update.rank <= 4 for update in made.updates.values())
    made.save(tmp_path / "made")
    again = tangora.load(tmp_path / "made")
    assert again.fingerprint == made.fingerprint
    assert again.metadata.polished == info
    assert (again.metadata.train, again.metadata.linearize) == ("lora", "none")
    card = (tmp_path / "made" / "README.md").read_text()
    assert "## How it was polished" in card
    assert "24 train rows a task, without their labels" in card
    assert f"{info.after['one']:.4f}" in card


def test_the_base_is_as_before(made, text_base, tasks, experts):
    from tangora.tasks.base import weights_fingerprint

    assert weights_fingerprint(text_base.backbone) == text_base.fingerprint
    assert not any("lora" in name for name, _ in text_base.backbone.named_modules())


def test_labels_are_not_read(experts, text_base, tasks, made):
    """The same inputs with other labels give the same bytes."""
    lied = [replace(t, splits={n: Split(s.inputs, [2] * len(s)) for n, s in t.splits.items()}) for t in tasks[:1]]
    start = tangora.fuse(experts[:1], weights=0.1)
    assert polished(experts[:1], text_base, lied, start=start).fingerprint == made.fingerprint


@pytest.mark.parametrize("student", ["lora", "l-lora", "tangent"])
def test_students_differ_in_what_they_train(experts, text_base, tasks, student):
    start = tangora.fuse(experts[:1], weights=0.3)
    settings = {"student": student, "steps": 16, "rank": 3, "learning_rate": 1e-2, "held_out": 0.0}
    made = polished(experts[:1], text_base, tasks[:1], start=start, **settings)
    info = made.metadata.polished
    assert info.after["one"] < info.before["one"]
    from tangora.polishing.student import start_of

    first = start_of(start, text_base.backbone, 3).factors
    kept = [torch.equal(update.a, first[site].a) for site, update in made.updates.items()]
    assert all(kept) if student != "lora" else not any(kept)
    assert made.metadata.train == ("tangent" if student == "tangent" else "lora")


def test_what_is_measured_at_the_end_is_how_the_saved_adapter_answers(experts, text_base, tasks):
    """The divergence after training, computed again from the adapter's own answers."""
    made = polished(experts, text_base, tasks, held_out=0.0, steps=4, follow="probabilities", rows=8)
    info = made.metadata.polished
    assert info.measured_on == "the same"
    for task, expert in zip(tasks, experts, strict=True):
        rows = task.splits["train"].select(_rows(task, 8))
        theirs, own = (lesson(text_base, task, rows, lambda a=a: a, top=1).answers.logits for a in (expert, made))
        p, q = theirs.double().log_softmax(-1), own.double().log_softmax(-1)
        assert float((p.exp() * (p - q)).sum(-1).mean()) == pytest.approx(info.after[task.name], rel=1e-3, abs=1e-6)


def _rows(task, count):
    return choose_rows(task, "train", count, 0)


def test_fewer_rows_are_the_first_of_more(tasks):
    assert _rows(tasks[0], 24)[:8] == _rows(tasks[0], 8)
    assert _rows(tasks[0], 8) != _rows(tasks[1], 8)


def test_it_resumes_with_the_same_bytes(experts, text_base, tasks, tmp_path, made):
    """A training that dies goes on from its checkpoint, with the answers that it has kept."""

    class Died(Exception):
        pass

    def dies(step, total, loss):
        if step == 25:
            raise Died

    start, out, scratch = tangora.fuse(experts[:1], weights=0.1), tmp_path / "out", tmp_path / "scratch"
    where = {"start": start, "out": out, "scratch": scratch}
    import tangora.polishing.training as module

    whole = module._Training._config

    def often(self):
        config = whole(self)
        return config.model_copy(update={"training": config.training.model_copy(update={"checkpoint_every": 10})})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Training, "_config", often)
        with pytest.raises(Died):
            polished(experts[:1], text_base, tasks[:1], on_step=dies, **where)
        assert list(scratch.glob("*/checkpoint-20"))
        assert list((scratch / "answers").glob("*.safetensors"))
        seen = []
        polished(experts[:1], text_base, tasks[:1], on_step=lambda step, *_: seen.append(step), **where)
    assert seen[0] == 21
    assert not scratch.exists()
    assert tangora.load(out).fingerprint == made.fingerprint
    record = (out / "training.json").read_text()
    assert '"before"' in record


def test_answers_are_kept_by_content(experts, text_base, tasks, tmp_path):
    loads = []

    def expert(index):
        loads.append(index)
        return experts[index]

    rows = tasks[0].splits["train"].select(range(5))
    kept = {"top": 8, "cache": tmp_path}
    first = lesson(text_base, tasks[0], rows, lambda: expert(0), **kept)
    again = lesson(text_base, tasks[0], rows, lambda: expert(0), **kept)
    assert torch.equal(first.answers.logits, again.answers.logits)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    lesson(text_base, tasks[0], rows, lambda: expert(1), **kept)
    lesson(text_base, tasks[0], rows.select(range(4)), lambda: expert(0), **kept)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("mode", ["full", "tangent", "l-lora"])
def test_experts_of_every_mode_teach(text_base, tasks, mode):
    expert = finetune(text_base, tasks[0], config(mode, steps=15, rate=1e-3 if mode == "full" else 2e-2))
    made = polished([expert], text_base, tasks[:1], weights=0.2)
    info = made.metadata.polished
    assert info.after["one"] < info.before["one"]
    assert made.metadata.kind == "lora"
    assert bool(info.left_out) == (mode == "full")


def test_features_alone_are_enough_to_follow(experts, text_base, tasks):
    made = polished(experts[:1], text_base, tasks[:1], start=tangora.fuse(experts[:1], weights=0.1), follow="features")
    assert made.metadata.polished.after["one"] < made.metadata.polished.before["one"]


def test_from_nothing_the_start_is_the_base(experts, text_base, tasks):
    settings = PolishSettings(initial="random", rank=2, steps=1, rows=8, recombined=0, learning_rate=1e-9, held_out=0)
    made = train(experts[0], {"one": lambda: experts[0]}, text_base, tasks[:1], settings).adapter
    info = made.metadata.polished
    assert (info.start, info.start_error, made.metadata.fused) == ("random", 0, None)
    rows = tasks[0].splits["train"].select(_rows(tasks[0], 8))
    theirs = lesson(text_base, tasks[0], rows, lambda: experts[0], top=1).answers.logits
    zero = tangora.fuse(experts[:1], weights=0.0)
    own = lesson(text_base, tasks[0], rows, lambda: zero, top=1).answers.logits
    p, q = theirs.log_softmax(-1), own.log_softmax(-1)
    assert float((p.exp() * (p - q)).sum(-1).mean()) == pytest.approx(info.before["one"], rel=1e-3)


def test_what_is_lost_weighs(experts, text_base, tasks):
    """With weights by what is lost, a task that loses nothing is not trained."""
    start = tangora.fuse(experts[:1], weights=1.0)  # the first task's expert itself
    seen = []

    class Watched(Follower):
        def forward(self, row, **batch):
            seen.append(self.weight)
            return super().forward(row, **batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.polishing.training.Follower", Watched)
        made = polished(experts, text_base, tasks, start=start, rank=None, steps=2, weigh="lost")
    before = made.metadata.polished.before
    assert before["one"] < 1e-6 < before["two"]
    assert seen[:2] == pytest.approx([0.0, 2.0], abs=1e-3)


def test_refusals(experts, text_base, tasks, tmp_path):
    with pytest.raises(ArgumentError, match="2 tasks need 2 experts"):
        polished(experts[:1], text_base, tasks)
    with pytest.raises(ArgumentError, match="an expert of another task"):
        polished(experts[:1], text_base, tasks[1:])
    with pytest.raises(ArgumentError, match="unknown key 'step'"):
        polished(experts, text_base, tasks, step=3)
    with pytest.raises(DataError, match="the split is missing"):
        bare = [replace(task, splits={"train": task.splits["train"]}) for task in tasks]
        polished(experts, text_base, bare, split="validation")
    with pytest.raises(DataError, match="most of these rows are among the task's test rows"):
        same = [replace(task, splits={**task.splits, "train": task.splits["test"]}) for task in tasks]
        polished(experts, text_base, same)
    with pytest.raises(DataError, match="at least 2 rows"):
        few = [replace(t, splits={"train": t.splits["train"].select([0])}) for t in tasks]
        polished(experts, text_base, few)
    other = replace(experts[0], metadata=experts[0].metadata.model_copy(update={"base": other_base(experts[0])}))
    with pytest.raises(ModelError, match="other base weights"):
        polished([other], text_base, tasks[:1])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        polished(experts, text_base, tasks, out=tmp_path / "there")


def other_base(adapter):
    return adapter.metadata.base.model_copy(update={"fingerprint": "0" * 64})


def test_generated_answers(answer_base, answer_task):
    """Text to text: the student follows the tokens that the expert itself generates."""
    training = TrainingSettings(steps=30, batch_size=8, checkpoint_every=None, learning_rate=2e-2)
    lora = LoraSettings(r=4, target_modules=["q", "v", "wo"])
    expert = finetune(answer_base, answer_task, FinetuneConfig(mode="lora", lora=lora, training=training))
    chosen = {"rank": 4, "rows": 16, "steps": 20, "learning_rate": 1e-2, "top": 5, "evaluate_every": 10}
    start = tangora.fuse([expert], weights=0.2)
    made = polish([expert], answer_base, [answer_task], start=start, progress=False, **chosen)
    info = made.metadata.polished
    assert info.after[answer_task.name] < info.before[answer_task.name]
    assert 0 < info.mass <= 1
    assert evaluate(made, answer_base, [answer_task], split="validation")
    more = polish(
        [expert], answer_base, [answer_task], start=start, progress=False, recombined=20, **{**chosen, "steps": 1}
    )
    assert more.metadata.polished.recombined == {answer_task.name: 4}


def test_rows_are_made_of_the_rows_that_are_not_held_out(experts, text_base, tasks):
    """Nothing new is in them but the order: special tokens stay at both ends, and tokens come from the drawn rows."""
    made = polished(experts[:1], text_base, tasks[:1], start=tangora.fuse(experts[:1], weights=0.1), recombined=60)
    info = made.metadata.polished
    assert (info.rows, info.recombined) == ({"one": 24}, {"one": 36})
    assert info.after["one"] < info.before["one"]
    used = tasks[0].splits["train"].select(_rows(tasks[0], 24)[:20])
    more = recombined(used, 200, text_base, "seed")
    tokens = {token for row in used.inputs["input_ids"] for token in row.tolist()}
    originals = {tuple(row.tolist()) for row in used.inputs["input_ids"]}
    longest = max(map(len, originals))
    start, end = text_base.processor.cls_token_id, text_base.processor.sep_token_id
    for row in more.inputs["input_ids"]:
        assert (row[0], row[-1]) == (start, end)
        assert set(row.tolist()) <= tokens
        assert 3 <= len(row) <= longest
    assert sum(tuple(row.tolist()) not in originals for row in more.inputs["input_ids"]) > 100
    again = recombined(used, 200, text_base, "seed")
    assert all(torch.equal(a, b) for a, b in zip(more.inputs["input_ids"], again.inputs["input_ids"], strict=True))


def test_rows_are_made_of_the_names_of_classes_too(text_base, tasks):
    used = tasks[0].splits["train"].select(_rows(tasks[0], 4))
    names = [token for token in text_base.processor.get_vocab() if token.isalpha()][:30]
    tokens = {token for row in used.inputs["input_ids"] for token in row.tolist()}
    named = {token for row in text_base.processor(names)["input_ids"] for token in row}
    made = recombined(used, 200, text_base, "seed", names).inputs["input_ids"]
    seen = {token for row in made for token in row.tolist()}
    assert seen <= tokens | named
    assert len(seen - tokens) > 20
    assert max(map(len, made)) <= max(map(len, used.inputs["input_ids"]))


@pytest.mark.parametrize("named", [True, False])
def test_names_of_classes_reach_the_rows_that_experts_answer(experts, text_base, tasks, monkeypatch, named):
    given = []

    def watched(rows, count, base, seed, names):
        given.append(list(names))
        return recombined(rows, count, base, seed, names)

    monkeypatch.setattr("tangora.polishing.teaching.recombined", watched)
    polished(experts[:1], text_base, tasks[:1], recombined=60, steps=1, class_names=named)
    assert given == [tasks[0].labels if named else []]


def test_texts_with_unknown_words_are_spliced(text_base):
    start, end = text_base.processor.cls_token_id, text_base.processor.sep_token_id
    unknown = text_base.processor.unk_token_id
    rows = Split(
        {"input_ids": [torch.tensor([start, 20, unknown, 21, end]), torch.tensor([start, 22, 23, end])]}, [0] * 2
    )
    made = [row.tolist() for row in recombined(rows, 100, text_base, "seed").inputs["input_ids"]]
    assert [start, 20, 23, end] in made
    assert all((row[0], row[-1]) == (start, end) for row in made)


def test_images_are_mixed(image_base, image_task):
    rows = image_task.splits["train"].select(range(4))
    more = recombined(rows, 6, image_base, "seed").inputs["pixel_values"]
    original = torch.as_tensor(rows.inputs["pixel_values"])
    assert more.shape == (6, *original.shape[1:])
    assert float(more.min()) >= float(original.min()) - 1e-6
    assert float(more.max()) <= float(original.max()) + 1e-6
    assert not any(torch.equal(a, b) for a in more for b in original)


def unnamed(adapter):
    return replace(adapter, metadata=adapter.metadata.model_copy(update={"task": None}))


def test_experts_are_paired_with_their_own_tasks(experts, tasks):
    """By their names in any order; without names by their place; a mixture only if names and places agree."""
    one, two = experts
    assert _by_task([two, one], tasks) == {"two": two, "one": one}
    plain = [unnamed(two), unnamed(one)]
    assert _by_task(plain, tasks) == {"one": plain[0], "two": plain[1]}
    assert _by_task([one, plain[0]], tasks) == {"one": one, "two": plain[0]}
    with pytest.raises(ArgumentError, match="not clear which expert is of which task"):
        _by_task([two, plain[1]], tasks)


def test_a_worse_adapter_than_the_start_is_not_the_result(experts, text_base, tasks):
    """With a rate that ruins it, the start itself comes out."""
    start = tangora.fuse(experts[:1], weights=0.9)
    made = polished(experts[:1], text_base, tasks[:1], start=start, learning_rate=3.0, steps=4, evaluate_every=2)
    info = made.metadata.polished
    assert info.step == 0
    assert info.after == info.before
    for site, update in made.updates.items():
        assert torch.allclose(update.dense(), start.updates[site].dense(), atol=1e-5)


def test_directions_of_no_size_are_drawn_so_that_they_train(experts, text_base, tasks):
    """The zero update has no direction: each factor's gradient would be zero for good."""
    nothing = tangora.fuse(experts[:1], weights=0.0)
    made = polished(experts[:1], text_base, tasks[:1], start=nothing, rank=2, learning_rate=1e-2, held_out=0.0)
    info = made.metadata.polished
    assert info.after["one"] < info.before["one"]
    assert all(bool(update.a.any()) for update in made.updates.values())


def test_only_the_tasks_own_head_and_record_are_taken(text_base, tasks, experts):
    """An expert that was made of several holds records of other tasks, which nobody followed."""
    foreign = HeadRecord(family="text-zero-shot", labels=["x"])
    several = replace(experts[1], records={**experts[1].records, "one": foreign})
    made = polished([experts[0], several], text_base, tasks, steps=1, rows=8)
    assert made.records["one"].labels == tasks[0].labels
    assert made.records["one"] == HeadRecord(**tasks[0].record)


def test_experts_with_other_parameters_of_the_base_are_refused(text_base, tasks, experts):
    name = next(name for name, _ in text_base.backbone.named_parameters() if "LayerNorm" in name)
    value = dict(text_base.backbone.named_parameters())[name].detach() + 1
    with pytest.raises(ModelError, match="another value of it"):
        polished([replace(experts[0], whole={name: value})], text_base, tasks[:1], start=experts[0], steps=1, rows=8)


def test_separators_inside_a_text_stay_where_they_are(text_base):
    """Rows of two texts keep their one separator between them."""
    tokenizer = text_base.processor
    ids = [torch.tensor(tokenizer("red green blue", "good bad")["input_ids"]) for _ in range(3)]
    rows = recombined(Split({"input_ids": ids}, [0] * 3), 50, text_base, "seed").inputs["input_ids"]
    separator = tokenizer.sep_token_id
    assert {tuple((row == separator).nonzero().flatten().tolist()) for row in rows} == {
        tuple((ids[0] == separator).nonzero().flatten().tolist())
    }


def test_the_answers_of_another_precision_are_others(text_base, tasks, experts, tmp_path):
    rows = tasks[0].splits["train"].select(range(4))
    lesson(text_base, tasks[0], rows, lambda: experts[0], top=1, cache=tmp_path)
    coarse = replace(text_base, machine=replace(text_base.machine, dtype="bfloat16"))
    lesson(coarse, tasks[0], rows, lambda: experts[0], top=1, cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_task_is_added_to_an_adapter_that_answers_for_its_own(experts, text_base, tasks, tmp_path):
    first = polished(experts[:1], text_base, tasks[:1], start=experts[0])
    both = polished(experts[1:], text_base, tasks, present=first, weights=0.05)
    info = both.metadata.polished
    assert info.experts == {"one": first.fingerprint, "two": experts[1].fingerprint}
    assert info.after["two"] < info.before["two"]  # the two contradict each other, so that "one" must lose
    sum_of = tangora.fuse([first, experts[1]], weights=[1.0, 0.05])
    assert info.start == sum_of.fingerprint
    both.save(tmp_path / "both")
    assert "# 2 tasks in one: one, two\n" in (tmp_path / "both" / "README.md").read_text()
    again = polished(experts[1:], text_base, tasks, present=first, start=experts[0], steps=1)
    assert again.metadata.polished.start == experts[0].fingerprint


def test_what_cannot_be_added_to_a_present_adapter(experts, text_base, tasks):
    with pytest.raises(ArgumentError, match="experts are added to the present adapter") as refused:
        polished(experts[1:], text_base, tasks, present=experts[0], method="ties")
    assert refused.value.got == "ties"
    with pytest.raises(ArgumentError, match="weights of sites"):
        polished(experts[1:], text_base, tasks, present=experts[0], weights={"a": 1.0})
    with pytest.raises(ArgumentError, match="does not name its task"):
        polished([tangora.fuse(experts)], text_base, tasks, present=experts[0])
    with pytest.raises(ArgumentError, match="experts"):
        polished(experts[1:], text_base, tasks[:1], present=experts[0])


def test_an_expert_without_a_name_is_of_the_first_task(experts, text_base, tasks):
    made = polished([unnamed(experts[1])], text_base, tasks[::-1], present=experts[0], steps=1)
    assert made.metadata.polished.experts == {"two": experts[1].fingerprint, "one": experts[0].fingerprint}
    with pytest.raises(ArgumentError, match="an expert does not name its task"):
        polished([unnamed(experts[1])], text_base, tasks, present=experts[0], steps=1)


def test_the_present_adapter_does_not_answer_for_a_task_that_it_does_not_know(experts, text_base, tasks):
    third = replace(tasks[0], name="three")
    with pytest.raises(ArgumentError, match="no adapter is of this task, got 'three'") as refused:
        polished(experts[1:], text_base, [*tasks, third], present=experts[0], steps=1)
    assert "answers one" in refused.value.fix


def test_experts_of_another_kind_are_added_from_the_present_adapter_alone(text_base, tasks, experts, tmp_path):
    tangent = finetune(text_base, tasks[1], config("tangent", steps=2))
    where = {"out": tmp_path / "out", "scratch": tmp_path / "scratch"}
    with pytest.raises(FusionError, match="in the network's expansion") as refused:
        polished([tangent], text_base, tasks, present=experts[0], **where)
    assert "give it as --start" in refused.value.fix
    assert not list(tmp_path.iterdir())  # nothing was computed that could be resumed
    made = polished([tangent], text_base, tasks, present=experts[0], start=experts[0], steps=1, **where)
    assert made.metadata.polished.experts == {"one": experts[0].fingerprint, "two": tangent.fingerprint}


def test_the_output_is_none_of_the_adapters(experts, text_base, tasks, tmp_path):
    for name, adapter in zip(("one", "two"), experts, strict=True):
        adapter.save(tmp_path / name)
    for out in ("one", "two"):
        with pytest.raises(OutputError, match="the output is an input"):
            given = {"present": tmp_path / "one", "out": tmp_path / out, "overwrite": True}
            polished([tmp_path / "two"], text_base, tasks, steps=1, **given)
    with pytest.raises(ArgumentError, match="written as a folder"):
        polished(experts, text_base, tasks, steps=1, out=tmp_path / "new.safetensors")


def test_a_newer_expert_of_a_task_brings_its_head(tiny_bert, text_data):
    """A classifier's heads are of tasks: the expert's, where it is given, else that of the present adapter."""
    base = tangora.load_base(tiny_bert, family="text-classification", max_length=16)
    files = {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}
    labels = ["red", "green", "blue"]
    tasks = [tangora.load_task(name, base, files, labels=labels) for name in ("one", "two")]
    one, two, newer = (
        finetune(base, tasks[index], config("lora", steps=2, seed=seed)) for index, seed in ((0, 0), (1, 0), (1, 1))
    )
    present = polished([one, two], base, tasks, steps=1)
    made = polished([newer], base, tasks, present=present, steps=1)
    for task, source in (("one", one), ("two", newer)):
        assert made.heads[task].keys() == source.heads[task].keys()
        assert all(torch.equal(made.heads[task][name], source.heads[task][name]) for name in source.heads[task])
    parents = {parent.name: parent.fingerprint for parent in made.metadata.fused.parents}
    assert parents == {"the present adapter": present.fingerprint, "two": newer.fingerprint}
    assert made.metadata.polished.experts == {"one": present.fingerprint, "two": newer.fingerprint}


def test_an_added_task_resumes_with_the_same_bytes(experts, text_base, tasks, tmp_path, monkeypatch):
    """The start is made again of the present adapter and the expert; answers and checkpoints are taken up."""
    import tangora.polishing.training as module

    class Died(Exception):
        pass

    def dies(step, total, loss):
        if step == 15:
            raise Died

    whole = module._Training._config

    def often(self):
        made = whole(self)
        return made.model_copy(update={"training": made.training.model_copy(update={"checkpoint_every": 10})})

    monkeypatch.setattr(module._Training, "_config", often)
    given = {"present": experts[0], "weights": [0.2], "steps": 20}
    at_once = polished(experts[1:], text_base, tasks, **given)
    where = {"out": tmp_path / "out", "scratch": tmp_path / "scratch"}
    with pytest.raises(Died):
        polished(experts[1:], text_base, tasks, on_step=dies, **where, **given)
    seen = []
    polished(experts[1:], text_base, tasks, on_step=lambda step, *_: seen.append(step), **where, **given)
    assert seen[0] == 11
    assert tangora.load(tmp_path / "out").fingerprint == at_once.fingerprint
    assert not where["scratch"].exists()
