"""Kill the writing commands at file-system events, and give them again: the same bytes, and nothing is left over.

    make kills KILLS=200                    # writes benchmarks/results/kills.json
    python tests/kills.py --kills 12 --commands fuse merge-adapters --result found.json

Every command runs whole, as from a terminal, in a forked process that is killed at an event drawn at random
(`kill_hook`). What lies at the output then must be the old output or the new one, complete. The same command is given
again, with ``--overwrite`` if there is an output, and every third time killed again; then it must end with exit code 0,
and with the files of an undisturbed command, byte for byte except for wall times: none missing, none left over.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

import yaml

from kill_hook import Events

OUT = "out"
WALL_TIMES = {"report.html", "run.log", "seconds.json"}  # they show wall times; the others' are left out
SECONDS = {"run.json", "training.json"}
INPUTS = "../inputs"


@dataclass(frozen=True)
class Case:
    """A command, and an earlier one that has written another output to the same place."""

    name: str
    arguments: tuple[str, ...]
    earlier: tuple[str, ...]
    resumes: bool = False  # given again as it is: it goes on in its folder
    share: float = 1.0  # of the trials: fewer if they take long

    def again(self, place: Path) -> tuple[str, ...]:
        """The command as a user gives it with what lies in the place."""
        there = (place / OUT).exists() and not self.resumes
        return (*self.arguments, "--overwrite") if there else self.arguments


ADAPTERS = tuple(f"{INPUTS}/adapters/{name}" for name in ("one", "two"))
MODELS = tuple(f"{INPUTS}/models/{name}" for name in ("base", "m0", "m1"))
_MERGE = ("merge", *ADAPTERS, "--base", f"{INPUTS}/encoder", "--threads", "2", "--shard-size", "60KB", "-o", OUT)
_TIES = ("merge", *MODELS, "--method", "ties", "--threads", "2", "--shard-size", "2KB", "-o", OUT)
_TRAIN = ("finetune", f"{INPUTS}/recipe.yaml", "--task", "one", "-o", OUT)
_RUN = ("run", f"{INPUTS}/recipe.yaml", "-o", OUT)
_OTHER_RUN = (*_RUN, "--set", "evaluation.bootstrap=150")
_MANY = ("--executor", "processes", "--workers", "2")
CASES = {
    case.name: case
    for case in (
        Case("fuse", ("fuse", *ADAPTERS, "-w", "0.5", "-o", OUT), ("fuse", *ADAPTERS, "-w", "1.0", "-o", OUT)),
        Case("merge-adapters", (*_MERGE, "-w", "0.5"), (*_MERGE, "-w", "1.0")),
        Case("merge-checkpoints", (*_TIES, "-w", "0.5"), (*_TIES, "-w", "1.0")),
        Case("finetune", _TRAIN, (*_TRAIN, "--set", "seed=1")),
        Case("run", _RUN, (), resumes=True, share=0.4),
        Case("run-over", (*_RUN, "--overwrite"), _OTHER_RUN, resumes=True, share=0.3),
        Case("run-processes", (*_RUN, *_MANY), (), resumes=True, share=0.1),
    )
}


def recipe() -> dict:
    """Two tasks, a mode of factors and a tangent one, two fusions and a search; checkpoints at every step."""
    files = {split: f"{INPUTS}/colors/{split}.parquet" for split in ("train", "test")}
    task = {"source": {"parquet": files}, "labels": ["red", "green", "blue"], "limit": {"test": 9}}
    return {
        "name": "small",
        "base": {"family": "text-zero-shot", "model": f"{INPUTS}/encoder", "max_length": 16},
        "tasks": [{"name": name, **task} for name in ("one", "two")],
        "lora": {"r": 2},
        "training": {"steps": 4, "batch_size": 4, "checkpoint_every": 1, "evaluate_every": 2, "early_stopping": 3},
        "modes": {"lora": {}, "tangent": {"linearize": "model", "training": {"steps": 2}}},
        "fusion": {
            "methods": [
                {"method": "task_arithmetic", "weights": [0.5, 1.0]},
                {"method": "regmean", "modes": ["lora"]},
                {"method": "task_arithmetic", "search": "lorahub", "budget": 3, "modes": ["lora"]},
            ]
        },
        "evaluation": {"bootstrap": 100},
        "machine": {"threads": 1, "device": "cpu"},
    }


def furnish(root: Path) -> None:
    """Write base, data, checkpoints and recipe, and train two adapters."""
    import tiny
    from folders import family

    inputs = root / "inputs"
    tiny.bert(inputs / "encoder")
    tiny.texts(inputs / "colors")
    family(inputs / "models", 2)
    (inputs / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    for name in ("one", "two"):
        place = new_place(root / f"train-{name}")
        train = ("finetune", f"{INPUTS}/recipe.yaml", "--task", name, "-o", f"{INPUTS}/adapters/{name}")
        assert Command(train, place).run() == 0, Command.said(place)
        preload(place)
        shutil.rmtree(place)


def preload(place: Path) -> None:
    """Import here what the last command in a place has imported, so that no later one has to."""
    for name in Path(f"{place}.modules").read_text().splitlines():
        if name not in sys.modules and not name.startswith(("tests", "__")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    from tangora.support import source

    for name in [name for name in sys.modules if name.startswith("tangora.")]:
        source._closure(name)  # what a key covers, read and parsed once


def stand_ins() -> None:
    """Write pictures without drawing them, which takes most of a small run's time and writes by the same calls."""
    from tangora.report import html

    def written(summary: object, folder: Path) -> list:
        for plot in html.PLOTS:
            for kind in ("png", "pdf"):
                (folder / f"{plot.name}.{kind}").write_text(plot.name)
        return [html.Drawing(plot, {}, "not drawn") for plot in html.PLOTS]

    html.draw_all = written


def new_place(place: Path, old: Path | None = None) -> Path:
    """A folder to work in, with its own folder for temporary files, and a copy of an old output."""
    (place / "tmp").mkdir(parents=True)
    if old is not None:
        shutil.copytree(old / OUT, place / OUT)
    return place


@dataclass
class Command:
    """A command in a forked process."""

    arguments: Sequence[str]
    place: Path
    number: int = 0
    how: int = signal.SIGKILL
    undrawn: ClassVar[bool] = True
    pid: int = field(default=0, init=False)

    def start(self) -> Command:
        """Begin."""
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            self._run()
        return self

    def _run(self) -> None:
        code: object = 70
        try:
            log = os.open(f"{self.place}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            print("$ tangora", *self.arguments, self.number or "", flush=True)
            os.chdir(self.place)
            os.environ["TMPDIR"] = str(self.place / "tmp")
            tempfile.tempdir = None
            events = Events(self.place, self.number, self.how)
            events.install()
            if Command.undrawn:
                stand_ins()
            sys.argv = ["tangora", *self.arguments]
            try:
                from tangora.cli.commands import main

                main()
            except SystemExit as stop:
                code = stop.code or 0
            Path(f"{self.place}.events").write_text(str(events.seen))
            Path(f"{self.place}.modules").write_text("\n".join(sys.modules))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 71)

    def wait(self, seconds: float | None = None) -> int:
        """The exit code, or minus the signal; after ``seconds``, kill it."""
        if seconds is not None:
            time.sleep(seconds)
            os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def run(self) -> int:
        """Begin and wait."""
        return self.start().wait()

    @staticmethod
    def said(place: Path) -> str:
        """What the commands in a place have printed."""
        return Path(f"{place}.said").read_text()[-3000:]

    @staticmethod
    def events(place: Path) -> int:
        """The number of events of the last command in a place that was not killed."""
        return int(Path(f"{place}.events").read_text())


def content(path: Path) -> str | bytes:
    """A file's bytes without its wall times."""
    if path.name in WALL_TIMES or path.suffix == ".lock":
        return ""
    if path.name in SECONDS or path.parent.name in ("jobs", "searches"):
        read = json.loads(path.read_text())
        files = sorted(read.get("files", []))  # without their digests: the report shows wall times
        return json.dumps({**read, "seconds": None, "work": None, "files": files})
    if path.suffix == ".jsonl":
        return "".join(sorted(path.read_text().splitlines()))
    return path.read_bytes()


def contents(folder: Path, parse: Callable[[Path], str | bytes] = content) -> dict[str, str | bytes]:
    """Path -> content of all below a folder; folders have none."""
    return {
        str(path.relative_to(folder)): parse(path) if path.is_file() and not path.is_symlink() else "/"
        for path in sorted(folder.rglob("*"))
    }


def difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """In what two folders differ; nothing if they are equal."""
    parts = {
        "left over": sorted(found.keys() - wanted.keys()),
        "missing": sorted(wanted.keys() - found.keys()),
        "other bytes": sorted(name for name in found.keys() & wanted.keys() if found[name] != wanted[name]),
    }
    return "; ".join(f"{what}: {', '.join(names[:6])}" for what, names in parts.items() if names)


class Failed(Exception):
    """What a kill has shown."""


class Trial:
    """A case, its undisturbed outputs, and kills of it.

    Args:
        case: the command.
        root: the folder of all places, with the inputs.
        keep: leave the places of failures.
    """

    def __init__(self, case: Case, root: Path, keep: bool = False) -> None:
        self.case, self.root, self.keep = case, root, keep
        self.old: Path | None = None
        self.seconds = 0.0
        if case.earlier:
            self.old = new_place(root / f"{case.name}-old")
            self._must(case.earlier, self.old)
        fresh = not case.earlier or not case.resumes
        self.wanted = self._undisturbed("new", None) if fresh else {}
        self.events = Command.events(root / f"{case.name}-new") if fresh else 0
        self.over: dict[str, str | bytes] = {}
        if self.old is not None:
            self.over = self._undisturbed("over", self.old)
            self.events = max(self.events, Command.events(root / f"{case.name}-over"))

    def _undisturbed(self, name: str, old: Path | None) -> dict[str, str | bytes]:
        place = new_place(self.root / f"{self.case.name}-{name}", old)
        self._must(self.case.again(place), place)
        return contents(place)

    def _must(self, arguments: Sequence[str], place: Path) -> None:
        started = time.monotonic()
        code = Command(arguments, place).run()
        self.seconds = time.monotonic() - started
        if code != 0:
            raise Failed(f"exit code {code} of an undisturbed command: {Command.said(place)}")
        preload(place)

    @contextlib.contextmanager
    def _place(self, name: str, over: bool) -> Iterator[Path]:
        place = new_place(self.root / f"{self.case.name}-{name}", self.old if over else None)
        yield place
        if not self.keep:
            shutil.rmtree(place)
            for suffix in (".said", ".events", ".modules"):
                Path(f"{place}{suffix}").unlink(missing_ok=True)

    def is_over(self, draw: random.Random) -> bool:
        """Whether an old output lies there."""
        return self.old is not None and (not self.wanted or draw.random() < 0.5)

    def kill(self, number: int, seed: int) -> dict[str, int]:
        """Kill at an event drawn at random, perhaps again, and then let the command end.

        Raises:
            Failed: something is lost, or left over.
        """
        draw = random.Random(f"{self.case.name}-{seed}-{number}")
        over = self.is_over(draw)
        at = [draw.randint(1, self.events)] + [draw.randint(1, self.events)] * (number % 3 == 2)
        return self._killed(f"kill{number}", over, [(event, None) for event in at])

    def kill_by_clock(self, number: int, seed: int) -> dict[str, int]:
        """Kill at a time drawn at random."""
        draw = random.Random(f"{self.case.name}-{seed}-clock-{number}")
        return self._killed(f"clock{number}", self.is_over(draw), [(0, draw.uniform(0.0, self.seconds))])

    def _killed(self, name: str, over: bool, kills: Sequence[tuple[int, float | None]]) -> dict[str, int]:
        codes = []
        with self._place(name, over) as place:
            try:
                for event, seconds in kills:
                    command = Command(self.case.again(place), place, event).start()
                    codes.append(command.wait(seconds))
                    if codes[-1] not in (0, -signal.SIGKILL):
                        raise Failed(f"exit code {codes[-1]}: {Command.said(place)}")
                    self._check_between(place, over)
                self._finish(place, over)
            except Failed as failed:
                begun = "over an old output" if over else "fresh"
                raise Failed(f"{self.case.name}, {begun}, killed at {list(kills)} in {place}: {failed}") from failed
        return {"over": over, "kills": sum(code != 0 for code in codes)}

    def _check_between(self, place: Path, over: bool) -> None:
        """What is published is complete at any time."""
        if self.case.resumes:
            return self._check_files(place, over)
        if not (place / OUT).exists():
            if over:
                raise Failed("the old output is gone")
            return None
        found = _output(contents(place))
        known = [_output(self.wanted or self.over)]
        if self.old is not None and over:
            known.append(_output(contents(self.old)))
        if found not in known:
            raise Failed(f"neither the old output nor the new: {difference(found, known[0])}")
        return None

    def _check_files(self, place: Path, over: bool) -> None:
        """Every file of a run that has its name is complete, whatever is missing yet."""
        wanted, old = self.over if over else self.wanted, contents(self.old) if self.old and over else {}
        partly = {"run.log", ".lock", "scores.jsonl", "threads.json", "run.json"}
        for name, value in contents(place, lambda path: path.read_bytes()).items():
            path = Path(name)
            hidden = any(part.startswith(".") or part in ("training", "scores", "tmp") for part in path.parts)
            if hidden or path.name in partly or value == "/":
                continue
            if (place / path).suffix == ".json":
                json.loads(value)
            if path.name in ("driver.json", "plan.json") or (path.parent.name, path.suffix) == ("locks", ".json"):
                continue  # who does what now, and what is left
            if content(place / path) not in (wanted.get(name), old.get(name)):
                raise Failed(f"{name} is neither the old file nor the new one")

    def _finish(self, place: Path, over: bool) -> None:
        """Give the command until it ends; the result is that of an undisturbed one."""
        code = Command(self.case.again(place), place).run()
        reap()
        if code != 0:
            raise Failed(f"exit code {code}, given again: {Command.said(place)}")
        wanted = self.over if over and self.case.resumes else self.wanted
        if what := difference(contents(place), wanted):
            raise Failed(f"not as undisturbed: {what}")

    def two_at_once(self, number: int, seed: int) -> dict[str, int]:
        """Stop one command at an event, run a second one whole, and let the first go on: one or both end well.

        The refused one names the reason, and a third ends as an undisturbed one.
        """
        draw = random.Random(f"{self.case.name}-{seed}-two-{number}")
        over = self.is_over(draw)
        event = draw.randint(1, self.events)
        with self._place(f"two{number}", over) as place:
            try:
                arguments = self.case.again(place)
                first = Command(arguments, place, event, signal.SIGSTOP).start()
                _, status = os.waitpid(first.pid, os.WUNTRACED)
                stopped = os.WIFSTOPPED(status)
                codes = [Command(arguments if stopped else self.case.again(place), place).run()]
                if stopped:
                    os.kill(first.pid, signal.SIGCONT)
                    codes.append(first.wait())
                else:
                    codes.append(os.waitstatus_to_exitcode(status))
                if not set(codes) <= {0, 2} or 0 not in codes:
                    raise Failed(f"exit codes {codes}: {Command.said(place)}")
                self._check_between(place, over)
                self._finish(place, over)
            except Failed as failed:
                what = f"{self.case.name}, two at once, the first stopped at {event} in {place}"
                raise Failed(f"{what}: {failed}") from failed
        return {"over": over, "refused": codes.count(2)}


def _output(found: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    return {name: value for name, value in found.items() if Path(name).parts[0] == OUT}


def adopt() -> None:
    """Become the parent of processes whose own parent was killed (Linux), so that `reap` can wait for them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap() -> None:
    """Wait for the processes that killed ones have left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def share(total: int, cases: Sequence[Case]) -> dict[str, int]:
    """Return the number of kills per case, by their shares: at least one each, and so many in all."""
    parts = sum(case.share for case in cases)
    counts = {case.name: max(1, int(total * case.share / parts)) for case in cases}
    for name in [case.name for case in cases if case.share == 1.0] * total:
        if sum(counts.values()) >= total:
            break
        counts[name] += 1
    return counts


def measure(options: argparse.Namespace, root: Path) -> dict[str, object]:
    """Do all trials; return the figures."""
    import peft  # noqa: F401  # here, so that every forked process has it
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    Command.undrawn = not options.draw
    furnish(root)
    cases = [CASES[name] for name in options.commands]
    counts, running = share(options.kills, cases), set[int]()
    for case in cases:
        if len(running) == options.jobs:
            running.discard(os.wait()[0])
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            try:
                (root / f"{case.name}.json").write_text(json.dumps(of_case(case, counts[case.name], options, root)))
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        running.add(pid)
    for pid in running:
        os.waitpid(pid, 0)
    found = {case.name: json.loads((root / f"{case.name}.json").read_text()) for case in cases}
    failures = [failure for figures in found.values() for failure in figures.pop("failures")]
    return {
        "kills": sum(figures["kills"]["kills"] for figures in found.values()),
        "commands": found,
        "failures": failures,
    }


def of_case(case: Case, count: int, options: argparse.Namespace, root: Path) -> dict[str, object]:
    """Do the trials of a case; return its figures."""
    adopt()
    started, failures = time.monotonic(), list[str]()
    trial = Trial(case, root, options.keep)
    found = {
        "command": "tangora " + " ".join(case.arguments),
        "events": trial.events,
        "kills": attempts(count, lambda i: trial.kill(i, options.seed), failures),
        "kills_by_clock": attempts(
            math.ceil(options.clock * case.share), lambda i: trial.kill_by_clock(i, options.seed), failures
        ),
        "two_at_once": attempts(
            round(options.pairs * case.share), lambda i: trial.two_at_once(i, options.seed), failures
        ),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(case.name, json.dumps(found), flush=True)
    return {**found, "failures": failures}


def attempts(count: int, attempt: Callable[[int], Mapping[str, int]], failures: list[str]) -> dict[str, int]:
    """Do so many trials; return the sums of what they return, and add the failures."""
    sums = {"trials": count, "failed": 0}
    for i in range(count):
        try:
            found = attempt(i)
        except Failed as failure:
            print(f"FAILED {failure}", flush=True)
            failures.append(str(failure))
            found = {"failed": 1}
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + int(value)
    return sums


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, and write what was found; exit 1 if anything was lost or left over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="at events, over all commands")
    parser.add_argument("--clock", type=int, default=0, help="at random times, for each command")
    parser.add_argument("--pairs", type=int, default=0, help="two processes at once, for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="commands whose trials are done at once")
    parser.add_argument("--commands", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--result", type=Path)
    parser.add_argument("--draw", action="store_true", help="draw the pictures of runs, else stand-ins are written")
    parser.add_argument("--keep", action="store_true", help="keep all folders, to look into them")
    options = parser.parse_args(arguments)
    # Before torch is imported. One thread: equal bits need equal threads, and a process with several is not forked.
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg")
    root = Path(tempfile.mkdtemp(prefix="kills-")).resolve()
    try:
        found = measure(options, root)
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    about = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "options": {name: getattr(options, name) for name in ("kills", "clock", "pairs", "seed")},
    }
    if options.result is not None:
        options.result.write_text(json.dumps({**about, **found}, indent=1) + "\n")
    sys.exit(1 if found["failures"] else 0)


if __name__ == "__main__":
    main()
