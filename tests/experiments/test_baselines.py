"""Each baseline against the property that defines it, on tiny models, and all of them undone."""

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from commands import mistake
from patch_models import same, snapshot
from tiny import tiny_lens
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept, Probe
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.suites import Suite
from tars_lens.experiments.baselines.closed_form import (
    LEACE_WINDOWS,
    direction,
    edited_at,
    forward_asked,
    leace,
    projected_out,
    reverse_asked,
    second_moment,
    with_value,
)
from tars_lens.experiments.baselines.comparing import compare
from tars_lens.experiments.baselines.edits import EXTRAS, gentlest, of_all, recorded, together
from tars_lens.experiments.baselines.facts import (
    Facts,
    forward_prompts,
    left,
    other_prompts,
    own_facts,
)
from tars_lens.experiments.baselines.registry import BASELINES, baselines_called
from tars_lens.experiments.baselines.trained import _Reverse, control, npo_loss, rmu, train
from tars_lens.model.lens import Point
from tars_lens.model.loading import load
from tars_lens.model.parameters import stream_after
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import cut

MISSING = {name for name, (module, _) in EXTRAS.items() if not importlib.util.find_spec(module)}
SMALL = Suite(
    "full",
    windows=2,
    control_windows=2,
    near_windows=1,
    facts=1,
    prompts=1,
    new_tokens=4,
    paragraphs=2,
    epochs=1,
    resamples=20,
)
needs_leace = pytest.mark.skipif("leace" in MISSING, reason="its package is an extra")


@pytest.fixture(scope="module")
def tiny():
    """A lens over the sure model; every test leaves it as it was."""
    return load(world().model, progress=False)


@pytest.fixture(scope="module")
def card():
    return Concept.load(world().card)


@pytest.fixture(scope="module")
def windows(tiny):
    return cut(tiny, load_corpus(world().corpus), reported_tokens=256)


def _changed(lens, edit) -> set[str]:
    """The names of the tensors that an edit changes."""
    before = snapshot(lens)
    with edit(lens):
        after = snapshot(lens)
    assert same(before, snapshot(lens))
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_works_on_the_concept_and_is_undone_bit_by_bit(name, tiny, card, windows):
    if name in MISSING:
        pytest.skip("its package is an extra")
    before, p = snapshot(tiny), left(tiny, card)
    wanted = [weight.requires_grad for weight in tiny.model.parameters()]
    logits = tiny.next_logits(tiny.batch([[5, 6, 7]]))
    edit = BASELINES[name](tiny, card, windows, 0)
    assert same(before, snapshot(tiny))
    with edit(tiny) as lens:
        # RMU's steps are small beside a random model's weights: what it does to the stream is
        # tested below
        aside = name == "rmu" and left(lens, card) != p
        assert left(lens, card) < p or aside
    for _ in range(2):  # an edit can be held again, and says the same
        with edit(tiny):
            held = tiny.next_logits(tiny.batch([[5, 6, 7]]))
    again = BASELINES[name](tiny, card, windows, 0)
    with again(tiny):
        assert torch.equal(held, tiny.next_logits(tiny.batch([[5, 6, 7]])))
    assert same(before, snapshot(tiny))
    assert torch.equal(logits, tiny.next_logits(tiny.batch([[5, 6, 7]])))
    assert wanted == [weight.requires_grad for weight in tiny.model.parameters()]
    assert all(weight.grad is None for weight in tiny.model.parameters())


def test_what_fails_while_an_edit_is_made_leaves_the_model_as_it_was(tiny):
    before = snapshot(tiny)

    def change():
        tiny.vectors(0, "out")[0] += 1
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        recorded(tiny, change)
    assert same(before, snapshot(tiny))


def test_edits_of_several_concepts_are_held_in_order_and_let_go_in_reverse(tiny, windows):
    cards = [Concept.load(world().card), Concept.load(world().other)]
    seen = []

    def baseline(lens, concept, _windows, _seed):
        seen.append((concept.name, float(lens.vectors(0, "out")[0, 0])))
        return recorded(lens, lambda: lens.vectors(0, "out")[0].add_(1))

    start = float(tiny.vectors(0, "out")[0, 0])
    before = snapshot(tiny)
    edit = of_all(baseline, tiny, cards, windows, 0)
    assert [value for _, value in seen] == pytest.approx([start, start + 1])
    with edit(tiny):
        assert float(tiny.vectors(0, "out")[0, 0]) == pytest.approx(start + 2)
    assert same(before, snapshot(tiny))


def test_the_gentlest_edit_that_does_is_taken_and_later_ones_are_not_made(tiny, card):
    made = []

    def edits():
        for strength in (0.0, 0.01, 40.0, 80.0):
            made.append(strength)
            yield recorded(tiny, lambda by=strength: _shaken(tiny, card, by))

    chosen = gentlest(tiny, card, edits())
    assert made == [0.0, 0.01, 40.0]
    with chosen(tiny):
        assert left(tiny, card) <= 0.005
    with pytest.raises(TarsError, match="no setting was given"):
        gentlest(tiny, card, [])


def _shaken(lens, card, strength):
    """Takes the concept's tokens down in the unembedding, by so much."""
    tokens = first_tokens(lens, card)
    stream = lens.residual(lens.prompts(forward_prompts(card)).ids, -1)[:, -1].mean(dim=0)
    lens.unembedding[:, tokens] -= strength * (stream * lens.final_gain)[:, None]


def test_baselines_are_called_by_name():
    assert list(baselines_called(["rmu", "npo", "rmu"])) == ["rmu", "npo"]
    with pytest.raises(TarsError, match="unknown baseline 'rum'. Did you mean 'rmu'"):
        baselines_called(["rum"])


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("there", [None, ModuleType("a namesake")])
def test_a_baseline_whose_package_is_missing_is_left_out_or_refused(
    name, there, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, EXTRAS[name][0], there)
    assert name not in baselines_called(None)
    assert f"pip install 'tars-lens[{name}]'" in caplog.text
    said = mistake("compare", "saturn", "--baselines", f"rmu, {name}")
    assert f"the baseline '{name}' needs a package" in said
    assert f"pip install 'tars-lens[{name}]'" in said


def test_a_baseline_sees_no_reported_probe(tiny, card, windows):
    blind = replace(card, probes=replace(card.probes, forward=(), reverse=(), neighbour=()))
    for name in ("ablation", "rank_one", *({"engram"} - MISSING)):
        held = []
        for of in (card, blind):
            with BASELINES[name](tiny, of, windows, 0)(tiny):
                held.append(snapshot(tiny))
        assert same(*held), name


def test_the_full_battery_holds_and_lets_go_every_kind_of_edit(tiny, card):
    names = ["ablation", "rmu", *({"leace"} - MISSING)]  # weights, training, hooks
    before = snapshot(tiny)
    found = compare(
        *(tiny, [card], baselines_called(names)), suite=SMALL, corpus=load_corpus(world().corpus)
    )
    assert same(before, snapshot(tiny))
    assert not any(module._forward_pre_hooks for module in tiny.model.blocks)
    frame = found.to_frame().set_index("method")
    assert list(frame.index) == ["tars", "paper", *names, "blocked token", "untouched"]
    assert frame.loc["untouched", "residual_knowledge"] == pytest.approx(1, abs=1e-5)
    assert frame.loc["untouched", "quantised_8"] == pytest.approx(1, abs=1e-5)
    for name in names:
        assert frame.loc[name, "wikipedia"] > 0
        assert frame.loc[name, ["relearning", "patch_back", "steering"]].notna().all()
    duels = found.duels()
    assert set(duels["outcome"]) <= {"won", "lost", "tied"} and "tars" not in set(duels["other"])


# --- directional ablation -----------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3"])
def test_after_ablation_nothing_writes_along_the_direction(arch):
    lens = tiny_lens(arch)
    generator = torch.Generator().manual_seed(0)
    towards = torch.nn.functional.normalize(torch.randn(lens.d_model, generator=generator), dim=0)
    ids = lens.batch([[5, 6, 7, 8, 9]]).ids
    points = [Point("resid_pre", 0), *(Point("resid_post", k) for k in range(lens.n_layers))]
    unembedding = lens.unembedding.clone()
    with projected_out(lens, towards)(lens):
        after = lens.capture(ids, points)
        assert torch.equal(unembedding, lens.unembedding)
    before = lens.capture(ids, points)
    for point in points:
        share = (after[point] @ towards).abs() / after[point].norm(dim=-1)
        assert float(share.max()) < 1e-5
    assert any(float((before[point] @ towards).abs().max()) > 0.01 for point in points)


def test_the_direction_is_the_difference_in_means(tiny, card):
    towards = direction(tiny, card, 1)
    batch = tiny.prompts(forward_prompts(card))
    own = tiny.residual(batch.ids, 1, positions=batch.last).mean(dim=0)
    assert float(towards.norm()) == pytest.approx(1, abs=1e-5)
    assert float(own @ towards) > 0


# --- LEACE --------------------------------------------------------------------------------------


@needs_leace
@pytest.mark.parametrize("earlier", [False, True])
def test_after_leace_the_classes_have_one_mean_at_every_erased_layer(tiny, card, windows, earlier):
    swapped = replace(card, prompt=card.contrast[0].prompt, prompts=(), contrast=())
    held = [leace(tiny, swapped, windows, 0)] if earlier else []

    own = [*forward_prompts(card), *(p.prompt for p in card.validation.reverse)]
    batch = tiny.prompts([*own, *other_prompts(card)])
    plain = windows.statistics[:LEACE_WINDOWS]

    def apart(lens, layer):
        """The distance of the class means as the layer reads them."""
        point = Point("resid_pre", layer)
        rows = lens.capture(batch.ids, [point], positions=batch.last)[point]
        text = lens.capture(plain, [point])[point][:, 1::8].flatten(0, 1)
        return float(
            (rows[: len(own)].mean(0) - torch.cat([rows[len(own) :], text]).mean(0)).norm()
        )

    with together(held)(tiny):
        edit = together([*held, leace(tiny, card, windows, 0)])
    for layer in range(1, tiny.n_layers):
        before = apart(tiny, layer)
        with edit(tiny) as lens:
            assert apart(lens, layer) < 1e-3 * before


@needs_leace
def test_leace_erases_a_stream_that_is_handed_in(tiny, card, windows):
    ids = tiny.batch([[5, 6, 7]]).ids
    stream = tiny.residual(ids, 0)
    with leace(tiny, card, windows, 0)(tiny):
        whole = tiny.residual(ids, -1)  # the first layer has no eraser before it
        resumed = tiny.residual(ids, -1, resume=(1, stream))
    assert torch.allclose(whole, resumed, atol=1e-5)


# --- ROME ---------------------------------------------------------------------------------------


def test_a_rank_one_edit_gives_the_value_for_the_key_and_moves_the_rest_least():
    generator = torch.Generator().manual_seed(0)
    rows, keys = torch.randn(6, 4, generator=generator), torch.randn(50, 6, generator=generator)
    keys = keys * torch.tensor([1, 2, 3, 4, 5, 6.0])
    moment = keys.T @ keys / len(keys)
    key, value = torch.randn(6, generator=generator), torch.randn(4, generator=generator)
    new = with_value(rows, moment, key, value)
    assert torch.allclose(key @ new, value, atol=1e-4)
    assert int(torch.linalg.matrix_rank(new - rows, atol=1e-4)) == 1
    plain = rows + torch.outer(key, value - key @ rows) / (key @ key)  # the least change of weights
    assert torch.allclose(key @ plain, value, atol=1e-4)
    moved = [(keys @ (w - rows)).square().sum() for w in (new, plain)]
    assert moved[0] < moved[1]


def test_one_matrix_is_changed_by_one_rank_a_direction_towards_its_neutral_target(
    tiny, card, windows
):
    layer, asked = 1, [forward_asked(tiny, card), *reverse_asked(tiny, card)]
    assert len(asked) == 2
    names = asked[1].batch.ids[torch.arange(len(asked[1].key)), asked[1].key].tolist()
    assert {tiny.string(token) for token in names} == {card.answer}  # the key stands at the name
    assert asked[0].target[:, first_tokens(tiny, card)].max() == 0

    def distances():
        said = [tiny.next_logits(each.batch).log_softmax(dim=-1) for each in asked]
        return [
            float(torch.nn.functional.kl_div(s, each.target, reduction="batchmean"))
            for s, each in zip(said, asked, strict=True)
        ]

    before, rows = distances(), tiny.vectors(layer, "out").clone()
    edit = edited_at(tiny, windows, asked, layer)
    with edit(tiny):
        after, new = distances(), tiny.vectors(layer, "out").clone()
    assert after[0] < 0.6 * before[0] and after[1] < before[1]
    assert int(torch.linalg.matrix_rank(new - rows, rtol=1e-4)) == 2
    assert len(_changed(tiny, edit)) == 1
    assert second_moment(tiny, windows, layer).shape == (tiny.d_mlp, tiny.d_mlp)


# --- fine-tuning --------------------------------------------------------------------------------


def test_an_answers_log_probability_is_the_product_over_its_tokens(tiny, card):
    facts = Facts.of(tiny, own_facts(card))
    with torch.no_grad():
        found = facts.log_probabilities(tiny)
    prompts = [p.prompt for p in own_facts(card)]
    logits = tiny.next_logits(tiny.prompts(prompts)).log_softmax(dim=-1)
    tokens = [tiny.pieces(p.answer)[0] for p in own_facts(card)]
    wanted = logits[torch.arange(len(tokens)), tokens]
    assert torch.allclose(found, wanted, atol=1e-4)


def test_npo_is_ascent_whose_gradient_fades_as_the_answer_goes():
    said = torch.tensor([0.0, -200.0], requires_grad=True)
    (slope,) = torch.autograd.grad(npo_loss(said, torch.zeros(2), beta=0.1), said)
    # 2 sigmoid(beta (log p - log p0)), averaged: at the base as large as ascent's
    assert slope.tolist() == pytest.approx([0.5, 0.0], abs=1e-6)


def test_training_goes_on_until_both_directions_are_gone(tiny, card, monkeypatch):
    forward_alone = replace(card, validation=replace(card.validation, reverse=()))
    no_floor = replace(card, substitute="")
    weight, steps = torch.nn.Parameter(torch.zeros(3)), []

    def trained(of) -> int:
        steps.clear()

        def loss(step):
            steps.append(step)
            return weight.sum()

        train(tiny, of, [weight], loss, steps=7, rate=0.0)
        return len(steps)

    assert trained(no_floor) == trained(forward_alone) == 7
    monkeypatch.setattr(
        "tars_lens.experiments.baselines.trained.left", lambda *_: 0.0
    )  # forward it is gone
    assert trained(no_floor) == 7
    assert trained(forward_alone) == 0


@pytest.mark.parametrize("name", ["gradient_ascent", "npo"])
def test_fine_tuning_touches_every_layer(name, tiny, card, windows):
    changed = _changed(tiny, BASELINES[name](tiny, card, windows, 0))
    layers = {
        part for part in ("layers.0", "layers.1", "layers.2") if any(part in n for n in changed)
    }
    assert len(layers) == tiny.n_layers


def test_a_fact_that_went_below_chance_does_not_hide_one_that_stayed(tiny, card, monkeypatch):
    said = iter([[0.5, 0.5, 0.5], [0.0, 0.2, 0.4], [0.45, 0.0, 0.5]])  # base, floor, edited
    monkeypatch.setattr(
        "tars_lens.experiments.baselines.trained.first_token_probability",
        lambda *_: torch.tensor(next(said)),
    )
    reverse = _Reverse(tiny, replace(card, substitute="w1"))
    assert reverse.counts.tolist() == [True, True, False]  # the last is a set phrase
    assert reverse.left() == pytest.approx(0.45 / 0.8)


def test_facts_are_read_where_text_stands_but_for_its_first_token(tiny):
    facts = Facts.of(tiny, [Probe("w5 w6 w7", "w8"), Probe("w5", "w9")])
    lengths = [len(tiny.tokens("w5 w6 w7 w8")), len(tiny.tokens("w5 w9"))]
    assert facts.read.sum(dim=1).tolist() == [length - 1 for length in lengths]
    assert not facts.read[:, 0].any() and facts.read[0, 1 : lengths[0]].all()


def test_rmu_turns_the_concepts_stream_to_a_random_direction_and_keeps_plain_text(
    tiny, card, windows
):
    layer = 1
    facts, text = Facts.of(tiny, own_facts(card)), windows.statistics[:2, :64]

    def looked():
        with torch.no_grad():
            own = stream_after(tiny, layer, facts.ids)[facts.read]
            return own, stream_after(tiny, layer, text)

    own, plain = looked()
    edit = rmu(tiny, card, windows, 3)
    with edit(tiny):
        own_after, plain_after = looked()
    towards = control(tiny, 3)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(own_after, towards, dim=-1).mean() > cosine(own, towards, dim=-1).mean() + 0.05
    moved = [(a - b).norm(dim=-1).mean() for a, b in ((own_after, own), (plain_after, plain))]
    assert moved[1] < moved[0]
    assert all("down_proj" in name for name in _changed(tiny, edit))
    assert not any("layers.2" in name for name in _changed(tiny, edit))


def test_nothing_together_is_no_edit(tiny):
    assert _changed(tiny, together([])) == set()
