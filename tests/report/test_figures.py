import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import report_frames as frames

from tars_lens.common.errors import TarsError
from tars_lens.report import figures
from tars_lens.report.style import (
    WIDTHS,
    figure,
    inline_svg,
    paper_style,
    prompt_text,
    safe_text,
    save,
    token_text,
)

# name: how it is drawn, its table, its panels side by side
DRAWN = {
    "forward": (figures.forward_probabilities, frames.probes, 1),
    "probes": (figures.probe_probabilities, frames.probes, 1),
    "languages": (figures.languages, frames.probes, 1),
    "depths": (figures.language_depths, frames.language_depths, 4),
    "interference": (figures.interference, frames.interference, 2),
    "depth": (figures.depth, frames.depth, 1),
    "curve": (figures.edit_curve, frames.curve, 3),
    "directions": (figures.directions, frames.probes, 1),
    "growth": (figures.kl_by_concepts, frames.growth, 2),
    "kl": (figures.kl_distribution, lambda: figures.kl_histogram(frames.kl()), 1),
    "silence": (figures.silence_bound, frames.silence, 1),
    "trajectory": (figures.refinement_trajectory, frames.trajectory, 2),
    "cosines": (figures.cosine_distribution, frames.cosines, 1),
    "neurons": (figures.neurons_by_layer, frames.edits, 1),
    "map": (figures.propagation_map, frames.propagation, 3),
    "waterfall": (figures.attribution_waterfall, frames.attribution, 1),
    "effects": (figures.edit_effects, frames.effects, 2),
}


def _drawn(name, columns=2, **options):
    draw, make, across = DRAWN[name]
    made, axes = figure(columns, height=4.0, across=across)
    draw(make(), axes, **options)
    return made, axes


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_at_its_width_and_says_its_units_and_n(name, tmp_path):
    made, axes = _drawn(name)
    pdf, png = save(made, tmp_path / "f.v1")
    assert [pdf.name, png.name] == ["f.v1.pdf", "f.v1.png"]
    raw = pdf.read_bytes()
    assert b"/MediaBox [ 0 0 489.6 288 ]" in raw
    assert b"/FontFile2" in raw and b"/Type3" not in raw
    labels = []
    for panel in np.atleast_1d(axes):
        legend = panel.get_legend()
        texts = [text.get_text() for text in legend.get_texts()] if legend else []
        labels += [panel.get_xlabel(), panel.get_ylabel(), *texts]
        assert panel.get_xlabel()
    assert any("n = " in label for label in labels), labels


@pytest.mark.parametrize("name", DRAWN)
def test_a_table_without_a_column_is_refused_by_the_columns_name(name):
    draw, make, across = DRAWN[name]
    _, axes = figure(2, across=across)
    needed = {"trajectory": "angle_degrees", "cosines": "quantile", "kl": "bin_low"}
    column = needed.get(name, make().columns[-1])
    column = {
        "directions": "p_after",
        "forward": "p_after",
        "probes": "p_after",
        "languages": "language",
    }.get(name, column)
    column = {"depth": "largest_after", "neurons": "cosine", "map": "p_after"}.get(name, column)
    column = {"waterfall": "logit_before"}.get(name, column)
    with pytest.raises(TarsError, match=f"lacks {column}"):
        draw(make().drop(columns=column), axes)


def test_other_panels_than_a_figure_has_are_refused():
    _, axes = figure(2, across=2)
    with pytest.raises(TarsError, match="has 3 panels, got 2"):
        figures.propagation_map(frames.propagation(), axes)
    with pytest.raises(TarsError, match="one or two columns wide, got columns=3"):
        figure(3)


def test_the_callers_settings_are_not_touched(tmp_path):
    before = dict(matplotlib.rcParams)
    made, _ = _drawn("kl")
    save(made, tmp_path / "kl", svg=True)
    assert dict(matplotlib.rcParams) == before


def test_the_same_table_gives_the_same_bytes_in_another_process_and_without_pyplot(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/report']; import test_figures as t\n"
        "t.save(t._drawn('forward')[0], f'{sys.argv[1]}/f', svg=True)\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    digests = []
    for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo")):
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone}
        command = [sys.executable, "-c", code, str(out)]
        subprocess.run(command, cwd=root, env=environment, check=True)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).digest() for p in out.iterdir()})
    assert len(digests[0]) == 3
    assert digests[0] == digests[1]


def test_a_figure_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TarsError, match="cannot write"):
        save(_drawn("kl")[0], tmp_path / "file" / "kl")


def test_text_is_shown_literally():
    assert safe_text("a\n\tb\x07") == "a⏎⇥b⟨U+0007⟩"
    assert safe_text("$x$ ホームズ") == r"\$x\$ ⟨4 katakana⟩"
    assert safe_text("Ünlü Шерлок") == "Ünlü Шерлок"
    assert token_text(" Saturn") == "␣Saturn"
    made, axes = figure(1)
    with paper_style():
        text = axes.text(0, 0, safe_text("$x^2$ and $"))
        assert "$x^2$ and $" in inline_svg(made, "t", "")
    assert not text.get_text().startswith("$")


@pytest.mark.parametrize("limit", range(14, 40))
def test_a_prompt_cut_at_any_place_begins_no_formula(limit):
    cut = prompt_text("The price rose by $5 and $6, then by $7 and $8 in a single", limit)
    assert cut.startswith("…") and len(cut) <= limit
    assert cut.count("$") == cut.count(r"\$")
    assert cut.endswith("single")


def test_what_is_hollow_before_is_filled_after_and_in_place():
    frame = pd.DataFrame(
        {
            "concept": "Saturn",
            "kind": "forward",
            "prompt": ["a", "b", "c"],
            "p_before": [0.2, 0.9, 0.05],
            "p_after": [0.01, 0.3, 0.04],
            "known": [True, True, False],
        }
    )
    _, axes = figure(2)
    figures.forward_probabilities(frame, axes)
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["before"].get_xdata().tolist() == [0.9, 0.2]
    assert lines["after"].get_xdata().tolist() == [0.3, 0.01]
    assert lines["before"].get_markerfacecolor() != lines["after"].get_markerfacecolor()
    assert "n = 2 of 3" in axes.get_xlabel()
    assert [t.get_text() for t in axes.get_yticklabels()] == ["Saturn", "b", "a"]


def test_nothing_known_is_said_in_words():
    frame = frames.probes().assign(known=False)
    for draw in (figures.forward_probabilities, figures.languages):
        _, axes = figure(1)
        draw(frame, axes)
        assert "none of" in axes.texts[0].get_text()


def test_the_map_shows_layers_upwards_and_no_patch_where_there_is_none():
    frame = frames.propagation(layers=4)
    _, axes = figure(2, across=3)
    figures.propagation_map(frame, axes)
    before = axes[0].images[0].get_array()
    last = frame[(frame["layer"] == 3) & (frame["position"] == len(frames.TOKENS) - 1)]
    assert before.shape == (5, len(frames.TOKENS))
    assert before[0, -1] == pytest.approx(last["p_before"].item())
    _, axes = figure(2, across=3)
    figures.propagation_map(frame.assign(p_after=np.nan), axes)
    assert axes[1].texts[0].get_text() == "no patch"


def test_the_waterfall_counts_no_part_twice_and_ends_at_the_logit():
    frame = frames.attribution()
    coarse = frame["component"].isin(["embedding", "attention", "mlp"])
    whole = frame[coarse | (frame["label"] == "bias 30")]
    _, axes = figure(1)
    figures.attribution_waterfall(frame, axes)
    first, *_, last = axes.patches
    assert first.get_width() == pytest.approx(whole["logit_before"].sum())
    assert last.get_width() == pytest.approx(whole["logit_after"].sum())


def test_the_histogram_counts_every_position_and_marks_what_it_is_told():
    values = frames.kl()
    values.iloc[:5] = [0.0, -1e-12, 1e-9, 20.0, 3.0]
    counts = figures.kl_histogram(values, values < 1)
    assert counts["count"].sum() == len(values)
    assert counts["elsewhere_count"].sum() == (values < 1).sum()
    assert counts["bin_high"].max() >= 20
    _, axes = figure(1)
    figures.kl_distribution(counts, axes, figures={"median": 0.5, "max": 20.0})
    assert [t.get_text() for t in axes.texts] == ["median 0.5", "max 20"]
    _, axes = figure(1)
    figures.kl_distribution(counts, axes)
    median = float(axes.texts[0].get_text().split()[1])
    assert values.median() <= median <= values.median() * 10**0.13


def test_widths_are_those_of_a_paper():
    assert (
        [figure(n)[0].get_size_inches()[0] for n in (1, 2)] == [WIDTHS[1], WIDTHS[2]] == [3.3, 6.8]
    )


@pytest.mark.parametrize("count", [2, 5, 14])
def test_the_figures_of_a_matrix_stand_apart(count):
    names = [f"concept {index}" for index in range(count)]
    made, axes = figure(2, height=max(2.1, 1.3 + 0.22 * count), across=2)
    figures.interference(frames.interference(names), axes)
    made.canvas.draw()
    for panel in axes:
        boxes = [text.get_window_extent() for text in panel.texts[:count]]
        assert len({round(box.y0) for box in boxes}) == 1
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
