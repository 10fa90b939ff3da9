"""The baseline `engram` against its closed form, worked out with plain transformers."""

from collections import defaultdict
from functools import partial

import pytest
import torch
from patch_models import same, snapshot
from tiny import read_checkpoint, read_tokenizer, tiny_lens
from tiny_concept import world

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.experiments.baselines.closed_form import ENGRAM_WINDOWS, engram
from tars_lens.model.loading import load
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import Windows, cut

pytest.importorskip("engram", reason="the ai-engram package is an extra")


def _linear(hf) -> dict[str, torch.nn.Linear]:
    """The matrices of the layers of a plain Hugging Face model."""
    return {n: m for n, m in hf.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}


@torch.no_grad()
def _read(hf, texts: list[list[int]], skip: int) -> dict[str, torch.Tensor]:
    """What each matrix reads of some texts, a row a token, in float64."""
    seen = defaultdict(list)

    def look(module, inputs, name):
        seen[name].append(inputs[0][0, skip:].double())

    handles = [
        module.register_forward_pre_hook(partial(look, name=name))
        for name, module in _linear(hf).items()
    ]
    for ids in texts:
        hf(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def _closed_form(hf, own, near, plain) -> dict[str, torch.Tensor]:
    """`f W C_forget pinv(C_total)` of each matrix, in sums rather than means."""
    forget, others, text = _read(hf, own, 1), _read(hf, near, 1), _read(hf, plain, 0)
    parts, shares = {}, {}
    for name, module in _linear(hf).items():
        total = torch.cat([forget[name], others[name], text[name]])
        # the package's cut, which is float32's own for a matrix of this size
        cut_off = total.shape[1] * torch.finfo(torch.float32).eps
        inverse = torch.linalg.pinv(total.T @ total, rtol=cut_off, hermitian=True)
        weight = module.weight.detach().double()
        parts[name] = weight @ (forget[name].T @ forget[name]) @ inverse
        shares[name] = float(parts[name].norm() / weight.norm())
    return {name: part * shares[name] / max(shares.values()) for name, part in parts.items()}


@torch.no_grad()
def _edited(hf, weights: dict[str, torch.Tensor], parts: dict[str, torch.Tensor], a: float) -> None:
    for name, module in _linear(hf).items():
        module.weight.copy_(weights[name].double() - a * parts[name])


@torch.no_grad()
def _left(hf, tokenizer, card: Concept) -> float:
    """The answer's largest probability after the vector's and the validation prompts."""
    token = tokenizer.convert_tokens_to_ids(card.answer)
    prompts = [*card.concept_prompts, *(probe.prompt for probe in card.validation.forward)]
    said = (hf(torch.tensor([tokenizer(p)["input_ids"]])).logits[0, -1] for p in prompts)
    return max(float(logits.softmax(-1)[token]) for logits in said)


def test_the_weights_are_the_closed_forms_at_the_strength_that_validation_prompts_choose(
    monkeypatch,
):
    # a random model has no direction of the concept's own, so it takes more than a real one
    strengths = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
    monkeypatch.setattr("tars_lens.experiments.baselines.closed_form._ENGRAM_STRENGTHS", strengths)
    card, lens = Concept.load(world().card), load(world().model, progress=False)
    windows = cut(lens, load_corpus(str(world().corpus)), reported_tokens=256)
    hf, tokenizer = read_checkpoint(world().model), read_tokenizer(world().model)

    def ids(pairs):
        return [tokenizer(f"{prompt} {answer}")["input_ids"] for prompt, answer in pairs]

    forward = [*card.concept_prompts, *(probe.prompt for probe in card.validation.forward)]
    own = [(prompt, card.answer) for prompt in forward]
    own += [(probe.prompt, probe.answer) for probe in card.validation.reverse]
    near = [(p.prompt, p.answer) for p in (*card.contrast, *card.validation.neighbour)]
    plain = windows.statistics[:ENGRAM_WINDOWS].tolist()
    weights = {name: module.weight.detach().clone() for name, module in _linear(hf).items()}
    parts = _closed_form(hf, ids(own), ids(near), plain)
    left = {}
    for a in strengths:
        _edited(hf, weights, parts, a)
        left[a] = _left(hf, tokenizer, card)
    chosen = next(a for a in strengths if left[a] <= 0.005)
    assert strengths[0] < chosen < min(left, key=left.get)  # it is neither the first nor the best
    _edited(hf, weights, parts, chosen)

    before = snapshot(lens)
    edit = engram(lens, card, windows, 0)
    assert same(before, snapshot(lens))
    with edit(lens):
        after = snapshot(lens)
    assert same(before, snapshot(lens))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    found = {name.replace("._original_component", ""): after[name] for name in changed}
    found = {
        name.split("layers.")[1].removesuffix(".weight"): value for name, value in found.items()
    }
    assert found.keys() == weights.keys()  # neither embedding nor unembedding nor norm
    for name, module in _linear(hf).items():
        moved = (module.weight - weights[name]).norm()
        assert (found[name] - module.weight).norm() < 1e-3 * moved, name


@pytest.mark.parametrize("arch", ["gpt2", "phi3", "opt"])
def test_other_layouts_are_edited_and_put_back_bit_by_bit(arch):
    lens, card = tiny_lens(arch), Concept.load(world().card)
    text = torch.randint(4, 64, (8, 48), generator=torch.Generator().manual_seed(0))
    before, batch = snapshot(lens), lens.batch([[5, 6, 7]])
    logits = lens.next_logits(batch)
    with engram(lens, card, Windows(text, (), text, text, "random"), 0)(lens):
        after = lens.next_logits(batch)
        assert not torch.allclose(after, logits)
        whole = lens.model.original_model(batch.ids).logits[:, -1]
    assert torch.allclose(whole, after, atol=1e-4)
    assert same(before, snapshot(lens)) and torch.equal(lens.next_logits(batch), logits)


def test_a_model_without_linear_layers_is_refused():
    # a HookedTransformer of transformer-lens 3.9 keeps its weights in bare parameters
    lens, text = tiny_lens("llama"), torch.zeros(1, 8, dtype=torch.long)
    lens.model = torch.nn.Embedding(2, 2)
    with pytest.raises(TarsError, match="tiny-llama keeps its weights in no linear .*baselines"):
        engram(lens, Concept.load(world().card), Windows(text, (), text, text, "random"), 0)
