"""What a run says that it put in, against the plain model's weights and its MLPs' inputs."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import read_checkpoint, read_tokenizer
from tiny_concept import prepared_world, world

from tars_lens.attribution.explaining import explain
from tars_lens.attribution.explaining.used import neurons_table, parts_table
from tars_lens.concept.card import Concept
from tars_lens.method.direction import concept_direction, near_names
from tars_lens.method.name import NameTexts
from tars_lens.method.paper import reverse_literally
from tars_lens.method.settings import Settings
from tars_lens.method.suppression import SuppressionNeuron
from tars_lens.patch.patch import Patch
from tars_lens.text.corpus import load_corpus
from tars_lens.text.plain_text import STRIDE, WINDOWS_AT_ONCE
from tars_lens.text.windows import cut


@pytest.fixture(scope="module")
def made():
    recipe, concept = prepared_world()
    return recipe, concept, recipe.neurons(concept), recipe.patch(concept)


@pytest.fixture(scope="module")
def hf():
    return read_checkpoint(world().model)


def _inputs(hf, layer, ids):
    """The MLP's input, `[texts pos d_model]`, in transformers."""
    seen = []
    hook = hf.model.layers[layer].mlp.register_forward_pre_hook(lambda _m, i: seen.append(i[0]))
    with torch.no_grad():
        hf(ids)
    hook.remove()
    return seen[0]


def _ends(hf, layer, texts):
    tokenizer = read_tokenizer(world().model)
    rows = [torch.tensor([tokenizer(t, add_special_tokens=False).input_ids]) for t in texts]
    return torch.cat([_inputs(hf, layer, ids)[:, -1] for ids in rows])


def _plain(hf, lens, layer):
    ids = cut(lens, load_corpus(str(world().corpus)), reported_tokens=512).statistics
    parts = [_inputs(hf, layer, few)[:, 1:].flatten(0, 1) for few in ids.split(WINDOWS_AT_ONCE)]
    return torch.cat([part[::STRIDE] for part in parts])


def _part(patch, kind):
    return [part for part in patch.method["parts"] if part["kind"] == kind][-1]


def test_a_suppression_neuron_tells_what_it_hears_of_own_near_and_plain_text(made, hf):
    recipe, concept, neurons, patch = made
    part, neuron = _part(patch, "suppression"), neurons[-1]
    assert isinstance(neuron, SuppressionNeuron) and part["layer"] == 2
    w, b = neuron.reader.weight, neuron.reader.offset
    own = _ends(hf, 2, concept.concept_prompts) @ w + b
    near = _ends(hf, 2, [probe.prompt for probe in concept.contrast]) @ w + b
    plain = _plain(hf, recipe.lens, 2)
    assert part["own_prompts"] == pytest.approx(float(own.mean()), abs=1e-3)
    assert part["own_least"] == pytest.approx(float(own.min()), abs=1e-3)
    assert part["near_most"] == pytest.approx(float(near.max()), abs=1e-3)
    assert part["plain_p99"] == pytest.approx(np.percentile(plain @ w + b, 99), abs=1e-3)
    gate = patch.edits[2, "gate"].new[0]
    assert part["speaks"] == pytest.approx(float((plain @ gate > 0).float().mean()), abs=2e-3)
    assert part["near_most"] < part["own_least"] and part["threshold"] < part["own_least"]


def test_the_name_s_neuron_tells_its_score_at_the_name_and_at_near_ones(made, hf):
    recipe, concept, neurons, patch = made
    part, neuron = _part(patch, "name"), neurons[0]
    nearest = concept_direction(recipe.lens, concept, recipe.unembedding).nearest
    near = near_names(recipe.lens, concept, nearest)
    texts = NameTexts.of(recipe.lens, concept, near)
    scores = []
    for group in ([t for form in texts.own for t in form], [*texts.near, *texts.near_bare]):
        y = _ends(hf, part["layer"], group)
        scores.append((y - neuron.reader.mean) @ neuron.reader.weight)
    assert part["own_prompts"] == pytest.approx(float(scores[0].mean()), abs=1e-4)
    assert part["own_least"] == pytest.approx(float(scores[0].min()), abs=1e-4)
    assert part["near_most"] == pytest.approx(float(scores[1].max()), abs=1e-4)
    gate = patch.edits[part["layer"], "gate"].new[0]
    speaks = (_plain(hf, recipe.lens, part["layer"]) @ gate > 0).float().mean()
    assert part["speaks"] == pytest.approx(float(speaks), abs=2e-3)


def test_a_card_without_near_prompts_has_no_figure_of_them(made):
    recipe, concept, _, _ = made
    part = _part(recipe.patch(replace(concept, contrast=())), "suppression")
    assert part["near_most"] is None and part["own_least"] > part["threshold"]


def test_the_reversal_that_is_told_is_the_one_that_a_cap_leaves(made):
    recipe, concept, _, patch = made
    free = _part(patch, "suppression")
    roomy, _ = prepared_world(largest_write=1e6)
    whole = _part(roomy.patch(concept), "suppression")
    assert whole["reversal"] == pytest.approx(Settings().said_reversal)
    small, _ = prepared_world(
        largest_write=free["strength"] / 4 / float(recipe.plain.residual_norm[-1])
    )
    capped = _part(small.patch(concept), "suppression")
    assert capped["strength"] == pytest.approx(free["strength"] / 4, rel=1e-4)
    assert capped["reversal"] < free["reversal"] / 2


def test_every_replaced_vector_says_what_the_plain_weights_do(made, hf):
    recipe, concept, _, patch = made
    table = neurons_table(recipe.lens, [concept], [patch])
    keys = ["layer", "role", "neuron"]
    assert table[keys].equals(patch.to_frame()[keys])
    assert table["cosine"].tolist() == patch.to_frame()["cosine"].tolist()
    kinds = {(p["layer"], p["neurons"][0]): p["kind"] for p in patch.method["parts"]}
    tokenizer, norm = read_tokenizer(world().model), hf.model.norm.weight.detach()
    for row in table.to_dict("records"):
        assert row["concept"] == concept.name and row["kind"] == kinds[row["layer"], row["neuron"]]
        layer, writes = hf.model.layers[row["layer"]], row["role"] == "out"
        does = {"gate": "reads", "in": "reads 1 on all text", "out": "writes"}
        assert row["reads_or_writes"] == does[row["role"]]
        name = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}[row["role"]]
        matrix = getattr(layer.mlp, name).weight.detach()
        old = matrix[:, row["neuron"]] if writes else matrix[row["neuron"]]
        edits = patch.edits[row["layer"], row["role"]]
        new = edits.new[edits.neurons.tolist().index(row["neuron"])]
        gain = 1 if writes else layer.post_attention_layernorm.weight.detach()
        for vector, column in ((new, "new"), (-new, "reversed"), (old, "old")):
            best = (hf.lm_head.weight @ (vector * gain * norm)).topk(5).indices.tolist()
            said = " ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in best)
            assert row[f"{column}_tokens"] == ("" if column == "reversed" and not writes else said)


def test_the_last_neuron_s_reversal_says_the_concept(made):
    recipe, concept, _, patch = made
    table = neurons_table(recipe.lens, [concept], [patch])
    last = table[(table["layer"] == 2) & (table["role"] == "out")].iloc[-1]
    assert last["reversed_tokens"].split()[0] == repr(concept.answer)
    assert repr(concept.answer) not in last["new_tokens"]


def test_the_parts_say_in_words_what_a_neuron_does(made):
    recipe, concept, neurons, patch = made
    table = parts_table([concept], [patch])
    assert len(table) == len(neurons)
    name, last = table.iloc[0], table.iloc[-1]
    assert name["kind"] == "name" and name["unit"] == "score" and "further on" in name["why"]
    part = _part(patch, "suppression")
    assert last["unit"] == "nats" and last["threshold"] == pytest.approx(math.log(5e-4))
    assert last["why"] == (
        f"lowers the concept's logit by {part['reversal']:.1f} times what log p exceeds log 0.0005 "
        "by"
    )
    assert pd.isna(name["plain_p99"]) and last["speaks"] == part["speaks"]
    few = parts_table([concept], [prepared_world(edits=1)[0].patch(concept)])
    assert len(few) == 1 and "only its gate replaced" in few["why"].iloc[0]


def test_a_patch_of_unknown_make_has_vectors_and_no_parts(made):
    recipe, concept, _, patch = made
    plain = Patch.build(recipe.lens, patch.new_rows, concepts=[concept], label="other")
    assert set(neurons_table(recipe.lens, [concept], [plain])["kind"]) == {""}
    assert parts_table([concept], [plain]).empty


def test_targeting_vectors_are_told_of_the_paper_s_patches_as_they_were_made(made):
    recipe, concept, _, patch = made
    settings = Settings(name="paper", edits=3, refine_steps=7, samples=5, seed=4)
    other = Concept.load(world().other)
    first = reverse_literally(recipe.lens, concept, settings)
    with first.applied(recipe.lens):
        second = reverse_literally(recipe.lens, other, settings)
    tables = explain(recipe.lens, [concept, other], [first, second])
    path = tables["trajectory"]
    for card, made_by in ((concept, first), (other, second)):
        told = path.loc[path["concept"] == card.name, "probability"]
        (part,) = made_by.method["parts"]
        assert told.iloc[-1] == pytest.approx(part["targeting_probability"], rel=1e-4)
        assert len(told) <= 8
    null = tables["null"]
    assert set(null["source"]) == {"chance", concept.name, other.name}
    assert not null.duplicated().any() and null["threshold"].nunique() == 1
    assert "parts" not in tables and set(tables["neurons_used"]["kind"]) == {"paper"}
    assert not {"trajectory", "null"} & set(explain(recipe.lens, [concept], [patch]))
