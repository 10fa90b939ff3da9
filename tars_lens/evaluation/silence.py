"""A certificate of silence: where an edit says nothing, and the most that it says elsewhere.

A planted neuron of the last layer adds `sum_i a_i w_i` to the stream, with `a_i` its activation
and `w_i` its `out` row. Nothing comes after it but the final norm and the unembedding, so that the
change of every logit is a closed form of the activations, and with it a bound on the KL.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tars_lens.common.cache import Advance, silent
from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import undisturbed
from tars_lens.evaluation.kl import Divergence, five, paired_kl, rows_at_once
from tars_lens.evaluation.subject import patched
from tars_lens.model.lens import Lens, Point
from tars_lens.model.lens_parts import HeldNorm, held_final_norm, held_post_norm
from tars_lens.model.weights import Edits, Rows, neuron_label, written
from tars_lens.patch.patch import Patch
from tars_lens.text.windows import Windows

_BATCH = 4
_CONTEXT = 24
_ROUNDING = 64
"""What the bound allows for rounding, in epsilons of float32 times the range of the logits."""


@dataclass(frozen=True)
class LastLayer:
    """The last layer's edited neurons against the same model with their `out` rows at zero.

    Attributes:
        neurons: Which ones.
        bound: The most that the KL can be by the neurons' activations, in nats; 0 where the stream
            is unchanged to the bit.
        kl: What it is, in nats, summed in float64.
        silent: Whether every logit keeps its bits.
        loudest: At each position the neuron that adds most, by its index in `neurons`.
        before: The token that the silenced model says.
        after: The token that the edited model says.
    """

    neurons: Int[Tensor, " neurons"]
    bound: Float[Tensor, "windows pos"]
    kl: Float[Tensor, "windows pos"]
    silent: Bool[Tensor, "windows pos"]
    loudest: Int[Tensor, "windows pos"]
    before: Int[Tensor, "windows pos"]
    after: Int[Tensor, "windows pos"]


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    Attributes:
        divergence: The whole edit against the base and the silenced base.
        last: Its last layer alone; `None` where no neuron of the last layer is edited.
    """

    divergence: Divergence
    last: LastLayer | None

    def figures(self, forms: Iterable[str] = ()) -> dict[str, Any]:
        """`Divergence.figures`, and `last_layer`.

        Returns:
            In `last_layer`: neurons, tokens, silent (share of the positions), kl and bound (the
            five figures of each, nats), and held: whether the bound is nowhere below the KL.
        """
        found = self.divergence.figures(forms)
        if self.last is None:
            return {**found, "last_layer": None}
        kl, bound = (five(values.flatten()) for values in (self.last.kl, self.last.bound))
        return {
            **found,
            "last_layer": {
                "neurons": self.last.neurons.tolist(),
                "tokens": kl.pop("tokens"),
                "silent": float(self.last.silent.double().mean()),
                "kl": kl,
                "bound": {name: value for name, value in bound.items() if name != "tokens"},
                "held": bool((self.last.kl <= self.last.bound).all()),
            },
        }

    def spoken(self, lens: Lens, count: int | None = None) -> pd.DataFrame:
        """The positions at which the last layer's neurons speak, largest KL first.

        Returns:
            Columns window, position, neuron (label of the loudest), kl and bound (nats), says_base
            (the likeliest token without the neurons), says_edited, context and token (what was
            read).
        """
        columns = ["window", "position", "neuron", "kl", "bound", "says_base", "says_edited"]
        columns += ["context", "token"]
        if self.last is None:
            return pd.DataFrame(columns=columns)
        last, windows = self.last, self.divergence.windows.reported
        where = (~last.silent).nonzero()
        order = last.kl[~last.silent].argsort(descending=True)[:count]
        rows = []
        for window, position in where[order].tolist():
            at, ids = (window, position), windows[window].tolist()
            neuron = int(last.neurons[last.loudest[at]])
            rows.append(
                {
                    "window": window,
                    "position": position,
                    "neuron": neuron_label(lens.n_layers - 1, neuron),
                    "kl": float(last.kl[at]),
                    "bound": float(last.bound[at]),
                    "says_base": lens.string(int(last.before[at])),
                    "says_edited": lens.string(int(last.after[at])),
                    "context": lens.tokenizer.decode(ids[max(0, position - _CONTEXT) : position]),
                    "token": lens.string(ids[position]),
                }
            )
        return pd.DataFrame(rows, columns=columns)


@undisturbed
@torch.no_grad()
def certify(
    lens: Lens,
    patches: Sequence[Patch],
    windows: Windows,
    *,
    force: bool = False,
    advance: Advance | None = None,
) -> Certificate:
    """Where patches are silent on a text, to the bit, and a bound on its last layer where it isn't.

    With logits `z` that change by `d`, Hoeffding's lemma gives `KL <= R^2 / 8` nats, where `R` is
    the range of `d` over the vocabulary; `KL <= R` holds as well. `R` is at most `sum_i |a_i| R_i`
    over the final norm's new scale, with `R_i` the range of what `w_i` does to the logits, and
    what the change of that scale (and of a norm after the MLP) does to the logits there.

    Args:
        lens: The base model in float32, the edits not in it.
        patches: Of one base; of a shared row the later patch wins.
        windows: A corpus, cut.
        force: Take patches of another base.
        advance: Told of the progress.

    Raises:
        TarsError: No patch, one of another base, or the model isn't in float32: the rounding of a
            shorter dtype would be larger than what is to be shown.
    """
    if lens.dtype != torch.float32:
        raise TarsError(
            f"{lens.name} was loaded in {str(lens.dtype).removeprefix('torch.')}, whose rounding "
            "hides what a certificate shows: load it, and make its patches, in float32 (--dtype "
            "float32)."
        )
    edits, say = patched(lens, patches, force=force).edits, advance or silent
    total, done = len(windows.reported), 0

    def compared(count: int) -> None:
        nonlocal done
        done += count
        say("comparing on plain text", done, total)

    divergence = paired_kl(lens, edits, windows, advance=compared)
    say("bounding the last layer", 0, 1)
    last = _last_layer(lens, edits, windows)
    say("bounding the last layer", 1, 1)
    return Certificate(divergence, last)


def _last_layer(lens: Lens, edits: Edits, windows: Windows) -> LastLayer | None:
    layer = lens.n_layers - 1
    touched = [rows.neurons for (where, _), rows in edits.items() if where == layer]
    if not touched:
        return None
    hosts = torch.cat(touched).unique().to(lens.device)
    nothing = torch.zeros(len(hosts), lens.d_model, dtype=lens.dtype, device=lens.device)
    quiet: Edits = {**edits, (layer, "out"): Rows(hosts, nothing)}
    start, active, end = (Point(s, layer) for s in ("resid_pre", "mlp_post", "resid_post"))
    total = windows.reported.numel()
    bound, kl = torch.zeros(2, total, dtype=torch.float64, device=lens.device)
    loudest, before, after = torch.zeros(3, total, dtype=torch.int64, device=lens.device)
    silent = torch.ones(total, dtype=torch.bool, device=lens.device)
    done = 0
    for ids in windows.reported.split(_BATCH):
        with written(lens, edits):
            seen = lens.capture(ids, [start, active, end])
            out = lens.vectors(layer, "out")[hosts].clone()
            output = _mlp_output(lens, layer, seen[active].flatten(0, 1))
        with written(lens, quiet):
            silenced = lens.residual(ids, -1, resume=(layer, seen[start])).flatten(0, 1)
        edited, added = seen[end].flatten(0, 1), seen[active][..., hosts].flatten(0, 1)
        moved = (edited != silenced).any(dim=-1).nonzero()[:, 0]
        for rows in moved.split(rows_at_once(lens)) if len(moved) else ():
            at = done + rows
            old, new = lens.read_out(silenced[rows]), lens.read_out(edited[rows])
            reach = _reach(lens, silenced[rows], edited[rows], added[rows], out, output[rows])
            bound[at], kl[at] = _most(reach, old), _kl(old, new)
            silent[at] = (old == new).all(dim=-1)
            loudest[at] = (added[rows].abs() * out.norm(dim=1)).argmax(dim=1)
            before[at], after[at] = old.argmax(dim=-1), new.argmax(dim=-1)
        done += ids.numel()
    shape = windows.reported.shape
    return LastLayer(
        neurons=hosts,
        bound=bound.reshape(shape),
        kl=kl.reshape(shape),
        silent=silent.reshape(shape),
        loudest=loudest.reshape(shape),
        before=before.reshape(shape),
        after=after.reshape(shape),
    )


def _reach(
    lens: Lens,
    silenced: Float[Tensor, "rows d_model"],
    edited: Float[Tensor, "rows d_model"],
    added: Float[Tensor, "rows neurons"],
    out: Float[Tensor, "neurons d_model"],
    output: Float[Tensor, "rows d_model"],
) -> Float[Tensor, " rows"]:
    """The most that the change of one logit and that of another can be apart, in nats.

    Args:
        lens: The model.
        silenced: The final stream without the neurons.
        edited: The same with them.
        added: Their activations.
        out: Their `out` rows.
        output: What the MLP writes with them, before a norm that may follow it.
    """
    old, new = held_final_norm(lens, silenced), held_final_norm(lens, edited)
    change = new.inverse_scale / old.inverse_scale - 1
    reach = change.abs() * _span(lens, old, silenced) * old.inverse_scale
    sizes, written_by = added.abs().double(), out
    layer, without = lens.n_layers - 1, output - added @ out
    post, before = (held_post_norm(lens, layer, "mlp", rows) for rows in (output, without))
    if post is not None and before is not None:
        sizes, written_by = sizes * post.inverse_scale[:, None], _linear(post, out)
        change = post.inverse_scale / before.inverse_scale - 1
        rest = _span(lens, new, _linear(before, without)) * before.inverse_scale
        reach += change.abs() * rest * new.inverse_scale
    return reach + sizes @ _span(lens, new, written_by) * new.inverse_scale


def _linear(norm: HeldNorm, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """What a norm makes of rows but for its scale and its bias."""
    centred = rows - rows.mean(dim=-1, keepdim=True) if norm.centres else rows
    return centred * norm.gain.to(rows.dtype)


def _span(
    lens: Lens, norm: HeldNorm, rows: Float[Tensor, "rows d_model"]
) -> Float[Tensor, " rows"]:
    """The range of what rows do to the logits, at scale 1; 0 counts, for a soft cap's sake."""
    logits = _linear(norm, rows) @ lens.unembedding
    return (logits.amax(dim=-1).clamp_min(0) - logits.amin(dim=-1).clamp_max(0)).double()


def _mlp_output(
    lens: Lens, layer: int, active: Float[Tensor, "rows d_mlp"]
) -> Float[Tensor, "rows d_model"]:
    bias = lens.bias(layer, "out")
    written_by = active @ lens.vectors(layer, "out")
    return written_by if bias is None else written_by + bias


def _most(
    reach: Float[Tensor, " rows"], logits: Float[Tensor, "rows d_vocab"]
) -> Float[Tensor, " rows"]:
    eps = torch.finfo(torch.float32).eps
    reach = reach + _ROUNDING * eps * (logits.amax(dim=-1) - logits.amin(dim=-1)).double()
    return torch.minimum(reach, reach.square() / 8)


def _kl(
    old: Float[Tensor, "rows d_vocab"], new: Float[Tensor, "rows d_vocab"]
) -> Float[Tensor, " rows"]:
    """In float64: in float32 its own rounding would pass the bound where hardly anything moves."""
    before, after = (logits.double().log_softmax(dim=-1) for logits in (old, new))
    return (before.exp() * (before - after)).sum(dim=-1).clamp_min(0)
