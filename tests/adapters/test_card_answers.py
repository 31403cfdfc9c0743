"""Every block of code of every card runs, and gives the answers that are scored.

Each card is followed in a process of its own, which has no other names than those that the card makes.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tangora
import tangora.cli.predict  # here, so that every forked process has it
from families import Case
from forks import in_fork, status_of
from tangora.adapters.usage import BASE, FOLDER, IMAGE
from tangora.tasks import TaskModel, make_readout

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported torch")


@dataclass
class Artefact:
    """A folder with a card, the adapter whose answers it gives, and the family's base and task."""

    folder: Path
    adapter: Path
    case: Case


TRAINED = [("text", mode) for mode in ("lora", "l-lora", "l-lora-moved", "tangent", "full", "full-tangent")]
TRAINED += [(kind, mode) for kind in ("image", "answer", "head", "language") for mode in ("lora", "tangent")]
TRAINED += [("head", "full"), ("tags", "tangent")]
TRAINED += [(kind, "lora") for kind in ("pairs", "multi", "regression", "tags", "picture")]
KINDS = [f"{kind} {mode}" for kind, mode in TRAINED]
MERGED = [f"{kind} merged" for kind in ("text", "image", "answer", "head", "language", "pairs", "picture")]
OTHERS = [
    "head fused",
    "text fused tangent",
    "text polished",
    "text distilled",
    "head merged twice",
    "head in bfloat16",
]


@pytest.fixture(scope="module")
def artefacts(families, tmp_path_factory):
    """Name -> artefact, made on first use."""
    made: dict[str, Artefact] = {}
    home = tmp_path_factory.mktemp("artefacts")

    def of(name: str) -> Artefact:
        if name not in made:
            made[name] = _make(name, families, home / name.replace(" ", "-"), of)
        return made[name]

    return of


def _make(name: str, families: Any, folder: Path, of: Any) -> Artefact:
    kind, _, how = name.partition(" ")
    case = families[kind]
    if (kind, how) in TRAINED:
        return Artefact(case.trained(how, folder), folder, case)
    if how == "merged":
        parent = of(f"{kind} lora").folder
        tangora.fuse_checkpoints(case.base.config.model, [parent], folder, weights=1.0)
        return Artefact(folder, parent, case)
    if how == "merged twice":
        once = of(f"{kind} merged")
        tangora.fuse_checkpoints(once.folder, [once.folder], folder, weights=1.0)
        return Artefact(folder, once.adapter, case)
    if how in ("fused", "fused tangent", "in bfloat16"):
        mode = "tangent" if "tangent" in how else "lora"
        other = replace(case, task=replace(case.task, name="other"))
        parents = [of(f"{kind} {mode}").folder, other.trained(mode, folder.with_name(f"{folder.name}-other"))]
        fused = tangora.fuse(parents, weights=[1.0, 0.5])
        if how == "in bfloat16":
            from tangora.adapters.stored import rounded, with_one_rank

            fused = rounded(with_one_rank(fused), torch.bfloat16)[0]
        fused.save(folder)
        return Artefact(folder, folder, case)
    if how == "polished":
        small = {"rank": 2, "rows": 12, "steps": 2, "progress": False}
        tangora.polish([of("text lora").folder], case.base, [case.task], out=folder, **small)
    else:
        teacher = tangora.load(of("text tangent").folder)
        tangora.distill(case.base, [case.task], teacher, case.config("lora"), rows=16, out=folder, progress=False)
    return Artefact(folder, folder, case)


def blocks(artefact: Artefact, language: str, image: Path) -> list[str]:
    """The blocks of a card, with the places that a reader replaces."""
    card = (artefact.folder / "README.md").read_text(encoding="utf-8")
    for place, path in ((FOLDER, artefact.folder), (BASE, artefact.case.base.config.model), (IMAGE, image)):
        card = card.replace(place, str(path))
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def followed(code: str, case: Case, adapter: Path) -> Any:
    """What a block's model answers to the rows of the test split: answers and probabilities, or logits."""
    names: dict[str, Any] = {}
    exec(code, names)
    if "predict" in names:
        answers = names["predict"](case.rows)
        return answers.answers, None if answers.probabilities is None else answers.probabilities.numpy()
    model, task = names["model"] if "model" in names else names["base"], case.task
    if hasattr(model, "encode"):
        with torch.no_grad():
            return model(**model.encode(case.rows)).numpy()
    return _of_network(model, case, make_readout(task, case.base, tangora.load(adapter)))


class _Fixed(torch.nn.Module):
    """A network that returns what it is given."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.weight = output, torch.nn.Parameter(torch.zeros(1))

    def forward(self, **_: Any) -> Any:
        return self.output


@torch.no_grad()
def _of_network(model: Any, case: Case, readout: Any) -> Any:
    """The logits of the targets, from a network without a head."""
    task, base = case.task, case.base
    collate, rows = TaskModel(base.backbone, task, base).collator, task.splits["test"].dataset()
    batch = collate([rows[row] for row in range(len(rows))])
    labels = batch.pop("labels")
    model.eval()
    if hasattr(model, "get_image_features"):  # both towers of a merged checkpoint
        embedded = model.get_image_features(**batch)
        model = _Fixed(SimpleNamespace(image_embeds=getattr(embedded, "pooler_output", embedded)))
    if not isinstance(model, tangora.TangentModel):
        return TaskModel(model, task, base, readout).eval().logits(batch, labels).numpy()
    if task.form.logits_over == "tokens":  # what the network returns are logits
        network = TaskModel(model, task, base, readout).eval()
        return network.logits(batch, labels).numpy()
    last = model.then(lambda output: TaskModel(_Fixed(output), task, base, readout).eval().logits(batch, labels))
    return last(**batch).numpy()


def scored(artefact: Artefact) -> tuple[Any, Any, Any]:
    """Answers, probabilities and logits of the model that is scored."""
    from tangora.evaluation.evaluator import answering

    case, adapter = artefact.case, tangora.load(artefact.adapter)
    answers = tangora.predict(adapter, case.base, case.task, "test", progress=False)
    rows = case.task.splits["test"].dataset()
    with answering(adapter, case.base) as model_of, torch.no_grad():
        model = model_of(case.task).eval()
        batch = model.collator([rows[row] for row in range(len(rows))])
        labels = batch.pop("labels")
        return answers.answers, answers.probabilities, model.logits(batch, labels)


@pytest.mark.parametrize("name", [*KINDS, *MERGED, *OTHERS])
def test_the_blocks_of_a_card_answer_as_scored(name, artefacts, image_data):
    artefact = artefacts(name)
    case = artefact.case
    image = sorted((image_data / "test" / "red").iterdir())[0]
    answers, probabilities, logits = scored(artefact)
    codes = blocks(artefact, "python", image)
    card = (artefact.folder / "README.md").read_text(encoding="utf-8")
    tangent = "tangent" in name
    assert ("loads another function" in card or "are another function" in card) == tangent
    assert ("from peft import" in card) == (not tangent and "full" not in name and "merged" not in name)
    assert len(codes) == (2 if case.task.form.logits_over == "tokens" else 3)
    lines = blocks(artefact, "console", image)
    *given, statuses = in_fork(
        lambda: [*(followed(code, case, artefact.adapter) for code in codes), [status_of(line) for line in lines]]
    )
    assert statuses == [0] * len(lines)
    for code, found in zip(codes, given, strict=True):
        # float32 in another order of sums; merged weights are rounded once more
        if "predictor" not in code:
            close = {"rtol": 0, "atol": 1e-4 * float(logits.abs().max())}
            torch.testing.assert_close(torch.from_numpy(found), logits, **close)
        elif case.task.form.kind == "number":
            assert found[0] == pytest.approx(answers, abs=1e-4)
        else:
            assert found[0] == answers
            assert (found[1] is None) == (probabilities is None)
            assert found[1] is None or np.allclose(found[1], probabilities, rtol=0, atol=1e-4)
