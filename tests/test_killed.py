"""`kill -9` at every change to a file: the base stays, files are whole, the next run goes on."""

import json
import os
import shutil

import pandas as pd
import pytest
import safetensors.torch
from killing import completed, killed_at_each
from patch_models import boot, random_patch, save_model
from small_gguf import write_gguf
from tiny_concept import world

import tars_lens
from tars_lens.common.files import sha256_file
from tars_lens.experiments.sweep_jobs import Job
from tars_lens.experiments.sweeping import is_done, store
from tars_lens.model.checkpoints import resolve
from tars_lens.patch.checkpoint_stack import apply_to_checkpoint
from tars_lens.patch.export import export, verify_checkpoint
from tars_lens.text.corpus import load_corpus

WHERE = {(1, "out"): [5, 3], (2, "in"): [7, 0]}

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def base(tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    return folder, random_patch(boot(folder)[0], WHERE, label="Saturn")


def _hashes(folder):
    return {file.name: sha256_file(file) for file in folder.iterdir() if file.is_file()}


def _check_files(folder):
    """Reads every file that has its own name: each is whole."""
    for file in folder.rglob("*"):
        if file.is_dir() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            safetensors.torch.load_file(file)
        elif file.suffix == ".csv":
            pd.read_csv(file)


@pytest.mark.parametrize("write", [export, apply_to_checkpoint])
def test_a_new_checkpoint_is_there_whole_or_not_at_all(base, tmp_path, write):
    folder, patch = base
    before, out = _hashes(folder), tmp_path / "made" / "out"
    times = 0
    for n in killed_at_each(lambda: write([patch], folder, out)):
        times = n
        assert _hashes(folder) == before
        assert not out.exists() or verify_checkpoint(patch, folder, out).ok
        shutil.rmtree(out, ignore_errors=True)
        assert completed(lambda: write([patch], folder, out))
        assert [child.name for child in out.parent.iterdir()] == ["out"]
        assert verify_checkpoint(patch, folder, out).ok
        shutil.rmtree(out.parent)
    assert times > 5


def test_a_conversion_is_whole_or_made_anew(own_cache, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    before, times = sha256_file(file), 0
    whole = _hashes(resolve(file, progress=False).folder)
    shutil.rmtree(own_cache)
    for n in killed_at_each(lambda: resolve(file, progress=False), stride=_stride(7)):
        times = n
        assert sha256_file(file) == before
        assert _hashes(resolve(file, progress=False).folder).keys() == whole.keys()
        shutil.rmtree(own_cache)
    assert times > 1


def test_a_job_of_a_sweep_is_done_whole_or_to_be_done(tmp_path):
    job = Job(concepts=({"name": "x"},), keys=("x",), model="m", seed=0, method="paper")
    files = {"report.json": b"{}", "x.safetensors": b"x" * 99, "job.json": job.to_json().encode()}
    times = 0
    for n in killed_at_each(lambda: store(tmp_path, job, files)):
        times = n
        folder = tmp_path / "jobs" / job.key
        assert is_done(tmp_path, job) == folder.exists()
        store(tmp_path, job, files)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
        shutil.rmtree(tmp_path / "jobs")
    assert times > 3


def test_an_erasure_leaves_whole_files_and_goes_on(tmp_path):
    lens = tars_lens.load(world().model, progress=False)
    card = tars_lens.Concept.load(world().card)
    text = load_corpus(world().corpus, progress=False)
    before, out = _hashes(world().model), tmp_path / "out"

    def work():
        found = tars_lens.erase(
            lens,
            [card],
            corpus=text,
            kl_tokens=512,
            keep=lambda patch: patch.save(out / f"{patch.label}.safetensors"),
        )
        found.save(out)

    times = 0
    for n in killed_at_each(work, stride=_stride(30)):
        times = n
        assert _hashes(world().model) == before
        _check_files(out)
    assert completed(work) and times > 1
    assert (out / "report.json").is_file()
    assert not [file for file in out.iterdir() if file.name.startswith(".")]


def _stride(fast):
    """Every operation under `make fuzz`, where time is no matter; some of them else."""
    return 1 if "TARS_LENS_FUZZ" in os.environ else fast
