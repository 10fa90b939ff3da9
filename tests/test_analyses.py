"""Each analysis on a tiny model: its files, its manifest, and the same bytes when run twice."""

import hashlib
import importlib
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import report_frames
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.method.settings import Settings

_ANALYSES = Path(__file__).parents[1] / "analyses"
_SHARED = ("common", "edits_curve", "both_directions", "five_concepts", "propagation", "neurons")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all: the erasure in it is made once."""
    return tmp_path_factory.mktemp("analyses")


@pytest.fixture
def run(monkeypatch, out):
    """Runs a script's `main` in quick form on the tiny world; gives the folder."""
    monkeypatch.syspath_prepend(str(_ANALYSES))
    monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))

    def go(script, *options, folder=out, cards=None):
        place = world()
        argv = [
            *(cards or (place.card, place.other)),
            "--model",
            place.model,
            "--corpus",
            place.corpus,
        ]
        # the abstract's method with its fewest edits: the fastest, and how it runs is what counts
        argv += ["--method", "paper", "--quick", "--out", folder, *options]
        importlib.import_module(script).main(list(map(str, argv)))
        return folder

    yield go
    for name in (*_SHARED, "languages", "capacity", "ablation"):
        sys.modules.pop(name, None)


def _checked(folder, script):
    """The manifest, once every file is as it says and nothing else of the script is there."""
    manifest = json.loads((folder / f"{script}.json").read_text())
    there = {p.name for p in folder.glob(f"{script}*") if p.suffix != ".json"}
    assert set(manifest["files"]) == there
    for name, sha256 in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    pdfs = [folder / name for name in there if name.endswith(".pdf")]
    assert pdfs and all(b"CreationDate" not in pdf.read_bytes() for pdf in pdfs)
    assert all(pdf.with_suffix(".png").is_file() for pdf in pdfs)
    return manifest


def test_the_curve_begins_at_the_base_and_counts_the_vectors(run):
    folder = run("edits_curve", "--counts", 1, 3)
    table = pd.read_csv(folder / "edits_curve.csv")
    for _, rows in table.groupby("concept"):
        assert list(rows["edits"]) == [0, 1, 3]
        assert rows["plain_kl"].iloc[0] == 0 and (rows["plain_kl"].iloc[1:] > 0).all()
        assert rows["neighbours_kept"].iloc[0] == 1 and (rows["forward_known"] == 3).all()
        assert rows["forward_worst"].nunique() > 1
    manifest = _checked(folder, "edits_curve")
    assert manifest["seed"] == 0 and manifest["quick"] is True
    assert manifest["command"].startswith("python analyses/edits_curve.py ")
    assert len(manifest["model"]["sha256"]) == 64
    assert {"torch", "pandas", "python"} < set(manifest["versions"])


@pytest.mark.parametrize("script", ["both_directions", "languages", "propagation", "neurons"])
def test_a_script_writes_what_its_manifest_says(run, script):
    folder = run(script)
    manifest = _checked(folder, script)
    for name in manifest["files"]:
        if name.endswith(".csv"):
            assert len(pd.read_csv(folder / name))


def test_five_concepts_tells_the_kl_after_each(run):
    folder = run("five_concepts")
    _checked(folder, "five_concepts")
    table = pd.read_csv(folder / "five_concepts.csv")
    assert list(table["removed"]) == [1, 1, 2, 2]
    whole = table[table["text"] == "all"]
    assert whole["tokens"].nunique() == 1
    counts = pd.read_csv(folder / "five_concepts_histogram.csv")
    assert counts["count"].sum() == whole["tokens"].iloc[-1]
    matrix = pd.read_csv(folder / "five_concepts_interference.csv")
    assert len(matrix) == 4


def test_capacity_says_how_many_fit_and_whether_the_order_matters(run):
    folder = run("capacity", "--keep", 0.0, "--max-kl", 1e9)
    _checked(folder, "capacity")
    curve = pd.read_csv(folder / "capacity.csv")
    assert list(curve["removed"]) == [1, 2] and curve["fits"].all()
    assert pd.isna(curve["others_kept"].iloc[-1]) and curve["others_kept"].iloc[0] > 0
    alone = pd.read_csv(folder / "capacity_interference.csv")
    assert len(alone) == 4
    order = pd.read_csv(folder / "capacity_order.csv")
    assert list(order["order"]) == ["given"] * 2 + ["reversed"] * 2
    assert list(order["concept"]) == [*curve["concept"], *curve["concept"][::-1]]
    assert (order["same_rows"] <= order["rows"]).all() and (order["rows"] > 0).all()
    by_concept = order.groupby("concept")[["rows", "same_rows"]].nunique()
    assert (by_concept == 1).all(axis=None)  # a comparison of two runs, whichever is asked
    run("capacity", "--keep", 1.1)  # what no edit reaches
    assert not pd.read_csv(folder / "capacity.csv")["fits"].any()


def test_the_ablation_changes_one_choice_at_a_time_and_goes_on_where_it_was(run, monkeypatch):
    names = ["paper, 20 vectors", "paper, not refined"]
    asked = [text for name in names for text in ("--variant", name)]
    folder = run("ablation", *asked)
    table = pd.read_csv(folder / "ablation.csv")
    assert list(table["variant"]) == [names[0]] * 2 + [names[1]] * 2
    means = pd.read_csv(folder / "ablation_means.csv")
    assert list(means["concepts"]) == [2, 2] and means["axis"].nunique() == 2
    by_name = means.set_index("variant")["forward_mean"]
    assert by_name[names[0]] != by_name[names[1]]
    _checked(folder, "ablation")
    monkeypatch.setattr("tars_lens.erase", None)  # what is there is not made again
    run("ablation", *asked)
    with pytest.raises(TarsError, match="no variant 'refined'"):
        run("ablation", "--variant", "refined")


def test_each_variant_changes_something_of_its_own(run):
    made = importlib.import_module("ablation").variants(3)
    card = Concept.load("saturn")
    what = [(variant.settings, variant.card(card)) for variant in made]
    assert what[0] == (Settings(seed=3), card)
    assert all(one not in what[:index] for index, one in enumerate(what))
    assert len({variant.name for variant in made}) == len(made)


def test_the_same_command_gives_the_same_bytes(run, tmp_path, out):
    digests = []
    for folder in (tmp_path / "a", tmp_path / "b"):  # nothing is kept from the one to the other
        run("both_directions", folder=folder)
        digests.append({p.name: p.read_bytes() for p in folder.glob("*.*") if p.suffix != ".json"})
    assert digests[0] == digests[1] and len(digests[0]) == 6


def test_a_wrong_card_is_one_message(run):
    with pytest.raises(TarsError, match="unknown concept 'satrun'"):
        run("languages", cards=["satrun"])


def test_the_readmes_picture_shows_the_first_known_probes_and_no_others(monkeypatch, tmp_path):
    frame = report_frames.probes(("Saturn",))
    frame["prompt"] = frame["prompt"].str.slice(0, 50)  # so that all fit the width
    frame.to_csv(tmp_path / "probes.csv", index=False)
    (tmp_path / "report.json").write_text(json.dumps(report_frames.a_report(("Saturn",))))
    monkeypatch.syspath_prepend(str(_ANALYSES))
    argv = ["before_after", str(tmp_path), "--count", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    importlib.import_module("before_after").main()
    kinds = ("forward", "reverse", "neighbour")
    known = frame[frame["known"] & frame["kind"].isin(kinds)]
    expected = known.groupby("kind", sort=False).head(2)
    for theme in ("light", "dark"):
        text = (tmp_path / f"before_after_{theme}.svg").read_text()
        root = ElementTree.fromstring(text)  # well formed, nothing unescaped
        bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect")][2:]
        widths = [float(bar.get("width")) for bar in bars]
        shown = [p for row in expected.itertuples() for p in (row.p_before, row.p_after)]
        assert widths == pytest.approx([max(1.0, 180 * p) for p in shown], abs=0.06)
        assert "<script" not in text
