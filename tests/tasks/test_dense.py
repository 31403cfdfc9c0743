"""Dense tasks: maps as targets and answers, the geometry of processors, decoders, losses, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import tangora
from tangora import cli
from tangora.errors import ArgumentError, DataError, ModelError, RecipeError
from tangora.evaluation.evaluator import Result, ScoreStore
from tangora.tasks.dense.base import stages_of
from tangora.tasks.dense.inputs import geometry
from tangora.tasks.dense.problems import problem_of
from tangora.tasks.dense.readout import interpolation
from tangora.tasks.dense.settings import DenseSettings
from tangora.tasks.maps import packed, unpacked
from tangora.tasks.metrics import METRICS, score
from tangora.tasks.sources import read_file
from tiny import COLORS

KINDS = ["segments", "marks", "depths"]


@pytest.fixture(scope="module")
def base(tiny_swin):
    return tangora.load_base(str(tiny_swin), family="image-dense", width=8)


def settings(**keys):
    return DenseSettings(name="t", source={"builtin": "x"}, **keys)


def files(folder, suffix="npz"):
    return {split: folder / f"{split}.{suffix}" for split in ("train", "test")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_and_a_decoder_learn_maps_and_predict_them_from_the_folder(kind, families, tmp_path):
    case = families[kind]
    before = tangora.evaluate(None, case.base, case.task)["scenes"]
    folder = case.trained("lora", tmp_path / "one")
    after = tangora.evaluate(folder, case.base, case.task)["scenes"]
    assert after.loss < before.loss
    answers = tangora.predictor(folder, device="cpu")(case.rows, batch_size=3)
    for answer, value in zip(answers, after.values, strict=True):
        np.testing.assert_allclose(answer, value, rtol=1e-5, atol=1e-6)  # another number of rows in a batch
    assert answers[0].shape == (16, 16)


def test_the_shapes_of_stages_are_found(base):
    assert base.pixels == (16, 16)
    assert base.stages == ((8, 8, 8), (16, 4, 4), (32, 2, 2))


def test_a_transformers_that_loses_the_finest_stage_of_swin_is_refused():
    sides = (8, 4, 2, 2)  # of a Swin whose stages are seen after merging, as in transformers 5.4
    output = SimpleNamespace(
        last_hidden_state=torch.zeros(1, 4, 32),
        reshaped_hidden_states=[torch.zeros(1, 8, side, side) for side in sides],
    )

    def backbone(**_):
        return output

    backbone.config = SimpleNamespace(model_type="swin")
    with pytest.raises(ModelError, match=r"after their patches are merged .*pip install --upgrade 'transformers<6'"):
        stages_of(backbone, torch.zeros(1, 3, 16, 16), 3)


def test_networks_without_stages_give_layers_in_their_places(tiny_vit):
    base = tangora.load_base(str(tiny_vit), family="image-dense", levels=2)
    assert base.stages == ((16, 2, 2), (16, 2, 2))


def test_convolutional_networks_have_stages(tmp_path):
    import tiny

    base = tangora.load_base(str(tiny.resnet(tmp_path)), family="image-dense")
    assert base.stages == ((8, 4, 4), (12, 2, 2))


@pytest.mark.parametrize(("size", "wanted"), [(2, 4), (3, 12), (5, 7), (4, 4)])
def test_the_matrix_of_interpolation_is_torchs(size, wanted):
    x = torch.randn(1, 1, size, 1, generator=torch.Generator().manual_seed(size))
    expected = interpolate(x, size=(wanted, 1), mode="bilinear", align_corners=False)[0, 0, :, 0]
    torch.testing.assert_close(interpolation(size, wanted) @ x[0, 0, :, 0], expected)


def test_a_map_moves_as_its_image(tiny_clip):
    """Resized to the shorter side, then cropped: an image whose colors are its classes stays in step with its map."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    classes = np.zeros((64, 128), dtype=np.uint8)
    classes[:, 64:] = 1
    classes[48:] = 2
    picture = Image.fromarray(np.stack([100 * classes] * 3, -1))
    options = {"do_normalize": False, "do_rescale": False, "resample": 0, "return_tensors": "np"}
    seen = processor(images=[picture], **options)["pixel_values"][0, 0]
    rows, columns, inside = geometry(processor, classes.shape)
    assert inside.all()
    assert seen.shape == (32, 32)
    np.testing.assert_array_equal(100 * classes[rows, columns], seen)
    assert {0, 1, 2} == set(np.unique(classes[rows, columns]).tolist())


def test_pixels_beyond_an_image_do_not_count():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(do_resize=False, crop_size={"height": 8, "width": 8})
    rows, columns, inside = geometry(processor, (4, 300))  # the crop is higher than the image
    assert inside.sum() == 4 * 8
    assert set(rows[inside].tolist()) == {0, 1, 2, 3}
    assert columns[inside].min() == 146  # of 300, the middle 8: more than one byte holds


def test_files_beside_a_table_are_the_same_task_as_arrays(base, scene_data):
    named = {"labels": ["background", *COLORS]}
    arrays = tangora.load_task("t", base, files(scene_data), label="classes", **named)
    paths = tangora.load_task("t", base, files(scene_data, "csv"), label="classes", **named)
    for split, rows in arrays.splits.items():
        assert torch.equal(rows.inputs["pixel_values"], paths.splits[split].inputs["pixel_values"])
        np.testing.assert_array_equal(np.stack(rows.targets), np.stack(paths.splits[split].targets))
    assert arrays.fingerprint == paths.fingerprint


def test_without_names_classes_are_numbered_and_255_does_not_count(base, scene_data):
    task = tangora.load_task("t", base, files(scene_data), label="classes")
    assert task.labels == ["0", "1", "2", "3"]
    assert (np.stack(task.splits["test"].targets)[:, 0, 0] == 255).all()


def test_values_are_named_by_a_mapping(base, scene_data):
    names = {"0": "nothing", "1": "thing", "2": "thing", "3": "other"}
    task = tangora.load_task("t", base, files(scene_data), label="classes", labels=names)
    assert task.labels == ["nothing", "thing", "other"]
    assert set(np.unique(np.stack(task.splits["train"].targets)).tolist()) == {0, 1, 2, 255}


def test_marks_in_files_are_0_and_255(base, scene_data):
    arrays = tangora.load_task("t", base, files(scene_data), label="marks", problem="binary")
    paths = tangora.load_task("t", base, files(scene_data, "csv"), label="marks", problem="binary")
    assert arrays.fingerprint == paths.fingerprint
    assert set(np.unique(np.stack(paths.splits["test"].targets)).tolist()) == {0, 1}


def test_numbers_have_a_scale(base, scene_data):
    one, other = (
        tangora.load_task("t", base, files(scene_data), label="numbers", problem="regression", scale=scale)
        for scale in (1.0, 0.5)
    )
    np.testing.assert_allclose(np.stack(other.splits["test"].targets), 2 * np.stack(one.splits["test"].targets))
    assert np.isnan(np.stack(one.splits["test"].targets)[:, 0, 0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": lambda a: a[:, :10]}, "a map of .10, 20. for an image of .20, 20."),
        ({"classes": lambda a: np.where(a == 3, 9, a)}, "a pixel has no class, got 9"),
        ({"classes": lambda a: np.full_like(a, 255)}, "no pixel of a map counts"),
        ({"classes": lambda a: np.stack([a, a], -1)}, "a map has one value per pixel"),
        ({"classes": lambda a: np.zeros(a.shape, "<U1")}, "a map has one value per pixel"),
    ],
)
def test_maps_that_do_not_fit_are_refused_by_row(change, message, base, scene_data, tmp_path):
    for split, file in files(scene_data).items():
        arrays = dict(np.load(file))
        np.savez(tmp_path / f"{split}.npz", **{n: change.get(n, lambda a: a)(a) for n, a in arrays.items()})
    with pytest.raises(DataError, match=rf"{message}.*row \d"):
        tangora.load_task("t", base, files(tmp_path), label="classes", labels=["background", *COLORS])


def test_an_infinite_number_and_a_missing_file_are_refused(base, scene_data, tmp_path):
    arrays = dict(np.load(scene_data / "train.npz"))
    arrays["numbers"][3, 2, 2] = np.inf
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", **arrays)
    with pytest.raises(DataError, match=r"a number is infinite.*row 3"):
        tangora.load_task("t", base, files(tmp_path), label="numbers", problem="regression")
    lines = [json.dumps({"image": "a.png", "label": "b.png"})] * 3
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a map is not readable.*row 0"):
        tangora.load_task("t", base, files(tmp_path, "jsonl"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scale": 2.0}, "scale is for problem: regression"),
        ({"positive_weight": 2.0, "problem": "regression"}, "positive_weight is for problem: binary"),
        ({"labels": ["a", "b"], "problem": "binary"}, "binary has none"),
    ],
)
def test_settings_of_another_problem_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        settings(**keys)


@pytest.mark.parametrize(
    ("problem", "metric"), [("segmentation", "rmse_map"), ("binary", "mean_iou"), ("regression", "accuracy")]
)
def test_metrics_of_other_maps_are_refused(problem, metric, tiny_swin):
    from tangora.config.recipe import Recipe
    from tangora.support.validation import validate

    source = {"builtin": "dense-edges"}
    tasks = [{"name": "t", "source": source, "problem": problem, "metric": metric}]
    raw = {"name": "r", "base": {"family": "image-dense", "model": str(tiny_swin)}, "tasks": tasks}
    with pytest.raises(RecipeError, match=metric):
        validate(Recipe, raw, "recipe")


def test_losses_are_means_over_pixels_that_count():
    logits = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])  # two rows of 1 x 2 pixels
    labels = torch.tensor([[[0, 255]], [[255, 255]]], dtype=torch.uint8)
    losses = problem_of(settings(), 2).losses(logits, labels)
    assert losses.tolist() == pytest.approx([float(np.log1p(np.exp(-2.0))), 0.0])
    marked = problem_of(settings(problem="binary", positive_weight=3.0), 0)
    labels = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    # at logit 0 either outcome costs log 2, thrice for the mark
    assert marked.losses(torch.zeros(1, 1, 2, 1), labels).tolist() == pytest.approx([2 * float(np.log(2))])
    assert marked.answers(torch.tensor([[[[0.0], [100.0], [-100.0]]]])).tolist() == [[[128, 255, 0]]]  # 127.5 to even
    numbers = torch.tensor([[[1.0, float("nan"), 5.0]]])
    for loss, expected in (("squared", (1 + 9) / 2), ("absolute", (1 + 3) / 2)):
        problem = problem_of(settings(problem="regression", loss=loss), 0)
        assert problem.losses(torch.full((1, 1, 3, 1), 2.0), numbers).tolist() == pytest.approx([expected])


def test_metrics_by_hand():
    a, b = np.array([[0, 1, 1]], np.uint8), np.array([[0, 0, 255]], np.uint8)
    # class 0: 1 of 2 pixels, class 1: predicted once, never actual; the third pixel does not count
    assert score("mean_iou", [a], [b]) == pytest.approx((1 / 2 + 0) / 2)
    values, marks = np.array([[200, 150, 100, 50]], np.uint8), np.array([[1, 0, 1, 0]], np.uint8)
    # thresholds of 1, 2, 3 and 4 pixels: 2/3, 2/4, 4/5, 4/6
    assert score("f_measure", [values], [marks]) == pytest.approx(4 / 5)
    assert score("f_measure", [np.zeros((1, 2), np.uint8)], [np.ones((1, 2), np.uint8)]) == 0.0
    numbers = [np.array([[1.0, 2.0]]), np.array([[3.0]])]
    targets = [np.array([[4.0, np.nan]]), np.array([[7.0]])]
    assert score("rmse_map", numbers, targets) == pytest.approx(np.sqrt((9 + 16) / 2))


@pytest.mark.parametrize("name", ["f_measure", "mean_iou", "rmse_map"])
def test_maps_of_other_shapes_are_refused(name):
    with pytest.raises(ArgumentError, match="another shape than its target"):
        score(name, [np.zeros((2, 2), np.uint8)], [np.zeros((2, 3), np.uint8)])
    assert METRICS.get(name).takes < {"class_map", "binary_map", "number_map"}


def test_maps_survive_a_file_of_scores(tmp_path):
    maps = [np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([[0.1, np.nan]], np.float32)]
    ScoreStore(tmp_path / "scores.jsonl").put("a", Result(0.5, 1.0, maps))
    read = ScoreStore(tmp_path / "scores.jsonl").get("a").values
    for one, other in zip(read, maps, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    damaged = packed(maps)
    damaged[0]["map"] = damaged[0]["map"][:-8] + "AAAAAAA="
    with pytest.raises(ValueError, match="damaged"):
        unpacked(damaged)


def test_a_prediction_is_written_as_lists(families, tmp_path, monkeypatch):
    case = families["segments"]
    folder = case.trained("lora", tmp_path / "one")
    expected = [answer.tolist() for answer in tangora.predictor(folder, device="cpu")(case.rows)]
    rows = tmp_path / "rows.npz"
    np.savez(rows, image=np.stack(case.rows))
    for suffix in ("jsonl", "parquet", "csv"):
        out = tmp_path / f"answers.{suffix}"
        monkeypatch.setattr(
            sys, "argv", ["tangora", "predict", str(folder), "--in", str(rows), "--out", str(out), "-q"]
        )
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        column = read_file(suffix, out).column("answer")
        assert [json.loads(one) if suffix == "csv" else one for one in column] == expected


def test_the_decoder_starts_without_a_preference_and_equal_for_every_task(families):
    case = families["segments"]
    first, second = (tangora.tasks.make_readout(case.task, case.base) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    features = torch.randn(2, sum(c * h * w for c, h, w in case.base.stages))
    assert not first.logits(features).any()
    renamed = replace(case.task, name="other")
    again = tangora.tasks.make_readout(renamed, case.base)
    assert torch.equal(again.projections[1].weight, first.projections[1].weight)
