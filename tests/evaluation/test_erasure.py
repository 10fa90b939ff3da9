"""`tars-lens erase`, end to end on a tiny model, and once on SmolLM2."""

import copy
import csv
import json
import logging
import os
import re
from contextlib import contextmanager
from unittest import mock

import pandas as pd
import pytest
import torch
from commands import run
from report_contract import problems
from tiny_concept import world

from tars_lens.common import progress
from tars_lens.concept.card import Concept
from tars_lens.evaluation.erasure import erase
from tars_lens.evaluation.probes import base_frame
from tars_lens.method.settings import Settings
from tars_lens.model.loading import load
from tars_lens.patch.patch import Patch
from tars_lens.patch.verification import verify

TOKENS = 4 * 256
ONE = ("--method", "paper", "--edits", "1")  # the fastest, where how it runs is what counts


@pytest.fixture(autouse=True)
def cache(monkeypatch, request):
    """A cache of the tests' own, except where the real weights are needed."""
    if "real" not in request.keywords:
        monkeypatch.setenv("TARS_LENS_CACHE", str(world().cache))


def command(out, *words, cards=("card", "other")):
    """Runs `tars-lens erase` on the tiny world."""
    place = world()
    given = [getattr(place, card) for card in cards]
    common = ("--model", place.model, "--corpus", place.corpus, "--kl-tokens", TOKENS)
    with mock.patch.dict(os.environ, TARS_LENS_CACHE=str(place.cache)):
        return run("erase", *given, *common, "--out", out, *words)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run that removes two concepts: its folder, and what it said."""
    out = tmp_path_factory.mktemp("run") / "deep" / "out"
    return out, command(out)


@pytest.fixture(scope="module")
def report(done):
    return json.loads((done[0] / "report.json").read_text(encoding="utf-8"))


# --- what is written ---------------------------------------------------------------------------


def test_the_report_keeps_its_contract(done, report):
    assert problems(report) == []
    assert [concept["name"] for concept in report["concepts"]] == [
        Concept.load(card).name for card in (world().card, world().other)
    ]
    assert report["model"]["name"] == "tiny-llama"
    assert report["kl"]["tokens"] == TOKENS
    assert 0 < report["kl"]["elsewhere"]["tokens"] < TOKENS
    assert all(concept["probes"]["forward"]["known"] == 3 for concept in report["concepts"])


BREAKS = {
    "report.model.d_mlp is missing": lambda r: r["model"].pop("d_mlp"),
    "report.schema is True": lambda r: r.update(schema=True),
    "report.concepts is no array": lambda r: r.update(concepts=[]),
    "report.concepts[1].edits[0].layer is 1.0": lambda r: r["concepts"][1]["edits"][0].update(
        layer=1.0
    ),
    "no such weight vector": lambda r: r["concepts"][0]["edits"][0].update(role="up"),
    "report.kl.elsewhere.p95 is nan": lambda r: r["kl"]["elsewhere"].update(p95=float("nan")),
    "kl: the figures are out of order": lambda r: r["kl"].update(median=r["kl"]["max"] + 1),
    "more said than known": lambda r: r["concepts"][0]["probes"]["forward"].update(said_before=99),
    "what is said anyway": lambda r: r["concepts"][0]["probes"]["reverse"].update(said_after_own=9),
    "report.kl.unchanged is missing": lambda r: r["kl"].pop("unchanged"),
    "kl.elsewhere: the figures are": lambda r: r["kl"]["elsewhere"].update(unchanged=1.1),
    "more known than asked": lambda r: r["concepts"][0]["probes"]["reverse"].update(known=99),
    "null stands for": lambda r: r["concepts"][0]["probes"]["neighbour"].update(kept=None),
    "not the rows of the edits": lambda r: r["verified"].update(rows_planned=1),
    "others_identical is 1, no flag": lambda r: r["verified"].update(others_identical=1),
}


@pytest.mark.parametrize("said", BREAKS)
def test_a_broken_report_would_be_noticed(report, said):
    broken = copy.deepcopy(report)
    BREAKS[said](broken)
    assert any(said in problem for problem in problems(broken))


def test_the_patches_are_what_the_report_says(done, report):
    out, _ = done
    lens = load(world().model, progress=False)
    patches = [Patch.load(out / f"{name}.safetensors") for name in ("first", "second")]
    for patch, concept in zip(patches, report["concepts"], strict=True):
        frame = patch.to_frame()[["layer", "role", "neuron"]]
        edits = [{k: e[k] for k in ("layer", "role", "neuron")} for e in concept["edits"]]
        assert frame.to_dict("records") == edits
        assert patch.figures["probes"] == concept["probes"]
        assert patch.figures["kl"] == report["kl"]
        assert patch.figures["removed"] == ["first", "second"]
    again = verify(lens, patches)
    assert again.ok
    assert again.rows_changed == report["verified"]["rows_changed"]


def test_the_tables_are_those_of_the_report(done, report):
    out, _ = done
    assert report["tables"] == sorted(file.stem for file in out.glob("*.csv"))

    def rows(name):
        with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    assert len(rows("edits")) == sum(len(c["edits"]) for c in report["concepts"])
    probes = rows("probes")
    assert {
        *("concept", "kind", "language", "prompt", "answer", "p_before", "known", "floor"),
        *("set_phrase", "p_after", "kept", "top_before", "top_after", "top_substitute"),
    } <= set(probes[0])
    for concept in report["concepts"]:
        for kind, figures in concept["probes"].items():
            own = [r for r in probes if (r["concept"], r["kind"]) == (concept["name"], kind)]
            assert len(own) == figures["n"]
        forward = [
            float(row["p_after"])
            for row in probes
            if (row["concept"], row["kind"], row["known"]) == (concept["name"], "forward", "True")
        ]
        assert max(forward) == pytest.approx(concept["probes"]["forward"]["after_max"])
    worst = rows("kl_worst")
    assert max(float(row["kl"]) for row in worst) == pytest.approx(report["kl"]["max"])
    elsewhere = [float(row["kl"]) for row in worst if row["names_concept"] == "False"]
    assert max(elsewhere) == pytest.approx(report["kl"]["elsewhere"]["max"])


def test_what_is_said_is_the_summary_and_where_everything_is(done, report):
    out, (code, said, err) = done
    assert (code, err) == (0, "")
    assert "\x1b" not in said  # plain in a pipe
    for concept in report["concepts"]:
        assert concept["name"] in said
    assert "Verified: " in said
    last = said.splitlines()[-1]
    assert str(out) in last
    for file in out.iterdir():
        assert file.name in last


def test_one_seed_gives_the_same_bytes(done, tmp_path):
    first, second = done[0], tmp_path / "again"
    assert command(second).code == 0
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    for name in names:
        one, other = ((folder / name).read_bytes() for folder in (first, second))
        if name == "report.json":
            costs = re.compile(rb'"(seconds|peak_rss_bytes)": [-+.e\d]+')
            assert len(costs.findall(one)) == 4
            one, other = costs.sub(b"", one), costs.sub(b"", other)
        assert one == other, name


def test_the_base_is_left_as_it_was_found(done):
    lens = load(world().model, progress=False)
    before = {name: value.clone() for name, value in lens.model.named_parameters()}
    card = Concept.load(world().card)
    found = erase(lens, [card], settings=Settings(edits=1), corpus=_corpus(), kl_tokens=0)
    assert found.report["kl"] is None
    assert problems(found.report) == []
    assert len(found.patches[0].to_frame()) == 1
    assert all(torch.equal(value, before[n]) for n, value in lens.model.named_parameters())


def test_what_the_base_said_may_be_given():
    lens, card = load(world().model, progress=False), Concept.load(world().card)
    base = base_frame(lens, card)
    options = {"settings": Settings(edits=1), "corpus": _corpus(), "kl_tokens": 0}
    usual = erase(lens, [card], **options)
    given = erase(lens, [card], **options, bases=[base])
    pd.testing.assert_frame_equal(given.tables["probes"], usual.tables["probes"])
    halved = erase(lens, [card], **options, bases=[base.assign(p_before=base["p_before"] / 2)])
    ratio = halved.tables["probes"]["p_before"] / usual.tables["probes"]["p_before"]
    assert ratio.tolist() == [0.5] * len(base)


def _corpus():
    from tars_lens.text.corpus import load_corpus

    return load_corpus(world().corpus)


# --- how it runs -------------------------------------------------------------------------------


def test_the_literal_method_keeps_the_contract_too(tmp_path):
    words = ("--method", "paper", "--edits", "3", "--kl-tokens", "0", "--seed", "5")
    code, said, err = command(tmp_path / "out", *words, cards=("card",))
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert problems(report) == []
    assert (report["method"]["name"], report["method"]["seed"]) == ("paper", 5)
    assert len(report["concepts"][0]["edits"]) == 3
    assert "was not measured" in said


def test_quiet_says_nothing(tmp_path, caplog, capfd):
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        assert command(tmp_path / "out", *ONE, "--quiet", cards=("card",)) == (0, "", "")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert (tmp_path / "out" / "report.json").is_file()


@contextmanager
def stopping_at(*, index: int):
    """Progress that is stopped by Ctrl-C where so many concepts are removed."""

    def advance(what: str, done: int, total: int) -> None:
        if what.startswith("removing") and done == index:
            raise KeyboardInterrupt

    yield advance


def test_ctrl_c_keeps_the_patches_made_so_far(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(progress, "progress", lambda **_: stopping_at(index=1))
    code, said, err = command(out, *ONE)
    assert (code, said) == (130, "")
    assert err == f"stopped; kept: {out / 'first.safetensors'}\n"
    assert [file.name for file in out.iterdir()] == ["first.safetensors"]
    assert verify(load(world().model, progress=False), Patch.load(out / "first.safetensors")).ok


def test_ctrl_c_before_anything_is_made_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "progress", lambda **_: stopping_at(index=0))
    assert command(tmp_path / "a" / "b") == (130, "", "stopped; kept: nothing was made yet\n")
    assert list(tmp_path.iterdir()) == []


# --- the real model ----------------------------------------------------------------------------


@pytest.mark.real
def test_saturn_leaves_smollm2_and_its_neighbours_stay(real_lens):
    found = erase(real_lens, [Concept.load("saturn")], kl_tokens=2_560).report
    assert problems(found) == []
    probes, verified = found["concepts"][0]["probes"], found["verified"]
    assert probes["forward"]["known"] >= 5
    assert probes["forward"]["before_mean"] > 0.1
    assert probes["forward"]["after_mean"] < 0.005
    assert probes["neighbour"]["known"] >= 4
    assert probes["neighbour"]["kept"] >= 0.8
    assert found["kl"]["tokens"] == 2_560
    assert found["kl"]["median"] <= 0.002
    assert verified["rows_changed"] == verified["rows_planned"] > 0
    assert verified["others_identical"] and verified["restored_identical"]
