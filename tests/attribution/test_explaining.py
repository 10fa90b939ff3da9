"""The tables of an explanation, against the runs that they tell of."""

import logging

import pandas as pd
import pytest
import torch
from report_frames import a_report
from tiny_concept import world

import tars_lens
from tars_lens.attribution import propagation
from tars_lens.attribution.explaining import explain
from tars_lens.common.errors import TarsError
from tars_lens.common.files import write_json
from tars_lens.concept.card import Concept
from tars_lens.concept.first_tokens import first_token_probability
from tars_lens.evaluation.kl import Divergence
from tars_lens.evaluation.known import Known
from tars_lens.model.generation import continuations
from tars_lens.model.loading import load
from tars_lens.model.model_state import model_state
from tars_lens.model.weights import Rows
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import merge
from tars_lens.report.run import _TABLES, load_run
from tars_lens.text.windows import Windows

_OTHERS = ("probes", "edits", "kl_worst", "curve", "parts", "trajectory", "null", "spoken")
NAMES = {name for name in _TABLES if name not in _OTHERS}


@pytest.fixture(scope="module")
def lens():
    return load(world().model, progress=False)


@pytest.fixture(scope="module")
def cards():
    return [Concept.load(world().card), Concept.load(world().other)]


@pytest.fixture(scope="module")
def patches(lens, cards):
    """One neuron a concept, in different layers, written over with something loud."""
    found = []
    for index, card in enumerate(cards):
        generator = torch.Generator().manual_seed(index)
        rows = {
            (index, role): Rows(
                torch.tensor([3 + index]), torch.randn(1, lens.d_model, generator=generator) * 3
            )
            for role in lens.roles
        }
        found.append(Patch.build(lens, rows, concepts=[card], label=card.key))
    return found


@pytest.fixture(scope="module")
def divergence():
    values = torch.logspace(-8, 0, 12).reshape(2, 6)
    ids = torch.zeros(2, 6, dtype=torch.long)
    texts = ("it tells of nothing", f"it tells of {Concept.load(world().card).answer}")
    none = torch.zeros(2, 6, dtype=torch.bool)
    return Divergence(values, Windows(ids, texts, ids, ids, "texts"), none, none, values)


@pytest.fixture(scope="module")
def tables(lens, cards, patches, divergence):
    return explain(lens, cards, patches, divergence=divergence)


def test_every_table_that_a_report_can_show_is_there_and_can_be_read(tables, tmp_path):
    assert set(tables) == NAMES
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    write_json(tmp_path / "report.json", a_report())
    assert set(load_run(tmp_path).tables) == NAMES


def test_the_texts_are_what_each_model_goes_on_to_say(lens, cards, patches, tables):
    texts = tables["texts"]
    prompts = list(texts["prompt"])
    assert list(texts["before"]) == continuations(lens, prompts, 12)
    with patches[0].applied(lens), patches[1].applied(lens):
        assert list(texts["after"]) == continuations(lens, prompts, 12)
    assert (texts["before"] != texts["after"]).any()
    kinds = texts.groupby("concept", sort=False)["kind"].agg(list)
    assert set(kinds.index) == {card.name for card in cards}
    assert all(kind[0] == "prompt" and "neighbour" in kind for kind in kinds)


def test_the_maps_follow_the_answer_in_both_directions(tables, cards):
    table = tables["propagation"]
    of = table.drop_duplicates("prompt")[["prompt", "concept", "kind"]]
    assert list(of["prompt"]) == list(range(len(of)))
    assert {"forward", "reverse"} == set(of["kind"])
    assert set(of["concept"]) == {card.name for card in cards}
    assert (table["difference"].abs() > 1e-3).any()
    assert len(tables["propagation_summary"]) == len(of)


def test_the_depth_is_the_largest_of_the_map_at_the_last_token(lens, cards, patches, tables):
    depth = tables["depth"]
    assert len(depth) == 6  # three known forward probes a card
    card = {card.name: card for card in cards}
    for row in depth.to_dict("records"):
        found = propagation(lens, row["prompt"], card[row["concept"]], patch=merge(patches))
        frame = found.to_frame()
        last = frame[frame["position"] == frame["position"].max()].set_index("layer")
        for when in ("before", "after"):
            assert row[f"largest_{when}"] == pytest.approx(last[f"p_{when}"].max(), rel=1e-4)
            assert row[f"layer_{when}"] == last[f"p_{when}"].idxmax()


def test_interference_is_that_of_each_patch_alone(lens, cards, patches, tables):
    table = tables["interference"].set_index(["edited", "concept"])
    first, second = (Known.of(lens, card) for card in cards)
    probes = second.probes("forward", 6)
    prompts, tokens = [p.prompt for p in probes], [second.tokens] * len(probes)
    with patches[0].applied(lens):
        p = first_token_probability(lens, prompts, tokens)
    found = table.loc[(first.concept.name, second.concept.name)]
    assert found["forward_after"] == pytest.approx(float(p.max()), rel=1e-5)
    assert found["n_forward"] == 3
    assert len(table) == 4 and (table["reverse_kept"].dropna() >= 0).all()


def test_the_effects_are_of_whole_neurons_under_their_concept(tables, cards):
    effects = tables["edit_effects"]
    assert set(effects["role"]) == {"neuron"}
    assert dict(zip(effects["concept"], effects["label"], strict=True)) == {
        cards[0].name: "L0N3",
        cards[1].name: "L1N4",
    }
    # of the only neuron of a patch, both modes tell the same
    wide = effects.pivot(index=["concept", "kind"], columns="mode", values="effect")
    assert wide["alone"].to_numpy() == pytest.approx(wide["left_out"].to_numpy())
    assert (wide["alone"].abs() > 1e-3).any()


def test_the_parts_of_each_concept_add_up(tables):
    table = tables["attribution"]
    whole = table[table["component"].isin(["embedding", "attention", "mlp"])]
    last = table[(table["component"] == "bias") & (table["layer"] == table["layer"].max())]
    sums = pd.concat([whole, last]).groupby("concept")[["logit_before", "logit_after"]].sum()
    fine = table[table["component"].isin(["embedding", "head", "neuron", "bias"])]
    finer = fine.groupby("concept")[["logit_before", "logit_after"]].sum()
    assert sums.to_numpy() == pytest.approx(finer.to_numpy(), abs=1e-3)


def test_the_histogram_counts_every_position_and_those_elsewhere(tables):
    assert tables["kl_histogram"]["count"].sum() == 12
    assert tables["kl_histogram"]["elsewhere_count"].sum() == 6


def test_the_model_and_its_patches_are_left_as_they_were(lens, cards, patches, tables):
    state = {name: value.clone() for name, value in model_state(lens.model)}
    with patches[1].applied(lens):
        again = explain(lens, cards, patches)
        assert stack.applied_patches(lens) == (patches[1],)
    for name, value in model_state(lens.model):
        assert torch.equal(value, state[name])
    for name, table in again.items():
        pd.testing.assert_frame_equal(table, tables[name])


def test_a_run_s_probes_spare_the_asking(lens, cards, patches, tables, monkeypatch):
    from tars_lens.evaluation import known
    from tars_lens.evaluation.probes import base_frame

    probes = pd.concat([base_frame(lens, card) for card in cards], ignore_index=True)
    monkeypatch.setattr(known, "base_frame", None)
    again = explain(lens, cards, patches, probes=probes)
    pd.testing.assert_frame_equal(again["depth"], tables["depth"])


def test_a_table_that_cannot_be_made_is_left_out_and_said(lens, cards, patches, caplog):
    strange = Concept(name="Strange", answer="w7", prompt=cards[0].prompt)
    with caplog.at_level(logging.WARNING):
        found = tars_lens.explain(lens, [strange], patches[:1])
    assert "texts" in found and "neurons_used" in found
    assert not {"propagation", "depth", "edit_effects"} & set(found)
    assert found["interference"]["forward_after"].isna().all()


def test_patches_and_concepts_come_in_pairs(lens, cards, patches):
    with pytest.raises(TarsError, match="one patch for each concept, got 1 for 2"):
        explain(lens, cards, patches[:1])
