import itertools

import torch
from tiny import tiny_lens

from tars_lens.concept.forms import text_forms
from tars_lens.concept.probability import answer_probabilities
from tars_lens.model.lens import Lens


def _brute(lens: Lens, prompt: str, answers: list[str]) -> float:
    """One run a surface form, token by token."""
    ids, total = lens.tokens(prompt), 0.0
    for form in text_forms(lens, answers):
        logs = torch.log_softmax(
            lens.read_out(lens.residual(torch.tensor([ids + list(form)]), -1))[0], dim=-1
        )
        steps = [float(logs[len(ids) - 1 + k, token]) for k, token in enumerate(form)]
        total += float(torch.tensor(steps).sum().exp())
    return total


def test_products_over_tokens_sums_over_forms():
    lens = tiny_lens("llama")
    words = ["w5", "w6 w7", "w6 w8 w9", "w10", "w6 w8"]
    prompts = ["w11 w12 w13", "w14", "w15 w16"]
    answers = [words[:2], words, words[2:4]]
    found = answer_probabilities(lens, prompts, answers).probability
    expected = torch.tensor([_brute(lens, p, a) for p, a in zip(prompts, answers, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_a_form_that_extends_another_is_counted_once():
    lens = tiny_lens("llama")
    assert text_forms(lens, ["w6", "w6 w8"]) == text_forms(lens, ["w6"])
    both = answer_probabilities(lens, ["w11"], [["w6", "w6 w8"]]).probability
    torch.testing.assert_close(both, answer_probabilities(lens, ["w11"], [["w6"]]).probability)


def test_all_single_tokens_together_are_certain():
    lens = tiny_lens("llama")
    every = [lens.string(token) for token in range(lens.d_vocab)]
    found = answer_probabilities(lens, ["w11 w12"], [every])
    torch.testing.assert_close(found.probability, torch.tensor([1.0]), rtol=1e-4, atol=1e-4)
    assert found.top == (True,)


def test_known_is_a_tenth_or_the_top_token():
    lens = tiny_lens("llama")
    logits = lens.next_logits(lens.prompts(["w11 w12"]))[0]
    best, worst = int(logits.argmax()), int(logits.argmin())
    asked = [[lens.string(best)], [lens.string(worst)]]
    found = answer_probabilities(lens, ["w11 w12"] * 2, asked)
    assert found.known == (True, False)


def test_many_probes_do_not_depend_on_their_company():
    lens = tiny_lens("gpt2")
    prompts = [" ".join(f"w{i}" for i in p) for p in itertools.combinations(range(4, 12), 3)]
    answers = [[f"w{k % 30 + 20} w{k % 7 + 4}"] for k in range(len(prompts))]
    together = answer_probabilities(lens, prompts, answers).probability
    alone = torch.cat(
        [
            answer_probabilities(lens, [p], [a]).probability
            for p, a in zip(prompts, answers, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-9)


def test_spellings_that_cannot_matter_are_not_read_on(monkeypatch):
    lens = tiny_lens("llama")
    logits = lens.next_logits(lens.prompts(["w11 w12"]))[0]
    words = [k for k in logits.argsort().tolist() if lens.string(k).strip().startswith("w")]
    likely, unlikely = (f"{lens.string(k).strip()} w8" for k in (words[-1], words[0]))
    between = float(logits.softmax(dim=0)[[words[-1], words[0]]].mean())
    exact = answer_probabilities(lens, ["w11 w12"], [[likely]]).probability
    read = []
    plain = Lens.residual

    def counted(self, ids, *rest, **options):
        read.append(len(ids))
        return plain(self, ids, *rest, **options)

    monkeypatch.setattr(Lens, "residual", counted)
    answer_probabilities(lens, ["w11 w12"], [[likely, unlikely]])
    every = sum(read)
    read.clear()
    monkeypatch.setattr("tars_lens.concept.probability._LEFT_OUT", between)
    found = answer_probabilities(lens, ["w11 w12"], [[likely, unlikely]]).probability
    assert sum(read) == every - 1
    torch.testing.assert_close(found, exact)
