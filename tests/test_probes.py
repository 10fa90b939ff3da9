import pandas as pd
import pytest

from tars_lens.concept import Concept
from tars_lens.measure.probes import KINDS, base_frame, probe_figures, with_after


def _frame(rows, distances=None):
    columns = ["kind", "language", "answer", "p_before", "known", "floor", "set_phrase", "p_after"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["distance"] = distances or ""
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


def test_nothing_known_is_none_never_a_success():
    figures = probe_figures(_frame([("forward", "", "Saturn", 0.01, False, 0.0, False, 0.0)]))
    assert figures["forward"]["known"] == 0
    assert figures["forward"]["after_max"] is None
    assert figures["forward"]["erased"] is None
    for kind in ("reverse", "neighbour", "multilingual"):
        assert figures[kind]["n"] == 0 and figures[kind]["kept"] is None


def test_a_card_without_probes_is_reported_as_such(lens):
    concept = Concept(name="Nine", answer="w9", prompt="w1 w2")
    figures = probe_figures(with_after(base_frame(lens, concept), lens, concept))
    assert {kind: (of["n"], of["known"]) for kind, of in figures.items()} == dict.fromkeys(
        KINDS, (0, 0)
    )
    assert figures["forward"]["after_max"] is None and figures["reverse"]["kept"] is None
