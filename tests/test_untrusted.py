"""Patch files and runs of strangers: nothing outside the named folder, nothing run, no memory."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import safetensors.torch
import torch
from commands import mistake, run
from patch_models import random_patch
from tiny_concept import world

import tars_lens
from tars_lens.common.errors import TarsError
from tars_lens.patch.checkpoint_stack import apply_to_checkpoint, recorded_patches
from tars_lens.patch.patch import Patch
from tars_lens.report.html import write_report
from tars_lens.text.corpus import load_corpus

WHERE = {(1, "out"): [5, 3]}
NAMES = ["../../outside", "/etc/outside", "a/b\\c", "..", "\x1b]0;mine\x07", "x" * 5000, "\n\n"]
HTML = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def patch(tiny_base):
    return random_patch(tiny_base[1], WHERE, label="Saturn")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_a_path_in_it_leads_nowhere(tiny_base, tmp_path, patch, name):
    named = replace(patch, label=name, base_name=name, concepts=({"name": name},))
    inner = tmp_path / "a" / "b"
    file, out = inner / "p.safetensors", inner / "out"
    named.save(file)
    before = {child for child in tmp_path.rglob("*") if inner not in child.parents}
    apply_to_checkpoint([Patch.load(file)], tiny_base[0], out)
    code, said, _ = run("patch", "show", file)
    assert (code, "\x1b" in said) == (0, False)
    assert [p.label for p in recorded_patches(out)] == [name]
    after = {child for child in tmp_path.rglob("*") if inner not in child.parents}
    assert {child for child in after - before if child.parts[-1] != "cache"} <= set(
        (tmp_path / "cache").rglob("*")
    )


def test_what_a_message_quotes_commands_no_terminal(tmp_path):
    assert "\\x1b" in mistake("patch", "show", tmp_path / "\x1b[2J.safetensors")


def test_metadata_of_any_size_is_refused_before_it_is_read(patch, tmp_path):
    file = tmp_path / "p.safetensors"
    patch.save(file)
    tensors = safetensors.torch.load_file(file)
    long = json.dumps({"format": 1, "label": "x" * 17_000_000})
    safetensors.torch.save_file(tensors, file, {"tars_lens.patch": long})
    with pytest.raises(TarsError, match="metadata has more than 16,000,000 characters"):
        Patch.load(file)


def test_a_file_that_is_mostly_a_hole_takes_no_memory(tmp_path):
    size = 4 * 10**12  # bytes, of which the disk holds none
    shape = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"L1.out.old": shape}).encode()
    file = tmp_path / "hole.safetensors"
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + size)
    with pytest.raises(TarsError, match=r"has 4,000\.0 GB, and .* of memory are free"):
        Patch.load(file)


def test_a_large_tensor_that_no_patch_has_is_not_read(patch, tmp_path, monkeypatch):
    file = tmp_path / "p.safetensors"
    safetensors.torch.save_file({"weights": torch.zeros(10)}, file, {"tars_lens.patch": "{}"})
    with pytest.raises(TarsError, match="unknown tensor 'weights'"):
        Patch.load(file)


class _Tags(HTMLParser):
    """Scripts and handlers of a page."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.images, self.handlers = 0, 0, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.images += tag == "img"
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def test_a_report_shows_what_looks_like_a_page_and_runs_none_of_it(tmp_path):
    lens = tars_lens.load(world().model, progress=False)
    card = tars_lens.Concept.load(world().card)
    text = load_corpus(world().corpus, progress=False)
    erasure = tars_lens.erase(lens, [card], corpus=text, kl_tokens=512)
    erasure.save(tmp_path)
    plain = _Tags(write_report(tmp_path).read_text())
    for file in tmp_path.glob("*.csv"):
        table = pd.read_csv(file, keep_default_na=False)
        for column in table.columns[[str(kind) in ("str", "object") for kind in table.dtypes]]:
            if column in ("prompt", "answer", "text", "token", "window", "completion"):
                table[column] = HTML
        table.to_csv(file, index=False)
    report = (tmp_path / "report.json").read_text()
    name = json.dumps(card.name)
    (tmp_path / "report.json").write_text(report.replace(name, json.dumps(HTML)))
    page = write_report(tmp_path).read_text()
    found = _Tags(page)
    assert "alert(1)" in page  # it is shown
    assert (found.scripts, found.images, found.handlers) == (plain.scripts, plain.images, [])
