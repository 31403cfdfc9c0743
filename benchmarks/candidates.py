"""What scoring one candidate by forward passes costs, and what several candidates in one pass would save.

    python benchmarks/candidates.py              # a few minutes; writes results/candidates-cpu.json and the table
    python benchmarks/candidates.py --render     # the table alone, from the result that is there

Seven LoRA experts of rank 8 on an encoder in MiniLM's shape, and 100 rows of each of seven tasks. In turns:

    scored     a candidate as a grid scores it: fused, added to the weights, all rows predicted, weights restored
    passes     the forward passes of the same batches, with the weights as they are
    products   the matrix products of the linear layers on the tokens of these rows, without padding, and nothing else
    together   several candidates in one pass: the rows of a batch once for each, the frozen layers' products over all
               of them at once, and a product of its low-rank factors for each candidate; per candidate

A candidate changes every layer from the first on, so no activations but the embeddings are common to two of them. What
``together`` leaves out, heads, losses and metrics, is to its advantage.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from step_table import ratio, written
from step_worker import versions
from train_step import _machine as machine
from train_step import _source as source

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, Task

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "candidates-cpu.json", HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- candidates:begin -->", "<!-- candidates:end -->"
TOGETHER = (2, 4, 8)
TOLERANCE = 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    written(_parser().parse_args(arguments), measure, table, *MARKS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=["text7", "tiny"], default="text7")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every work, in turns."""
    import sweep_work
    import torch

    torch.set_num_threads(options.threads)
    size = {"rows": 100, "lengths": (6, 32), "rank": 8} if options.work == "text7" else {}
    work = replace(sweep_work.WORKS[options.work], **size)
    base = sweep_work.make_base(work)
    tasks = [sweep_work.make_task(work, index) for index in range(len(work.classes))]
    updates = [sweep_work.random_updates(base.backbone, sweep_work.TARGETS, work.rank, i, i) for i in range(len(tasks))]
    started, load = datetime.datetime.now(datetime.timezone.utc), os.getloadavg()
    scorer = Scorer(base, tasks, _adapters(updates), options.batch_size)
    works: dict[str, Callable[[], None]] = {"scored": scorer.scored, "passes": scorer.passes}
    works["products"] = scorer.products
    works |= {f"together {count}": (lambda count=count: scorer.together(count)) for count in TOGETHER}
    difference = max(scorer.difference(count) for count in TOGETHER)
    if not difference <= TOLERANCE:
        raise SystemExit(f"candidates in one pass differ from one by one: {difference:.1e}")
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order, shuffle = list(works), random.Random(options.seed)
    for name in order:
        works[name]()  # warm
    for _ in range(options.rounds):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - start)
        print({name: round(samples[-1], 3) for name, samples in seconds.items()}, flush=True)
    return {
        "date": started.isoformat(timespec="seconds"),
        "source": source(["benchmarks/candidates.py", "benchmarks/sweep_work.py", "src/tangora/evaluation"]),
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(),
        "settings": {
            "threads": options.threads,
            "rounds": options.rounds,
            "batch_size": options.batch_size,
            "rows": work.rows * len(tasks),
        },
        "difference": difference,
        "seconds": seconds,
    }


def _adapters(updates: Sequence[Any]) -> list[Adapter]:
    from tangora.adapters.adapter import Adapter, Metadata

    return [Adapter(dict(one), Metadata()) for one in updates]


class Scorer:
    """The ways to score candidates on the test split of some tasks.

    Args:
        base: the frozen network.
        tasks: whose rows are predicted.
        experts: what candidates are fused from.
        batch_size: rows per forward pass of one candidate.
    """

    def __init__(self, base: Base, tasks: Sequence[Task], experts: Sequence[Adapter], batch_size: int) -> None:
        from tangora.evaluation.evaluator import Evaluator

        self.base, self.tasks, self.experts, self.batch_size = base, tasks, experts, batch_size
        self.evaluator, self.made = Evaluator(base, tasks, batch_size=batch_size), 0

    def candidate(self, number: int) -> Adapter:
        """The sum of the experts at a weight of its own."""
        import tangora

        return tangora.fuse(self.experts, "task_arithmetic", weights=0.3 + 0.01 * number)

    def scored(self) -> None:
        """Score one candidate more, as `tangora.search` does."""
        self.made += 1
        number = self.made
        names = [task.name for task in self.tasks]
        self.evaluator.evaluate(f"candidate {number}", lambda: self.candidate(number), names, "test")

    def passes(self) -> None:
        """Predict all rows with the weights as they are."""
        from tangora.tasks import predict
        from tangora.tasks.model import TaskModel

        for task in self.tasks:
            predict(TaskModel(self.base.backbone, task, self.base), task.splits["test"], self.batch_size)

    def products(self) -> None:
        """Compute the linear layers' products of `passes` alone."""
        import torch
        from torch import nn

        layers = [m.weight for m in self.base.backbone.modules() if isinstance(m, nn.Linear)]
        with torch.no_grad():
            for batch in self._batches():
                tokens = int(batch["attention_mask"].sum())
                for weight in layers:
                    torch.mm(self._input(tokens, weight.shape[1]), weight.T)

    def together(self, count: int) -> None:
        """Answer for ``count`` candidates with one pass for each batch."""
        import torch

        candidates = [self.candidate(number) for number in range(count)]
        with torch.no_grad(), _in_groups(self.base.backbone, candidates):
            for batch in self._batches():
                self._features(batch, count)

    def difference(self, count: int) -> float:
        """Largest difference between candidates in one pass and one by one, of the largest feature."""
        import torch

        from tangora.evaluation.evaluator import answering

        candidates = [self.candidate(number) for number in range(count)]
        batch = next(self._batches())
        with torch.no_grad():
            with _in_groups(self.base.backbone, candidates):
                found = self._features(batch, count)
            wanted = []
            for candidate in candidates:
                with answering(candidate, self.base) as model_of:
                    wanted.append(self._features(batch, 1, model_of(self.tasks[0]).backbone))
        expected = torch.cat(wanted)
        return float((found - expected).abs().max() / expected.abs().max())

    def _features(self, batch: dict[str, Tensor], count: int, backbone: Any = None) -> Tensor:
        inputs = {name: value.repeat(count, 1) for name, value in batch.items() if name != "labels"}
        hidden: Tensor = (backbone or self.base.backbone)(**inputs).last_hidden_state
        return hidden

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        from tangora.tasks.model import TaskModel

        for task in self.tasks:
            model = TaskModel(self.base.backbone, task, self.base)
            for _, batch in task.splits["test"].batches(self.batch_size, model.collator):
                yield batch

    def _input(self, tokens: int, width: int) -> Tensor:
        import torch

        held: dict[tuple[int, int], Tensor] = self.__dict__.setdefault("_inputs", {})
        if (tokens, width) not in held:
            held[tokens, width] = torch.randn(tokens, width)
        return held[tokens, width]


@contextmanager
def _in_groups(backbone: Any, candidates: Sequence[Adapter]) -> Iterator[None]:
    """Add each candidate's low-rank product to its share of a batch's rows, behind every layer that it changes."""
    import torch

    handles = []
    for site in candidates[0].updates:
        factors = [candidate.updates[site].factors() for candidate in candidates]
        a = factors[0].a
        assert all(torch.equal(f.a, a) for f in factors)  # sums of the same experts differ in B alone
        b = torch.stack([f.b.T * f.scaling for f in factors])

        def add(module: Any, given: Any, output: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            inner = (given[0] @ a.T).view(len(b), -1, len(a))
            return output.add_(torch.bmm(inner, b).view_as(output))

        handles.append(backbone.get_submodule(site).register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def table(found: dict[str, Any]) -> str:
    """Markdown: seconds a candidate, and how many more candidates a way would score in the same time."""
    chip, settings, seconds = found["machine"], found["settings"], found["seconds"]
    names = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    lines = [
        f"{chip['cpu']}, {chip['cores']} cores; load before and after: {chip['load_before'][0]:.1f}, "
        f"{chip['load_after'][0]:.1f}; {settings['threads']} threads. {names}. {found['date'][:10]}; "
        f"{settings['rows']} rows, {settings['rounds']} rounds; every sample is in "
        f"[`{RESULT.name}`](../benchmarks/results/{RESULT.name}).",
        "",
        "| | a candidate, s | candidates in the time of one |",
        "|---|---:|---:|",
    ]
    words = {
        "scored": "**scored**: fused, added, all rows predicted",
        "passes": "the forward passes alone",
        "products": "the linear layers' products alone",
    }
    for name, samples in seconds.items():
        count = int(name.split()[1]) if name.startswith("together") else 1
        each = [sample / count for sample in samples]
        value, low, high = ratio(seconds["scored"], each)
        words.setdefault(name, f"{count} candidates in one pass")
        more = "1" if name == "scored" else f"{value:.2f} ({low:.2f} – {high:.2f})"
        lines.append(f"| {words[name]} | {median(each):.3f} | {more} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
