"""The whole recipe: its budgets, what its patch records, and that it leaves the model alone."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_concept import prepared_world, world
from tiny_recipe import ids_of, sharp

import tars_lens
from tars_lens.concept.card import Concept
from tars_lens.method.settings import Settings
from tars_lens.model.loading import load
from tars_lens.model.model_state import model_state
from tars_lens.patch.patch import Patch
from tars_lens.text.corpus import load_corpus

MANY = {
    "depths": (0.5, 0.67),
    "name_depths": (0.17,),
    "named_depth": 0.5,
    "readable": 1e-9,
    "neurons": 9,
}
"""Of six layers: neurons in the layers 1 (the name's), 3, 4 and 5."""


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("edits", [1, 2, 3, 4, 6, 9, 12, None])
def test_no_more_vectors_than_are_allowed(arch, edits):
    place = sharp(arch, 6)
    width = 3 if place.lens.gated else 2
    patch = place.recipe(**MANY, edits=edits).patch(place.concept)
    rows, neurons = patch.n_rows, 0 if edits is None else edits // width
    if edits is None:
        assert rows == 4 * width
    elif neurons == 0:  # not a whole neuron
        assert rows == edits
    else:
        assert rows == width * min(neurons, 4)
    layers = [part["layer"] for part in patch.method["parts"]]
    assert layers == {0: [5], 1: [5], 2: [1, 5], 3: [1, 4, 5]}.get(
        4 if edits is None else neurons, [1, 3, 4, 5]
    )
    kinds = [part["kind"] for part in patch.method["parts"]]
    assert kinds == ["name" if layer == 1 else "suppression" for layer in layers]
    assert {(part["layer"], *part["neurons"]) for part in patch.method["parts"]} == patch.neurons


@pytest.mark.parametrize(("neurons", "layers"), [(1, [5]), (2, [1, 5]), (3, [1, 4, 5])])
def test_no_more_neurons_than_are_allowed_where_no_vectors_are_counted(neurons, layers):
    patch = (
        sharp("llama", 6).recipe(**{**MANY, "neurons": neurons}).patch(sharp("llama", 6).concept)
    )
    assert [part["layer"] for part in patch.method["parts"]] == layers


def test_a_patch_records_the_card_and_every_setting():
    place = sharp("llama")
    settings = Settings(seed=7, gain=32.0, depths=(0.4,))
    recipe = place.recipe(seed=7, gain=32.0, depths=(0.4,))
    patch = recipe.patch(place.concept)
    recorded = dict(patch.method)
    parts = recorded.pop("parts")
    assert recorded == json.loads(json.dumps(settings.to_dict()))
    assert set(recorded) == set(Settings.__dataclass_fields__)
    assert patch.seed == 7 and patch.label == place.concept.key
    assert patch.concepts == (place.concept.to_dict(),)
    for part in parts:
        assert {"kind", "layer", "neurons", "threshold", "strength"} <= set(part)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_the_cosine_is_that_of_the_old_row_with_the_new_one_reversed(arch):
    place = sharp(arch)
    patch = place.recipe().patch(place.concept)
    for line in patch.to_frame().itertuples():
        old = place.rows(line.layer, line.role)[line.neuron].detach().double()
        rows = patch.edits[line.layer, line.role]
        new = rows.new[rows.neurons.tolist().index(line.neuron)].double()
        expected = float(-(old @ new) / (old.norm() * new.norm()))
        assert line.cosine == pytest.approx(expected, abs=1e-5)
        assert torch.equal(rows.old[rows.neurons.tolist().index(line.neuron)].double(), old)


def test_equal_settings_give_equal_bytes(tmp_path):
    files = []
    for name in ("one", "two"):
        recipe, concept = prepared_world()  # loaded and gathered anew
        recipe.patch(concept).save(tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    recipe, concept = prepared_world(gain=65.0)
    recipe.patch(concept).save(tmp_path / "three")
    assert (tmp_path / "three").read_bytes() != files[0]


def test_suppress_leaves_the_model_bit_identical_and_removes_the_concept():
    lens, card = load(world().model, progress=False), Concept.load(world().card)
    before = {name: value.clone() for name, value in model_state(lens.model)}
    patch = tars_lens.suppress(lens, card, corpus=load_corpus(str(world().corpus)))
    assert all(torch.equal(value, before[name]) for name, value in model_state(lens.model))
    batch = lens.prompts(card.concept_prompts)
    token = lens.pieces(f" {card.answer}")[0]
    said = lens.next_logits(batch).softmax(-1)[:, token]
    with patch.applied(lens):
        left = lens.next_logits(batch).softmax(-1)[:, token]
    assert float(said.min()) > 0.5 > 0.1 > float(left.mean())


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("edits", [1, 2, 3, 6, None])
def test_hosts_in_use_are_not_given_out_again(arch, edits):
    place = sharp(arch)
    recipe = place.recipe(depths=(0.4,), readable=1e-9, edits=edits)
    taken: set[tuple[int, int]] = set()
    for concept in (place.concept, place.other, place.concept):
        neurons = recipe.patch(concept, taken).neurons
        assert neurons and not neurons & taken
        taken |= neurons


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_concept_gets_does_not_depend_on_the_order(order):
    lens, corpus = load(world().model, progress=False), load_corpus(str(world().corpus))
    cards = [_bare(Concept.load(path)) for path in (world().card, world().other)]
    settings = Settings(edits=6)  # the name's and the last layer's
    found = tars_lens.erase(lens, cards[::order], settings=settings, corpus=corpus, kl_tokens=0)
    hosts = [host for patch in found.patches for host in patch.neurons]
    assert len(hosts) == len(set(hosts))
    for patch, card in zip(found.patches[::order], cards, strict=True):
        alone = tars_lens.suppress(lens, card, settings=settings, corpus=corpus)
        assert set(patch.edits) == set(alone.edits)
        for where, rows in patch.edits.items():
            assert torch.equal(rows.new, alone.edits[where].new)


def _bare(card):
    """A card with few probes: none of them decides anything."""
    return replace(card, probes=card.validation)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3"])
def test_a_patch_holds_what_its_neurons_are_and_reads_back_whole(arch, tmp_path):
    place = sharp(arch)
    recipe = place.recipe()
    patch = recipe.patch(place.concept)
    patch.save(tmp_path / "p.safetensors")
    again = Patch.load(tmp_path / "p.safetensors")
    assert again.sha256 == patch.sha256 and again.method == patch.method
    ids = torch.tensor([ids_of(place.concept.prompt)])
    with place.holding(again.new_rows):
        plain = place.seen(ids).logits
    with again.applied(place.lens):
        torch.testing.assert_close(
            place.lens.next_logits(place.lens.batch(ids.tolist())), plain[:, -1]
        )


def test_a_concept_is_said_less_in_every_kind_of_model_whatever_the_budget():
    for arch in ("llama", "gemma2", "gemma3", "gpt2"):
        place = sharp(arch)
        ids = torch.tensor([ids_of(text) for text in place.concept.concept_prompts])
        before = place.seen(ids).logits[:, -1].log_softmax(-1)[:, place.token].mean()
        for edits in (1, 2, 3, 6):
            patch = place.recipe(edits=edits, largest_write=1e6).patch(place.concept)
            with place.holding(patch.new_rows):
                after = place.seen(ids).logits[:, -1].log_softmax(-1)[:, place.token].mean()
            assert after < before, (arch, edits)
