"""What is gathered of a concept, and the material its edit is chosen on."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_lens
from tiny_concept import studied_world
from tokenizers import normalizers

from tars_lens.concept import Concept, Probe
from tars_lens.errors import TarsError
from tars_lens.forward_readers import at_end
from tars_lens.host import carrying_neuron
from tars_lens.lens import Lens, Point
from tars_lens.name_readers import BARE_FRAMES, FRAMES, NameTexts, main_names, name_readers
from tars_lens.neutral import Neutral
from tars_lens.recipe import forward_part, reverse_part
from tars_lens.settings import Settings
from tars_lens.strengths import LARGEST_BY_BOTH
from tars_lens.study import study
from tars_lens.trials import Trials
from tars_lens.unembedding import Unembedding
from tars_lens.weights import written


@pytest.fixture(scope="module")
def place():
    """The tiny world's model, card, text and statistics."""
    return studied_world()


def _trials(place, layer, **changes):
    lens, concept, windows, _, settings, studied = place
    settings = replace(settings, **changes)
    return Trials.of(
        *(lens, concept, studied.known_prompts, studied.tokens, windows, settings, layer),
        near_texts=studied.near_texts,
    )


def test_main_names_are_the_cards_own_whatever_else_it_is_called():
    card = Concept("Saturn", "Saturn", "p", names=("Сатурн", "saturn", "Saturne"))
    assert main_names(card) == ("saturn",)
    assert main_names(replace(card, names=("Sat", "Urn"))) == ("Sat",)


def test_the_reverse_target_is_the_main_names_trace(place):
    lens, concept, _, neutral, settings, studied = place
    layer = settings.reverse_layers(lens.n_layers)[0]
    free = [f"w{i}" for i in range(50) if f"w{i}" not in (*studied.near_names, concept.answer)]
    other = replace(concept, names=(*concept.names, *free[:2]))
    again = study(lens, other, neutral, Unembedding.fit(lens), settings)
    torch.testing.assert_close(again.reverse[layer].target, studied.reverse[layer].target)
    assert again.reverse[layer].norm == pytest.approx(studied.reverse[layer].norm)


def test_trials_leave_out_plain_text_that_names_the_concept(place):
    lens, concept, windows, *_ = place
    trials = _trials(place, 0)
    texts = [lens.tokenizer.decode(ids) for ids in trials.plain.batch.ids]
    every = [lens.tokenizer.decode(ids) for ids in windows.validation]
    assert any(concept.answer in text.split() for text in every)
    assert texts and not any(concept.answer in text.split() for text in texts)


def test_a_forward_part_is_bounded_by_the_stream_and_its_cap_takes_a_second_host(place):
    lens, _, _, neutral, settings, studied = place
    last = lens.n_layers - 1
    trials = _trials(place, last, max_kl=1e9, max_neighbour_kl=1e9, keep_neighbours=1e-9)
    before = trials.left({})
    for capped in (False, True):
        part = forward_part(lens, studied, neutral, trials, last, (), capped=capped)
        assert len(part.neurons) == 1 + capped
        assert part.chosen["left_on_validation"] == pytest.approx(trials.left(part.edits))
        assert trials.left(part.edits) < before
        assert "over_budget" not in part.chosen
        natural = float(neutral.residual_norm[last])
        assert part.chosen["strength"] <= LARGEST_BY_BOTH * natural * 1.001


def test_budgets_that_cannot_be_kept_are_told(place):
    lens, _, _, neutral, _, studied = place
    trials = _trials(place, lens.n_layers - 1, max_kl=1e-12, max_neighbour_kl=1e-12)
    part = forward_part(lens, studied, neutral, trials, lens.n_layers - 1, (), capped=False)
    assert part.chosen["over_budget"] > 1


def test_a_reverse_part_takes_a_free_host_and_leaves_the_model_alone(place):
    lens, _, _, neutral, settings, studied = place
    trials = _trials(place, settings.reverse_layers(lens.n_layers)[0])
    before = lens.tensor_sha256(trials.forward.layer, "out")
    first = reverse_part(lens, studied, neutral, trials, ())
    second = reverse_part(lens, studied, neutral, trials, {(first.layer, first.neurons[0])})
    assert (first.layer, first.neurons) != (second.layer, second.neurons)
    assert lens.tensor_sha256(trials.forward.layer, "out") == before
    found = lens.tensor_sha256(first.layer, "out")
    with written(lens, first.edits):
        assert lens.tensor_sha256(first.layer, "out") != found
    assert lens.tensor_sha256(first.layer, "out") == found


def test_the_reverse_part_sits_where_the_name_is_read_no_more(place):
    lens, _, _, neutral, settings, studied = place
    assert studied.named.score(lens) == pytest.approx(1, abs=0.2)
    trials = _trials(place, settings.reverse_layers(lens.n_layers)[0])
    part = reverse_part(lens, studied, neutral, trials, ())
    with written(lens, part.edits):
        left = studied.named.score(lens)
    assert left == pytest.approx(part.chosen["name_still_read"], abs=0.05)
    assert left < 0.8


def test_hosts_may_be_those_that_carry_the_concept(place):
    lens, _, _, neutral, settings, studied = place
    last, first = lens.n_layers - 1, settings.reverse_layers(lens.n_layers)[0]
    for host in ("idle", "carrier"):
        trials = _trials(place, last, host=host)
        forward = forward_part(lens, studied, neutral, trials, last, (), capped=True)
        reverse = reverse_part(lens, studied, neutral, _trials(place, first, host=host), ())
        names = [text for form in studied.named.forms for text in form]
        carriers = (
            *(last, studied.known_prompts, studied.write_target),
            *(reverse.layer, names, studied.reverse[reverse.layer].target),
        )
        for part, (layer, texts, direction) in zip(
            (forward, reverse), (carriers[:3], carriers[3:]), strict=True
        ):
            carrier = carrying_neuron(lens, layer, (), texts, direction)
            assert (part.neurons[0] == carrier) == (host == "carrier")
            assert len(set(part.neurons)) == len(part.neurons)


def test_no_leaning_is_read_where_the_settings_say_so(place):
    lens, concept, _, neutral, settings, studied = place
    assert studied.leaning
    without = replace(settings, leaning=False)
    assert not study(lens, concept, neutral, Unembedding.fit(lens), without).leaning


def test_names_are_read_without_a_space(place):
    lens, concept, _, neutral, settings, studied = place
    readers, named = name_readers(lens, concept, studied.near_names, neutral, settings)
    texts = NameTexts.of(lens, concept, studied.near_names)
    assert named.forms == (*texts.main, *texts.bare) and texts.bare
    for layer, reader in readers.items():
        point = Point("mlp_in", layer)
        scores = [reader.reader.score(at_end(lens, form, [point])[point]) for form in texts.own]
        assert all(float(score.mean()) > 0.5 for score in scores)
        near = at_end(lens, [*texts.near, *texts.near_bare], [point])[point]
        assert float(reader.reader.score(near).mean()) < 0.5


class _Speller(Lens):
    """A lens that only spells: each name in two where it has an "h"."""

    def __init__(self, begins, adds_space=False):
        self.spelling = SimpleNamespace(begins=begins, adds_space=adds_space)
        self.tokenizer = SimpleNamespace(unk_token_id="unknown")

    def pieces(self, text):
        spelt = text.lower()
        return [spelt[:2], spelt[2:]] if "h" in spelt else [spelt]

    def string(self, token):
        return token


@pytest.mark.parametrize("begins", [True, False])
def test_a_name_is_read_as_it_begins_a_sentence_or_a_text_and_in_its_plural(begins):
    lens = _Speller(begins)
    card = Concept("elephant", "elephant", "p", names=("elephants", "elephant", "olifant"))
    texts = NameTexts.of(lens, card, ("rhino", "lion", "unknown"))
    assert texts.main == (tuple(frame.format("elephant") for frame in FRAMES),)
    spaced = ("elephants", "olifant", "Elephants", "Elephant")
    assert [form[0] for form in texts.others] == [FRAMES[0].format(name) for name in spaced]
    bare = ("Elephants", "Elephant", "elephant", "elephants", *(["olifant"] if begins else []))
    assert texts.bare[: len(bare)] == tuple((name,) for name in bare)
    assert [form[3] for form in texts.bare[len(bare) :]][:3] == [f"({name}" for name in bare[:3]]
    assert texts.near_bare[:2] == (
        ("Rhino", "Lion") if begins else ("Rhino", BARE_FRAMES[0].format("Rhino"))
    )
    assert not any("nknown" in text for text in texts.near_bare)
    assert "The unknown" in texts.near


def test_a_tokenizer_that_adds_spaces_reads_no_bare_name_by_a_last_letter():
    lens, card = _Speller(True, adds_space=True), Concept("lion", "lion", "p", names=("lion", "he"))
    lens.pieces = lambda text: [text] if text[0] == " " or len(text) < 3 else list(text)
    texts = NameTexts.of(lens, card, ("rhino",))
    assert [form[0] for form in texts.bare] == ["Lion", "lion", "he", BARE_FRAMES[0].format("he")]
    assert texts.near_bare == ("Rhino",)


def test_keep_neighbours_must_be_a_share():
    with pytest.raises(Exception, match="keep-neighbours"):
        Settings(keep_neighbours=1.0)


def test_a_model_without_near_words_still_has_a_reverse_target():
    lens = tiny_lens("llama")
    settings = Settings()
    ids = torch.randint(4, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    neutral = Neutral.fit(lens, ids, settings.layers(lens.n_layers))
    prompt = next(
        f"w{i}" for i in range(60) if lens.next_logits(lens.prompts([f"w{i}"])).argmax() > 0
    )
    answer = lens.string(int(lens.next_logits(lens.prompts([prompt])).argmax())).strip()
    card = Concept("a word", answer, prompt, names=(answer,))
    studied = study(lens, card, neutral, Unembedding.fit(lens), settings)
    assert all(torch.isfinite(name.target).all() for name in studied.reverse.values())


@pytest.mark.parametrize(
    ("key", "value"),
    [("names", ("!!!",)), ("substitute", "!!!"), ("contrast", (Probe("w1 w2", "!!!"),))],
)
def test_a_name_that_the_tokenizer_drops_is_refused(key, value):
    lens, concept, _, neutral, settings, _ = studied_world()
    lens.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("!", "")
    card = replace(concept, **{key: value})
    with pytest.raises(TarsError, match=f"key '{key}' of .* has '!!!', which is no token at all"):
        study(lens, card, neutral, Unembedding.fit(lens), settings)
