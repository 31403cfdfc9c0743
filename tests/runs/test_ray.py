"""The executor ray on a cluster of several nodes: what dies is done again, and what differs is refused.

The scheduling is tested with actors that only pretend to work: they start without torch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from filelock import FileLock

import tangora
from tangora.errors import MissingExtraError, TangoraError
from tangora.runs.context import Context
from tangora.runs.execution import perform
from tangora.runs.executors._ray_jobs import JobQueue
from tangora.runs.executors._ray_needs import Need, needs
from tangora.runs.executors._ray_worker import Desk, Terms, actor_class
from tangora.runs.executors._worker import Finished
from tangora.runs.executors.ray import EXECUTOR as RAY
from tangora.runs.executors.ray import KINDS, RaySettings, Share, _accept
from tangora.runs.jobs import Job
from tangora.runs.presence import Presence, job_file, lock_file
from tangora.runs.runner import missing
from tangora.testing import check_executor

ray = pytest.importorskip("ray")
from tangora.runs.executors._ray_crew import Member  # noqa: E402  # imports ray
from tangora.runs.executors._ray_files import _ALWAYS, Shelf, pack, unpack  # noqa: E402  # likewise

pytestmark = pytest.mark.slow
STORE = 80 * 2**20  # bytes; the least that Ray allows is 75 MiB
ONE = Need(0.0, 1.0, 0, 1)


@pytest.fixture(scope="module")
def cluster():
    """A head without processors, where the driver is, and one node with one."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        made = Cluster(
            initialize_head=True,
            head_node_args={**head, "_system_config": {**quick, "prestart_worker_first_driver": False}},
        )
        made.add_node(num_cpus=1, object_store_memory=STORE)
        ray.init(address=made.address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def second(cluster):
    """A second node with a processor, for tests that kill it."""
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node, allow_graceful=False)
    wait_until(lambda: sum(one["Alive"] for one in ray.nodes()) == 2)


def wait_until(happens, seconds=60.0):
    ends = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < ends
        time.sleep(0.05)


def begun(recipe, run):
    from tangora.testing.executor import _begin

    return _begin(recipe, run)


def experts(context):
    return [job for job in context.plan if job.kind == "expert"]


def pretender(does):
    """An actor's class; ``does`` gives for each job: ok, hang, die, or the error to raise, by the number of the try."""

    class Pretender:
        def __init__(self):
            self.job = None

        def hello(self):
            import os
            import platform

            return {"host": platform.node(), "pid": os.getpid()}

        def start(self, terms):
            if isinstance(terms, Exception):
                raise terms

        def step(self, job, patience):
            import os
            import time

            from tangora.runs.events import Event
            from tangora.runs.executors._worker import Finished

            self.job = job or self.job
            started = [Event(job.key, "started", label=job.label)] if job else []
            what = does.get(self.job.key, "ok")
            if callable(what):
                what = what()
            if what == "die":
                os._exit(1)
            if what == "hang":
                time.sleep(0.2)
                return started
            if isinstance(what, Exception):
                return [*started, Event(self.job.key, "failed", error=str(what)), Finished(what, "Traceback: here")]
            return [*started, Event(self.job.key, "done", label=self.job.label, seconds=0.5), Finished()]

        def stop(self):
            pass

    return Pretender


def pretended(jobs, does, on_event=None, *, workers=1, tries=3, need_of=lambda job: ONE, terms=None, wait=60.0):
    """Do jobs by actors that pretend, and return the events."""
    from tangora.runs.executors._ray_crew import Checks, Crew
    from tangora.runs.executors._ray_schedule import Schedule

    kind, seen = ray.remote(pretender(does)), []
    checks = Checks(lambda need: kind.options(**need.options).remote(), (), lambda answer: None, lambda need: terms)
    crew = Crew(checks, workers, wait)
    try:
        Schedule(JobQueue(jobs, need_of), crew, on_event or seen.append, tries, seen.append).run()
    except TangoraError as error:
        return seen, error
    finally:
        crew.end(at_once=True)
    return seen, None


def job(key, *inputs):
    return SimpleNamespace(key=key, label=f"job {key}", inputs=inputs, kind="expert")


def whats(seen, key):
    return [event.what for event in seen if event.key == key]


def counted(folder, until):
    """What to do, counted over processes by the files of a folder."""

    def does():
        import os
        import tempfile

        os.close(tempfile.mkstemp(dir=folder)[0])
        return until[min(len(os.listdir(folder)), len(until)) - 1]

    return does


@pytest.mark.parametrize("storage", ["shared", "copied"])
def test_it_keeps_the_contract(cluster, storage):
    check_executor("ray", workers=1, threads=1, memory=0, storage=storage)
    assert not list(Path(tempfile.gettempdir()).glob("tangora-run-*"))


def test_a_cluster_of_its_own_ends_with_the_run_and_one_that_is_not_there_is_named():
    """In a process of its own, since this one is connected."""
    script = """
import psutil, ray
from types import SimpleNamespace
from tangora.errors import TangoraError
from tangora.runs.executors._ray_cluster import connected
from tangora.runs.executors.ray import RaySettings
for address in ("ray://127.0.0.1:9", "127.0.0.1:9"):
    try:
        with connected(RaySettings(address=address), None):
            raise SystemExit("connected to nothing")
    except TangoraError as error:
        assert "cannot connect to a Ray cluster" in str(error) and "refused" in str(error), error
with connected(RaySettings(workers=9, threads=1), SimpleNamespace()):
    assert ray.cluster_resources()["CPU"] >= 9, ray.cluster_resources()
assert not ray.is_initialized()
assert not [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
"""
    source = str(Path(tangora.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_a_worker_that_dies_costs_the_job_which_is_done_by_another(cluster, tmp_path):
    seen, error = pretended([job("a"), job("b", "a")], {"a": counted(str(tmp_path), ["die", "ok"])})
    assert error is None
    assert whats(seen, "a") == ["started", "progressed", "done"] or whats(seen, "a") == ["started", "done"]
    assert whats(seen, "b") == ["started", "done"]


def test_a_job_that_fails_three_times_stops_the_run_and_the_log_has_its_traceback(cluster, tmp_path, caplog):
    caplog.set_level(logging.INFO, "tangora")
    does = {"a": counted(str(tmp_path), [ValueError("odd")])}
    seen, error = pretended([job("a"), job("b", "a"), job("c")], does)
    assert len(os.listdir(tmp_path)) == 3
    assert "the job job a failed 3 times" in str(error)
    assert "ValueError: odd" in str(error)
    assert "\n" not in str(error)
    assert "Traceback: here" in str(error.__cause__)
    assert sum("Traceback: here" in record.getMessage() for record in caplog.records) == 3
    assert whats(seen, "a") == ["started", "progressed", "progressed", "failed"]
    assert whats(seen, "b") == []


def test_an_error_that_comes_again_is_not_tried_again_and_running_jobs_end(cluster, second, tmp_path):
    does = {"a": TangoraError("no such file"), "b": counted(str(tmp_path), ["hang", "hang", "hang", "ok"])}
    seen, error = pretended([job("b"), job("a"), job("c")], does, workers=2)
    assert str(error) == "no such file"
    assert whats(seen, "a") == ["started", "failed"]
    assert whats(seen, "b") == ["started", "done"]  # it was running
    assert whats(seen, "c") in ([], ["started", "done"])


def test_interruption_ends_the_workers_and_leaves_the_cluster(cluster):
    pids = []

    def interrupt(event):
        pids.extend(p.pid for p in psutil.Process().children(recursive=True) if "Pretender" in " ".join(p.cmdline()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretended([job("a")], {"a": "hang"}, interrupt)
    assert pids
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert sum(node["Alive"] for node in ray.nodes()) == 2


def test_simulated_workers_do_every_job(cluster):
    """The work of benchmarks/scale.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import scale
    crew = scale._Crew(1)
    try:
        found = scale.measured(crew, 1, 5, 0.05)
    finally:
        crew.crew.end(at_once=False)
    assert found["seconds"] > found["ideal"] == 0.25
    assert found["driver_cpu"] > 0


def test_what_no_node_has_is_refused_with_what_the_nodes_have(cluster):
    _, error = pretended([job("a")], {}, need_of=lambda job: Need(2.0, 1.0, 0, 1), wait=0.0)
    assert "no node of the cluster has 2 GPU, 1 CPU; its nodes: " in str(error)
    assert "1 × CPU 1, memory" in str(error)


def test_a_worker_that_cannot_begin_is_named(cluster):
    _, error = pretended([job("a")], {}, terms=ImportError("no such module"))
    assert "a worker cannot begin" in str(error)
    assert "no such module" in str(error)


def test_jobs_of_another_need_get_the_processor_of_idle_workers(cluster):
    fraction = Need(0.0, 0.5, 0, 1)
    jobs = [job("a"), *(job(name, "a") for name in "bcd")]
    seen, error = pretended(jobs, {}, workers=None, need_of=lambda job: ONE if job.key == "a" else fraction)
    assert error is None
    assert Counter(event.what for event in seen) == {"started": 4, "done": 4}


def test_a_node_that_is_killed_in_the_middle_changes_no_file(cluster, second, short_run, short_recipe, tmp_path):
    """Both workers wait for the locks of their jobs; then the node of one of them is gone."""
    context, seen = begun(short_recipe, tmp_path / "run"), []
    jobs = [job for job in context.plan if job.kind in ("expert", "expert-scores", "zero-shot")]
    held = ray.put(bytes(STORE * 3 // 4))  # and the object store of the driver's node is nearly full
    with ExitStack() as locks:
        for one in experts(context):
            path = lock_file(context.run, one.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(path, thread_local=False))

        def kill(event):
            seen.append(event)
            both = sum(e.what == "started" for e in seen if e.key in {one.key for one in experts(context)}) == 2
            if both and second in cluster.worker_nodes:
                cluster.remove_node(second, allow_graceful=False)
                locks.close()

        first = [*experts(context), *(job for job in jobs if job.kind != "expert")]
        RAY.run(first, context, RaySettings(workers=2, threads=1, memory=0), kill)
    del held
    assert second not in cluster.worker_nodes
    assert missing(context, jobs) == []
    assert {key: whats(seen, key).count("started") for key in (one.key for one in jobs)} == {one.key: 1 for one in jobs}
    assert any("again, on" in event.detail for event in seen)
    same_files(context.run, short_run)


def test_a_driver_that_is_killed_goes_on_with_the_same_command(cluster, short_run, short_recipe, tmp_path, monkeypatch):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(short_recipe.to_yaml())
    settings = {"name": "ray", "address": cluster.address, "threads": 1, "memory": 0, "workers": 1}
    listed = ", ".join(f"{key}: {value!r}" for key, value in settings.items())
    arguments = ["run", str(recipe), "--out", str(run), "--set", f"executor={{{listed}}}", "--quiet"]
    command = [sys.executable, "-m", "tangora", *arguments]
    source = str(Path(tangora.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as driver:
        records = run / "cache" / "jobs"
        wait_until(lambda: list(records.glob("*.json")) or driver.poll() is not None, 300)
        assert driver.poll() is None
        os.kill(driver.pid, signal.SIGKILL)
    done = {path.name: path.read_bytes() for path in records.glob("*.json")}
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    raw = {**short_recipe.model_dump(mode="json"), "executor": settings}
    tangora.run(type(short_recipe).model_validate(raw), run)
    same_files(run, short_run)
    expected = {path.relative_to(short_run) for path in short_run.rglob("*") if path.is_file()}
    assert {path.relative_to(run) for path in run.rglob("*") if path.is_file()} - expected <= {Path("run.log")}
    assert all((records / name).read_bytes() == content for name, content in done.items())
    assert ": begun" in (run / "run.log").read_text()


def same_files(run, reference):
    """Adapters and outcomes are those of one process, bit for bit."""
    compared = [*reference.glob("adapters/*/*/*.safetensors"), *(reference / "cache" / "outcomes").iterdir()]
    there = [path for path in compared if (run / path.relative_to(reference)).exists()]
    assert len([path for path in there if path.suffix == ".safetensors"]) == 2
    assert len(there) >= 5
    for path in there:
        assert (run / path.relative_to(reference)).read_bytes() == path.read_bytes(), path


def every_kind(short_recipe, folder):
    """A recipe whose jobs are of every kind, with results below each folder of a run."""
    raw, train = short_recipe.model_dump(mode="json"), folder / "train.jsonl"
    rows = [
        {"text": f"a {('red', 'green', 'blue')[i % 3]} good" + " this" * (i % 4), "label": i % 3} for i in range(12)
    ]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))  # a polish refuses rows of the test split
    for task in raw["tasks"]:
        task["source"]["jsonl"]["train"] = os.path.relpath(train)  # workers have another working directory
    raw["modes"] = {"lora": {}, "tangent": {"linearize": "model"}}
    raw["fusion"]["methods"] = [
        {"method": "task_arithmetic", "weights": [0.3, 0.6]},
        {"method": "regmean", "modes": ["lora"]},
        {
            "method": "average",
            "name": "polished",
            "modes": ["lora"],
            "polish": {"rank": 1, "rows": 4, "steps": 2, "recombined": 0},
        },
    ]
    raw.pop("seed")
    return type(short_recipe).model_validate({**raw, "seeds": [0, 1]})


def contents(run):
    """Every result: no wall times, and nothing of one process."""
    timed = {"training.json", "seconds.json"}
    own = ("cache/jobs/", "cache/locks/", "cache/training/", "logs/", "run.log")
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    kept = {name: path for name, path in files.items() if not name.startswith(own) and "/logs/" not in name}
    return {name: path.read_bytes() for name, path in kept.items() if path.name not in timed and path.suffix != ".lock"}


def test_workers_with_copies_do_every_kind_of_job_and_give_the_same_files(cluster, second, short_recipe, tmp_path):
    recipe, threads = every_kind(short_recipe, tmp_path), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        context = begun(recipe, tmp_path / "one")
        for one in (job for job in context.plan if job.kind != "report"):
            perform(one, context, lambda event: None)
    finally:
        torch.set_num_threads(threads)
    other = begun(recipe, tmp_path / "copied")
    jobs = [job for job in other.plan if job.kind != "report"]
    assert {job.kind for job in jobs} == set(KINDS) - {"given"}
    seen = []

    def look(event):
        """While a job is done, its record says where; `tangora status` reads it."""
        if event.what == "started":
            found = Presence.read(job_file(other.run, event.key))
            seen.append((found.state, found.pid))

    RAY.run(jobs, other, RaySettings(workers=2, threads=1, memory=0, storage="copied"), look)
    assert {state for state, _ in seen} == {"running"}
    assert os.getpid() not in {pid for _, pid in seen}
    assert not [path for path in (other.run / "cache" / "locks").iterdir() if path.suffix == ".json"]
    assert missing(other, jobs) == []
    one, copied = contents(tmp_path / "one"), contents(tmp_path / "copied")
    assert copied.keys() == one.keys()
    assert [name for name in one if one[name] != copied[name]] == []
    assert not list(Path(tempfile.gettempdir()).glob("tangora-run-*"))


def test_what_a_copy_has_is_not_sent_again_and_what_it_cannot_read_is_not_sent(cluster, short_copy):
    context, member = Context.open(short_copy), Member(None, ONE, host="elsewhere", pid=1)
    shelf, scores = Shelf(context), next(job for job in context.plan if job.kind == "expert-scores")
    first = {parcel.path for parcel in shelf.pack(member, scores)}
    assert {"cache/sources.json", "adapters/lora/plain/adapter_model.safetensors"} <= first
    assert not {name for name in first if name.startswith(("cache/locks", "recipe.yaml", "run.log"))}
    assert shelf.pack(member, scores) == []
    (short_copy / "adapters" / "lora" / "plain" / "README.md").write_text("changed")
    assert [parcel.path for parcel in shelf.pack(member, scores)] == ["adapters/lora/plain/README.md"]
    without_inputs = shelf.pack(Member(None, ONE, host="x", pid=2), experts(context)[0])
    assert {parcel.path for parcel in without_inputs} <= set(_ALWAYS)
    shelf.forget(member)
    assert {parcel.path for parcel in shelf.pack(member, scores)} == first
    assert Presence.read(job_file(short_copy, scores.key)).host == "elsewhere"
    shelf.unmark(scores)
    assert Presence.read(job_file(short_copy, scores.key)) is None


def test_what_an_earlier_try_has_written_is_sent_and_what_was_sent_is_not_sent_again(cluster, desk, short_copy):
    """The first try fails behind the files of an adapter, the second finds the job done."""
    context = Context.open(short_copy)
    terms = Terms("elsewhere", 1, False, 0.0, context.recipe.to_yaml(), context.sources)
    here, first = desk(terms), experts(context)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.runs.executors._ray_files.versions", lambda folder: 1 / 0)
        assert isinstance(answers(here, first)[-1].error, ZeroDivisionError)
    sent = {parcel.path for parcel in answers(here, first)[-1].parcels}
    names = {path.relative_to(short_copy).as_posix() for path in (short_copy / "adapters/lora/plain").rglob("*")}
    assert {name for name in names if (short_copy / name).is_file()} <= sent
    assert f"cache/jobs/{first.key}.json" in sent
    again = {parcel.path for parcel in answers(here, first)[-1].parcels}
    assert again == {f"cache/jobs/{first.key}.json"}  # it is touched when a job is found done
    assert Path(tempfile.gettempdir()) in here._run.parents


def test_large_files_travel_in_parts(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("tangora.runs.executors._ray_files._PART", 7)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(range(100)))
    (tmp_path / "a" / "empty").write_bytes(b"")
    parcels = pack(tmp_path / "a", ["file", "empty"])
    assert [len(parcel.parts) for parcel in parcels] == [15, 0]
    unpack(tmp_path / "b", parcels)
    assert (tmp_path / "b" / "file").read_bytes() == bytes(range(100))
    assert (tmp_path / "b" / "empty").read_bytes() == b""


def test_a_node_with_another_version_is_refused_and_both_are_named(cluster, short_recipe, tmp_path):
    other = tmp_path / "site" / "tangora-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: tangora\nVersion: 9.9.9\n")
    busy = ray.remote(pretender({})).options(num_cpus=1).remote()  # on the node that is as it should be
    ray.get(busy.hello.remote())
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"PYTHONPATH": str(other.parent)})
    context = begun(short_recipe, tmp_path / "run")
    try:
        with pytest.raises(
            TangoraError, match=r"has tangora 9\.9\.9, and the driver tangora \d+\.\d+\.\d+ at executor"
        ):
            RAY.run(experts(context), context, RaySettings(workers=1, threads=1, memory=0), lambda event: None)
    finally:
        ray.kill(busy)
        cluster.remove_node(node, allow_graceful=False)
    assert not (context.run / "cache" / "ray-token").exists()


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (
            {"versions": {"tangora": "1", "torch": ""}, "sees": True},
            "the worker on far has no torch, and the driver torch 2",
        ),
        (
            {"versions": {"tangora": "1", "torch": "2"}, "sees": False},
            "the worker on far does not see the run's folder",
        ),
    ],
)
def test_a_worker_that_would_compute_something_else_or_elsewhere_is_refused(tmp_path, found, match):
    with pytest.raises(TangoraError, match=match):
        _accept({"tangora": "1", "torch": "2"}, tmp_path, {"host": "far", **found})


def test_a_worker_says_what_is_there(tmp_path):
    actor, token = actor_class()(), tmp_path / "token"
    token.write_text("right")
    seen = actor.hello(["torch", "no-such-package"], str(token), "right", 0.0)
    assert (seen["pid"], seen["sees"], seen["versions"]["no-such-package"]) == (os.getpid(), True, "")
    assert seen["versions"]["torch"].count(".") == 2
    assert not actor.hello([], str(token), "another run's", 0.0)["sees"]
    assert not actor.hello([], str(tmp_path / "none"), "right", 0.0)["sees"]


@pytest.fixture
def desk(monkeypatch):
    """A desk in this process, with what it changes put back."""
    log = logging.getLogger("tangora")
    handlers, level = list(log.handlers), log.level
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(logging, "captureWarnings", lambda on: None)
    made = []

    def make(run):
        made.append(Desk(run if isinstance(run, Terms) else Terms(str(run), 1, False, 0.0)))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    log.handlers[:], log.level = handlers, level


def answers(desk, job):
    found = desk.step(job, 0.2)
    ends = time.monotonic() + 120
    while not (found and isinstance(found[-1], Finished)):
        assert time.monotonic() < ends
        found += desk.step(None, 0.2)
    return found


def test_a_worker_reports_jobs_and_refuses_those_that_its_own_code_does_not_plan(desk, short_copy):
    context = Context.open(short_copy)
    here, first = desk(short_copy), experts(context)[0]
    assert [message.what for message in answers(here, first)[:-1]] == ["started", "done"]
    finished = answers(here, replace(first, key="0" * 64))[-1]
    assert "its code of Tangora is another" in str(finished.error)


def test_a_job_is_stopped_as_by_ctrl_c(desk, short_copy, monkeypatch):
    context, begins, ended = Context.open(short_copy), [], []
    target = next(job for job in context.plan if job.kind == "zero-shot")
    target.files(context)[0].unlink()

    def run(self, context):
        begins.append(True)
        try:
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            ended.append("interrupted")
            raise

    monkeypatch.setattr(type(target), "run", run)
    here = desk(short_copy)
    here.step(target, 0.1)
    wait_until(lambda: begins, 120)
    here.stop()
    assert ended == ["interrupted"]
    assert not job_file(short_copy, target.key).exists()


def test_jobs_wait_for_their_inputs_and_keep_their_order():
    jobs = [job("a"), job("b"), job("c", "a", "b"), job("d", "done before"), job("e", "c")]
    waiting = JobQueue(jobs, lambda job: "any")
    assert waiting.ready() == {"any": 3}
    assert waiting.take("any", lambda job: job.key != "a").key == "b"
    assert waiting.take("any").key == "a"
    waiting.give_back(jobs[0])
    assert [waiting.take("any").key for _ in range(2)] == ["a", "d"]
    assert waiting.take("any") is None
    for done in (jobs[0], jobs[1], jobs[3]):
        waiting.done(done)
    assert waiting.take("any").key == "c"
    assert waiting.left == 2


def test_what_a_worker_takes_is_stated_or_estimated(short_recipe, tmp_path):
    context = begun(short_recipe, tmp_path / "run")
    context.given_machine = context.machine
    first, scores = experts(context)[0], next(job for job in context.plan if job.kind == "expert-scores")
    small = [{"CPU": 4.0, "memory": 8e9}]

    def need(nodes, of=first, **given):
        return needs(context, RaySettings(**given), nodes, list(context.plan))(of)

    threads = context.machine.threads
    guessed = need(small)
    assert (guessed.gpus, guessed.threads) == (0.0, threads)
    assert 2**30 < guessed.memory < 2 * 2**30  # libraries, and a model of a few kilobytes
    assert need([{"CPU": 1.0, "memory": 5e8}]).memory == 5e8  # a guess asks for no more than there is
    assert need([{"CPU": 8.0, "GPU": 4.0}]).gpus == 1.0
    assert need(small, gpus=0.25, cpus=2, memory=3) == Need(0.25, 2.0, 3 * 10**9, 2)
    own = {"fusion-scores": Share(gpus=0.5), "expert": Share(gpus=1, threads=3)}
    assert need(small, jobs=own, memory=0).threads == 3
    assert need(small, scores, jobs=own, memory=0) == Need(0.0, float(threads), 0, threads)
    assert Need(0.5, 1, 0, 1).fits({"GPU": 2.0, "CPU": 8.0}) == 4
    assert Need(0.3, 0, 0, 1).fits({"GPU": 0.9}) == 3
    assert Need(1, 1, 0, 1).fits({"CPU": 8.0}) == 0


def test_the_kinds_in_a_recipe_are_those_of_jobs():
    def below(kind):
        return {kind, *(found for sub in kind.__subclasses__() for found in below(sub))}

    kinds = {k.kind for k in below(Job) if "kind" in vars(k) and k.__module__.startswith("tangora.")}
    assert kinds == {*KINDS, "report"}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("executor={name: ray, address: nowhere}", "address: it is local, auto, HOST:PORT or ray://HOST:PORT; got"),
        ("executor={name: ray, jobs: {experts: {gpus: 1}}}", "no such kind of job. did you mean 'expert'"),
        ("executor={name: ray, jobs: {expert: {gpu: 1}}}", r"unknown setting 'jobs\.expert\.gpu'"),
        ("executor={name: ray, tries: 0}", "tries"),
    ],
)
def test_settings_are_checked(settings, match):
    from tangora.config.recipe import load_recipe

    with pytest.raises(TangoraError, match=match):
        load_recipe("quickstart", [settings])


def test_options_set_the_recipes_keys():
    from tangora.cli.run import RunOptions
    from tangora.config.recipe import load_recipe

    options = RunOptions(recipe="quickstart", executor="ray", address="ray://head:10001", workers=4)
    chosen = load_recipe("quickstart", options.all_settings).executor
    assert (chosen.name, chosen.settings.address, chosen.settings.workers) == ("ray", "ray://head:10001", 4)
    options = RunOptions(recipe="quickstart", address="auto", settings=["executor=ray"])
    assert load_recipe("quickstart", options.all_settings).executor.settings.address == "auto"


def test_it_is_refused_at_once_if_ray_is_missing(short_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("tangora.support.extras._is_installed", lambda name: name != "ray")
    raw = {**short_recipe.model_dump(mode="json"), "executor": "ray"}
    with pytest.raises(MissingExtraError, match=r"the executor ray needs .* pip install 'tangora\[ray\]'"):
        tangora.run(type(short_recipe).model_validate(raw), tmp_path / "run")
    assert not (tmp_path / "run").exists()
