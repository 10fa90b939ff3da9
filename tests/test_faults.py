"""What goes wrong on real machines: nothing lost, nothing half written, one plain message each."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from patch_models import boot, random_patch, read_model, save_model
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.common.files import sha256_file
from tars_lens.experiments.sweep_jobs import read_spec
from tars_lens.experiments.sweeping import is_done, sweep
from tars_lens.method.disk_ranking import rank_checkpoint
from tars_lens.model.layout import checkpoint_slots
from tars_lens.model.loading import load
from tars_lens.patch.export import export, verify_checkpoint

_CLI = "from tars_lens.cli import main; main()"
WHERE = {(1, "out"): [5, 3], (2, "in"): [7, 0]}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def base(tmp_path):
    """A tiny sharded checkpoint, a patch of it, and the patch's file."""
    whole = save_model(tmp_path / "whole", "llama", dtype=torch.bfloat16)
    folder, file = tmp_path / "model", tmp_path / "patch.safetensors"
    read_model(whole).save_pretrained(folder, max_shard_size="4KB")
    shutil.copy(whole / "tokenizer.json", folder)
    patch = random_patch(boot(whole)[0], WHERE, label="Saturn")
    patch.save(file)
    return folder, patch, file


def _hashes(folder):
    return {file.name: sha256_file(file) for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("size", [0, 100, -2])
@pytest.mark.parametrize("use", ["load", "rank", "export"])
def test_one_truncated_shard_is_named_whatever_is_done_with_it(base, tmp_path, use, size):
    folder, patch, _ = base
    shard = checkpoint_slots(folder)[2, "in"].tensor.file
    os.truncate(shard, size % shard.stat().st_size)
    before, there = _hashes(folder), sorted(tmp_path.iterdir())
    uses = {
        "load": lambda: load(folder, progress=False),
        "rank": lambda: rank_checkpoint(folder, torch.ones(16)),
        "export": lambda: export(patch, folder, tmp_path / "out"),
    }
    with pytest.raises(TarsError, match=rf"{shard.name}' is not a whole safetensors file") as said:
        uses[use]()
    assert "\n" not in str(said.value)
    assert _hashes(folder) == before
    assert set(tmp_path.iterdir()) - set(there) <= {tmp_path / "cache"}


def _limited(size, *words):
    """`tars-lens WORDS...` where no file can grow beyond a size, as on a disk that is full."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, "-c", _CLI, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_disk_that_fills_during_export_leaves_the_source_and_nothing_else(base, tmp_path, share):
    folder, patch, file = base
    largest = max(slot.tensor.file.stat().st_size for slot in checkpoint_slots(folder).values())
    before, out = _hashes(folder), tmp_path / "parent" / "out"
    words = ("patch", "export", file, "--model", folder, "--out", out)
    done = _limited(int(share * largest), *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr and "free space" in done.stderr
    assert _hashes(folder) == before and not list((tmp_path / "parent").glob("*"))
    export(patch, folder, out)
    assert verify_checkpoint(patch, folder, out).ok


_KILLED = """
import os, signal, sys
from tars_lens.patch import export as module
from tars_lens.patch.patch import Patch
def die(*_args):
    os.kill(os.getpid(), signal.SIGKILL)
{owner}.{where} = die
module.export(Patch.load(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize(
    ("owner", "where"),
    [
        ("module", "copy_checkpoint"),
        ("module", "write_slot"),
        ("module", "check_copied"),
        ("os", "replace"),
    ],
)
def test_an_export_that_is_killed_at_any_step_is_as_if_it_had_not_begun(
    base, tmp_path, owner, where
):
    folder, patch, file = base
    before, out = _hashes(folder), tmp_path / "parent" / "out"
    code = _KILLED.format(owner=owner, where=where)
    done = subprocess.run([sys.executable, "-c", code, file, folder, out], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists() and _hashes(folder) == before
    export(patch, folder, out)
    assert [child.name for child in out.parent.iterdir()] == ["out"]
    assert verify_checkpoint(patch, folder, out).ok


def test_a_sweep_that_is_killed_with_its_workers_goes_on_where_it_was(tmp_path):
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text(
        f'concepts = ["{world().card}", "{world().other}"]\nmodels = ["{world().model}"]\n'
        f'seeds = [0, 1]\nmethods = ["paper"]\ncorpus = "{world().corpus}"\nkl_tokens = 512\n'
    )
    command = [sys.executable, "-c", _CLI, "sweep", spec, "--out", out, "--workers", "1"]
    running = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    jobs, stop = read_spec(spec), time.monotonic() + 120
    while not any(is_done(out, job) for job in jobs) and time.monotonic() < stop:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)  # of a session of its own: the sweep and its worker
    running.wait()
    kept = {job.key for job in jobs if is_done(out, job)}
    assert 0 < len(kept) < len(jobs)
    when = {
        file: file.stat().st_mtime_ns for key in kept for file in (out / "jobs" / key).iterdir()
    }
    assert sweep(spec, out, workers=1).table["status"].eq("done").all()
    assert all(file.stat().st_mtime_ns == changed for file, changed in when.items())
    assert sorted(folder.name for folder in (out / "jobs").iterdir()) == sorted(
        job.key for job in jobs
    )
