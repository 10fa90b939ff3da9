"""What a notebook has set before it calls: the figures are those of a fresh process."""

import contextlib

import numpy as np
import pytest
import torch
import transformers
from tiny import COMMON, random_bridge, save_checkpoint
from tiny import boot as boot_bridge
from tiny_concept import world

import tars_lens
from tars_lens import attribution
from tars_lens.common.errors import TarsError
from tars_lens.method.inspection import inspect
from tars_lens.model.generation import generate
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Rows
from tars_lens.text.corpus import load_corpus

_EDIT = {(2, "out"): Rows(torch.tensor([3]), torch.ones(1, 16))}


@contextlib.contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def _precision(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: _default_dtype(torch.float64),
    "bfloat16": lambda: _default_dtype(torch.bfloat16),
    "a default device": lambda: _default_device("meta"),
    "a device's block": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "rounded products": lambda: _precision("medium"),
    "strict numpy": lambda: np.errstate(all="raise"),
}


def _state():
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        np.geterr(),
    )


def _few(lens, card):
    """Figures of what everything else is made of."""
    vector = tars_lens.target(lens, card)
    patch = tars_lens.Patch.build(lens, _EDIT)
    batch = lens.prompts([card.prompt])
    found = [lens.next_logits(batch).tolist()]
    with patch.applied(lens):
        found.append(lens.next_logits(batch).tolist())
    said = [token.token for token in generate(lens, [card.prompt], max_tokens=4, temperature=1.0)]
    return {
        "logits": found,
        "patch": patch.sha256,
        "ranked": tars_lens.rank(lens, vector).to_csv(),
        "said": said,
        "direct": attribution.direct_attribution(lens, card.prompt, card).to_frame().to_csv(),
        "traced": attribution.causal_trace(lens, card.prompt, card, patch).to_frame().to_csv(),
    }


def _erased(lens, card, text):
    """All that an erasure reports, but for the time it took."""
    erasure = tars_lens.erase(lens, [card], corpus=text, kl_tokens=512)
    report = {name: value for name, value in erasure.report.items() if name != "cost"}
    for concept in report["concepts"]:
        concept.pop("seconds")
    return report, erasure.patches[0].sha256, inspect(lens, card).to_dict()


@pytest.fixture(scope="module")
def plain():
    lens = tars_lens.load(world().model, progress=False)
    card = tars_lens.Concept.load(world().card)
    text = load_corpus(world().corpus, progress=False)
    return card, text, _few(lens, card), _erased(lens, card, text)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("kind", SURROUNDINGS)
def test_figures_are_those_of_a_fresh_process_whatever_is_set(plain, kind):
    card, _, expected, _ = plain
    with SURROUNDINGS[kind]():
        before = _state()
        found = _few(tars_lens.load(world().model, progress=False), card)
        assert _state() == before
    for name, figures in expected.items():
        assert found[name] == figures, name


@pytest.mark.usefixtures("own_cache")
def test_an_erasure_is_that_of_a_fresh_process_with_all_of_it_set_at_once(plain):
    card, text, _, expected = plain
    with contextlib.ExitStack() as every:
        for surroundings in SURROUNDINGS.values():
            every.enter_context(surroundings())
        found = _erased(tars_lens.load(world().model, progress=False), card, text)
    assert found == expected


def test_an_edit_is_seen_by_runs_of_the_callers_own_under_autocast(tmp_path):
    bridge, tokenizer = boot_bridge(save_checkpoint(tmp_path / "model", "llama"))
    lens, hf = Lens(bridge, tokenizer), bridge.original_model
    ids = torch.tensor([[5, 6, 7]])
    rows = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    every = tars_lens.Patch.build(
        lens, {(2, "out"): Rows(torch.arange(24), rows)}, label="all of layer 2"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = hf(ids).logits
        every.apply(lens)
        after = hf(ids).logits
    assert not torch.equal(before, after)


def test_a_model_that_was_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        bridge = random_bridge(transformers.LlamaConfig(**COMMON))
    with pytest.raises(TarsError, match="made under torch.inference_mode"):
        Lens(bridge)
