"""An audit of a checkpoint: which neurons look planted, without knowing the base.

A neuron that was trained reads with its gate about as strongly as with its `in` row, and no two
rows of a matrix point the same way. A neuron that was made by hand gives itself away by that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tars_lens.common.cache import Advance, silent
from tars_lens.common.surroundings import undisturbed
from tars_lens.evaluation.subject import check_alike, differing_rows
from tars_lens.method.describing import top_tokens
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Rows, neuron_label
from tars_lens.patch.patch import Patch
from tars_lens.patch.verification import holding_tensors

LEAST_IMBALANCE = 4.0
"""Of `log(|gate| / |in|)` above its layer's median: a factor of 55. The largest of the unedited
SmolLM2-135M is 1.6, of Gemma-3-270M 2.3, of Qwen2.5-Coder-1.5B 3.3."""

LEAST_COSINE = 0.99
"""Of two rows of one matrix, whatever the sign. The largest of two unedited models is 0.967."""

LEAST_SIZE = 1e-6
"""A row smaller than this share of its matrix's median is silent."""

_CHUNK = 1024
_TOKENS = 5


@dataclass(frozen=True)
class Audit:
    """What `audit` found.

    Attributes:
        model: The checkpoint's name.
        neurons: How many were looked at.
        found: One row a suspicious neuron: neuron (as in `L29N506`), layer, index, why (unbalanced,
            twin, silent; several with a comma between), imbalance (nats above the layer's median;
            NaN without a gate), twin (the largest cosine of one of its rows with another row of
            that matrix), silences and reads: the tokens that its `out` row lowers most and that its
            reading row raises most.
        differing: With a base, one row an MLP vector that differs: neuron, layer, index, role,
            cosine and suspicious; else `None`.
        others: With a base, the names of the other tensors that differ; else `None`.
    """

    model: str
    neurons: int
    found: pd.DataFrame
    differing: pd.DataFrame | None
    others: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        said = {"model": self.model, "neurons": self.neurons}
        tables: dict[str, Any] = {"found": _records(self.found), "differing": None, "others": None}
        if self.differing is not None and self.others is not None:
            tables |= {"differing": _records(self.differing), "others": list(self.others)}
        return said | tables


@undisturbed
@torch.no_grad()
def audit(lens: Lens, base: Lens | None = None, advance: Advance | None = None) -> Audit:
    """Looks through every neuron of a model for what training doesn't make.

    It finds neurons whose gate reads far more than their `in` row (as a suppression neuron's does,
    whose `in` row only gives the constant 1), rows that are another row over again, and rows that
    are zero. What it doesn't find is a change that is spread over a whole matrix, as a rank-one
    edit's is: for that a base is needed.

    Args:
        lens: The model; patches that are on it are looked at as well.
        base: What it was made from, to name everything that differs.
        advance: Told of the progress.

    Raises:
        TarsError: The base is of another shape or tokenizer.
    """
    say, records = advance or silent, []
    for layer in range(lens.n_layers):
        say("looking through the neurons", layer, lens.n_layers)
        records += _suspicious(lens, layer)
    say("looking through the neurons", lens.n_layers, lens.n_layers)
    columns = ["neuron", "layer", "index", "why", "imbalance", "twin"]
    found = _named(lens, pd.DataFrame(records, columns=columns))
    differing, others = (None, None) if base is None else _compared(lens, base, found)
    return Audit(lens.name, lens.n_layers * lens.d_mlp, found, differing, others)


def silencing(lens: Lens, found: Audit) -> Patch:
    """A patch of the checkpoint that sets the `out` rows of the suspicious neurons to zero."""
    edits: Edits = {
        (int(layer), "out"): Rows(
            torch.tensor(sorted(rows["index"].tolist())), torch.zeros(len(rows), lens.d_model)
        )
        for layer, rows in found.found.groupby("layer")
    }
    return Patch.build(lens, edits, label="silenced", method={"name": "audit"})


def _suspicious(lens: Lens, layer: int) -> list[dict[str, Any]]:
    rows = {role: lens.vectors(layer, role).float() for role in lens.roles}
    norms = {role: values.norm(dim=1) for role, values in rows.items()}
    zero = torch.stack([n <= LEAST_SIZE * n.median() for n in norms.values()]).any(dim=0)
    imbalance = torch.full_like(norms["out"], torch.nan)
    if "gate" in norms:
        ratio = (norms["gate"] / norms["in"]).log()
        imbalance = ratio - ratio.nanmedian()
    twin = torch.stack([_largest_cosine(values) for values in rows.values()]).amax(dim=0)
    reasons = {
        "unbalanced": (imbalance >= LEAST_IMBALANCE) & ~zero,
        "twin": twin >= LEAST_COSINE,
        "silent": zero,
    }
    return [
        {
            "neuron": neuron_label(layer, index),
            "layer": layer,
            "index": index,
            "why": ", ".join(why for why, flags in reasons.items() if flags[index]),
            "imbalance": float(imbalance[index]),
            "twin": float(twin[index]),
        }
        for index in torch.stack(list(reasons.values())).any(dim=0).nonzero()[:, 0].tolist()
    ]


def _largest_cosine(rows: Float[Tensor, "neurons d_model"]) -> Float[Tensor, " neurons"]:
    """Of each row with any other of its matrix, whatever the sign."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    found = []
    for start in range(0, len(unit), _CHUNK):
        cosines = (unit[start : start + _CHUNK] @ unit.T).abs()
        own = torch.arange(len(cosines), device=rows.device)
        cosines[own, own + start] = 0
        found.append(cosines.amax(dim=1))
    return torch.cat(found)


def _named(lens: Lens, found: pd.DataFrame) -> pd.DataFrame:
    """Adds what each neuron silences and reads."""
    silences: list[str] = []
    reads: list[str] = []
    for row in found.itertuples():
        out, read = _in_stream(lens, int(row.layer), int(row.index))
        both = top_tokens(lens, torch.stack([-out, read]), _TOKENS)
        for column, tokens in zip((silences, reads), both, strict=True):
            column.append(" ".join(repr(lens.string(token)) for token in tokens))
    return found.assign(silences=silences, reads=reads)


def _in_stream(lens: Lens, layer: int, index: int) -> tuple[Tensor, Tensor]:
    """A neuron's `out` row past a norm that may follow, and its reading row before the norm."""
    out, gain = lens.vectors(layer, "out")[index].float(), lens.post_norm_gain(layer)
    read = lens.vectors(layer, "gate" if lens.gated else "in")[index].float()
    return out if gain is None else out * gain.float(), read * lens.mlp_norm_gain(layer).float()


def _compared(lens: Lens, base: Lens, found: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    check_alike(base, lens)
    suspicious, records = set(found["neuron"]), []
    for (layer, role), rows in differing_rows(base, lens).items():
        old = base.vectors(layer, role)[rows.neurons].float()
        cosines = torch.cosine_similarity(old, rows.values.float(), dim=1)
        for index, cosine in zip(rows.neurons.tolist(), cosines.tolist(), strict=True):
            label = neuron_label(layer, index)
            records.append((label, layer, index, role, cosine, label in suspicious))
    columns = ["neuron", "layer", "index", "role", "cosine", "suspicious"]
    places = {(layer, role) for layer in range(lens.n_layers) for role in lens.roles}
    mlp = holding_tensors(lens, places)
    theirs, ours = base.hashes(without=mlp), lens.hashes(without=mlp)
    others = sorted(name for name in ours if ours[name] != theirs.get(name))
    return pd.DataFrame(records, columns=columns), tuple(others)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; a number that is none is `None`."""
    rows: Sequence[dict[str, Any]] = frame.to_dict("records")
    return [{k: None if v != v else v for k, v in row.items()} for row in rows]
