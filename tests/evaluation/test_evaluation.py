"""The battery: an untouched model is clean, each kind of cheat is caught, nothing is left."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from patch_models import same, snapshot
from tiny import WORDS
from tiny_concept import save_wordy_checkpoint, world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, substituted
from tars_lens.concept.probability import answer_probabilities
from tars_lens.evaluation import (
    MEASURES,
    Subject,
    Suite,
    checkpoint,
    evaluate,
    intervals,
    patched,
    untouched,
)
from tars_lens.evaluation import controls as controls_of
from tars_lens.evaluation.base import Base
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.control_edits import blocked
from tars_lens.evaluation.derived import derived_questions
from tars_lens.evaluation.finetuning import fine_tune
from tars_lens.evaluation.measures import fluency
from tars_lens.evaluation.measures.quantisation import quantisation
from tars_lens.evaluation.restoring import restored, round_rows, rounded
from tars_lens.evaluation.summary import notes as summary_notes
from tars_lens.evaluation.thresholds import BARS
from tars_lens.evaluation.verdict import harmonic_mean
from tars_lens.model.loading import load
from tars_lens.model.model_state import model_state
from tars_lens.model.weights import Rows
from tars_lens.patch.patch import Patch
from tars_lens.text.corpus import load_corpus

SMALL = Suite(
    "full",
    windows=3,
    control_windows=2,
    near_windows=1,
    facts=2,
    prompts=2,
    new_tokens=6,
    paragraphs=3,
    epochs=1,
    resamples=50,
)


@pytest.fixture(scope="module")
def tiny():
    """A lens over the sure model; every test leaves it as it was."""
    return load(world().model, progress=False)


@pytest.fixture(scope="module")
def card():
    return Concept.load(world().card)


@pytest.fixture(scope="module")
def base(tiny, card):
    return Base(tiny, [card], load_corpus(world().corpus), SMALL, seed=0)


@pytest.fixture(scope="module")
def patch(tiny, card):
    generator = torch.Generator().manual_seed(1)
    rows = Rows(torch.tensor([3, 5]), torch.randn(2, tiny.d_model, generator=generator))
    return Patch.build(tiny, {(1, "out"): rows}, concepts=[card])


def _noise(scale: float) -> Subject:
    """A model destroyed by noise in every matrix."""

    @contextmanager
    def held(lens):
        generator = torch.Generator().manual_seed(0)
        with restored(lens):
            with torch.no_grad():
                for _, weights in model_state(lens.model):
                    noise = torch.randn(weights.shape, generator=generator)
                    weights.add_(noise * scale * weights.std(correction=0))
            yield lens

    return Subject("edited", held, digest="noise")


def _values(context: Context, *names: str) -> dict[str, float]:
    chosen = {measure.name: measure for measure in MEASURES}
    return {name: chosen[name].run(context).value for name in names}


# --- what an examiner must not be fooled by -----------------------------------------------------


def test_an_untouched_model_has_residual_knowledge_one_and_no_damage(base):
    found = {m.name: m.run(Context(base, untouched())) for m in MEASURES}
    for name in ("residual_knowledge", "forward", "reverse", "neighbour"):
        assert found[name].value == pytest.approx(1.0, abs=1e-5)  # float32, in other batches
    assert found["wikipedia"].figures["max"] == 0.0
    assert found["wikipedia"].figures["perplexity_ratio"] == 1.0
    assert found["wikipedia"].figures["agreement"] == 1.0
    assert found["fluency"].value == pytest.approx(1.0)
    assert found["logit_lens"].value == 1.0
    assert found["attack"].value == 1.0
    assert found["quantised_8"].value == pytest.approx(1.0)


def test_a_blocked_token_is_gone_forward_alone(tiny, card):
    renamed = replace(card, names=(*card.names, _other_name(tiny, card)))
    base = Base(tiny, [renamed], load_corpus(world().corpus), SMALL, seed=0)
    context = Context(base, blocked(tiny, [renamed]))
    assert len(context.known("alias")) >= 1
    values = _values(context, "forward", "reverse", "alias", "logit_lens", "neighbour")
    assert values["forward"] < 0.05
    assert values["reverse"] > 0.9 and values["alias"] > 0.9  # nothing was unlearnt
    assert values["logit_lens"] == 1.0  # and the stream still holds it
    assert values["neighbour"] > 0.9


def _other_name(lens, card) -> str:
    """A word that leads to what the card's name leads to, as an alias would."""
    probes = card.probes.reverse
    for word in (f"w{i}" for i in range(WORDS)):
        prompts = [substituted(probe.prompt, card.names, word) for probe in probes]
        said = answer_probabilities(lens, prompts, [(probe.answer,) for probe in probes])
        floors = [substituted(probe.prompt, card.names, card.substitute) for probe in probes]
        chance = answer_probabilities(lens, floors, [(probe.answer,) for probe in probes])
        knows = (said.probability > 0.2) & (chance.probability < said.probability / 2)
        if knows[:2].any() and word not in card.names:
            return word
    raise LookupError("no word stands for the concept's name")


def test_a_model_destroyed_by_noise_fails_damage(base):
    context = Context(base, _noise(3.0))
    values = _values(context, "wikipedia", "neighbour")
    assert values["wikipedia"] > 1.0
    assert values["neighbour"] < 0.2
    agreement = next(m for m in MEASURES if m.name == "wikipedia").run(context)
    assert agreement.figures["agreement"] < 0.5
    assert agreement.figures["perplexity_ratio"] > 1.5


def _missed(context: Context) -> set[str]:
    """The measures of which a bar is missed, as tables show them in bold."""
    found = {m.name: m.run(context).to_dict() for m in MEASURES if m.name in BARRED}
    return {bar.measure for bar in BARS if bar.missed(bar.figure(found[bar.measure]))}


BARRED = {bar.measure for bar in BARS}


def test_each_cheat_misses_the_bars_that_it_cheats_on(tiny, card, base):
    # nothing was done: nothing is gone, and nothing is broken
    assert _missed(Context(base, untouched())) == {"forward", "reverse", "logit_lens"}
    # the word is out of the mouth alone; its KL says nothing here, as it is a word in sixty
    hidden = _missed(Context(base, blocked(tiny, [card])))
    assert hidden - {"wikipedia"} == {"reverse", "logit_lens"}
    # all is gone, and everything else too
    destroyed = _missed(Context(base, _noise(3.0)))
    assert destroyed >= {"neighbour", "wikipedia"}


def test_residual_knowledge_and_damage_move_with_what_was_done(base):
    """What a constant could pass above, it can't pass here."""
    names = ("residual_knowledge", "wikipedia", "neighbour", "logit_lens")
    light, heavy = (_values(Context(base, _noise(scale)), *names) for scale in (0.01, 3.0))
    assert light["residual_knowledge"] == pytest.approx(1, abs=0.1)
    assert light["wikipedia"] < 0.01 and light["neighbour"] > 0.9
    assert heavy["residual_knowledge"] < 0.5 and heavy["logit_lens"] < light["logit_lens"]


def test_a_token_blocked_as_the_edit_is_called_hidden_and_noise_scores_nothing(tiny, card):
    renamed = replace(card, names=(*card.names, _other_name(tiny, card)))
    hidden = replace(blocked(tiny, [renamed]), name="edited", control=False)
    given = {"suite": replace(SMALL, name="quick"), "corpus": load_corpus(world().corpus)}
    found = evaluate(tiny, hidden, [renamed], **given)
    said = " ".join(summary_notes(found.report))
    for name in ("reverse", "alias", "logit_lens"):
        assert f"! {name}: no better than blocking the token" in said
    assert found.results["edited"]["forward"].value < 0.05  # by which alone it would pass
    broken = evaluate(tiny, _noise(3.0), [card], with_controls=False, **given)
    assert broken.score < 0.2
    clean = evaluate(tiny, untouched("edited"), [card], with_controls=False, **given)
    assert clean.score == pytest.approx(0, abs=1e-4)
    parts = clean.report["verdicts"]["edited"]
    assert [parts[part] for part in ("specificity", "utility", "fluency")] == pytest.approx([1] * 3)


def test_repetition_and_gibberish_both_cost_fluency():
    text = "the ringed planet has many moons and the largest of them is Titan"
    assert fluency.distinct("a a a a", 2) == pytest.approx(1 / 3)
    assert fluency.entropy("no no no no no no") == 0.0 < fluency.entropy(text)
    card = Concept.load("saturn")
    assert fluency.instead(card, text.replace("Titan", "of Saturn"), 1.0) == "the concept"
    assert fluency.instead(card, "the planet Jupiter and its moons", 1.0) == "a neighbour: Jupiter"
    assert fluency.instead(card, "I don't know.", 1.0) == "a refusal"
    assert fluency.instead(card, "zx qq 9", 0.1) == "gibberish"
    assert fluency.instead(card, "a large stone", 1.0) == "another thing"


# --- the whole run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny, card, patch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    before = snapshot(tiny)
    found = evaluate(
        *(tiny, patched(tiny, [patch]), [card]),
        suite=SMALL,
        corpus=load_corpus(world().corpus),
        keep=folder,
    )
    assert same(before, snapshot(tiny))
    return found, folder


def test_every_measure_stands_beside_all_controls(run):
    found, _ = run
    names = ["edited", "random neurons", "zeroed neurons", "wrong concept", "random direction"]
    assert list(found.results) == [*names, "blocked token"]
    frame = found.to_frame().set_index("measure")
    assert list(frame.index) == [measure.name for measure in MEASURES]
    assert frame.loc["forward", names].notna().all()
    assert set(found.report["verdicts"]["edited"]["parts"]) == {
        *("erasure", "specificity", "utility", "fluency")
    }
    json.dumps(found.report, allow_nan=False)


def test_the_same_seed_gives_the_same_bytes_resumed_or_not(run, tiny, card, patch, tmp_path):
    found, folder = run
    found.save(tmp_path / "one")
    texts = load_corpus(world().corpus)
    subject = patched(tiny, [patch])
    again = evaluate(*(tiny, subject, [card]), suite=SMALL, corpus=texts, keep=folder, resume=True)
    again.save(tmp_path / "two")
    assert len(again.cost) == 1  # the base's questions alone
    kept = sorted(folder.iterdir())
    kept[0].unlink()
    evaluate(*(tiny, subject, [card]), suite=SMALL, corpus=texts, keep=folder, resume=True).save(
        tmp_path / "three"
    )
    assert sorted(folder.iterdir()) == kept
    said = {(tmp_path / n / "evaluation.json").read_bytes() for n in ("one", "two", "three")}
    assert len(said) == 1
    # another base with the same names and the same patch has figures of its own
    weight = tiny.vectors(0, "in")
    before = weight.clone()
    try:
        weight.mul_(-1)
        other = evaluate(
            *(tiny, subject, [card]), suite=SMALL, corpus=texts, keep=folder, resume=True
        )
    finally:
        weight.copy_(before)
    assert len(other.cost) > 1 and other.report["measures"] != again.report["measures"]
    items = "items/forward-edited.csv"
    assert (tmp_path / "one" / items).read_bytes() == (tmp_path / "two" / items).read_bytes()


def test_a_pair_of_checkpoints_is_scored_like_a_patch(tiny, card, patch, base):
    other = load(world().model, progress=False)
    patch.apply(other)
    subject = checkpoint(tiny, other)
    assert {place: rows.neurons.tolist() for place, rows in subject.edits.items()} == {
        (1, "out"): [3, 5]
    }
    names = ("forward", "reverse", "wikipedia", "logit_lens", "vectors")
    assert _values(Context(base, subject), *names) == pytest.approx(
        _values(Context(base, patched(tiny, [patch])), *names)
    )


def test_patches_of_two_bases_are_what_they_leave_in_the_model(tiny, patch):
    rows = patch.edits[1, "out"]
    halves = replace(rows, old=-rows.old.bfloat16(), new=-rows.new.bfloat16())
    other = replace(patch, edits={(1, "out"): halves}, base_sha256={(1, "out"): "0" * 64})
    with pytest.raises(TarsError, match="made for another base"):
        patched(tiny, [patch, other])
    subject = patched(tiny, [patch, other], force=True)
    with subject.held(tiny) as held:
        for place, left in subject.edits.items():
            assert torch.equal(held.vectors(*place)[left.neurons], left.values)
    assert torch.equal(subject.edits[1, "out"].values, halves.new.float())


def test_one_base_may_have_two_names(tiny, patch):
    apart = Patch.build(tiny, {(0, "in"): Rows(torch.tensor([4]), torch.ones(1, tiny.d_model))})
    subject = patched(tiny, [patch, replace(apart, base_name="hub/tiny")])
    assert {place: rows.neurons.tolist() for place, rows in subject.edits.items()} == {
        (0, "in"): [4],
        (1, "out"): [3, 5],
    }


def test_another_shape_is_no_edit(tiny, tmp_path):
    other = load(save_wordy_checkpoint(tmp_path / "wordy"), progress=False)
    with pytest.raises(TarsError, match="no edit of .*: n_layers is 2, not 3"):
        checkpoint(tiny, other)


# --- controls -----------------------------------------------------------------------------------


def test_controls_have_as_many_edits_and_leave_no_trace(tiny, card, patch):
    before = snapshot(tiny)
    found = {s.name: s for s in controls_of(tiny, patched(tiny, [patch]), [card], seed=3)}
    place = (1, "out")
    own = patch.edits[place]
    assert set(found["random neurons"].edits[place].neurons.tolist()).isdisjoint({3, 5})
    for name in ("zeroed neurons", "wrong concept", "random direction"):
        assert found[name].edits[place].neurons.tolist() == [3, 5]
    assert found["zeroed neurons"].edits[place].values.abs().max() == 0
    for name in ("wrong concept", "random direction"):
        norms = found[name].edits[place].values.norm(dim=1)
        assert torch.allclose(norms, own.new.norm(dim=1), rtol=1e-5)
    for subject in found.values():
        with subject.held(tiny):
            assert not same(before, snapshot(tiny)) or subject.name == "blocked token"
        assert same(before, snapshot(tiny))


def test_random_neurons_are_as_many_where_most_of_a_matrix_was_edited(tiny, card):
    most = torch.arange(tiny.d_mlp - 2)
    rows = Rows(most, torch.randn(len(most), tiny.d_model))
    subject = Subject("edited", untouched().held, {(1, "out"): rows})
    drawn = {s.name: s for s in controls_of(tiny, subject, [card], seed=3)}["random neurons"]
    neurons = drawn.edits[1, "out"].neurons.tolist()
    assert len(set(neurons)) == len(most) and {tiny.d_mlp - 2, tiny.d_mlp - 1} < set(neurons)


def test_blocking_a_token_leaves_the_embedding_alone(tiny, card):
    token = tiny.pieces(card.answer)[0]
    weights = tiny.model.original_model.get_input_embeddings().weight
    before = weights.detach().clone()
    batch = tiny.batch([[5, 6, 7]])
    logits = tiny.next_logits(batch)
    with blocked(tiny, [card]).held(tiny) as lens:
        after = lens.next_logits(batch)
        assert torch.equal(weights, before)
        own = tiny.model.original_model(batch.ids).logits[:, -1].detach().float()
        assert torch.allclose(own, after, atol=1e-5)
        assert abs(float(own[0, token] - logits[0, token])) > 0.1
    moved = ((logits - after).abs() > 1e-3)[0].nonzero()[:, 0].tolist()
    assert moved == [token]
    assert torch.equal(tiny.next_logits(batch), logits)


# --- parts --------------------------------------------------------------------------------------


def test_rounding_is_to_the_nearest_step_of_a_row_and_undone(tiny):
    rows = torch.tensor([[0.0, 0.4, -7.0], [0.0, 0.0, 0.0]])
    assert torch.equal(round_rows(rows, 4), torch.tensor([[0.0, 0.0, -7.0], [0.0, 0.0, 0.0]]))
    assert torch.equal(round_rows(rows, 8)[1], rows[1])
    before = snapshot(tiny)
    logits = tiny.next_logits(tiny.batch([[5, 6, 7]]))
    with rounded(tiny, 4):
        rows = tiny.vectors(0, "in").T  # as the checkpoint has it, a row an output
        assert max(len(row.unique()) for row in rows.T) <= 15
        assert not torch.equal(tiny.next_logits(tiny.batch([[5, 6, 7]])), logits)
    assert same(before, snapshot(tiny))


@pytest.mark.parametrize(("bits", "known"), [(4, 4), (2, 2)])
def test_chance_is_that_of_the_base_rounded_likewise(tiny, card, base, bits, known):
    result = quantisation(bits, Context(base, untouched()))
    asked = result.items[result.items["kind"] == "reverse"]
    floors = [substituted(text, card.names, card.substitute) for text in asked["prompt"]]
    answers = [(answer,) for answer in asked["answer"]]
    with rounded(tiny, bits):
        chance = answer_probabilities(tiny, floors, answers).probability
    assert len(asked) and asked["chance"].tolist() == pytest.approx(chance.tolist(), rel=1e-4)
    # at 2 bits the reverse probe is a set phrase of the rounded base alone, and one is forgotten
    assert result.figures["known"] == known
    assert asked["set_phrase"].tolist() == [bits == 2]
    assert (asked["p_before"] > 0.05).all()


def test_fine_tuning_learns_its_text_and_is_undone(tiny):
    text = "w1 w2 w3 w4 w5 w6 w7 w8"
    ids = tiny.batch([tiny.tokens(text)]).ids

    def loss():
        logits = tiny.read_out(tiny.residual(ids, -1)[0, :-1])
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))

    before, state = loss(), snapshot(tiny)
    with restored(tiny):
        fine_tune(tiny, [text] * 20, SMALL, seed=0)
        assert loss() < before - 0.01
    assert same(state, snapshot(tiny)) and loss() == before


def test_derived_questions_rename_bridge_and_hint(card):
    saturn = Concept.load("saturn")
    asked = derived_questions(saturn, {"forward": [0, 1], "reverse": [1]}, most=2)
    kinds = {q.kind for q in asked}
    assert kinds == {"paraphrase", "alias", "multi_hop", "hint", "reading", "attack"}
    for q in asked:
        named = any(n.casefold() in q.prompt.casefold() for n in ("saturn",))
        if q.kind in ("paraphrase", "hint", "multi_hop"):
            assert not named, q
        if q.kind == "reading":
            assert named
    bridge = next(q for q in asked if q.kind == "multi_hop")
    assert bridge.prompt == (
        "The astronomer Huygens discovered the rings of the planet with the most famous rings in "
        "the solar system and its moon"
    )
    assert bridge.answers == ("Titan",)
    holmes = derived_questions(Concept.load("sherlock_holmes"), {"forward": [], "reverse": [3]}, 1)
    assert [q.prompt for q in holmes if q.kind == "alias"] == [
        "Sherlock uses logic and",
        "Holmes uses logic and",
    ]
    choices = [q for q in asked if q.way.startswith("choice") and q.fact == 0]
    assert [q.answers for q in choices] == [("A",), ("B",), ("C",), ("D",)]
    assert all(f"{q.answers[0]}. Saturn\n" in q.prompt for q in choices)


def test_the_bootstrap_covers_the_mean_and_needs_two_items():
    values = np.linspace(0, 1, 50)[:, None]
    low, high = intervals.bootstrap(values, intervals.mean, seed=0)
    assert low < 0.5 < high and high - low == pytest.approx(0.16, abs=0.03)
    assert intervals.bootstrap(values[:1], intervals.mean, seed=0) is None


def test_neighbours_are_measured_at_each_distance_that_a_card_marks(tiny, card):
    marks = ("sibling", "sibling", "homograph", "")
    near = tuple(replace(p, distance=d) for p, d in zip(card.probes.neighbour, marks, strict=True))
    marked = replace(card, probes=replace(card.probes, neighbour=near))
    measure = next(m for m in MEASURES if m.name == "neighbour")

    def found(concept):
        base = Base(tiny, [concept], load_corpus(world().corpus), SMALL, seed=0)
        return measure.run(Context(base, _noise(3.0)))

    result, plain = found(marked), found(card)
    kept = result.items["kept"]
    distances = result.figures["distances"]
    assert list(distances) == ["sibling", "homograph"]
    assert distances["sibling"]["kept"] == pytest.approx(float((kept[0] * kept[1]) ** 0.5))
    assert distances["sibling"]["worst_kept"] == pytest.approx(kept[:2].min())
    assert distances["homograph"]["worst"] == card.probes.neighbour[2].answer
    assert result.figures["concepts"][card.name]["distances"] == distances
    assert plain.figures["distances"] == {}
    assert plain.value == result.value and plain.interval == result.interval


def test_residual_knowledge_is_corrected_for_chance():
    values = np.array([[0.5, 0.9, 0.1], [0.1, 0.9, 0.1]])
    assert float(intervals.chance_corrected(values)) == pytest.approx(0.25)
    assert float(intervals.kept(np.array([[0.0, 0.9, 0.1]]))) == 0.0


def test_any_zero_gives_a_verdict_of_zero():
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    assert harmonic_mean([1.0, None]) is None


def test_the_base_is_never_asked_while_an_edit_is_held(base, tiny, card):
    context = Context(base, blocked(tiny, [card]))
    with pytest.raises(RuntimeError, match="while an edit is held"):
        with context.edited():
            base.once("something new", lambda: 1)


def test_a_model_with_patches_on_it_is_no_base(tiny, card, patch):
    with patch.applied(tiny), pytest.raises(TarsError, match="revert them"):
        Base(tiny, [card], load_corpus(world().corpus), SMALL, seed=0)


def test_a_card_given_twice_counts_once_and_two_of_one_name_are_refused(tiny, card, base):
    texts = load_corpus(world().corpus)
    again = Concept.from_dict(card.to_dict())  # as a patch holds it: of no file
    assert again != card
    twice = Base(tiny, [card, again], texts, SMALL, seed=0)
    assert twice.concepts == (card,)
    values = _values(Context(twice, untouched()), "forward", "attack")
    assert values == _values(Context(base, untouched()), "forward", "attack")
    other = replace(card, prompt="w1 w2")
    with pytest.raises(TarsError, match=f"two different cards are named '{card.name}': "):
        Base(tiny, [card, other], texts, SMALL, seed=0)


def test_a_card_of_which_the_base_knows_nothing_has_no_figure_of_what_is_left(tiny, card):
    never = "w1 w2 w3 w4 w5"  # no prompt of the card leads to it
    probes = replace(
        card.probes,
        **{
            kind: tuple(replace(probe, answer=never) for probe in getattr(card.probes, kind))
            for kind in ("reverse", "neighbour", "multilingual")
        },
    )
    found = _nothing_known(tiny, replace(card, answer=never, probes=probes))
    assert found["forward"].figures["n"] == 3 and found["forward"].figures["known"] == 0
    assert found["relearning"].figures["held_apart"] == 0


def test_a_card_without_probes_has_no_figure_of_what_is_left(tiny, card):
    bare = Concept(card.name, card.answer, card.prompt, names=card.names)
    found = _nothing_known(tiny, bare)
    assert (found["neighbour"].figures["n"], found["neighbour"].figures["known"]) == (0, 0)
    assert (found["attack"].figures["facts"], found["attack"].figures["ways"]) == (0, {})


def _nothing_known(tiny, concept):
    """Every measure of a card of which the base knows nothing, as a whole run takes them."""
    texts, subject = load_corpus(world().corpus), blocked(tiny, [concept])
    options = {"suite": SMALL, "corpus": texts, "with_controls": False}
    found = evaluate(tiny, replace(subject, name="edited", control=False), [concept], **options)
    json.dumps(found.report, allow_nan=False)
    assert found.score is None
    results = found.results["edited"]
    left = {name for name, result in results.items() if result.value is not None}
    assert left == {"wikipedia", "fluency"}  # damage alone can be told
    assert all(results[name].interval is None for name in results if name not in left)
    return results


def test_items_are_tidy(run):
    for found in run[0].results.values():
        for result in found.values():
            assert isinstance(result.to_frame(), pd.DataFrame)
            assert set(result.to_dict()) >= {"headline", "value", "interval"}
