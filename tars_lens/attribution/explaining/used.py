"""What was put in: every replaced vector with what it says, and every neuron with what it hears."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept
from tars_lens.method.describing import top_tokens
from tars_lens.model.lens import Lens, Role
from tars_lens.patch.patch import Patch

_TOKENS = 5
_KINDS = ("suppression", "name")
_ONE = "reads 1 on all text"
_HEARD = ("threshold", "own_prompts", "own_least", "near_most", "plain_p99", "speaks", "strength")


def neurons_table(
    lens: Lens, concepts: Sequence[Concept], patches: Sequence[Patch]
) -> pd.DataFrame:
    """The vectors that were put in, beside those that they replace.

    Returns:
        One row a vector: concept, kind (of its part of the recipe, or the method), layer, neuron,
        role, cosine (of the old vector with the reversal of the new), reads_or_writes, new_tokens,
        reversed_tokens (of `out` alone) and old_tokens: the tokens that the vector raises most
        through the final norm's gain and the unembedding, each quoted.
    """
    frames = []
    for concept, patch in zip(concepts, patches, strict=True):
        kinds = {(p["layer"], n): p["kind"] for p in _parts(patch) for n in p["neurons"]}
        method = str(patch.method.get("name", ""))
        frame = patch.to_frame()[["layer", "neuron", "role", "cosine"]]
        places = zip(frame["layer"], frame["neuron"], strict=True)
        frame.insert(0, "kind", [kinds.get(place, method) for place in places])
        frame.insert(0, "concept", concept.name)
        does = frame["role"].map({"gate": "reads", "in": "reads", "out": "writes"})
        # where there is a gate, the recipe's neurons read through it alone
        one = lens.gated & frame["kind"].isin(_KINDS) & (frame["role"] == "in")
        frame["reads_or_writes"] = does.mask(one, _ONE)
        said = [_said(lens, la, role, r) for (la, role), r in patch.edits.items()]
        frames.append(frame.join(pd.concat(said, ignore_index=True)) if said else frame)
    return pd.concat(frames, ignore_index=True)


def parts_table(concepts: Sequence[Concept], patches: Sequence[Patch]) -> pd.DataFrame:
    """What each neuron of the recipe hears, and how strongly it answers, as the patches tell.

    Returns:
        One row a neuron: concept, kind, layer, neuron, unit (nats of the concept's predicted
        log-probability, or the score of its name), threshold, own_prompts (mean), own_least,
        near_most, plain_p99 (99 % of plain text lies below), speaks (share of plain text above
        the threshold), strength (norm of the write), why.
    """
    rows = [
        {
            "concept": concept.name,
            **{key: part[key] for key in ("kind", "layer")},
            "neuron": part["neurons"][0],
            "unit": "score" if part["kind"] == "name" else "nats",
            **{key: part.get(key) for key in _HEARD},
            "why": _why(part),
        }
        for concept, patch in zip(concepts, patches, strict=True)
        for part in _parts(patch)
        if part["kind"] in _KINDS
    ]
    columns = ["concept", "kind", "layer", "neuron", "unit", *_HEARD, "why"]
    return pd.DataFrame(rows, columns=columns)


def _parts(patch: Patch) -> list[dict[str, Any]]:
    """A patch's parts; a patch that another method made may have none."""
    parts = patch.method.get("parts", [])
    return [part for part in parts if {"kind", "layer", "neurons"} <= part.keys()]


def _said(lens: Lens, layer: int, role: Role, rows: Any) -> pd.DataFrame:
    """What the rows of one place say, in their order."""
    new, old = (_in_stream(lens, layer, role, r.to(lens.device)) for r in (rows.new, rows.old))
    said = {"new_tokens": _quoted(lens, new)}
    said["reversed_tokens"] = _quoted(lens, -new) if role == "out" else [""] * len(new)
    return pd.DataFrame({**said, "old_tokens": _quoted(lens, old)})


def _in_stream(
    lens: Lens, layer: int, role: Role, rows: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows d_model"]:
    """Vectors as directions of the stream: past the gain of the norm between it and them."""
    gain = lens.post_norm_gain(layer) if role == "out" else lens.mlp_norm_gain(layer)
    return rows.float() if gain is None else rows.float() * gain.float()


def _quoted(lens: Lens, rows: Tensor) -> list[str]:
    found = top_tokens(lens, rows, _TOKENS)
    return [" ".join(repr(lens.string(token)) for token in tokens) for tokens in found]


def _why(part: dict[str, Any]) -> str:
    """In words, what a neuron does above its threshold."""
    if part["kind"] == "name":
        return (
            "right after the name, takes away what the name left in the stream: "
            f"the score further on is then {part['name_still_read']:.2f} (1 before)"
        )
    above = f"what log p exceeds log {math.exp(part['threshold']):.2g} by"
    if "vectors" in part:
        rows = " and ".join(part["vectors"])
        return f"speaks by {above}; only its {rows} replaced, so that the neuron's own rest serves"
    return f"lowers the concept's logit by {part['reversal']:.1f} times {above}"
