"""Many jobs: each result whole and kept, a lost worker's job run again, one table."""

import importlib.util
import json
import os
import pickle  # noqa: TID251 - what processes send each other; nothing is read from a file
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from commands import mistake, run
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.experiments.sweep_jobs import Job, read_spec
from tars_lens.experiments.sweeping import COLUMNS, is_done, job_folder, store, sweep


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A sweep of two concepts with two seeds on a tiny model."""
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    return _spec(tmp_path / "spec.toml")


def _spec(file, **more):
    values = {
        "concepts": [str(world().card), str(world().other)],
        "models": [str(world().model)],
        "seeds": [0, 1],
        "methods": ["paper"],
        "corpus": str(world().corpus),
        "kl_tokens": 512,
        **more,
    }
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return file


def test_a_spec_is_every_combination_and_a_job_survives_its_way_to_a_worker(tmp_path):
    both = [str(world().card), str(world().other)]
    jobs = read_spec(
        _spec(tmp_path / "s.toml", concepts=[both[0], both], methods=["tars", "paper"])
    )
    assert len(jobs) == len({job.key for job in jobs}) == 2 * 2 * 2
    assert [len(job.concepts) for job in jobs[::4]] == [1, 2]
    for job in jobs:
        again = pickle.loads(pickle.dumps(job))
        assert again == job and again.key == job.key
        assert [card.key for card in job.cards] == [Path(p).stem for p in both[: len(job.keys)]]
    assert replace(jobs[0], kl_tokens=513).key != jobs[0].key


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"concept": ["saturn"]}, "key 'concept' is unknown; allowed: concepts, models"),
        ({"concepts": []}, "key 'concepts' must be a list that isn't empty"),
        ({"concepts": ["no_such"]}, "unknown concept 'no_such'"),
        ({"seeds": ["a"]}, "key 'seeds' must hold int values alone"),
        ({"seeds": [0, -1]}, "a seed must be from 0 to .*, got -1"),
        ({"methods": ["rome"]}, "unknown method 'rome'"),
        ({"kl_tokens": "many"}, "key 'kl_tokens' must be int"),
    ],
)
def test_a_malformed_spec_names_the_key(tmp_path, more, message):
    with pytest.raises(TarsError, match=message):
        read_spec(_spec(tmp_path / "s.toml", **more))


def test_an_unknown_setting_is_named(tmp_path):
    file = _spec(tmp_path / "s.toml")
    file.write_text(file.read_text() + "[settings]\nsafty = 3.0\n")
    with pytest.raises(TarsError, match="no setting 'safty'; allowed: .*said_threshold"):
        read_spec(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('gain = "high"', "setting 'gain' must be like 64.0, got 'high'"),
        ("gain = true", "setting 'gain' must be like 64.0, got True"),
        ("samples = 1.0", "setting 'samples' must be like 64, got 1.0"),
        ("edits = 1.5", "setting 'edits' must be like None, got 1.5"),
        ("paper_counts = 3", "'paper_counts' must be like .1, 2, 5, 10, 20., got 3"),
        ("depths = ['a']", "'depths' must be like"),
    ],
)
def test_a_setting_of_another_kind_is_named(tmp_path, line, message):
    file = _spec(tmp_path / "s.toml")
    file.write_text(f"{file.read_text()}[settings]\n{line}\n")
    with pytest.raises(TarsError, match=message):
        read_spec(file)


def test_settings_of_every_kind_are_taken(tmp_path):
    file = _spec(tmp_path / "s.toml")
    lines = "gain = 3\nedits = 4\nsamples = 5\ndepths = []\nname_depths = [0, 0.1]\n"
    file.write_text(f"{file.read_text()}[settings]\n{lines}")
    found = read_spec(file)[0].method_settings()
    assert (found.gain, found.edits, found.samples) == (3.0, 4, 5)
    assert (found.depths, found.name_depths) == ((), (0.0, 0.1))


def test_a_sweep_has_one_table_keeps_what_it_has_and_tells_what_fails(spec, tmp_path):
    out = tmp_path / "out"
    file = _spec(tmp_path / "more.toml", models=[str(world().model), str(tmp_path / "nothing")])
    told = []
    found = sweep(file, out, workers=1, advance=lambda *args: told.append(args))
    table = found.table
    assert tuple(table.columns) == COLUMNS and len(table) == 8
    assert table["status"].value_counts().to_dict() == {"done": 4, "failed": 4}
    assert table[table["status"] == "failed"]["error"].str.contains("unknown model").all()
    done = table[table["status"] == "done"]
    assert done["verified"].all() and (done["edits"] >= 1).all() and done["kl_p99"].notna().all()
    report = json.loads((out / "jobs" / done["job"].iloc[0] / "report.json").read_text())
    assert done["kl_p99"].iloc[0] == report["kl"]["p99"]
    assert done["seed"].iloc[0] == report["method"]["seed"]
    assert [args[1] for args in told] == list(range(9)) and told[-1][2] == 8
    assert pd.read_csv(out / "results.csv")["status"].tolist() == table["status"].tolist()
    before = {f: f.stat().st_mtime_ns for f in out.rglob("report.json")}
    again = sweep(spec, out, workers=1)
    assert again.table["status"].eq("done").all()
    assert {f: f.stat().st_mtime_ns for f in out.rglob("report.json")} == before


def test_a_killed_workers_job_is_run_again(spec, tmp_path):
    out, jobs = tmp_path / "out", read_spec(spec)
    killed = []

    def kill_once():
        while not killed:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    time.sleep(0.3)  # it has its job by now, and needs seconds to import torch
                    child.send_signal(signal.SIGKILL)
                    killed.append(child.pid)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill_once)
    thread.start()
    found = sweep(jobs[:2], out, workers=1)
    thread.join()
    assert killed and not found.failed
    assert found.table["status"].tolist() == ["done", "done"]
    assert sorted(f.name for f in (out / "jobs").iterdir()) == sorted(j.key for j in jobs[:2])


def _dies(_job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_that_kills_every_worker_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("tars_lens.experiments.sweeping.run_job", _dies)
    job = Job(concepts=({"name": "c", "answer": "w1", "prompt": "w2"},), keys=("c",), model="m")
    found = sweep([job], tmp_path / "out", workers=2)
    assert found.failed == {job.key: "its worker died 3 times (out of memory?)."}
    assert found.table["status"].tolist() == ["failed"]


def test_a_result_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    job = Job(concepts=({"name": "c", "answer": "w1", "prompt": "w2"},), keys=("c",), model="m")
    real = Path.write_bytes

    def full(path, content):
        if path.name == "job.json":
            raise OSError(28, "No space left on device")
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(TarsError, match="No space left on device"):
            store(tmp_path, job, {"report.json": b"{}", "job.json": b"{}"})
    assert not is_done(tmp_path, job) and list((tmp_path / "jobs").iterdir()) == []
    store(tmp_path, job, {"report.json": b"{}", "job.json": b"{}"})
    store(tmp_path, job, {"report.json": b"other", "job.json": b"{}"})
    assert (job_folder(tmp_path, job) / "report.json").read_bytes() == b"{}"


def test_the_command(spec, tmp_path):
    code, out, err = run("sweep", spec, "--out", tmp_path / "out", "--workers", "1")
    assert code == 0, err
    assert out.count("done") == 4 and "results.csv" in out
    assert "--workers must be at least 1" in mistake("sweep", spec, "--workers", "0")


_TWO_NODES = """
import logging, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tars_lens.experiments.sweep_jobs import read_spec
from tars_lens.experiments.sweeping import sweep

logging.basicConfig(level=logging.WARNING)
spec, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
seen = []

def told(what, done, total):
    seen.append(done)
    if done == 1 and len(seen) == 2:  # half way: one node is lost, with its worker
        cluster.remove_node(second, allow_graceful=False)
        print("lost a node", flush=True)

found = sweep(read_spec(spec), out, ray=True, advance=told)
assert not found.failed, found.failed
assert found.table["status"].eq("done").all()
print("all done", len(found.table), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_a_lost_ray_nodes_jobs_are_run_again_on_the_other(spec, tmp_path):
    script = tmp_path / "two_nodes.py"
    script.write_text(textwrap.dedent(_TWO_NODES))
    done = subprocess.run(
        [sys.executable, script, spec, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lost a node" in done.stdout and "all done 4" in done.stdout
    assert "is run again" in done.stderr
    assert len(list((tmp_path / "out" / "jobs").iterdir())) == 4
