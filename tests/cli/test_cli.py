"""The commands: what they list, and that a mistake costs one message and leaves nothing behind."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import mistake, run
from tiny import WORDS
from tiny_concept import save_wordy_checkpoint, world, write_text

from tars_lens.common import files
from tars_lens.concept.card import Concept, builtin_concepts
from tars_lens.evaluation.erasure import Erasure
from tars_lens.model import checkpoints
from tars_lens.model.loading import load

FAST = ("--method", "paper", "--edits", "1")
COMMAND = [sys.executable, "-c", "from tars_lens.cli import main; main()"]


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """A cache without any model."""
    monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))


def refused(out: Path, *words, card=None, model=None, corpus=None) -> str:
    """The message of an `erase` that must fail and leave no trace of `out`."""
    place = world()
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    given = ("--model", model or place.model, "--corpus", corpus or place.corpus)
    said = mistake("erase", card or place.card, "--kl-tokens", "256", *given, "--out", out, *words)
    if before is not None:
        assert sorted(out.parent.iterdir()) == before
    return said


# --- what there is -----------------------------------------------------------------------------


def test_the_models_are_listed_with_size_licence_and_whether_they_are_cached(monkeypatch):
    code, said, err = run("models")
    assert (code, err) == (0, "")
    lines = {line.split()[1]: line for line in said.splitlines() if " MB " in line}
    assert set(lines) == set(checkpoints.BUILT_IN)
    for part in ("93 MB", "542 MB", "LlamaForCausalLM", "30", "Apache-2.0", " no "):
        assert part in lines["smollm2-135m"]
    assert "\x1b" not in said and "…" not in said
    monkeypatch.setattr(checkpoints.cache, "read_manifest", lambda folder: {"files": {}})
    assert " yes " in run("models").out


def test_the_concepts_are_listed_with_what_they_ask():
    code, said, err = run("concepts")
    assert (code, err) == (0, "")
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    assert [row[0] for row in rows] == list(builtin_concepts())
    saturn = Concept.load("saturn")
    name, answer, *counts, languages = next(row for row in rows if row[0] == "saturn")
    kinds = (saturn.probes.forward, saturn.probes.reverse, saturn.probes.neighbour)
    assert answer == "Saturn"
    assert counts == [str(len(kind)) for kind in kinds]
    assert languages.split() == sorted({p.language for p in saturn.probes.multilingual})


def test_help_needs_no_torch():
    code = "import sys; sys.argv[1:] = ['erase', '--help']\nfrom tars_lens.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit as stopped:\n    "
    code += "sys.exit(stopped.code or ('torch' in sys.modules) * 9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--kl-tokens" in done.stdout


@pytest.mark.parametrize("command", ["concepts", "models", "--help"])
def test_a_reader_who_leaves_early_sees_no_traceback(command):
    process = subprocess.Popen([*COMMAND, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # before the first word is said
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode in (0, 1)


def test_a_pipe_that_knows_no_other_script_is_written_to_all_the_same():
    done = subprocess.run(
        [*COMMAND, "concepts"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Sherlock Holmes" in done.stdout
    done.stdout.decode("ascii")


# --- mistakes ----------------------------------------------------------------------------------


def test_an_unknown_concept_is_answered_with_the_nearest_and_all(tmp_path):
    said = refused(tmp_path / "out", card="saturnn")
    assert "unknown concept 'saturnn'. Did you mean 'saturn'?" in said
    assert all(name in said for name in builtin_concepts())


def test_an_unknown_model_is_answered_with_the_nearest_and_all(tmp_path):
    said = refused(tmp_path / "out", model="smolm2-135")
    assert "unknown model 'smolm2-135'. Did you mean 'smollm2-135m'?" in said
    assert "gemma-3-270m" in said


def test_a_malformed_card_is_named_with_its_key(tmp_path):
    card = tmp_path / "mine.toml"
    card.write_text('name = "Saturn"\nanswer = ["Saturn"]\nprompt = "The ringed planet is"\n')
    said = refused(tmp_path / "out", card=card)
    assert said == f"{card}: key 'answer' must be text, got list."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--edits", "0"), "--edits must be at least 1, got 0"),
        (("--kl-tokens", "-1"), "--kl-tokens must be at least 0 (0 for no measurement), got -1"),
        (("--method", "mars"), "unknown method 'mars'. Did you mean 'tars'? There is: paper, tars"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(tmp_path, words, said):
    assert said in refused(tmp_path / "out", *words)


def test_a_concept_given_twice_is_refused(tmp_path):
    assert "'first' is given twice" in refused(tmp_path / "out", world().card)


def test_two_cards_of_one_name_are_refused(tmp_path):
    again = tmp_path / "again.toml"
    again.write_text(Path(world().card).read_text(encoding="utf-8"), encoding="utf-8")
    assert "is given twice" in refused(tmp_path / "out", again)


def test_a_prompt_that_does_not_lead_there_is_told_its_rank(tmp_path):
    model = save_wordy_checkpoint(tmp_path / "wordy")
    lens, prompt = load(model, progress=False), "w3 w14 w15"
    logits = lens.next_logits(lens.prompts([prompt]))[0]
    last = lens.string(int(logits.argmin()))
    card = tmp_path / "last.toml"
    card.write_text(f'name = "The last"\nanswer = "{last}"\nprompt = "{prompt}"\n')
    texts = tmp_path / "texts"
    for i in range(8):
        write_text(texts / f"{i}.txt", 600, seed=i, words=[f"w{j}" for j in range(WORDS)])
    said = refused(tmp_path / "out", card=card, model=model, corpus=texts)
    assert "no prompt of 'The last' leads wordy to" in said
    assert "its token ranks 400 (p = " in said


def test_a_corpus_that_is_missing_or_too_short_is_refused(tmp_path):
    said = refused(tmp_path / "out", corpus=tmp_path / "missing.txt")
    assert f"there is no corpus '{tmp_path / 'missing.txt'}'" in said
    write_text(tmp_path / "texts" / "short.txt", 300, seed=0, words=["w1", "w2"])
    said = refused(tmp_path / "out", corpus=tmp_path / "texts")
    assert "the corpus 'texts' is too short" in said


def test_a_model_that_cannot_be_edited_is_refused(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(world().model, model)
    config = json.loads((model / "config.json").read_text())
    packed = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (model / "config.json").write_text(json.dumps(packed))
    said = refused(tmp_path / "out", model=model)
    assert "has packed (quantised) weights" in said and str(model) in said
    (model / "config.json").write_text(json.dumps(config))
    for file in model.glob("tokenizer*"):
        file.unlink()
    said = refused(tmp_path / "out", model=model)
    assert "has no tokenizer that transformers can load" in said
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is not a whole safetensors file" in refused(tmp_path / "out", model=model)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        said = refused(out, model="never looked for")
        assert said.startswith(f"cannot write '{out}': ")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root can't write")
def test_a_folder_that_even_root_cannot_write_is_refused():
    said = refused(Path("/proc/no-such-folder/out"), model="never looked for")
    assert said.startswith("cannot write '/proc/no-such-folder/out': ")


# --- a disk that fills up ----------------------------------------------------------------------


@pytest.mark.parametrize("full_at", [".safetensors", "report.json"])
def test_a_disk_that_fills_up_is_one_message_and_no_half_file(tmp_path, monkeypatch, full_at):
    replace = os.replace

    def fill(source, target):
        if str(target).endswith(full_at) and str(tmp_path) in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fill)
    out = tmp_path / "out"
    place = world()
    words = ("--model", place.model, "--corpus", place.corpus, "--kl-tokens", 0, *FAST)
    said = mistake("erase", place.card, *words, "--out", out)
    assert "No space left on device" in said and full_at in said
    if full_at == ".safetensors":
        assert not out.exists()
    else:  # what was whole before stays
        names = {file.name for file in out.iterdir()}
        assert "first.safetensors" in names and "report.json" not in names
        assert not [name for name in names if name.startswith(".")]


def test_a_system_error_from_anywhere_is_one_message(tmp_path, monkeypatch):
    def fail(_self, _folder):
        raise OSError(errno.EIO, "Input/output error\non two lines", "/some/where")

    monkeypatch.setattr(Erasure, "save", fail)
    place = world()
    words = ("--model", place.model, "--corpus", place.corpus, "--kl-tokens", 0, *FAST)
    said = mistake("erase", place.card, *words, "--out", tmp_path / "out")
    assert "Input/output error" in said and "/some/where" in said
