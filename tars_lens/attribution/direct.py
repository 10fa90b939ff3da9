"""Direct logit attribution: what every part of the network adds to the concept's logit.

The residual stream is the sum of what its parts write, and the final norm is linear once its scale
is held at the run's own value, so the parts add up to the logit exactly. Weights are the raw ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from tars_lens.attribution.asked import Wanted, check_leads, edits_of, question
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.model.lens import Lens, Point
from tars_lens.model.logit_parts import Parts, logit_parts
from tars_lens.model.weights import neuron_label, written
from tars_lens.patch.patch import Patch

_SLACK = 64
"""Rounding that the parts' sum may show, in epsilons of the model's dtype times their sizes."""


@dataclass(frozen=True)
class DirectAttribution:
    """The concept's logit after each prompt, taken apart.

    Attributes:
        frame: See `to_frame`.
        logits: One row a prompt: prompt, text, token, logit_before, logit_after (by the model's
            own run, before a soft cap), error_before, error_after (the sum of the parts less it).
    """

    frame: pd.DataFrame
    logits: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt and part.

        Embedding, attention, mlp and the bias after the last layer add up to the logit. So do
        embedding, head, neuron and all biases: the heads, and one of two biases, to their
        attention; the neurons, those of index -1 standing for all that are not listed, and the
        other bias, to their MLP.

        Returns:
            Columns prompt, text, component (embedding, attention, head, mlp, neuron or bias), layer
            (-1: the embedding; the number of layers: after the last), index (of the head or
            neuron, else -1), label, logit_before, logit_after (NaN without a patch).
        """
        return self.frame.copy()

    @property
    def error(self) -> float:
        """The largest difference between the parts' sum and the model's own logit."""
        return float(np.nanmax(self.logits[["error_before", "error_after"]].abs().to_numpy()))


@undisturbed
def direct_attribution(
    lens: Lens,
    prompts: str | Sequence[str],
    wanted: Wanted,
    *,
    patch: Patch | None = None,
    neurons: int = 20,
) -> DirectAttribution:
    """Takes the logit of the likeliest of some tokens apart, before and after an edit.

    Where the architecture caps its logits (Gemma 2), it is the logit before the cap.

    Args:
        lens: The model as it stands before the edit.
        prompts: Texts that lead to the concept; its logit is that at their last token.
        wanted: The concept, or token ids.
        patch: The edit.
        neurons: How many single neurons of a prompt to list, those with the largest part or the
            largest change of it.

    Raises:
        TarsError: An empty prompt or one that leads nowhere near the tokens, a patch for another
            model, or an architecture whose parts don't add up.
    """
    if neurons < 0:
        raise TarsError(f"neurons must be 0 or more, got {neurons}.")
    asked = question(lens, prompts, wanted)
    edits = edits_of(lens, patch)
    last = Point("resid_post", lens.n_layers - 1)
    ends = lens.capture(asked.batch.ids, [last], positions=asked.batch.last)[last]
    logits = lens.read_out(ends)
    check_leads(lens, asked, logits)
    own = logits[:, list(asked.tokens)].argmax(dim=1).tolist()
    tokens = [asked.tokens[index] for index in own]
    before = logit_parts(lens, asked.batch, tokens)
    after = None
    if patch is not None:
        with written(lens, edits):
            after = logit_parts(lens, asked.batch, tokens)
    for parts in (before, after):
        _check_sum(lens, parts)
    frames = [_frame(row, text, before, after, neurons) for row, text in enumerate(asked.texts)]
    return DirectAttribution(
        pd.concat(frames, ignore_index=True),
        pd.DataFrame(
            {
                "prompt": range(len(tokens)),
                "text": asked.texts,
                "token": [lens.string(token) for token in tokens],
                **_logits("before", before),
                **_logits("after", after),
            }
        ),
    )


def _check_sum(lens: Lens, parts: Parts | None) -> None:
    """Refuses to tell of parts that aren't all of the logit."""
    if parts is None:
        return
    allowed = _SLACK * torch.finfo(lens.dtype).eps * (1 + parts.size)
    wrong = (parts.coarse_error.abs() > allowed) | (parts.fine_error.abs() > allowed)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise TarsError(
            f"the parts of {lens.name} miss its logit by {float(parts.coarse_error[row]):.3g} "
            f"({float(parts.fine_error[row]):.3g} by heads and neurons): this architecture scales "
            "or adds something that isn't known here, so its attribution would be wrong."
        )


def _logits(when: str, parts: Parts | None) -> dict[str, object]:
    if parts is None:
        return {f"logit_{when}": np.nan, f"error_{when}": np.nan}
    error = torch.where(
        parts.fine_error.abs() > parts.coarse_error.abs(), parts.fine_error, parts.coarse_error
    )
    return {f"logit_{when}": parts.logit.cpu().numpy(), f"error_{when}": error.cpu().numpy()}


def _frame(row: int, text: str, before: Parts, after: Parts | None, neurons: int) -> pd.DataFrame:
    """One prompt's parts, before beside after."""
    listed = _listed(row, before, after, neurons)
    old = _rows(before, row, listed)
    frame = pd.DataFrame(old, columns=["component", "layer", "index", "label", "logit_before"])
    frame["logit_after"] = (
        np.nan if after is None else [values[-1] for values in _rows(after, row, listed)]
    )
    frame.insert(0, "prompt", row)
    frame.insert(1, "text", text)
    order = {"embedding": 0, "attention": 1, "head": 2, "mlp": 3, "neuron": 4, "bias": 5}
    frame["order"] = frame["component"].map(order)
    frame = frame.sort_values(["layer", "order"], kind="stable").drop(columns="order")
    return frame.reset_index(drop=True)


def _listed(row: int, before: Parts, after: Parts | None, count: int) -> list[tuple[int, int]]:
    """The neurons with the largest part, before or after, or the largest change."""
    size = before.neurons[:, row].abs()
    if after is not None:
        change = (after.neurons[:, row] - before.neurons[:, row]).abs()
        size = torch.maximum(torch.maximum(size, after.neurons[:, row].abs()), change)
    width = size.shape[1]
    chosen = size.flatten().topk(min(count, size.numel())).indices.tolist()
    return sorted(divmod(index, width) for index in chosen)


def _rows(
    parts: Parts, row: int, listed: list[tuple[int, int]]
) -> list[tuple[str, int, int, str, float]]:
    layers, heads = len(parts.attention), parts.heads.shape[2]
    rows = [("embedding", -1, -1, "embedding", float(parts.embedding[row]))]
    for name, label in (("attention", "attention"), ("mlp", "MLP")):
        values = getattr(parts, name)[:, row].tolist()
        rows += [(name, k, -1, f"L{k} {label}", v) for k, v in enumerate(values)]
    for k, values in enumerate(parts.heads[:, row].tolist()):
        rows += [("head", k, head, f"L{k}H{head}", values[head]) for head in range(heads)]
    others = parts.neurons[:, row].sum(dim=-1)
    for layer, neuron in listed:
        value = float(parts.neurons[layer, row, neuron])
        others[layer] -= value
        rows.append(("neuron", layer, neuron, neuron_label(layer, neuron), value))
    rows += [("neuron", k, -1, f"L{k} other neurons", v) for k, v in enumerate(others.tolist())]
    for name, label in (("attention_bias", "attention bias"), ("mlp_bias", "MLP bias")):
        values = getattr(parts, name)
        if values is not None:
            rows += [("bias", k, -1, f"L{k} {label}", float(v[row])) for k, v in enumerate(values)]
    rows.append(("bias", layers, -1, "final bias", float(parts.bias[row])))
    return rows
