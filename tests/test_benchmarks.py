"""Each benchmark runs on a tiny model, and prints and writes its ratios."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_gguf import write_gguf
from tiny import tiny_lens
from tiny_concept import world

from tars_lens.evaluation.kl import paired_kl
from tars_lens.model.weights import Rows
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import cut

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_MACHINE = "torch threads"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script's `main` on a tiny Llama (or what it is given); its output and table."""
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours = [file.stem for file in _BENCHMARKS.glob("*.py")]

    def go(script, *options, model=None):
        out = tmp_path / "table.csv"
        argv = ["--model", str(model or world().model), "--out", str(out), *map(str, options)]
        importlib.import_module(script).main(argv)
        return capsys.readouterr().out, pd.read_csv(out)

    yield go
    for name in ours:
        sys.modules.pop(name, None)


def test_loading(run, tmp_path):
    model = write_gguf(tmp_path / "tiny.gguf")
    printed, table = run("loading", "--repeats", 1, model=model)
    _check(printed, table, "GGUF with transformers")
    assert len(table) == 2


def test_ranking(run):
    printed, table = run("ranking", "--repeats", 2)
    _check(printed, table, "read: torch.sum")
    assert {"rank, 1 vector, top 100", "rank, 16 vectors, top 100"} < set(table["case"])


def test_paired_kl(run):
    printed, table = run("paired_kl", "--repeats", 1, "--windows", 1, "--corpus", world().corpus)
    _check(printed, table, "two passes that keep logits")
    assert "paired, first edit in layer 2" in set(table["case"])
    assert not table["milliseconds_per_token"].isna().any()
    found = table.set_index("case")
    plain, cached = (
        f"paired, first edit in layer 1{end}" for end in ("", ", base's stream cached")
    )
    seconds, ratios = found["seconds"], found[["ratio_to_shared", "ratio_to_uncached"]]
    assert ratios["ratio_to_uncached"].dropna().index.tolist() == [cached]
    assert ratios["ratio_to_uncached"][cached] == pytest.approx(seconds[cached] / seconds[plain])
    shared = seconds["two passes that share their prefix, layer 1"]
    assert ratios["ratio_to_shared"][plain] == pytest.approx(seconds[plain] / shared)
    lens = tiny_lens("llama")
    windows = cut(lens, load_corpus(world().corpus, progress=False), reported_tokens=512)
    edits = {(1, "out"): Rows(torch.tensor([3]), -40 * lens.vectors(1, "out")[[3]])}
    separate = sys.modules["paired_kl"].separate_kl(lens, edits, windows)
    paired = paired_kl(lens, edits, windows).values
    torch.testing.assert_close(paired, separate, rtol=1e-3, atol=1e-7)
    assert separate.max() > 1e-5


def test_memory(run):
    printed, table = run(
        "memory", "--concepts", world().card, "--corpus", world().corpus, "--kl-tokens", 512
    )
    assert table["case"].tolist() == ["imports", "model loaded", "erase"]
    assert "ratio" in printed and _MACHINE in printed
    if sys.platform == "linux":
        peaks = table["peak_mb"].tolist()
        assert peaks == sorted(peaks) and peaks[0] > 100
        assert table["ratio_without_imports"][0] == 0.0


def test_erase_stages(run):
    printed, table = run(
        "erase_stages", "--concepts", world().card, "--corpus", world().corpus, "--kl-tokens", 512
    )
    assert "passes" in printed and _MACHINE in printed
    seconds = table.set_index("stage")["seconds"]
    parts = {"plain text, cached", "direction", "name", "suppression", "KL", "verify"}
    assert parts < set(seconds.index) and (seconds > 0).all()
    outside = ["loading", "corpus", "plain text, cold", "erase, in all"]
    assert seconds.drop(outside).sum() == pytest.approx(seconds["erase, in all"])


def _check(printed, table, reference):
    assert reference in printed and "ratio" in printed and _MACHINE in printed
    ratios = table.set_index("case")["ratio"]
    assert ratios[reference] == 1.0 and (ratios > 0).all()


def test_llama8b_shape(run):
    printed, table = run("llama8b_shape", "--repeats", 1, "--shards", 3)
    assert "out of the system's cache" not in printed and _MACHINE in printed
    for measure, part in table.groupby("measure", sort=False):
        assert part["ratio"].iloc[0] == 1.0 and (part["ratio"] > 0).all(), measure
    assert table["measure"].iloc[-1] == "export, 2 of 3 shards linked"
    assert table["case"].str.contains("norms known").sum() == 2


def test_whole_erase(run):
    options = ["--shards", 2, "--documents", 8, "--tokenizer", world().model]
    _, table = run("whole_erase", *options, "--concept", world().card, "--corpus", world().corpus)
    found = table.set_index("stage")
    assert {"plain text", "direction", "suppression", "KL", "verify"} < set(found.index)
    assert (found["seconds"] > 0).all() and _MACHINE in table["machine"][0]


def test_scaling(run):
    options = ["--repeats", 2, "--widths", 64, 128, "--layers", 1, 4, "--vectors", 1, 8]
    concepts = ["--concepts", world().card, "--corpus", world().corpus]
    printed, table = run("scaling", *options, *concepts, "--workers", 1)
    assert "exponent" in printed and _MACHINE in printed
    assert set(table["axis"]) == {"d_model", "layers", "vectors", "workers"}
    assert table["exponent"].notna().any()  # what it is depends on what else the machine does
    assert (table.groupby(["axis", "measure"])["ratio"].first() == 1).all()


def test_side_by_side(run):
    printed, table = run("side_by_side", "--concept", world().card, "--corpus", world().corpus)
    _check(printed, table, "rank_one")
    assert table["case"].tolist() == ["tars", "tars, plain text cached", "rank_one", "ablation"]
    if sys.platform == "linux":
        assert (table["added_peak_mb"] >= 0).all() and table["of_the_weights"].notna().all()


def test_side_by_side_tells_of_a_method_that_fails(run, tmp_path):
    with pytest.raises(SystemExit, match=r"tars failed:\n[\s\S]*cannot read the concept card"):
        run("side_by_side", "--concept", tmp_path / "none.toml", "--corpus", world().corpus)


def test_inference_mode(run):
    printed, table = run("inference_mode", "--repeats", 2)
    assert "under no_grad, which a lens uses" in printed and _MACHINE in printed
    assert table["case"].str.startswith("no_grad").tolist() == [True, False, True, False]
    assert table["ratio"].tolist()[::2] == [1.0, 1.0] and (table["ratio"] > 0).all()
