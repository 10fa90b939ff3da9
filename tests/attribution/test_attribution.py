"""Attribution against written-out references, on tiny random models of every architecture."""

import numpy as np
import pandas as pd
import pytest
import torch
from patch_models import random_patch, same, snapshot
from tiny import ARCHITECTURES, tiny_lens

from tars_lens.attribution import (
    asked,
    causal_trace,
    direct_attribution,
    edit_effects,
    enrichment,
    propagation,
)
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.concept.probability import answer_probabilities
from tars_lens.model import readings
from tars_lens.model.lens import Point
from tars_lens.patch.stack import applied_patches

TEXTS = ["w3 w5 w9 w20 w33", "w7 w8"]
TOKENS = [9, 24]
WHERE = {(1, "in"): [3], (1, "out"): [3, 9], (2, "out"): [5]}
CARD = """
name = "W5"
answer = "w5"
prompt = "w3 w9"
substitute = "w6"
[probes]
forward = ["w11 w12", "w13 w14 w15"]
reverse = [{ prompt = "w5 w7", answer = "w8" }, { prompt = "w9 w5", answer = "w10" }]
neighbour = [{ prompt = "w20 w21", answer = "w22" }]
"""


def _patch(lens):
    return random_patch(lens, WHERE, seed=3)


# --- the parts of a logit ----------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_sets_of_parts_add_up_to_the_logit(arch):
    lens = tiny_lens(arch)
    found = direct_attribution(lens, TEXTS, TOKENS, patch=_patch(lens), neurons=7)
    frame = found.to_frame()
    last_bias = (frame["component"] == "bias") & (frame["layer"] == lens.n_layers)
    coarse = frame["component"].isin(["embedding", "attention", "mlp"]) | last_bias
    fine = frame["component"].isin(["embedding", "head", "neuron", "bias"])
    for when in ("before", "after"):
        for prompt, row in found.logits.iterrows():
            own = frame["prompt"] == prompt
            for parts in (coarse, fine):
                total = frame.loc[parts & own, f"logit_{when}"].sum()
                assert total == pytest.approx(row[f"logit_{when}"], abs=1e-6)
    assert found.error < 1e-6
    change = (found.logits["logit_after"] - found.logits["logit_before"]).abs()
    assert (change > 1e-3).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_attributed_logit_is_the_models_own(arch):
    lens = tiny_lens(arch)
    batch = lens.prompts(TEXTS)
    with torch.no_grad():
        logits = lens.model.original_model(batch.ids).logits.float()
    ends = logits[torch.arange(2), batch.last][:, TOKENS].max(dim=1).values
    if lens.logit_cap:
        ends = lens.logit_cap * torch.atanh(ends / lens.logit_cap)
    found = direct_attribution(lens, TEXTS, TOKENS).logits
    np.testing.assert_allclose(found["logit_before"], ends, atol=2e-6)
    assert found["logit_after"].isna().all()


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2", "neox"])
def test_heads_and_neurons_add_up_to_their_layer(arch):
    lens = tiny_lens(arch)
    frame = direct_attribution(lens, TEXTS[:1], TOKENS, neurons=24 * 3).to_frame()
    bias = frame[frame["component"] == "bias"]
    for layer in range(lens.n_layers):
        rows = frame[frame["layer"] == layer]
        for whole, part, label in (
            ("attention", "head", "attention bias"),
            ("mlp", "neuron", "MLP bias"),
        ):
            parts = rows.loc[rows["component"] == part, "logit_before"].sum()
            parts += bias.loc[bias["label"] == f"L{layer} {label}", "logit_before"].sum()
            expected = rows.loc[rows["component"] == whole, "logit_before"].sum()
            assert parts == pytest.approx(expected, abs=1e-6)
            assert abs(expected) > 1e-5
    assert (frame["component"] == "neuron").sum() == 24 * 3 + 3


def test_the_listed_neurons_are_the_largest_and_the_rest_is_summed(lens):
    patch = random_patch(lens, {(2, "out"): [5]}, seed=1)
    every = direct_attribution(lens, TEXTS[:1], TOKENS, patch=patch, neurons=72).to_frame()
    few = direct_attribution(lens, TEXTS[:1], TOKENS, patch=patch, neurons=1).to_frame()
    neurons = every[(every["component"] == "neuron") & (every["index"] >= 0)]
    change = (neurons["logit_after"] - neurons["logit_before"]).abs()
    size = neurons[["logit_before", "logit_after"]].abs().max(axis=1)
    best = neurons.loc[np.maximum(change, size).idxmax(), "label"]
    listed = few[(few["component"] == "neuron") & (few["index"] >= 0)]
    assert list(listed["label"]) == [best]
    totals = [f.loc[f["component"] == "neuron", "logit_after"].sum() for f in (every, few)]
    assert totals[0] == pytest.approx(totals[1], abs=1e-9)


def test_parts_that_miss_the_logit_are_refused(lens, monkeypatch):
    lens.model.cfg.output_logits_soft_cap = 0.5  # which the model itself doesn't apply
    monkeypatch.setattr(
        "tars_lens.model.logit_parts._uncapped",
        lambda lens, residual: residual[:, :1].double().expand(-1, lens.d_vocab),
    )
    with pytest.raises(TarsError, match="parts of tiny-llama miss its logit"):
        direct_attribution(lens, TEXTS, TOKENS)


# --- the logit lens on every layer and position ------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_map_equals_one_read_out_a_cell(arch):
    lens = tiny_lens(arch)
    patch = _patch(lens)
    vector = torch.randn(lens.d_model)
    frame = propagation(lens, TEXTS, TOKENS, patch=patch, vector=vector).to_frame()
    assert len(frame) == (5 + 2) * 4
    for prompt, text in enumerate(TEXTS):
        ids = lens.prompts([text]).ids
        points = [Point("resid_pre", 0), *(Point("resid_post", k) for k in range(3))]
        runs = {"before": lens.capture(ids, points)}
        with patch.applied(lens):
            runs["after"] = lens.capture(ids, points)
        for when, seen in runs.items():
            for layer, point in enumerate(points, start=-1):
                cell = frame[(frame["prompt"] == prompt) & (frame["layer"] == layer)]
                assert list(cell["position"]) == list(range(ids.shape[1]))
                logits = lens.read_out(seen[point][0])
                own = logits[:, TOKENS].max(dim=1, keepdim=True).values
                expected = {
                    "p": logits.softmax(-1)[:, TOKENS].sum(1),
                    "cosine": torch.cosine_similarity(seen[point][0], vector, dim=-1),
                }
                for name, values in expected.items():
                    np.testing.assert_allclose(cell[f"{name}_{when}"], values, atol=2e-6)
                np.testing.assert_array_equal(cell[f"rank_{when}"], (logits > own).sum(dim=1) + 1)
    difference = frame["p_after"] - frame["p_before"]
    np.testing.assert_array_equal(frame["difference"], difference)
    assert (frame.loc[frame["layer"] < 1, "difference"] == 0).all()
    assert (frame.loc[frame["layer"] == 2, "difference"].abs() > 1e-6).any()


def test_reading_in_slices_of_the_vocabulary_changes_nothing(lens, monkeypatch):
    rows = torch.randn(50, lens.d_model)
    whole = readings.read_tokens(lens, rows, TOKENS)
    each = readings.read_tokens(lens, rows, TOKENS, each=True)
    monkeypatch.setattr(readings, "_ROWS", 7)
    monkeypatch.setattr(readings, "_LOGITS", 1)
    monkeypatch.setattr(readings, "_NARROWEST", 5)
    torch.testing.assert_close(readings.read_tokens(lens, rows, TOKENS), whole)
    torch.testing.assert_close(each.probability.sum(dim=1), whole.probability)
    assert torch.equal(each.rank.min(dim=1).values, whole.rank)


def test_without_a_patch_or_vector_the_columns_are_empty(lens):
    frame = propagation(lens, TEXTS[0], TOKENS).to_frame()
    empty = ["p_after", "difference", "rank_after", "cosine_before", "cosine_after"]
    assert frame[empty].isna().all(axis=None)
    assert frame["p_before"].notna().all()


@pytest.mark.parametrize(
    ("before", "after", "rank", "first", "stopped"),
    [
        ([0, 0.01, 0.5, 0.9], [0, 0.01, 0.1, 0.0], [9, 5, 1, 1], 1, 1),
        ([0, 0.01, 0.5, 0.9], [0, 0.01, 0.4, 0.0], [9, 5, 2, 1], 2, 2),
        ([0, 0.01, 0.5, 0.9], [0, 0.01, 0.0, 0.5], [9, 5, 1, 1], 1, None),  # it comes back
        ([0, 0.06, 0.5, 0.9], [0, 0.045, 0.1, 0.0], [9, 5, 1, 1], 1, 0),
        ([0, 0.01, 0.02, 0.03], [0, 0, 0, 0], [9, 5, 4, 3], None, None),  # it never was there
    ],
)
def test_where_the_concept_is_first_and_where_it_stops(before, after, rank, first, stopped):
    from tars_lens.attribution.flow import Propagation

    last = pd.DataFrame({"layer": range(-1, 3), "p_before": before, "p_after": after})
    last = last.assign(prompt=0, text="x", position=1, rank_before=rank)
    earlier = last.assign(position=0, p_before=0.99, rank_before=1)
    row = Propagation(pd.concat([earlier, last]), (1,)).summary().iloc[0]
    assert (row["first_top_layer"] == first) if first is not None else pd.isna(row.iloc[2])
    is_stopped = row["stopped_layer"]
    assert (is_stopped == stopped) if stopped is not None else pd.isna(is_stopped)
    assert (row["largest_before"], row["largest_after"]) == (max(before), max(after))


# --- each edit ---------------------------------------------------------------------------------


def test_edits_alone_and_left_out_equal_patches_of_just_these_rows(lens, monkeypatch):
    monkeypatch.setattr("tars_lens.concept.probability.KNOWN", 0.0)  # no tiny model knows anything
    concept = Concept.parse(CARD)
    patch = _patch(lens)
    found = edit_effects(lens, patch, concept)
    frame = found.to_frame()
    assert found.known["forward"] == 2
    assert set(frame["label"]) == {"L1N3", "L1N9", "L2N5"}
    assert len(frame) == (4 + 3) * 2 * len(found.known)
    base = answer_probabilities(lens, ["w20 w21"], [["w22"]]).probability
    only = random_patch(lens, {(1, "in"): [3], (1, "out"): [3]}, seed=0)
    rows = {
        place: rows._replace(values=rows.values[:1], neurons=rows.neurons[:1])
        for place, rows in patch.new_rows.items()
        if place[0] == 1
    }
    alone = type(patch).build(lens, rows)
    assert {p: r.neurons.tolist() for p, r in alone.edits.items()} == {
        p: r.neurons.tolist() for p, r in only.edits.items()
    }
    with alone.applied(lens):
        p = answer_probabilities(lens, ["w20 w21"], [["w22"]]).probability
    row = frame.query(
        "neuron == 3 and role == 'neuron' and mode == 'alone' and kind == 'neighbour'"
    ).iloc[0]
    assert row["p"] == pytest.approx(float(p), rel=1e-5)
    assert row["effect"] == pytest.approx(float(base - p), abs=1e-8)
    # without neuron 9, and without 5 as well, only those two rows are left
    with patch.applied(lens):
        p_all = answer_probabilities(lens, ["w20 w21"], [["w22"]]).probability
    assert row["p_all"] == pytest.approx(float(p_all), rel=1e-5)
    left = frame.query("label == 'L2N5' and role == 'out' and mode == 'left_out'")
    np.testing.assert_allclose(left["effect"], left["p"] - left["p_all"])
    same_row = frame.query("label == 'L2N5' and role == 'neuron' and mode == 'left_out'")
    np.testing.assert_array_equal(left["p"], same_row["p"])


# --- activations from one run in the other -----------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2", "neox", "opt"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_every_cell_equals_a_whole_run_with_one_hook(arch, site):
    lens = tiny_lens(arch)
    patch = _patch(lens)
    found = causal_trace(lens, TEXTS[0], TOKENS, patch, site=site)
    frame = found.to_frame()
    assert len(frame) == 2 * 3 * 5
    ids = lens.prompts(TEXTS[:1]).ids
    names = {"resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post"}
    hooks = {layer: f"blocks.{layer}.{names.get(site, 'hook_' + site)}" for layer in range(3)}

    def probability(replace=None):
        with torch.no_grad():
            with lens.model.hooks(fwd_hooks=replace or []):
                logits = lens.model(ids)[0, -1].float()
        return float(logits.softmax(-1)[TOKENS].sum())

    def seen():
        points = [Point(site, layer) for layer in range(3)]
        return lens.capture(ids, points)

    runs = {"base": (probability(), seen())}
    with patch.applied(lens):
        runs["edited"] = (probability(), seen())
    assert abs(runs["base"][0] - runs["edited"][0]) > 1e-5
    assert found.p_base == pytest.approx(runs["base"][0], rel=1e-5)
    for direction, source, into in (
        ("base_into_edited", "base", "edited"),
        ("edited_into_base", "edited", "base"),
    ):
        for layer, position in ((0, 2), (1, 1), (1, 4), (2, 0), (2, 4)):
            value = runs[source][1][Point(site, layer)][0, position]

            def put(stream, hook, position=position, value=value):
                stream = stream.clone()
                stream.view(1, 5, -1)[0, position] = value
                return stream

            if into == "edited":
                with patch.applied(lens):
                    p = probability([(hooks[layer], put)])
            else:
                p = probability([(hooks[layer], put)])
            cell = frame.query(
                f"direction == {direction!r} and layer == @layer and position == @position"
            ).iloc[0]
            assert cell["p"] == pytest.approx(p, rel=2e-5)
            own, other = runs[into][0], runs[source][0]
            assert cell["restored"] == pytest.approx((p - own) / (other - own), abs=5e-3)


def test_the_last_stream_at_the_last_token_brings_all_of_it_back(lens):
    frame = causal_trace(lens, TEXTS[0], TOKENS, _patch(lens), layers=[-1]).to_frame()
    assert set(frame["layer"]) == {2}
    last = frame[frame["position"] == 4]
    np.testing.assert_allclose(last["restored"], 1, atol=1e-6)
    np.testing.assert_array_equal(frame.loc[frame["position"] < 4, "restored"], 0)


# --- the name ----------------------------------------------------------------------------------


def test_enrichment_reads_the_stream_at_the_name(lens):
    concept = Concept.parse(CARD)
    patch = _patch(lens)
    found = enrichment(lens, concept, ["w8", "w10"], patch=patch, names=["w5", "w6"])
    frame = found.to_frame()
    assert len(frame) == 2 * 2 * 4
    from tars_lens.method.name import FRAMES

    batch = lens.prompts([text.format("w6") for text in FRAMES])
    with patch.applied(lens):
        stream = lens.residual(batch.ids, 1, positions=batch.last)
    logits = lens.read_out(stream)
    token = lens.pieces("w10")[0]
    cell = frame.query("name == 'w6' and attribute == 'w10' and layer == 1").iloc[0]
    assert cell["p_after"] == pytest.approx(float(logits.softmax(-1)[:, token].mean()), rel=1e-5)
    ranks = (logits > logits[:, [token]]).sum(dim=1) + 1
    assert cell["rank_after"] == ranks.median()
    assert cell["p_after"] != cell["p_before"]
    default = enrichment(lens, concept).to_frame()
    assert list(default["attribute"].unique()) == ["w8", "w10"]
    assert default["p_after"].isna().all()


# --- what can go wrong -------------------------------------------------------------------------

ANALYSES = {
    "propagation": lambda lens, text, patch: propagation(lens, text, TOKENS, patch=patch),
    "direct": lambda lens, text, patch: direct_attribution(lens, text, TOKENS, patch=patch),
    "trace": lambda lens, text, patch: causal_trace(lens, text, TOKENS, patch),
}
each_analysis = pytest.mark.parametrize("analyse", ANALYSES.values(), ids=ANALYSES)


@each_analysis
def test_the_model_is_left_as_it_was(analyse, lens):
    before = snapshot(lens)
    analyse(lens, TEXTS[0], _patch(lens))
    assert same(snapshot(lens), before)
    assert applied_patches(lens) == ()


@each_analysis
def test_an_empty_prompt_is_refused(analyse, lens):
    with pytest.raises(TarsError, match="empty prompt"):
        analyse(lens, " ", _patch(lens))


@each_analysis
def test_a_patch_for_another_model_is_refused(analyse, lens):
    other = tiny_lens("llama")
    other.vectors(2, "out").mul_(1.5)
    with pytest.raises(TarsError, match="made for another base.*layer 2, role 'out' has SHA-256"):
        analyse(lens, TEXTS[0], _patch(other))


@each_analysis
def test_a_patch_that_is_on_the_model_has_no_before(analyse, lens):
    patch = _patch(lens)
    with patch.applied(lens):
        with pytest.raises(TarsError, match="applied already.*revert it first"):
            analyse(lens, TEXTS[0], patch)


@each_analysis
def test_a_prompt_that_leads_nowhere_near_is_refused_with_its_rank(analyse, lens, monkeypatch):
    monkeypatch.setattr(asked, "LOWEST_RANK", 1)
    monkeypatch.setattr(asked, "LEAST", 0.9)
    with pytest.raises(TarsError, match=r"doesn't lead tiny-llama to 'w\d+': it ranks \d+ \(p = "):
        analyse(lens, TEXTS[0], _patch(lens))


def test_other_mistakes_get_one_plain_message(lens):
    patch = _patch(lens)
    with pytest.raises(TarsError, match="no layer 3: tiny-llama has 0 to 2"):
        causal_trace(lens, TEXTS[0], TOKENS, patch, layers=[3])
    with pytest.raises(TarsError, match="no position 7: the prompt has 0 to 4"):
        causal_trace(lens, TEXTS[0], TOKENS, patch, positions=[7])
    with pytest.raises(TarsError, match="no token 64: tiny-llama has 0 to 63"):
        propagation(lens, TEXTS[0], [64])
    with pytest.raises(TarsError, match="no token was given"):
        propagation(lens, TEXTS[0], [])
    with pytest.raises(TarsError, match=r"vector of width 16, got shape \(15,\)"):
        propagation(lens, TEXTS[0], TOKENS, vector=torch.ones(15))
    with pytest.raises(TarsError, match="needs attributes and names"):
        enrichment(lens, Concept.parse(CARD), ["w8", " "])
    with pytest.raises(TarsError, match="knows none of the reported probes of 'W5'"):
        edit_effects(lens, patch, Concept.parse(CARD))
