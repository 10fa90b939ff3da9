import importlib.util

import pytest
import torch
from tiny import ARCHITECTURES, tiny_lens

from tars_lens.common.errors import TarsError
from tars_lens.model.generation import _cached, _rerun, _Row, continuations, generate
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Rows, written

PROMPTS = ["w3 w5 w9 w20 w33", "w7 w8", "w40 w2 w2 w15"]


def _greedy(lens: Lens, prompt: str, count: int) -> list[int]:
    """The definition, one full run a token."""
    ids = lens.tokens(prompt)
    for _ in range(count):
        ids.append(int(lens.next_logits(lens.batch([ids]))[0].argmax()))
    return ids[len(ids) - count :]


def _by_prompt(tokens, prompts: int = len(PROMPTS)):
    found = [[] for _ in range(prompts)]
    for token in tokens:
        found[token.prompt].append(token)
    return found


def _never_ends(lens: Lens) -> Lens:
    lens.tokenizer.eos_token = None
    lens.model.original_model.generation_config.eos_token_id = None
    return lens


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_kept_between_tokens_changes_no_logit(arch):
    lens = tiny_lens(arch)
    sequences = [lens.tokens(prompt) for prompt in PROMPTS]
    kept = _cached(lens, lens.model.original_model, sequences)
    plain = _rerun(lens, sequences)
    chosen: list[int] = []
    for _ in range(6):
        a, b = kept(chosen), plain(chosen)
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
        chosen = b.argmax(dim=-1).tolist()


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_greedy_tokens_are_those_of_full_runs(arch):
    lens = _never_ends(tiny_lens(arch))
    found = _by_prompt(generate(lens, PROMPTS, max_tokens=7))
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        assert [t.token for t in tokens] == _greedy(lens, prompt, 7)


def test_probabilities_are_the_models_and_the_text_is_the_tokens(lens):
    _never_ends(lens)
    watch = [5, 9]
    tokens = list(generate(lens, ["w3 w5"], max_tokens=3, watch=watch))
    p = lens.next_logits(lens.prompts(["w3 w5"])).softmax(-1)[0]
    assert tokens[0].probability == pytest.approx(float(p.max()), rel=1e-4)
    assert tokens[0].watched == pytest.approx(float(p[watch].sum()), rel=1e-4)
    words = [lens.string(token.token) for token in tokens]
    assert "".join(t.text for t in tokens) == " " + " ".join(words)
    assert continuations(lens, ["w3 w5", "w7"], 3)[0] == " " + " ".join(words)


def test_a_batch_changes_nothing_and_an_edit_does(lens):
    _never_ends(lens)
    prompts = [f"w{i} w{i + 3}" for i in range(20)]  # more than one batch
    alone = [continuations(lens, [prompt], 4)[0] for prompt in prompts]
    assert continuations(lens, prompts, 4) == alone
    rows = torch.randn(24, lens.d_model) * 5
    with written(lens, {(1, "out"): Rows(torch.arange(24), rows)}):
        assert continuations(lens, prompts, 4) != alone
    assert continuations(lens, prompts, 4) == alone


def test_a_seed_gives_the_same_draws_and_another_seed_others(lens):
    _never_ends(lens)

    def ids(seed: int, prompts=("w3 w5", "w7")) -> list[int]:
        tokens = generate(lens, prompts, max_tokens=8, temperature=1.0, seed=seed)
        return [t.token for t in _by_prompt(tokens, len(prompts))[0]]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)
    assert ids(0) == ids(0, prompts=("w3 w5",))


def test_draws_follow_the_temperature(lens):
    prompts = ["w3 w5"] * 400
    logits = lens.next_logits(lens.prompts(prompts[:1]))[0]
    for temperature in (0.3, 1.0):
        tokens = generate(lens, prompts, max_tokens=1, temperature=temperature)
        expected = (logits / temperature).softmax(-1)
        top = int(expected.argmax())
        share = sum(t.token == top for t in tokens) / len(prompts)
        deviation = float((expected[top] * (1 - expected[top]) / len(prompts)).sqrt())
        assert share == pytest.approx(float(expected[top]), abs=4 * deviation)


def test_the_end_of_a_text_and_a_stop_text_end_a_continuation(lens):
    _never_ends(lens)
    third = _greedy(lens, PROMPTS[0], 3)[2]
    before = list(generate(lens, PROMPTS[:1], max_tokens=9))
    word = lens.string(third)
    first = [t.token for t in before].index(third)
    text = "".join(t.text for t in generate(lens, PROMPTS[:1], max_tokens=9, stop=[word]))
    assert text == "".join(t.text for t in before[:first]) + " "
    lens.model.original_model.generation_config.eos_token_id = [third]
    assert list(generate(lens, PROMPTS[:1], max_tokens=9)) == before[:first]


def test_a_character_of_several_tokens_comes_whole(lens):
    _never_ends(lens)
    data = "né".encode()

    class Bytes:
        eos_token_id = None

        def decode(self, ids, **options):
            return bytes(data[i % len(data)] for i in ids).decode(errors="replace")

    lens.tokenizer = Bytes()
    row = _Row(lens, [0], ())
    assert [row.add(1, last=False), row.add(2, last=False)] == ["", "é"]
    assert row.add(1, last=True) == "\ufffd"


def test_bad_input_gets_one_message(lens):
    with pytest.raises(TarsError, match="at least one prompt"):
        generate(lens, [], max_tokens=3)
    with pytest.raises(TarsError, match="empty prompt"):
        generate(lens, ["w3", ""], max_tokens=3)
    with pytest.raises(TarsError, match="max_tokens >= 1.*got max_tokens=0"):
        generate(lens, ["w3"], max_tokens=0)
    with pytest.raises(TarsError, match="2 tokens and 63 new ones are more than the 64"):
        generate(lens, ["w3 w4"], max_tokens=63)


HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None


@pytest.mark.skipif(not HOOKED, reason="HookedTransformer is gone from 4.0 on")
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
def test_a_hooked_transformer_is_read_anew_for_every_token():
    from test_lens_contract import _hooked, _Tokenizer

    class Numbers(_Tokenizer):
        def decode(self, ids, **options):
            return " ".join(map(str, ids))

    lens = Lens(_hooked(True), Numbers())
    tokens = list(generate(lens, ["3 5 9"], max_tokens=5))
    assert [t.token for t in tokens] == _greedy(lens, "3 5 9", 5)
