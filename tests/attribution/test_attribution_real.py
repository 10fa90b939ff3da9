"""Attribution on real weights: the sum's error, and where Saturn comes in and is stopped."""

import pytest

from tars_lens.attribution import direct_attribution, propagation
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.method.ranking import rank
from tars_lens.method.reversal import reverse
from tars_lens.method.targeting import target
from tars_lens.model.loading import load

pytestmark = pytest.mark.real

PROMPT = "The Cassini Division is a gap in the rings of"


def _check_sum(lens):
    found = direct_attribution(lens, PROMPT, Concept.load("saturn"))
    frame = found.to_frame()
    # the parts are larger than the logit and cancel: float32 leaves a few 1e-7 of their sizes
    size = frame.loc[frame["component"].isin(["embedding", "attention", "mlp"]), "logit_before"]
    assert found.error < 1e-6 * size.abs().sum()
    assert list(found.logits["token"]) == [" Saturn"]


def test_the_parts_add_up_on_smollm2(real_lens):
    _check_sum(real_lens)


def test_the_parts_add_up_on_gemma():
    _check_sum(load("gemma-3-270m", progress=False))


def test_saturn_comes_in_late_and_an_edit_is_seen_in_the_map(real_lens):
    concept = Concept.load("saturn")
    vector = target(real_lens, concept)
    patch = reverse(real_lens, vector, rank(real_lens, vector, top=3))
    found = propagation(real_lens, PROMPT, concept, patch=patch, vector=vector)
    row = found.summary().iloc[0]
    assert real_lens.n_layers // 2 < row["first_top_layer"] < real_lens.n_layers
    assert row["largest_before"] > 0.1
    frame = found.to_frame()
    first = min(layer for layer, _ in patch.edits)
    assert (frame.loc[frame["layer"] < first, "difference"] == 0).all()
    assert (frame.loc[frame["layer"] >= first, "difference"] != 0).any()
    last = frame[(frame["layer"] == real_lens.n_layers - 1)]
    assert last.loc[last["position"].idxmax(), "cosine_before"] > 0


def test_a_prompt_about_something_else_is_refused_with_the_rank(real_lens):
    with pytest.raises(TarsError, match=r"doesn't lead .* to ' Saturn': it ranks \d{3,} "):
        propagation(real_lens, "She opened the window and", Concept.load("saturn"))
