"""Patches written into a checkpoint's own files, undone exactly, whatever kills the process."""

import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import mistake, run
from patch_models import boot, random_patch, read_model, save_model

from tars_lens import in_place
from tars_lens.checkpoint_stack import RECORD, recorded_patches, revert_checkpoint
from tars_lens.checkpoints import JOURNAL, from_folder
from tars_lens.errors import TarsError
from tars_lens.export import export, verify_checkpoint
from tars_lens.files import sha256_file
from tars_lens.in_place import export_in_place, recover, revert_in_place
from tars_lens.layout import checkpoint_slots

WHERE = {(1, "out"): [5, 3], (2, "in"): [7, 0]}
_TESTS = str(Path(__file__).parent)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def base(tmp_path):
    """A tiny sharded checkpoint, its lens, and the hashes of its files."""
    whole = save_model(tmp_path / "whole", "llama", dtype=torch.bfloat16)
    folder = tmp_path / "model"
    read_model(whole).save_pretrained(folder, max_shard_size="4KB")
    shutil.copy(whole / "tokenizer.json", folder)
    return folder, boot(whole)[0], _hashes(folder)


def _hashes(folder):
    return {file.name: sha256_file(file) for file in folder.iterdir() if file.is_file()}


def test_in_place_is_what_export_makes_and_every_patch_comes_out_exactly(base, tmp_path):
    folder, lens, before = base
    first = random_patch(lens, WHERE, 1, label="a/b")
    second = random_patch(lens, {(1, "out"): [3, 9], (0, "gate"): [2]}, 2, label="second")
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    export_in_place(first, folder)
    export_in_place(second, folder)
    both = export([first, second], source, tmp_path / "both")
    assert _hashes(folder) == _hashes(both)
    assert [patch.label for patch in recorded_patches(folder)] == ["a/b", "second"]
    assert not (folder / JOURNAL).exists()
    with pytest.raises(TarsError, match="'a/b' is applied to .* already"):
        export_in_place(first, folder)
    revert_in_place(first, folder)
    assert _hashes(folder) == _hashes(export(second, source, tmp_path / "one"))
    revert_in_place(second, folder)
    assert _hashes(folder) == before and not recorded_patches(folder)
    with pytest.raises(TarsError, match="'second' is not applied to .*Recorded there: none"):
        revert_in_place(second, folder)


@pytest.mark.parametrize(
    ("dtype", "problem"), [(torch.bfloat16, "has SHA-256"), (torch.float32, "is torch.float32")]
)
def test_another_base_is_refused_and_force_is_undone_exactly_too(
    base, tmp_path, caplog, dtype, problem
):
    patch = random_patch(base[1], WHERE, label="Saturn")
    other = save_model(tmp_path / "other", "llama", seed=1, dtype=dtype)
    own = random_patch(boot(other)[0], {(1, "out"): [3, 9]}, 1, label="own")
    before = _hashes(other)
    with pytest.raises(TarsError, match=rf"{problem} .*on disk.* Nothing was written"):
        export_in_place(patch, other)
    assert _hashes(other) == before
    export_in_place(patch, other, force=True)
    assert caplog.text.count("Saturn is forced onto another base") == len(WHERE)
    revert_in_place(patch, other)
    assert _hashes(other) == before
    export_in_place(own, other)
    alone = _hashes(other)
    export_in_place(patch, other, force=True)
    rows = patch.edits[1, "out"]
    found = boot(other)[0].vectors(1, "out")[rows.neurons]
    assert torch.equal(found, rows.new.to(dtype))
    with pytest.raises(TarsError, match="'Saturn' is applied to .* already"):
        export_in_place(patch, other, force=True)
    revert_in_place(patch, other)
    assert _hashes(other) == alone
    export_in_place(patch, other, force=True)
    revert_in_place(own, other)
    revert_in_place(patch, other)
    assert _hashes(other) == before and not recorded_patches(other)


@pytest.mark.parametrize("place", [(1, "out"), (2, "in")])
def test_what_was_changed_since_is_not_put_back(base, place, tmp_path):
    """Also in a matrix that the patch to be taken out touches alone."""
    folder, lens, _ = base
    patch = random_patch(lens, WHERE, label="Saturn")
    export_in_place([patch, random_patch(lens, {(1, "out"): [9]}, 1, label="own")], folder)
    slots = checkpoint_slots(folder)
    slots[place].view(slots[place].tensor.bits("r+"))[11, 4] ^= 1  # a row of no patch, by hand
    before = _hashes(folder)
    problem = f"was changed since its patches were applied: {slots[place].tensor.key} can't be put"
    with pytest.raises(TarsError, match=problem):
        revert_in_place(patch, folder)
    with pytest.raises(TarsError, match=problem):
        export_in_place(random_patch(lens, {(0, "gate"): [1]}), folder)
    with pytest.raises(TarsError, match=problem):
        revert_checkpoint(patch, folder, tmp_path / "out")
    assert _hashes(folder) == before and len(recorded_patches(folder)) == 2
    assert not (tmp_path / "out").exists()


def test_a_linked_file_is_copied_before_it_is_edited(base, tmp_path):
    folder, lens, before = base
    patch = random_patch(lens, WHERE)
    linked = export(random_patch(lens, {(0, "in"): [1]}), folder, tmp_path / "linked", link=True)
    shared = [f for f in linked.glob("*.safetensors") if f.stat().st_nlink == 2]
    assert len(shared) == len(list(linked.glob("*.safetensors"))) - 1
    export_in_place(patch, folder)
    assert verify_checkpoint(patch, linked, linked).rows_changed == 0
    names = {file.name for file in shared}
    assert {n: sha256_file(linked / n) for n in names} == {n: before[n] for n in names}
    assert _hashes(folder) != before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("where", ["write_slot", "check_written"])
def test_an_interrupted_write_is_undone_at_once(base, monkeypatch, stop, where):
    folder, lens, before = base
    patch, real = random_patch(lens, WHERE), getattr(in_place, where)
    calls = []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise stop
        return real(*args, **options)

    monkeypatch.setattr(in_place, where, fail)
    expected = TarsError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="It is as it was" if expected is TarsError else None):
        export_in_place(patch, folder)
    assert _hashes(folder) == before and not recorded_patches(folder)


def test_a_full_disk_before_the_first_row_changes_nothing(base, monkeypatch):
    folder, lens, before = base

    def full(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(in_place.os, "fsync", full)
    with pytest.raises(TarsError, match=r"cannot write .*journal.*No space left on device"):
        export_in_place(random_patch(lens, WHERE), folder)
    assert _hashes(folder) == before


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from tars_lens import {module} as module
from tars_lens.patch import Patch
real, calls = module.{where}, []
def die(*args, **options):
    calls.append(args)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
module.{where} = die
module.{run}
"""


def _killed(module, where, call, run):
    code = _KILLED.format(tests=_TESTS, module=module, where=where, call=call, run=run)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("where", "call", "applied"),
    [("write_slot", 2, False), ("_write_journal", 2, False), ("_recover", 2, True)],
)
def test_a_killed_in_place_write_is_undone_or_finished_on_the_next_start(
    base, tmp_path, where, call, applied
):
    folder, lens, before = base
    patch, file = random_patch(lens, WHERE, label="Saturn"), tmp_path / "patch.safetensors"
    patch.save(file)
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    command = f"export_in_place(Patch.load({str(file)!r}), {str(folder)!r})"
    _killed("in_place", where, call, command)
    assert (folder / JOURNAL).is_file()
    from_folder(folder)  # which every command calls
    assert not (folder / JOURNAL).exists() and not recover(folder)
    assert len(recorded_patches(folder)) == applied
    assert (_hashes(folder) == before) is not applied
    if applied:
        assert verify_checkpoint(patch, source, folder).ok
    else:
        assert list((folder / RECORD).glob("*")) == []
        export_in_place(patch, folder)
        assert verify_checkpoint(patch, source, folder).ok


def test_a_killed_export_leaves_the_source_whole_and_its_rest_is_cleared_away(base, tmp_path):
    folder, lens, before = base
    patch, file, out = random_patch(lens, WHERE), tmp_path / "p.safetensors", tmp_path / "o" / "out"
    patch.save(file)
    _killed("export", "write_slot", 2, f"export(Patch.load({str(file)!r}), {str(folder)!r}, "
            f"{str(out)!r})")  # fmt: skip
    assert not out.exists() and len(list(out.parent.iterdir())) == 1
    assert _hashes(folder) == before
    export(patch, folder, out)
    assert [child.name for child in out.parent.iterdir()] == ["out"]
    assert verify_checkpoint(patch, folder, out).ok


def test_weight_files_are_copied_unless_links_are_asked_for(base, tmp_path, monkeypatch):
    folder, lens, _ = base
    patch = random_patch(lens, {(1, "out"): [5]})
    touched = checkpoint_slots(folder)[1, "out"].tensor.file.name
    for out, options in (("linked", {"link": True}), ("copied", {})):
        export(patch, folder, tmp_path / out, **options)
        assert verify_checkpoint(patch, folder, tmp_path / out).ok
        for file in (tmp_path / out).glob("*.safetensors"):
            same = file.samefile(folder / file.name)
            assert same == (out == "linked" and file.name != touched)

    def no_links(*_args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("tars_lens.folders.os.link", no_links)
    export(patch, folder, tmp_path / "elsewhere", link=True)
    assert verify_checkpoint(patch, folder, tmp_path / "elsewhere").ok


def test_what_is_written_wrongly_is_noticed(base, tmp_path, monkeypatch):
    folder, lens, before = base
    patch = random_patch(lens, WHERE)
    monkeypatch.setattr("tars_lens.export.write_slot", lambda _slot, _rows: None)
    with pytest.raises(TarsError, match="doesn't read back from .* as it was written"):
        export(patch, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and _hashes(folder) == before


def test_the_commands(base, tmp_path):
    folder, lens, before = base
    file = tmp_path / "saturn.safetensors"
    random_patch(lens, WHERE, label="Saturn").save(file)
    assert "either --out FOLDER or --in-place" in mistake("patch", "export", file)
    said = mistake("patch", "export", file, "--in-place", "--model", "smollm2-135m")
    assert "edits a folder of your own" in said
    code, out, err = run("patch", "export", file, "--in-place", "--model", folder)
    assert (code, err) == (0, "") and "Saturn written into" in out
    assert _hashes(folder) != before
    code, out, _ = run("patch", "revert", file, folder, "--in-place")
    assert code == 0 and "patches left: none" in out
    assert _hashes(folder) == before
