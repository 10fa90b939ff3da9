import json

import pytest
import torch
from patch_models import random_patch
from rich.console import Console
from tiny import tiny_lens
from typer.testing import CliRunner

from tars_lens.attribution.concept_directions import ConceptDirections
from tars_lens.attribution.neuron_card import PARTS, neuron_card, parse_label
from tars_lens.attribution.neuron_index import NeuronIndex
from tars_lens.cli.app import app
from tars_lens.cli.neuron_view import print_card
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.model.lens import Point
from tars_lens.model.weights import Rows, written

CARD = Concept(name="Seven", answer="w7", prompt="w3 w4 w5")


def _ids(windows: int = 20, width: int = 16) -> torch.Tensor:
    return torch.randint(4, 64, (windows, width), generator=torch.Generator().manual_seed(5))


def _card(lens, layer=1, neuron=5, **options):
    index = options.pop("index", None) or NeuronIndex.fit(lens, _ids())
    directions = options.pop("directions", None) or ConceptDirections.fit(lens, [CARD])
    return neuron_card(lens, layer, neuron, index=index, directions=directions, **options)


def _printed(card, terminal: bool) -> str:
    console = Console(
        force_terminal=terminal, width=120, color_system="truecolor" if terminal else None
    )
    with console.capture() as captured:
        print_card(card, console)
    return captured.get()


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_the_index_is_what_a_plain_run_of_every_window_says(arch):
    lens, ids = tiny_lens(arch), _ids()
    index = NeuronIndex.fit(lens, ids, top=4)
    for layer in range(lens.n_layers):
        point = Point("mlp_post", layer)
        a = lens.capture(ids, [point])[point][:, 1:]  # position 0 is never looked at
        flat = a.flatten(0, 1)
        torch.testing.assert_close(index.rms[layer], flat.square().mean(0).sqrt())
        torch.testing.assert_close(index.mean[layer], flat.mean(0), rtol=1e-4, atol=1e-7)
        loud = (flat.abs() > flat.abs().amax(0) / 2).float().mean(0)
        torch.testing.assert_close(index.loud[layer], loud)
        positive = flat.clamp_min(0).square().sum(0) / flat.square().sum(0)
        torch.testing.assert_close(index.positive[layer], positive)
        for neuron in (0, 11, 23):
            by_window = a[..., neuron].amax(1).sort(descending=True)
            torch.testing.assert_close(index.values[0, layer, neuron], by_window.values[:4])
            by_window = a[..., neuron].amin(1).sort()
            torch.testing.assert_close(index.values[1, layer, neuron], by_window.values[:4])
            for end in (0, 1):
                where = index.windows[end, layer, neuron].long()
                at = index.positions[end, layer, neuron].long()
                assert len(set(where.tolist())) == 4
                torch.testing.assert_close(
                    a[where, at - 1, neuron], index.values[end, layer, neuron]
                )


def test_the_index_is_of_the_base_whatever_is_applied(lens):
    plain = NeuronIndex.fit(lens, _ids())
    patch = random_patch(lens, {(0, "out"): [1, 2], (1, "gate"): [5]})
    with patch.applied(lens):
        found = NeuronIndex.fit(lens, _ids())
        assert torch.equal(found.values, plain.values)
        assert not torch.equal(lens.vectors(1, "gate")[5], patch.edits[(1, "gate")].old[0])


def test_a_scan_is_done_once_and_a_damaged_one_again(lens, tmp_path, monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path))
    lens.sha256 = "abc"
    told = []
    first = NeuronIndex.cached(lens, _ids(), advance=lambda *step: told.append(step))
    assert [step[1:] for step in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    told.clear()
    again = NeuronIndex.cached(lens, _ids(), advance=lambda *step: told.append(step))
    assert told == []
    assert torch.equal(first.values, again.values) and torch.equal(first.ids, again.ids)
    NeuronIndex.cached(lens, _ids(windows=21), advance=lambda *step: told.append(step))
    assert told  # another text
    for file in (tmp_path / "neurons").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    told.clear()
    assert torch.equal(NeuronIndex.cached(lens, _ids()).values, first.values)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_a_vector_that_writes_a_token_says_it(arch):
    lens = tiny_lens(arch)
    direction = lens.unembedding[:, 9] / lens.final_gain
    if lens.post_norm_gain(1) is not None:
        direction = direction / lens.post_norm_gain(1)
    with written(lens, {(1, "out"): Rows(torch.tensor([5]), direction[None])}):
        tokens = _card(lens, top=3).tokens
    out = tokens[(tokens["role"] == "out") & (tokens["end"] == "top")]
    assert out["id"].tolist()[0] == 9
    assert out["token"].tolist()[0] == lens.string(9)
    assert len(tokens) == 2 * 3 * len(lens.roles)


def test_a_vector_along_a_concept_is_beyond_chance_and_another_is_not(lens):
    known = ConceptDirections.fit(lens, [CARD])
    target = known.vectors[0, 2]
    with written(lens, {(1, "out"): Rows(torch.tensor([5]), target[None] * 7)}):
        card = _card(lens, directions=known)
    rows = card.concepts.set_index(["role", "vector"])
    assert rows.loc[("out", "write_target"), "cosine"] == pytest.approx(1.0, abs=1e-5)
    assert rows.loc[("out", "write_target"), "beyond_chance"]
    assert not rows.loc[("gate", "write_target"), "beyond_chance"]
    assert 0 < card.threshold < 1


def test_concepts_that_the_model_does_not_know_are_named(lens, monkeypatch):
    from tars_lens.attribution import concept_directions

    def refuse(*_):
        raise TarsError("no prompt leads there")

    monkeypatch.setattr(concept_directions, "check_leads", refuse)
    card = _card(lens)
    assert card.unknown == ("Seven",) and card.concepts.empty
    assert "knows none of the concepts" in _printed(card, False)


def test_examples_show_the_peaks_in_their_text(lens):
    index = NeuronIndex.fit(lens, _ids())
    card = _card(lens, index=index, examples=3)
    peaks = card.examples[card.examples["peak"]]
    assert peaks["end"].tolist() == ["highest"] * 3 + ["lowest"] * 3
    expected = [*index.values[0, 1, 5, :3].tolist(), *index.values[1, 1, 5, :3].tolist()]
    assert peaks["activation"].tolist() == pytest.approx(expected, rel=1e-4)
    for row in peaks.itertuples():
        assert row.token == lens.string(int(_ids()[row.window, row.position]))


def test_edits_of_the_neuron_are_shown_and_no_others(lens):
    mine = random_patch(lens, {(1, "out"): [4, 5], (1, "in"): [7], (2, "out"): [5]}, label="mine")
    other = random_patch(lens, {(1, "out"): [6]}, label="other")
    with mine.applied(lens):
        edits = _card(lens, patches=[mine, other]).edits
    assert edits[["patch", "role"]].values.tolist() == [["mine", "out"]]
    rows = mine.edits[(1, "out")]
    cosine = float(torch.cosine_similarity(rows.old[1], rows.new[1], dim=0))
    assert edits["cosine"][0] == pytest.approx(cosine)
    assert edits["new_norm"][0] == pytest.approx(float(rows.new[1].norm()))
    assert len(edits["new_tokens"][0]) == 5
    assert "mine" in _printed(_card(lens, patches=[mine]), False)
    assert "No edit of other touches it." in _printed(_card(lens, patches=[other]), False)
    for label in ("[/bold] Foo", "[red]Foo"):  # rich would read a tag, or fail on it
        named = random_patch(lens, {(1, "out"): [5]}, label=label)
        assert label in _printed(_card(lens, patches=[named]), False)


def test_a_pipe_gets_brackets_and_a_terminal_colours(lens):
    card = _card(lens)
    plain, coloured = _printed(card, False), _printed(card, True)
    peak = card.examples[card.examples["peak"]]["token"].iloc[0]
    assert f"[[{peak}]]" in plain and "\x1b" not in plain
    assert "\x1b[" in coloured and "[[" not in coloured
    assert "L1N5 of tiny-llama" in plain


def test_text_cannot_steer_the_terminal(lens):
    lens.string = lambda token: "a\x1b[2Jb\nc"
    plain = _printed(_card(lens), False)
    assert "\x1b" not in plain and "a\ufffd[2Jb\u23cec" in plain


@pytest.mark.parametrize("name", ["23", "L3N0", "L0N24", "L1N99999", "", "N5L1", "L-1N2", "L1N5x"])
def test_a_neuron_that_is_not_there_gets_one_message(lens, name):
    with pytest.raises(TarsError, match=r"no neuron '.*'.*layers 0 to 2 with neurons 0 to 23"):
        parse_label(lens, name)
    assert parse_label(lens, "l2n23") == (2, 23)


def test_an_index_of_another_model_is_refused(lens):
    smaller = tiny_lens("llama")
    del smaller.model.blocks[2]
    index = NeuronIndex.fit(smaller, _ids())
    with pytest.raises(TarsError, match="scan this model"):
        _card(lens, index=index)


def test_the_command_prints_json_and_refuses_a_bad_name(lens, tmp_path, monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tars_lens.model.loading.load", lambda *_, **__: lens)
    words = torch.randint(0, 60, (12, 800), generator=torch.Generator().manual_seed(1)).tolist()
    lines = [json.dumps({"text": " ".join(f"w{w}" for w in row)}) for row in words]
    corpus = tmp_path / "text.jsonl"
    corpus.write_text("\n".join(lines))
    options = ["--corpus", str(corpus), "--windows", "3", "--json"]
    ran = CliRunner().invoke(app, ["neuron", "L1N5", *options])
    assert ran.exit_code == 0, ran.output
    card = json.loads(ran.stdout)
    assert card["neuron"] == "L1N5" and set(PARTS) <= set(card)
    assert card["firing"][0]["windows"] == 3
    ran = CliRunner().invoke(app, ["neuron", "L1N99999", *options])
    assert isinstance(ran.exception, TarsError)


@pytest.mark.real
def test_a_neuron_of_smollm2_that_writes_planets(real_lens):
    ids = real_lens.prompts(["Jupiter and Saturn are the two largest planets of the system."]).ids
    index = NeuronIndex.fit(real_lens, ids.repeat(2, 1))
    known = ConceptDirections.fit(real_lens, [Concept.load("saturn"), Concept.load("oxygen")])
    card = neuron_card(real_lens, 23, 1368, index=index, directions=known)
    out = card.tokens[(card.tokens["role"] == "out")]
    assert any("Jupiter" in token for token in out["token"])
    cosines = card.concepts.set_index(["role", "vector", "concept"])["cosine"].abs()
    assert cosines["out", "centred", "Saturn"] > cosines["out", "centred", "oxygen"]
