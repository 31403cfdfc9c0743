"""Executors: the contract on each of ours, what happens to a worker that dies, and one of another package."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

import tangora
from tangora.errors import TangoraError
from tangora.runs.context import Context
from tangora.runs.execution import perform
from tangora.runs.executors._worker import work
from tangora.runs.executors.processes import EXECUTOR as PROCESSES
from tangora.runs.executors.processes import ProcessesSettings
from tangora.runs.executors.serial import Serial
from tangora.runs.runner import missing
from tangora.support.seams import EXECUTORS
from tangora.testing import check_executor

PLUGIN = Path(__file__).parents[2] / "examples" / "plugins" / "executor"


@pytest.fixture(scope="module")
def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imported_once"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    yield context
    forkserver._forkserver._stop()


@pytest.fixture
def _imported_once(_server, monkeypatch):
    """Workers are forks of one process that has imported what they need; the test of one that dies spawns them."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: _server)


OURS = [name for name in EXECUTORS if name != "ray"]  # which is checked on a cluster, in test_ray.py


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "serial" else pytest.mark.slow) for n in OURS])
def test_our_own_keep_the_contract(name, request):
    if name == "processes":
        request.getfixturevalue("_imported_once")
    check_executor(name)


class Unordered(Serial):
    def run(self, jobs, context, settings, on_event):
        for job in reversed(jobs):
            perform(job, context, on_event)


class Silent(Serial):
    def run(self, jobs, context, settings, on_event):
        super().run(jobs, context, settings, lambda event: None)


class Careless(Serial):
    def run(self, jobs, context, settings, on_event):
        for job in jobs:
            try:
                perform(job, context, on_event)
            except TangoraError:
                continue


@pytest.mark.parametrize(
    ("broken", "match"),
    [(Unordered, "before lora"), (Silent, "no event says"), (Careless, "returned without an error")],
)
def test_a_broken_one_is_caught(broken, match):
    if broken is Unordered:  # the first job reads what is not there, which is no error that it could put right
        with pytest.raises((AssertionError, TangoraError)):
            check_executor(broken())
        return
    with pytest.raises(AssertionError, match=match):
        check_executor(broken())


def test_what_lacks_a_part_is_no_executor():
    with pytest.raises(AssertionError, match="lacks name, settings or run"):
        check_executor(object())


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_job_and_is_named(short_recipe, tmp_path):
    from tangora.testing.executor import _begin

    context, seen = _begin(short_recipe, tmp_path / "run"), []
    before = set(psutil.Process().children(recursive=True))

    def kill(event):
        seen.append(event)
        if event.what == "started" and len([e for e in seen if e.what == "started"]) == 2:
            for child in set(psutil.Process().children(recursive=True)) - before:
                if "resource_tracker" not in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)

    jobs = [job for job in context.plan if job.kind == "expert"]
    with pytest.raises(TangoraError, match=r"died \(signal SIGKILL\) while it did the job lora · good"):
        PROCESSES.run(jobs, context, ProcessesSettings(workers=1, threads=1), kill)
    assert [event.what for event in seen if event.what in ("done", "failed")] == ["done", "failed"]
    assert [job.label for job in missing(context, jobs)] == ["lora · good"]


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, BrokenPipeError])
def test_a_worker_ends_quietly_if_the_run_was_killed(short_copy, monkeypatch, error):
    class Gone:
        def send(self, message):
            pass

        def recv(self):
            raise error

    for name in ("signal.signal", "logging.captureWarnings"):
        monkeypatch.setattr(name, lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work(str(short_copy), 1, False, Gone())


@pytest.mark.slow
@pytest.mark.usefixtures("_imported_once")
def test_a_run_in_processes_ends_with_the_files_of_one_process(short_run, short_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    raw = short_recipe.model_dump(mode="json")
    raw["executor"] = {"name": "processes", "workers": 2, "threads": 1}
    run = tangora.run(type(short_recipe).model_validate(raw), tmp_path / "run")

    def contents(folder):
        varying = {"run.json", "run.log", "report.html", "recipe.yaml", "training.json"}
        files = (p for p in folder.rglob("*") if p.is_file() and not varying & {p.name} and p.suffix != ".lock")
        kept = (p for p in files if not {"jobs", "cache/seconds.json"} & {p.parent.name, f"{p.parent.name}/{p.name}"})
        return {p.relative_to(folder): p.read_bytes() for p in kept}

    assert contents(run) == contents(short_run)


@pytest.mark.slow
def test_an_executor_of_another_package_does_what_is_missing(short_copy, tmp_path):
    """It is installed without the network, and one job is done by its command."""
    site, source = tmp_path / "site", str(Path(tangora.__file__).parents[1])
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", *install, str(PLUGIN)], check=True)
    context = Context.open(short_copy)
    (job,) = (job for job in context.plan if job.kind == "tables")  # only the report reads it: one command
    path = job.files(context)[0]
    whole = path.read_bytes()
    path.unlink()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), source]), "OMP_NUM_THREADS": "1"}
    command = ["run", str(short_copy / "recipe.yaml"), "--out", str(short_copy), "--executor", "commands", "--quiet"]
    done = subprocess.run([sys.executable, "-m", "tangora", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == whole
    assert "tables: begun" in (short_copy / "run.log").read_text()
