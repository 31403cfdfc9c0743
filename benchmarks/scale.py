"""How the executor ray grows: jobs of known length on 1 to 64 simulated workers, and up to 100,000 candidates.

    make bench-scale                        # writes results/scale.json, docs/scale.md and its figure
    python benchmarks/scale.py --render     # table and figure alone, from the result that is there

Workers are real actors of a real cluster on this host, which pretends to have enough processors; they sleep for the
length of a job in place of working. Everything else is the executor's: the queue of jobs with their inputs, the calls,
the reports, the checks before a worker begins. A job scores 8 subsets of tasks, as in a run, and reads 60 experts.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from step_table import written
from train_step import _machine as machine
from train_step import _source as source

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "scale.json", HERE.parent / "docs" / "scale.md"
FIGURE = HERE.parent / "docs" / "figures" / "scale.png"
MARKS = "<!-- scale:begin -->", "<!-- scale:end -->"
SOURCES = ["benchmarks/scale.py", "src/tangora/runs/executors"]
WORKERS, CANDIDATES = (1, 4, 16, 64), (1_000, 10_000, 100_000)
SUBSETS, EXPERTS = 8, 60  # per job, as of `tangora.runs.stages.score_jobs`; inputs of every job
LENGTH, EACH = 1.0, 20  # seconds of a job, and jobs for each worker, where the number of workers grows
TASKS, PER_SIZE = 20, (10, 100, 1000, 10_000)
IDEAL = 20.0  # seconds that perfect workers take, where the number of candidates grows


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    written(options, measure, table, *MARKS)
    _draw(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--candidates", type=int, nargs="+", default=list(CANDIDATES))
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a results file has: cases by the number of workers, and by that of candidates."""
    import ray

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    started, load = datetime.datetime.now(datetime.timezone.utc), os.getloadavg()
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=max(options.workers),
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _system_config={"prestart_worker_first_driver": False},
    )
    growth, most = [], max(options.workers)
    try:
        for workers in options.workers:
            with _Crew(workers) as crew:
                growth.append(_printed(measured(crew, workers, workers * EACH, LENGTH)))
                if workers == most:
                    cases = [count // SUBSETS for count in options.candidates]
                    many = [_printed(measured(crew, workers, jobs, IDEAL * workers / jobs)) for jobs in cases]
    finally:
        ray.shutdown()
    return {
        "format": 1,
        "date": started.isoformat(timespec="seconds"),
        "machine": machine(),
        "load": [load, os.getloadavg()],
        "source": source(SOURCES),
        "ray": ray.__version__,
        "workers": growth,
        "candidates": many,
        "plans": [_printed(planned(per_size)) for per_size in PER_SIZE],
    }


def planned(per_size: int) -> dict[str, Any]:
    """Return what planning a run of 20 tasks takes, without data: a plan needs their names and fingerprints alone."""
    import json
    import tempfile

    from tangora.config.recipe import load_recipe
    from tangora.runs.plan import plan
    from tangora.runs.sources import Sources, TaskFacts
    from tangora.runs.subsets import count_subsets
    from tangora.testing._tiny_run import tiny_recipe

    with tempfile.TemporaryDirectory() as folder:
        tiny_recipe(Path(folder))
        path = Path(folder, "recipe.yaml")
        raw = json.loads(path.read_text(encoding="utf-8"))
        names = [f"task{i:02}" for i in range(TASKS)]
        methods = [{"method": "average"}, {"method": "task_arithmetic", "weights": [0.3, 0.5, 1.0]}]
        raw["tasks"] = [{**raw["tasks"][0], "name": name} for name in names]
        raw["fusion"] = {"subsets": {"per_size": per_size}, "methods": methods}
        path.write_text(json.dumps(raw), encoding="utf-8")
        recipe = load_recipe(path)
    rows = {"train": 1000, "validation": 1000, "test": 1000}
    sources = Sources("0", {name: TaskFacts(name, rows, True) for name in names})
    plan(recipe, sources)  # imports and the digests of code, once
    began = time.perf_counter()
    jobs = len(plan(recipe, sources))
    seconds = time.perf_counter() - began
    return {
        "per_size": per_size,
        "subsets": count_subsets(TASKS, recipe.fusion.subsets),
        "jobs": jobs,
        "seconds": seconds,
    }


def _printed(case: dict[str, Any]) -> dict[str, Any]:
    print(case, flush=True)
    return case


class _Crew:
    """Workers that have begun, so that their start is not measured."""

    def __init__(self, workers: int) -> None:
        import ray

        from tangora.runs.executors._ray_crew import Checks, Crew
        from tangora.runs.executors._ray_needs import Need

        self.need = Need(0.0, 1.0, 0, 1)
        kind = ray.remote(simulated())
        checks = Checks(lambda need: kind.options(num_cpus=1).remote(), (), lambda answer: None, lambda need: None)
        self.crew, self.workers = Crew(checks, workers, 60.0), workers

    def __enter__(self) -> _Crew:
        self.run([_job(f"first-{i}", (), 3.0) for i in range(self.workers)])
        ends = time.monotonic() + 900
        while len(self.crew.ready()) < self.workers and time.monotonic() < ends:
            self.run([_job(f"more-{i}", (), 3.0) for i in range(self.workers)])
        return self

    def __exit__(self, *error: object) -> None:
        self.crew.end(at_once=False)

    def run(self, jobs: Sequence[Any]) -> int:
        """Do the jobs, and return the number of events."""
        from tangora.runs.executors._ray_jobs import JobQueue
        from tangora.runs.executors._ray_schedule import Schedule

        events = [0]

        def count(event: object) -> None:
            events[0] += 1

        Schedule(JobQueue(jobs, lambda job: self.need), self.crew, count, 3, print).run()
        return events[0]


def simulated() -> type[Any]:
    """Return the class of an actor that sleeps; jobs are not known to it."""

    class Simulated:
        def hello(self) -> dict[str, Any]:
            import os

            return {"host": "simulated", "pid": os.getpid()}

        def start(self, terms: Any) -> None:
            pass

        def step(self, job: Any, patience: float) -> list[Any]:
            import time

            from tangora.runs.events import Event
            from tangora.runs.executors._worker import Finished

            found = []
            if job is not None:
                self.job, self.ends = job, time.monotonic() + job.length
                found.append(Event(job.key, "started", label=job.label))
            time.sleep(max(0.0, min(patience, self.ends - time.monotonic())))
            if time.monotonic() >= self.ends:
                found += [Event(self.job.key, "done", label=self.job.label, seconds=self.job.length), Finished()]
            return found

    return Simulated


def _job(key: str, inputs: tuple[str, ...], length: float) -> SimpleNamespace:
    return SimpleNamespace(key=key, label=f"fuse · {key}", inputs=inputs, kind="fusion-scores", length=length)


def measured(crew: _Crew, workers: int, count: int, length: float) -> dict[str, Any]:
    """Return what doing ``count`` jobs takes: time beside the ideal, this process's own time, and its memory."""
    import psutil

    before = psutil.Process().memory_info().rss
    experts = tuple(f"expert-{i}" for i in range(EXPERTS))
    jobs = [*(_job(key, (), 0.0) for key in experts), *(_job(f"{i}", experts, length) for i in range(count))]
    began, own = time.perf_counter(), time.process_time()
    events = crew.run(jobs)
    seconds, own = time.perf_counter() - began, time.process_time() - own
    if events < 2 * len(jobs):
        raise SystemExit(f"{len(jobs)} jobs reported only {events} events")
    return {
        "workers": workers,
        "jobs": count,
        "length": length,
        "seconds": seconds,
        "ideal": count * length / workers,
        "driver_cpu": own,
        "memory": psutil.Process().memory_info().rss - before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def table(results: dict[str, Any]) -> str:
    """Return both series as Markdown."""
    host, load = results["machine"], [round(one[0], 1) for one in results["load"]]
    head = (
        f"{host['cpu']}, {host['cores']} cores for the driver, Ray and all simulated workers, with other work: load "
        f"{load[0]} before and {load[1]} after. Ray {results['ray']}, {results['date'][:10]}."
    )
    names = ["workers", "jobs", "length of a job", "ideal", "measured", "share of the ideal"]
    lines = [f"| {' | '.join([*names, 'own time of the driver per job', 'its memory'])} |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|---:|")
    lines += [_row(case) for case in results["workers"]]
    lines += ["", "With the number of candidates, 8 in a job:", "", "| candidates " + lines[0]]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    lines += [f"| {case['jobs'] * SUBSETS:,} {_row(case)}" for case in results["candidates"]]
    lines += ["", f"The plan of {TASKS} tasks, two methods and one mode, made a second time:", ""]
    lines += ["| per size | subsets | jobs | seconds |", "|---:|---:|---:|---:|"]
    for one in results["plans"]:
        lines.append(f"| {one['per_size']:,} | {one['subsets']:,} | {one['jobs']:,} | {one['seconds']:.1f} |")
    return "\n".join([head, "", *lines])


def _row(case: dict[str, Any]) -> str:
    share, own = case["ideal"] / case["seconds"], 1e3 * case["driver_cpu"] / (case["jobs"] + EXPERTS)
    parts = [f"{case['workers']}", f"{case['jobs']:,}", f"{case['length']:.3g} s", f"{case['ideal']:.1f} s"]
    parts += [f"{case['seconds']:.1f} s", f"{share:.0%}", f"{own:.1f} ms", f"{case['peak'] / 2**20:.0f} MiB"]
    return f"| {' | '.join(parts)} |"


def _draw(options: argparse.Namespace) -> None:
    import json

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = json.loads(options.result.read_text(encoding="utf-8"))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    counts = [case["workers"] for case in results["workers"]]
    left.plot(counts, counts, color="0.7", label="ideal")
    speeds = [case["jobs"] * case["length"] / case["seconds"] for case in results["workers"]]
    left.plot(counts, speeds, "o-", label="measured")
    left.set(xscale="log", yscale="log", xlabel="workers", ylabel="seconds of jobs done per second")
    left.set_xticks(counts, [str(count) for count in counts])
    left.minorticks_off()
    left.legend(frameon=False)
    candidates = [case["jobs"] * SUBSETS for case in results["candidates"]]
    costs = [1e3 * case["driver_cpu"] / (case["jobs"] + EXPERTS) for case in results["candidates"]]
    right.plot(candidates, costs, "o-")
    right.set(xscale="log", xlabel="candidates", ylabel="driver's own time per job, ms", ylim=(0, None))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
