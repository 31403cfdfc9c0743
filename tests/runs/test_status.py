"""`tangora status`: what it says of runs that are finished, running, stopped, and of processes that are gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from tangora.cli import app
from tangora.errors import FileError
from tangora.runs import presence
from tangora.runs.context import Context
from tangora.runs.execution import perform
from tangora.runs.presence import Presence, driver_file, job_file, plan_file, present, write_plan
from tangora.runs.runner import missing
from tangora.runs.status import Count, status_of


def shown(run, *more):
    done = CliRunner().invoke(app, ["status", str(run), *more], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 80 for line in done.output.splitlines())
    return done.output


def written(path, one):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(one)))


def lose(context, kind):
    """Remove the files of the jobs of a kind, and write the plan as a driver that starts again."""
    for job in context.plan:
        if job.kind == kind:
            for path in job.files(context):
                path.unlink()
    left = missing(context)
    write_plan(context.run, "tiny", context.plan.jobs, left)
    return left


def test_a_finished_run_has_all_jobs_done_and_no_process(short_run):
    found = status_of(short_run)
    assert (found.state, found.driver, found.jobs) == ("finished", None, [])
    assert found.kinds["expert"] == Count(2, 0, 0)
    assert found.all.left == 0
    assert not list((short_run / "cache" / "locks").glob("*.json"))
    assert f"tiny: finished, {found.all.total} of {found.all.total} jobs are done" in shown(short_run)


def test_what_is_left_and_what_runs_where(short_copy):
    context = Context.open(short_copy)
    left = lose(context, "expert-scores")
    assert status_of(short_copy).state == "stopped"
    assert "it goes on with the command" in shown(short_copy)
    with present(driver_file(short_copy)), present(job_file(short_copy, left[0].key)):
        found = status_of(short_copy)
        text = shown(short_copy)
    assert found.state == "running"
    assert found.all == Count(len(context.plan) - len(left), 1, len(left) - 1)
    assert [(one.label, one.pid, one.host) for one in found.jobs] == [
        (left[0].label, os.getpid(), socket.gethostname())
    ]
    assert left[0].label in text
    assert f"process {os.getpid()}" in text


def test_a_job_is_done_once_it_has_a_new_record_even_if_there_was_nothing_to_do(short_copy):
    context = Context.open(short_copy)
    left = lose(context, "tables")
    before = status_of(short_copy).all.left
    assert before == len(left)
    perform(left[0], context, lambda event: None)
    assert status_of(short_copy).all.left == before - 1
    again = next(job for job in context.plan if job.kind == "zero-shot")
    write_plan(context.run, "tiny", context.plan.jobs, [again])
    assert status_of(short_copy).kinds["zero-shot"] == Count(0, 0, 1)
    assert not perform(again, context, lambda event: None)
    assert status_of(short_copy).kinds["zero-shot"] == Count(1, 0, 0)


def test_the_record_of_a_job_is_there_while_it_is_done(short_copy, monkeypatch):
    context = Context.open(short_copy)
    job, seen = lose(context, "zero-shot")[0], []
    kind = type(job)
    monkeypatch.setattr(kind, "run", lambda self, context: seen.append(Presence.read(job_file(context.run, self.key))))
    perform(job, context, lambda event: None)
    assert [(one.pid, one.state) for one in seen] == [(os.getpid(), "running")]
    assert not job_file(short_copy, job.key).exists()


def test_a_process_that_is_gone_is_dead_and_one_that_says_nothing_is_silent(short_copy):
    context = Context.open(short_copy)
    left = lose(context, "expert-scores")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    own = Presence.own()
    written(job_file(short_copy, left[0].key), replace(own, pid=int(gone.stdout)))
    written(job_file(short_copy, left[1].key), replace(own, host="elsewhere"))
    written(driver_file(short_copy), replace(own, born=own.born - 60))  # another process had this number
    assert [one.state for one in status_of(short_copy).jobs] == ["dead", "running"]
    before = time.time() - 1000
    os.utime(job_file(short_copy, left[1].key), (before, before))
    found, text = status_of(short_copy), shown(short_copy)
    assert [one.state for one in found.jobs] == ["dead", "silent"]
    assert (found.state, found.driver.state, found.all.left) == ("stopped", "dead", len(left))
    assert "(dead)" in text
    assert "(silent)" in text


def test_a_record_is_touched_while_the_process_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "BEAT", 0.01)
    path = tmp_path / "record.json"
    with present(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not path.exists()


def test_json_has_the_same(short_run):
    document = json.loads(shown(short_run, "--json"))
    assert document["state"] == "finished"
    assert document["kinds"]["expert"] == {"done": 2, "running": 0, "left": 0}
    assert document["all"]["done"] == sum(kind["done"] for kind in document["kinds"].values())


@pytest.mark.parametrize(
    ("text", "match"),
    [(None, "no run was started here"), ("{", "not readable as JSON"), ('{"name": "x", "jobs": [1]}', "not a list")],
)
def test_what_is_no_run_is_refused(tmp_path, text, match):
    if text is not None:
        plan_file(tmp_path).parent.mkdir()
        plan_file(tmp_path).write_text(text)
    with pytest.raises(FileError, match=match):
        status_of(tmp_path)
    with pytest.raises(FileError, match="no such folder"):
        status_of(tmp_path / "none")


def test_half_a_record_is_none(tmp_path):
    path = tmp_path / "record.json"
    for text in ("", '{"host": "a"}', "[1]", '{"host": "a", "pid": "x", "born": 1, "since": 1}'):
        path.write_text(text)
        assert Presence.read(path) is None


def test_it_imports_no_torch(short_run):
    ask = (
        "import sys; sys.argv = ['tangora', 'status', sys.argv[1], '--json']\nfrom tangora.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", ask, str(short_run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
