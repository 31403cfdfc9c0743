"""A polish layer by layer: its start in closed form, and the objective of ProDistill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tangora
from tangora.adapters.adapter import Adapter
from tangora.adapters.application import applied
from tangora.config.polish import PolishSettings
from tangora.config.recipe import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.errors import ArgumentError, ModelError
from tangora.modes.finetuning import finetune
from tangora.polishing.block_students import Entries, Factors
from tangora.polishing.blocks import blocks_of
from tangora.polishing.closed_form import Moments, closed_form, corrected, cut_for_inputs
from tangora.polishing.dual import dual_of
from tangora.polishing.lessons import lesson
from tangora.polishing.polish import polish
from tangora.polishing.progressive import trained_blocks
from tangora.polishing.student import start_of
from tangora.tasks import TaskModel
from tangora.tasks.values import Split, evaluating
from tangora.updates.task_vector import LowRank

TARGETS = ["query", "value", "dense"]


@pytest.fixture(scope="module")
def tasks(text_task):
    splits = {n: Split(rows.inputs, [(t + 1) % 3 for t in rows.targets]) for n, rows in text_task.splits.items()}
    other = replace(text_task, name="two", splits=splits, fingerprint=f"{text_task.fingerprint}-two")
    return [replace(text_task, name="one"), other]


@pytest.fixture(scope="module")
def experts(text_base, tasks):
    training = TrainingSettings(steps=40, batch_size=8, checkpoint_every=None, learning_rate=1e-2)
    config = FinetuneConfig(mode="lora", lora=LoraSettings(r=4, target_modules=TARGETS), training=training)
    return [finetune(text_base, task, config) for task in tasks]


def polished(experts, base, tasks, **settings):
    chosen = {"rank": 4, "rows": 24, "steps": 20, "batch_size": 4, "learning_rate": 1e-2, "recombined": 0}
    return polish(experts, base, tasks, progress=False, **{**chosen, **settings})


def lessons(experts, base, tasks, rows=12):
    return [
        lesson(base, task, task.splits["train"].select(range(rows)), lambda a=a: a, top=1)
        for task, a in zip(tasks, experts, strict=True)
    ]


def dual(experts, base, tasks, merged, batch=6):
    loads = {task.name: (lambda a=a: a) for task, a in zip(tasks, experts, strict=True)}
    return dual_of(base, lessons(experts, base, tasks), loads, merged, batch, order=True)


def difference(one, other):
    """Return the relative difference of two task vectors in all sites of the second."""
    parts = [(one[site].dense() - update.dense(), update.dense()) for site, update in other.items()]
    return sum(float(a.square().sum()) for a, _ in parts) ** 0.5 / sum(float(b.square().sum()) for _, b in parts) ** 0.5


# the closed form


def test_two_tasks_of_a_linear_layer_are_least_squares():
    """``F + E (G + ρ1)⁻¹`` solves the problem that NumPy solves from stacked rows, the ridge among them."""
    draw = np.random.default_rng(0)
    base, fused = draw.standard_normal((3, 5)), draw.standard_normal((3, 5))
    experts = [draw.standard_normal((3, 5)) for _ in range(2)]
    theirs, ours = draw.standard_normal((2, 40, 5)), draw.standard_normal((2, 40, 5))
    targets = [x @ (base + w).T - z @ base.T for x, w, z in zip(theirs, experts, ours, strict=True)]
    gram = sum(z.T @ z / 40 for z in ours)
    left = sum((y - z @ fused.T).T @ z / 40 for y, z in zip(targets, ours, strict=True))
    rho = 0.3 * np.trace(gram) / 5
    rows = np.concatenate([*(z / np.sqrt(40) for z in ours), np.sqrt(rho) * np.eye(5)])
    values = np.concatenate([*(y / np.sqrt(40) for y in targets), np.sqrt(rho) * fused.T])
    expected = np.linalg.lstsq(rows, values, rcond=None)[0].T
    made = corrected(torch.tensor(fused), Moments(torch.tensor(gram), torch.tensor(left)), 0.3)
    assert np.allclose(made.numpy(), expected, rtol=0, atol=1e-10)  # float64; the condition is below 1e3


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_no_update_of_the_rank_is_nearer_for_the_inputs(shape):
    """The error is that of Eckart and Young in the metric, below that of the plain cut and of any random subspace."""
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(50, shape[1], generator=generator, dtype=torch.float64) * torch.logspace(0, 2, shape[1])
    metric = inputs.T @ inputs / 50

    def error(other):
        return float(((update - other) @ torch.linalg.cholesky(metric)).square().sum())

    cut = cut_for_inputs(update, metric, 2)
    singular = torch.linalg.svdvals(update @ torch.linalg.cholesky(metric))
    assert error(cut.update.dense()) == pytest.approx(float(singular[2:].square().sum()), rel=1e-6)
    assert (cut.lost, cut.total) == pytest.approx((error(cut.update.dense()), error(0 * update)), rel=1e-6)
    assert cut.update.rank == 2
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    assert error((u[:, :2] * s[:2]) @ v[:2]) > error(cut.update.dense())
    for _ in range(20):  # the best update with these inputs' directions: a projection of outputs
        side = torch.linalg.qr(torch.randn(shape[0], 2, generator=generator, dtype=torch.float64))[0]
        assert error(side @ side.T @ update) >= error(cut.update.dense())


def test_one_task_gives_its_expert_back(experts, text_base, tasks):
    """From a tenth of the expert, at its rank and with hardly any ridge; inputs do not span all directions of a layer,
    so that outputs are compared: the layers' error is zero up to rounding, and so is the divergence."""
    start = tangora.fuse(experts[:1], weights=0.1)
    made = polished(experts[:1], text_base, tasks[:1], start=start, initial="layers", steps=0, ridge=1e-6, held_out=0)
    info = made.metadata.polished
    assert info.after["one"] < 1e-4 * info.before["one"]
    assert info.start_error < 1e-2
    assert (info.step, made.metadata.kind) == (0, "lora")


def test_on_well_conditioned_inputs_the_update_is_the_experts():
    generator = torch.Generator().manual_seed(0)
    expert, inputs = torch.randn(6, 5, generator=generator), torch.randn(200, 5, generator=generator).double()
    gram = inputs.T @ inputs / 200
    made = corrected(torch.zeros(6, 5), Moments(gram, expert.double() @ gram), 0.0)
    # ρ is 5 eps of float32 of the mean second moment, and the smallest eigenvalue is near one
    assert torch.allclose(made, expert.double(), rtol=0, atol=1e-5)
    assert torch.allclose(cut_for_inputs(made, gram, 5).update.dense(), made, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_worse_closed_form_than_the_fusion_is_not_the_result(experts, text_base, tasks, steps):
    """One that points away from the expert, before a step that changes nothing: the fusion is the result."""
    start = tangora.fuse(experts[:1], weights=0.5)
    plain = start_of(start, text_base.backbone, 2)

    def away(dual, fused, *_):
        return {site: LowRank(-update.b, update.a) for site, update in plain.factors.items()}, 0.9

    settings = {"start": start, "initial": "layers", "steps": steps, "rank": 2, "learning_rate": 1e-9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.polishing.layered.closed_form", away)
        made = polished(experts[:1], text_base, tasks[:1], **settings)
    info = made.metadata.polished
    assert info.after == info.before
    assert (info.step, info.start_error) == (0, plain.error)
    assert difference(made.updates, plain.factors) < 1e-6


def test_a_ridge_keeps_the_fused_update(experts, text_base, tasks):
    start = tangora.fuse(experts, weights=0.5)
    fused = start_of(start, text_base.backbone, None).factors
    updates, error = closed_form(dual(experts, text_base, tasks, start), start.updates, None, 1e9, lambda _: None)
    assert difference(updates, fused) < 1e-5
    assert error < 1e-6
    updates, _ = closed_form(dual(experts, text_base, tasks, start), start.updates, None, 1e-3, lambda _: None)
    assert difference(updates, fused) > 0.1


# blocks, and the two inputs


def test_each_input_is_that_of_a_whole_pass(experts, text_base, tasks):
    """Through all blocks, what enters the merged model's next block is what enters it in a pass of the final model."""
    start = tangora.fuse(experts, weights=0.5)
    streams = dual(experts, text_base, tasks, Adapter(dict(start.updates)))
    blocks, seen = streams.blocks, []
    assert blocks.names == ("encoder.layer.0", "encoder.layer.1")

    def student(index, _):
        inside = {s: f for s, f in factors.items() if s.startswith(f"{blocks.names[index]}.")}
        return Factors(blocks, index, inside, 4, 0)

    def settled(index, made):
        done.update(made.updates())
        seen.append([[m.hidden for m in stream.merged] for stream in streams.streams])
        return made.weights()

    factors, done = dict(start_of(start, text_base.backbone, 4).factors), {}
    settings = PolishSettings(objective="layers", steps=3, batch_size=6, learning_rate=1e-2)
    curves = list(trained_blocks(streams, student, settings, 0, None, lambda *_: None, settled))
    assert [curve.block for curve in curves] == list(blocks.names)
    for number, (task, one) in enumerate(zip(tasks, lessons(experts, text_base, tasks), strict=True)):
        model = TaskModel(text_base.backbone, task, text_base)
        batch = model.collator([one.rows.dataset()[row] for row in range(6)])
        # the last block's input in the finished model: its first block is that of the training
        with applied(text_base.backbone, Adapter({**factors, **done})), evaluating(text_base.backbone):
            passing, pairs = blocks._observed(model, batch)
        assert torch.allclose(passing.hidden, seen[0][number][0], atol=1e-6)
        assert torch.allclose(pairs[1][0], seen[1][number][0], atol=1e-5)
        # and the expert's targets are the outputs of the expert's own pass
        with applied(text_base.backbone, experts[number]), evaluating(text_base.backbone):
            _, pairs = blocks._observed(model, batch)
        assert torch.allclose(pairs[1][1], streams.streams[number].expert[0].hidden, atol=1e-5)


def test_positions_of_padding_do_not_count(text_base, tasks):
    model = TaskModel(text_base.backbone, tasks[0], text_base)
    rows = tasks[0].splits["train"].dataset()
    batch = model.collator([rows[row] for row in range(8)])
    with evaluating(text_base.backbone):
        blocks = blocks_of(text_base, model, batch)
        passing = blocks.enter(model, batch)
    assert len(passing.counted(passing.hidden)) == int(batch["attention_mask"].sum())


def test_vision_towers_are_sequences_of_blocks(image_base, image_task):
    model = TaskModel(image_base.backbone, image_task, image_base)
    batch = model.collator([image_task.splits["train"].dataset()[row] for row in range(2)])
    with evaluating(image_base.backbone):
        blocks = blocks_of(image_base, model, batch)
    assert [name.rpartition(".")[2] for name in blocks.names] == ["0", "1"]
    assert blocks.enter(model, batch).mask is None


def test_an_encoder_with_a_decoder_is_refused(answer_base, answer_task):
    model = TaskModel(answer_base.backbone, answer_task, answer_base)
    batch = model.collator([answer_task.splits["train"].dataset()[row] for row in range(2)])
    with evaluating(answer_base.backbone), pytest.raises(ModelError, match="several sequences of blocks"):
        blocks_of(answer_base, model, batch)


def test_a_network_without_a_list_of_blocks_is_refused(text_base, tasks):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def logits(self, inputs, labels):
            return self.layer(inputs["x"])

    network = Bare()
    base = replace(text_base, backbone=network)
    with pytest.raises(ModelError, match="no list of blocks"):
        blocks_of(base, network, {"x": torch.ones(1, 2), "labels": torch.zeros(1)})


# the objective


def test_from_the_expert_itself_the_distance_is_zero(experts, text_base, tasks):
    """The factors' product rounds in another order than the update's, so that the distance is that of rounding."""
    start = tangora.fuse(experts[:1], weights=1.0)
    made = polished(experts[:1], text_base, tasks[:1], start=start, objective="layers", rank=None, steps=1, held_out=0)
    info = made.metadata.polished
    assert info.before["one"] < 1e-8


def test_the_distances_and_the_divergence_fall(experts, text_base, tasks, tmp_path):
    start = tangora.fuse(experts[:1], weights=0.1)
    settings = {"start": start, "objective": "layers", "out": tmp_path / "made", "batch_size": 8}
    settings |= {"steps": 60, "learning_rate": 3e-2, "held_out": 0.0}
    made = polished(experts[:1], text_base, tasks[:1], **settings)
    info = made.metadata.polished
    assert info.after["one"] < 0.1 * info.before["one"]
    assert all(update.rank <= 4 for update in made.updates.values())
    record = tangora.support.files.read_json(tmp_path / "made" / "training.json")
    assert len(record["loss"]) == len(record["steps"]) == 120  # 60 steps of 2 blocks
    assert all(block["after"] < block["before"] for block in record["blocks"])
    card = (tmp_path / "made" / "README.md").read_text()
    assert "the outputs of every block" in card


def test_entries_with_one_coefficient_are_task_arithmetic(experts, text_base, tasks):
    """Coefficients of 0.3 everywhere: ``W₀ + 0.3 Σ ΔW_t``; and with offsets of 0.2, 0.5."""
    streams = dual(experts, text_base, tasks, Adapter({}))
    blocks, name = streams.blocks, streams.blocks.names[0]
    own = dict(blocks.block(0).named_parameters())
    vectors = [{n: w - own[n].detach() for n, w in blocks.weights(0, expert).items()} for expert in experts]
    start = tangora.fuse(experts, weights=0.3)
    student = Entries(blocks.weights(0, start), {n: p.detach() for n, p in own.items()}, vectors)
    with torch.no_grad():
        for offset in student.parameters().values():
            offset.fill_(0.2)
    wanted = tangora.fuse(experts, weights=0.5)
    changes = student.changes()
    for site, update in wanted.updates.items():
        if site.startswith(f"{name}."):
            change = changes[f"{site.removeprefix(f'{name}.')}.weight"]
            assert torch.allclose(change, update.dense(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [4, None])
def test_entries_come_nearer_and_are_saved(experts, text_base, tasks, rank, tmp_path):
    settings = {"objective": "layers", "student": "entries", "rank": rank, "learning_rate": 0.1, "batch_size": 8}
    start = tangora.fuse(experts, weights=[0.3, 0.01])  # of rank 8
    made = polished(experts[:1], text_base, tasks[:1], start=start, **settings)
    info = made.metadata.polished
    assert info.after["one"] < info.before["one"]
    assert made.metadata.kind == ("full" if rank is None else "lora")
    assert (info.cut_error is None) == (rank is None)
    assert info.start_error == 0, "the start is not cut"
    made.save(tmp_path / "made")
    again = tangora.load(tmp_path / "made")
    assert again.metadata.polished == info
    assert again.fingerprint == made.fingerprint


def test_it_resumes_with_the_same_bytes(experts, text_base, tasks, tmp_path):
    class Died(Exception):
        pass

    def dies(step, total, loss):
        if step == 15:
            raise Died

    settings = {"objective": "layers", "initial": "layers", "steps": 10, "batch_size": 8}
    whole = polished(experts, text_base, tasks, **settings)
    where = {"out": tmp_path / "out", "scratch": tmp_path / "scratch"}
    with pytest.raises(Died):
        polished(experts, text_base, tasks, on_step=dies, **settings, **where)
    assert sorted(path.name for path in (tmp_path / "scratch").glob("*/*block*")) == ["block-0.safetensors"]
    seen = []
    polished(experts, text_base, tasks, on_step=lambda step, *_: seen.append(step), **settings, **where)
    assert seen[0] == 11
    assert tangora.load(tmp_path / "out").fingerprint == whole.fingerprint
    assert not (tmp_path / "scratch").exists()


def test_settings_that_exclude_each_other():
    for given, what in (
        ({"steps": 0}, "nothing is trained in 0 steps"),
        ({"student": "entries"}, "block by block"),
        ({"student": "entries", "objective": "layers", "initial": "layers"}, "start from the fusion"),
        ({"student": "tangent", "objective": "layers"}, "follows answers"),
        ({"temperature": 2.0, "objective": "layers"}, "temperature is about answers"),
    ):
        with pytest.raises(ValueError, match=what):
            PolishSettings(**given)


def test_layers_cost_more_passes():
    rows = [100, 100]
    plain = PolishSettings(rows=64, recombined=0).passes(rows)
    assert PolishSettings(rows=64, recombined=0, initial="layers").passes(rows) == plain + 8 * 2 * 58
    by_layers = PolishSettings(rows=64, recombined=0, objective="layers", steps=4)
    # 64 answered, 58 trained on and 6 held out; 20 rows are enough for 4 steps, of 3 passes each; judged twice
    assert by_layers.passes(rows) == 2 * (64 + 6 * 20 + 3 * 20 + 2 * 6)


def test_refusals(experts, text_base, tasks):
    about = experts[0].metadata.model_copy(update={"train": "tangent", "linearize": "model"})
    expanded = replace(experts[0], metadata=about)
    with pytest.raises(ModelError, match="changes no weights of blocks"):
        polished([expanded], text_base, tasks[:1], start=experts[0], objective="layers")
    with pytest.raises(ArgumentError, match="nothing is trained"):
        polished(experts, text_base, tasks, steps=0)
    held = replace(text_base, config=text_base.config.model_copy(update={"weights_dtype": "bfloat16"}))
    with pytest.raises(ModelError, match="weights in float32"):
        polished(experts, held, tasks, initial="layers", same_base=True)
