"""Forgetting a task, and a + b − c: what task vectors can do besides being summed up.

    python examples/negation_and_analogy.py [--out FOLDER]

**Negation**: ``θ₀ − λν`` is worse at the task of ν and leaves others alone (arXiv:2212.04089, section 3). λ is
the largest at which every other task keeps 95 % of what the base model scores, on validation rows.

**Analogy**: nothing was trained on noisy odd digits; their vector is made of three others, ``λ (a + b − c)`` with
a: odd digits, b: noisy even digits, c: even digits (arXiv:2212.04089, section 5). λ is chosen on validation rows, for
a, b and a + b too.

The model and the pictures are the quickstart's, so that it needs no network; the adapters are L-LoRA of rank 8, which
add up exactly at that rank. The model is pretrained once, by the first run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import tangora
from tangora.adapters.adapter import Adapter
from tangora.config.recipe import BaseConfig, FinetuneConfig, LoraSettings, TaskConfig, TrainingSettings
from tangora.evaluation.evaluator import Evaluator
from tangora.quickstart import data as pictures
from tangora.tasks import Base, Task, load_base, load_task

TEMPLATES = ["a photo of a {}", "a picture of a {}"]
FORGOTTEN, CONTROLS = "digits", ["textures", "faces", "photos"]
KEEP = 0.95
GRID = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
Score = Callable[[Adapter | None, str, str], float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train five adapters, fuse them, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the two fused adapters go; nowhere, if not given")
    parser.add_argument("--model", default="builtin:quickstart", help="another CLIP, a folder")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    base = load_base(BaseConfig(family="image-zero-shot", model=options.model))
    forget = negation(base, options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        noisy = analogy(base, options.steps, Path(scratch))
    if options.out is not None:
        forget.save(options.out / f"without-{FORGOTTEN}")
        noisy.save(options.out / "noisy-odd")


def negation(base: Base, steps: int) -> Adapter:
    """The base model without digits."""
    names = [FORGOTTEN, *CONTROLS]
    tasks = [load_task(TaskConfig(name=n, source={"builtin": n}, templates=TEMPLATES), base, 0) for n in names]
    expert = tangora.finetune(base, tasks[0], settings(steps))
    score = scorer(base, tasks)

    def allowed(weight: float) -> bool:
        fused = tangora.fuse([expert], weights=-weight)
        return all(score(fused, n, "validation") >= KEEP * score(None, n, "validation") for n in CONTROLS)

    chosen = max([0.0, *filter(allowed, GRID)])
    rows = {"base": None, "the expert": expert, f"base - {chosen:g} digits": tangora.fuse([expert], weights=-chosen)}
    print(f"\n| test accuracy | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for label, adapter in rows.items():
        found = [f"{score(adapter, name, 'test'):.3f}" for name in names]
        print(f"| {label} | {' | '.join(found)} |")
    return tangora.fuse([expert], weights=-chosen)


def analogy(base: Base, steps: int, scratch: Path) -> Adapter:
    """An adapter for noisy odd digits, from adapters for three other sets."""
    sets = {"odd": (1, False), "noisy-even": (0, True), "even": (0, False), "noisy-odd": (1, True)}
    tasks = {name: load_task(digits(name, *what, scratch), base, 0) for name, what in sets.items()}
    a, b, c = (tangora.finetune(base, tasks[name], settings(steps)) for name in ("odd", "noisy-even", "even"))
    score = scorer(base, list(tasks.values()))
    print("\n| for noisy odd digits | λ | test accuracy |\n|---|---|---|")
    print(f"| base | – | {score(None, 'noisy-odd', 'test'):.3f} |")
    for label, signs in {"a": (1, 0, 0), "b": (0, 1, 0), "a + b": (1, 1, 0), "a + b − c": (1, 1, -1)}.items():
        made = {w: tangora.fuse([a, b, c], weights=[w * sign for sign in signs]) for w in GRID[:3]}
        chosen = max(made, key=lambda w: score(made[w], "noisy-odd", "validation"))
        print(f"| {label} | {chosen:g} | {score(made[chosen], 'noisy-odd', 'test'):.3f} |")
    return made[chosen]


def digits(name: str, odd: int, noisy: bool, scratch: Path) -> TaskConfig:
    """The odd or the even digits, as a task of five classes; nothing is trained on noisy odd ones, so all are tests."""
    files = {}
    rows = pictures.load("digits")
    if odd and noisy:
        both = [rows.pop("train"), rows.pop("test")]
        rows["test"] = {key: np.concatenate([part[key] for part in both]) for key in both[0]}
        rows["train"] = rows["validation"]
    for split, part in rows.items():
        wanted = part["label"] % 2 == odd
        images = part["image"][wanted]
        if noisy:
            drawn = np.random.default_rng(0).integers(0, 128, images.shape)
            images = np.clip(images // 2 + drawn, 0, 255).astype(np.uint8)
        files[split] = str(scratch / f"{name}-{split}.npz")
        np.savez(files[split], images=images, labels=part["label"][wanted] // 2)
    words = pictures.labels("digits")[odd::2]
    return TaskConfig(
        name=name, source={"npz": files}, image="images", labels=words, label="labels", templates=TEMPLATES
    )


def settings(steps: int) -> FinetuneConfig:
    """L-LoRA of rank 8 on every attention matrix."""
    return FinetuneConfig(
        mode="l-lora",
        linearize="module",
        lora=LoraSettings(r=8, alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]),
        training=TrainingSettings(steps=steps, batch_size=32, learning_rate=2e-3, checkpoint_every=None),
    )


def scorer(base: Base, tasks: Sequence[Task]) -> Score:
    """(adapter or None, task, split) to its score; nothing is scored twice."""
    evaluator = Evaluator(base, tasks)

    def score(adapter: Adapter | None, task: str, split: str) -> float:
        key = adapter.fingerprint if adapter is not None else "base"
        return evaluator.evaluate(key, lambda: adapter, [task], split)[task].score

    return score


if __name__ == "__main__":
    main()
