"""How much of a training step is passes through the frozen network, whatever the adapter.

    python benchmarks/step_floor.py              # some minutes; writes results/step_floor-cpu.json and the table
    python benchmarks/step_floor.py --render     # the table alone, from the result that is there

    pass     a forward pass, without gradients and dropout
    through  forward, and backward to the outputs of the first block's adapted layers: an offset for each of them is
             all that trains. Every adapter of all blocks needs at least this.
    lora, l_lora, tangent   the steps of `train_step.py`, with AdamW

L-LoRA's step contains ``through``. A step of the whole network's expansion consists of forward and backward, and of a
second forward pass, for the change: ``pass + through``. It could take less only if it did not compute one of them, as
with stored activations of the frozen network. All works are in one process and take turns, in an order drawn anew for
each round; ratios are formed within a round.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from step_models import SHAPES, build, make_batch
from step_table import ratio, written
from step_worker import versions
from train_step import _machine as machine
from train_step import _source as source

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "step_floor-cpu.json", HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- step_floor:begin -->", "<!-- step_floor:end -->"
SOURCES = [
    "benchmarks/step_floor.py",
    "benchmarks/step_models.py",
    "benchmarks/step_networks.py",
    "src/tangora/tangent",
]
STEPS = ("lora", "l_lora", "tangent")
DEFAULT = ("minilm", "clip-vit-b16", "flan-t5-base", "clip-vit-b16-dropout", "flan-t5-base-dropout")


def main(arguments: Sequence[str] | None = None) -> None:
    written(_parser().parse_args(arguments), measure, table, *MARKS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every work on every shape."""
    import torch

    torch.set_num_threads(options.threads)
    started, load = datetime.datetime.now(datetime.timezone.utc), os.getloadavg()
    shapes = {}
    for name in options.shapes:
        works = {work: _work(name, work, options.seed) for work in ("pass", "through", *STEPS)}
        shapes[name] = {"title": SHAPES[name].title, "seconds": _in_turns(works, options.rounds, options.seed)}
        print(name, {work: round(median(samples), 3) for work, samples in shapes[name]["seconds"].items()}, flush=True)
    return {
        "date": started.isoformat(timespec="seconds"),
        "source": source(SOURCES),
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(),
        "settings": {"threads": options.threads, "rounds": options.rounds, "seed": options.seed},
        "shapes": shapes,
    }


def _in_turns(works: dict[str, Callable[[], None]], rounds: int, seed: int) -> dict[str, list[float]]:
    order, shuffle = list(works), random.Random(seed)
    seconds: dict[str, list[float]] = {work: [] for work in works}
    for work in order:
        works[work]()  # warm
    for _ in range(rounds):
        shuffle.shuffle(order)
        for work in order:
            start = time.perf_counter()
            works[work]()
            seconds[work].append(time.perf_counter() - start)
    return seconds


def _work(shape: str, work: str, seed: int) -> Callable[[], None]:
    """Return a call that does a work once."""
    import torch

    chosen = SHAPES[shape]
    batch = make_batch(chosen, seed, "cpu")
    if work in STEPS:
        model = build(chosen, work, seed, "cpu")
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> None:
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step
    plain, offsets = without_adapters(chosen, seed)
    if work == "pass":
        plain.eval()

        def forward() -> None:
            with torch.no_grad():
                plain(**batch)

        return forward

    def through() -> None:
        plain(**batch)["loss"].backward()
        for offset in offsets:
            offset.grad = None

    return through


def without_adapters(shape: Any, seed: int) -> tuple[Any, list[Any]]:
    """Return the shape's network without adapters, and the offsets behind the adapted layers of its first blocks."""
    import torch
    from peft.tuners.lora import LoraLayer

    model = build(shape, "lora", seed, "cpu")
    model.requires_grad_(False)
    offsets = []
    for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain := layer.get_base_layer())
        if re.findall(r"\.(\d+)\.", name)[0] == "0":  # the block's number; T5's decoder has a first block of its own
            offset = torch.zeros(plain.out_features, requires_grad=True)
            plain.register_forward_hook(lambda module, given, output, offset=offset: output + offset)
            offsets.append(offset)
    return model, offsets


def table(found: dict[str, Any]) -> str:
    """Markdown: every work, and the passes of each step, as a share of LoRA's step."""
    chip, settings = found["machine"], found["settings"]
    names = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    lines = [
        f"{chip['cpu']}, {chip['cores']} cores; load before and after: {chip['load_before'][0]:.1f}, "
        f"{chip['load_after'][0]:.1f}; {settings['threads']} threads. {names}. {found['date'][:10]}, "
        f"{settings['rounds']} rounds; every sample is in [`{RESULT.name}`](../benchmarks/results/{RESULT.name}).",
        "",
        "| of LoRA's step | L-LoRA's passes | L-LoRA | tangent LoRA's passes | tangent LoRA | forward pass alone |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for shape in found["shapes"].values():
        seconds = shape["seconds"]
        both = [a + b for a, b in zip(seconds["pass"], seconds["through"], strict=True)]
        works = (seconds["through"], seconds["l_lora"], both, seconds["tangent"], seconds["pass"])
        cells = [_share(work, seconds["lora"]) for work in works]
        lines.append(f"| {shape['title']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(samples: Sequence[float], lora: Sequence[float]) -> str:
    value, low, high = ratio(samples, lora)
    return f"{value:.3f} ({low:.3f} – {high:.3f})"


if __name__ == "__main__":
    main()
