"""Folders that can't be written, and a current folder that is gone: one message, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patch_models import boot, random_patch
from tiny_concept import world

_TESTS = str(Path(__file__).parent)
_MOUNT = (
    'mount -t tmpfs none "$1" && cp -r "$2"/. "$1" && mount -o remount,ro "$1" && exec "${@:3}"'
)

_SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from commands import run
found = [run(*words) for words in json.loads(sys.argv[2])]
print(json.dumps([[one.code, one.err] for one in found]))
"""


def _mounted(folder, source, *words):
    """A command that finds `source` at `folder`, where nothing can be written, root or not."""
    shell = ["unshare", "-m", "bash", "-c", _MOUNT, "bash", str(folder), str(source)]
    return subprocess.run([*shell, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    """Runs commands in one process, in which `folder` lies on a file system that is read-only."""
    base = tmp_path_factory.mktemp("read_only")
    source, folder = base / "source", base / "mounted"
    folder.mkdir()
    source.mkdir()
    try:
        tried = _mounted(folder, source, "true")
    except OSError as error:
        pytest.skip(f"a file system can't be mounted here: {error}")
    if tried.returncode:
        pytest.skip(f"a file system can't be mounted here: {tried.stderr.strip()}")
    for name in ("model", "card", "corpus"):
        file = getattr(world(), name)
        there = source / f"{name}{file.suffix if file.is_file() else ''}"
        (shutil.copytree if file.is_dir() else shutil.copy)(file, there)
    (source / "old").mkdir()
    (source / "old" / "report.json").write_text("{}")
    random_patch(boot(world().model)[0], {(1, "out"): [5, 3]}).save(source / "p.safetensors")
    spec = {
        "concepts": [str(folder / world().card.name)],
        "models": [str(folder / "model")],
        "methods": ["paper"],
        "corpus": str(folder / "corpus"),
        "kl_tokens": 512,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in spec.items()]
    (source / "spec.toml").write_text("\n".join(lines).replace(world().card.name, "card.toml"))

    def commands(*all_words, **environment):
        words = json.dumps([[str(word) for word in words] for words in all_words])
        env = [f"{key}={value}" for key, value in environment.items()]
        script = [sys.executable, "-P", "-c", _SCRIPT, _TESTS, words]
        done = _mounted(folder, source, "env", *env, *script)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return folder, commands


def _erase(folder, out):
    given = ("--model", folder / "model", "--corpus", folder / "corpus", "--kl-tokens", 512, "-q")
    return ("erase", folder / "card.toml", *given, "--out", out)


def test_nothing_can_be_written_is_one_message(read_only, own_cache):
    folder, commands = read_only
    model, patch = folder / "model", folder / "p.safetensors"
    found = commands(
        _erase(folder, folder / "new"),
        _erase(folder, folder / "old"),
        ("patch", "export", patch, "--model", model, "--out", folder / "export"),
        ("sweep", folder / "spec.toml", "--out", folder / "sweep", "--workers", 1),
        (
            *("evaluate", patch, "--model", model, "--corpus", folder / "corpus"),
            *("--suite", "quick", "--out", folder / "evaluation"),
        ),
        TARS_LENS_CACHE=own_cache,
    )
    for code, said in found:
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
        assert "Read-only file system" in said and str(folder) in said, said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("variable", ["TARS_LENS_CACHE", "TMPDIR"])
def test_what_can_be_done_without_is_done_without(read_only, own_cache, tmp_path, variable):
    folder, commands = read_only
    environment = {"TARS_LENS_CACHE": own_cache, variable: folder / "there"}
    ((code, said),) = commands(_erase(folder, tmp_path / "out"), **environment)
    assert code == 0, said
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verified"][
        "restored_identical"
    ]


@pytest.mark.parametrize("words", [("concepts",), ("patch", "show", "p.safetensors")])
def test_a_current_folder_that_is_gone_is_one_message(tmp_path, words):
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = 'cd "$1" && rmdir "$1" && exec "${@:2}"'
    code = "from tars_lens.cli import main; main()"
    done = subprocess.run(
        ["bash", "-c", shell, "bash", str(gone), sys.executable, "-P", "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the current folder is gone: it was deleted or moved. Change to another one.\n"
    )
