import pandas as pd
import pytest
import torch
from tiny import read_checkpoint, read_tokenizer
from tiny_concept import world

from tars_lens.concept.card import Concept, Probe, ProbeSet
from tars_lens.evaluation.probes import KINDS, base_frame, probe_figures, with_after
from tars_lens.model.loading import load
from tars_lens.model.weights import Rows, written


def _frame(rows, distances=None, said=(True, False, False)):
    columns = ["kind", "language", "answer", "p_before", "known", "floor", "set_phrase", "p_after"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["distance"] = distances or ""
    frame[["top_before", "top_after", "top_substitute"]] = said
    span = (frame["p_before"] - frame["floor"]).where(frame["known"] & ~frame["set_phrase"])
    frame["kept"] = (frame["p_after"] - frame["floor"]).clip(lower=0) / span
    return frame


def test_forward_counts_known_probes_only():
    figures = probe_figures(
        _frame(
            [
                ("forward", "", "Saturn", 0.8, True, 0.0, False, 0.004),
                ("forward", "", "Saturn", 0.4, True, 0.0, False, 0.1),
                ("forward", "", "Saturn", 0.01, False, 0.0, False, 0.9),
            ]
        )
    )["forward"]
    assert figures["n"] == 3 and figures["known"] == 2
    assert figures["before_mean"] == pytest.approx(0.6)
    assert figures["after_mean"] == pytest.approx(0.052)
    assert figures["after_max"] == pytest.approx(0.1)
    assert figures["erased"] == pytest.approx(0.5)


def test_reverse_is_counted_above_the_floor_without_set_phrases():
    figures = probe_figures(
        _frame(
            [
                ("reverse", "", "Titan", 0.9, True, 0.1, False, 0.3),
                ("reverse", "", "rings", 0.5, True, 0.1, False, 0.02),  # below its floor: all gone
                ("reverse", "", "Street", 0.8, True, 0.7, True, 0.8),
            ]
        )
    )["reverse"]
    assert (figures["n"], figures["known"], figures["set_phrases"]) == (3, 2, 1)
    assert figures["kept"] == pytest.approx(0.2 / 1.2)
    assert figures["worst"] == "Titan"
    assert figures["worst_kept"] == pytest.approx(0.25)


def test_neighbours_are_a_geometric_mean_capped_at_one():
    figures = probe_figures(
        _frame(
            [
                ("neighbour", "", "Jupiter", 0.8, True, 0.0, False, 0.2),
                ("neighbour", "", "Mars", 0.5, True, 0.0, False, 0.9),
            ]
        )
    )["neighbour"]
    assert figures["kept"] == pytest.approx(0.5)
    assert figures["worst"] == "Jupiter"
    assert figures["worst_kept"] == pytest.approx(0.25)
    assert figures["distances"] == {}


def test_neighbours_of_each_marked_distance_have_figures_of_their_own():
    rows = [
        ("neighbour", "", "Jupiter", 0.8, True, 0.0, False, 0.2),
        ("neighbour", "", "Uranus", 0.8, True, 0.0, False, 0.8),
        ("neighbour", "", "Vinci", 0.5, True, 0.0, False, 0.25),
        ("neighbour", "", "Bell", 0.01, False, 0.0, False, 0.0),
        ("neighbour", "", "Mars", 0.5, True, 0.0, False, 0.1),  # the card doesn't say how near
        ("neighbour", "", "cars", 0.01, False, 0.0, False, 0.1),
    ]
    marks = ["sibling", "sibling", "unrelated", "unrelated", "", "homograph"]
    found = probe_figures(_frame(rows, marks))["neighbour"]["distances"]
    assert list(found) == ["sibling", "unrelated", "homograph"]
    assert found["sibling"]["kept"] == pytest.approx(0.5)
    assert (found["sibling"]["worst"], found["sibling"]["known"]) == ("Jupiter", 2)
    assert (found["unrelated"]["kept"], found["unrelated"]["known"]) == (pytest.approx(0.5), 1)
    assert found["unrelated"]["n"] == 2
    assert (found["homograph"]["kept"], found["homograph"]["worst"]) == (None, None)


def test_languages_are_summed_apart_and_together():
    figures = probe_figures(
        _frame(
            [
                ("multilingual", "fr", "Saturne", 0.6, True, 0.0, False, 0.0),
                ("multilingual", "fr", "Saturne", 0.2, True, 0.0, False, 0.2),
                ("multilingual", "ru", "Сатурн", 0.2, True, 0.0, False, 0.1),
            ]
        )
    )["multilingual"]
    assert figures["kept"] == pytest.approx(0.3)
    assert figures["languages"] == pytest.approx({"fr": 0.25, "ru": 0.5})
    assert figures["worst_kept"] == pytest.approx(1.0)


def test_what_is_said_is_counted_of_what_is_known_and_no_set_phrase():
    said = [  # before, after, with the substitute
        (True, True, False),
        (True, True, True),
        (True, False, True),
        (False, True, False),
        (False, False, False),
        (True, True, True),  # never known
        (True, True, True),  # a set phrase
    ]
    known = [True, True, True, True, True, False, True]
    for kind in KINDS:
        phrases = [False] * 6 + [kind == "reverse"]
        rows = [(kind, "fr", "x", 0.5, k, 0.1, s, 0.2) for k, s in zip(known, phrases, strict=True)]
        figures = probe_figures(_frame(rows, said=said))[kind]
        count = 3 if kind == "reverse" else 4
        assert (figures["said_before"], figures["said_after"]) == (count, count)
        if kind == "reverse":
            assert (figures["said_substitute"], figures["said_after_own"]) == (2, 2)


def _greedy(hf, tokenizer, prompt, count=2):
    """The words that plain transformers go on with, token by token."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for _ in range(count):
        ids = [*ids, int(hf(torch.tensor([ids])).logits[0, -1].argmax())]
    return " ".join(tokenizer.convert_ids_to_tokens(ids[-count:]))


def test_said_is_what_a_greedy_loop_of_plain_transformers_says():
    hf, tokenizer = read_checkpoint(world().model), read_tokenizer(world().model)
    drawn = torch.randint(10, 60, (60, 5), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [" ".join(["w9", *(f"w{i}" for i in row)]) for row in drawn]
    answers = [_greedy(hf, tokenizer, prompt) for prompt in prompts]
    probes = [
        Probe(prompt=p, answer=a) for p, a in zip(prompts, answers, strict=True) if "<" not in a
    ]
    texts = {"before": [p.prompt for p in probes]}
    texts["after"] = texts["before"]
    texts["substitute"] = [f"w8{prompt[2:]}" for prompt in texts["before"]]
    card = Concept(name="w9", answer="w9", prompt="w1", substitute="w8")
    card = Concept(**{**vars(card), "probes": ProbeSet(reverse=tuple(probes))})
    lens, loud = load(world().model, progress=False), -60.0
    base = base_frame(lens, card)
    with written(lens, {(1, "out"): Rows(torch.tensor([3]), loud * lens.vectors(1, "out")[[3]])}):
        frame = with_after(base, lens, card)
    expected = {}
    for when in ("before", "substitute", "after"):
        if when == "after":
            with torch.no_grad():
                hf.model.layers[1].mlp.down_proj.weight[:, 3] *= loud
        pairs = zip(texts[when], probes, strict=True)
        expected[when] = [_greedy(hf, tokenizer, text) == probe.answer for text, probe in pairs]
        assert frame[f"top_{when}"].tolist() == expected[when]
    assert all(expected["before"]) and 0 < sum(expected["after"]) < len(probes)
    table = pd.DataFrame(expected)[~frame["set_phrase"]]
    figures = probe_figures(frame)["reverse"]
    assert figures["known"] == figures["said_before"] == len(table)
    assert figures["said_after"] == table["after"].sum() > 0
    assert figures["said_substitute"] == table["substitute"].sum() > 0
    own = (table["after"] & ~table["substitute"]).sum()
    assert figures["said_after_own"] == own < figures["said_after"]


def test_nothing_known_is_none_never_a_success():
    figures = probe_figures(_frame([("forward", "", "Saturn", 0.01, False, 0.0, False, 0.0)]))
    assert figures["forward"]["known"] == 0
    assert figures["forward"]["after_max"] is None
    assert figures["forward"]["erased"] is None
    for kind in ("reverse", "neighbour", "multilingual"):
        assert figures[kind]["n"] == 0 and figures[kind]["kept"] is None
        assert (figures[kind]["said_before"], figures[kind]["said_after"]) == (0, 0)


def test_a_card_without_probes_is_reported_as_such(lens):
    concept = Concept(name="Nine", answer="w9", prompt="w1 w2")
    figures = probe_figures(with_after(base_frame(lens, concept), lens, concept))
    assert {kind: (of["n"], of["known"]) for kind, of in figures.items()} == dict.fromkeys(
        KINDS, (0, 0)
    )
    assert figures["forward"]["after_max"] is None and figures["reverse"]["kept"] is None
