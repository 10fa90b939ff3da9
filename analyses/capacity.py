"""How many concepts fit: one after another, until the neighbours or plain text break.

Beside it, whether the order matters, and what each concept's edit alone does to every other.

    python analyses/capacity.py --model smollm2-135m
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from common import FIVE, Analysis, begin, command_line, parser

from tars_lens.concept.card import Concept, builtin_concepts
from tars_lens.evaluation.erasure import Erasure
from tars_lens.evaluation.kl import paired_kl
from tars_lens.evaluation.probes import base_frame, probe_figures, with_after
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import diff, merge
from tars_lens.report.figures import capacity
from tars_lens.report.style import figure

MOST = 20
_ALL = (*FIVE, *(name for name in builtin_concepts() if name not in FIVE))[:MOST]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the curve, the comparison of two orders, and the interference matrix."""
    options = parser(__doc__, _ALL)
    options.add_argument("--keep", type=float, default=0.8, help="neighbours' share that is enough")
    options.add_argument("--max-kl", type=float, default=0.01, help="mean KL that is no harm, nats")
    options.add_argument("--ordered", type=int, default=5, help="cards to remove in both orders")
    analysis = begin(options, __file__, argv)
    found = analysis.erasure()
    _curve(analysis, found)
    analysis.table(_orders(analysis), "order")
    analysis.interference(found)
    analysis.finish()


def _curve(analysis: Analysis, found: Erasure) -> None:
    """After each concept: the removed ones' probes, the others' forward ones, the KL."""
    lens, windows = analysis.lens, analysis.windows(5_120)
    cards = [replace(c, probes=replace(c.probes, multilingual=())) for c in analysis.concepts]
    bases = [base_frame(lens, card) for card in cards]
    rows = []
    for count in range(1, len(cards) + 1):
        patches = found.patches[:count]
        with stack.holding(lens, list(patches)):
            afters = [with_after(b, lens, card) for b, card in zip(bases, cards, strict=True)]
        forms = [form for c in cards[:count] for form in (*c.names, *c.surface_forms)]
        kl = paired_kl(lens, merge(patches).new_rows, windows).figures(forms)
        row = {"removed": count, "concept": cards[count - 1].name, **_figures(afters, count)}
        for name in ("mean", "p99", "max"):
            row |= {f"plain_{name}": kl[name], f"elsewhere_{name}": kl["elsewhere"][name]}
        rows.append(row)
    frame = pd.DataFrame(rows)
    keep, most = analysis.options.keep, analysis.options.max_kl
    held = (frame["neighbours_worst"] >= keep) & (frame["elsewhere_mean"] <= most)
    analysis.table(frame.assign(fits=held.cummin()))
    made, axes = figure(2, height=3.0, across=2)
    capacity(frame, axes, keep=keep, max_kl=most)
    analysis.figure(made)


def _figures(afters: Sequence[pd.DataFrame], count: int) -> dict[str, Any]:
    """Of the removed concepts' probes, the mean and worst; of the others, the forward share."""
    removed = [probe_figures(after) for after in afters[:count]]
    kept = pd.Series([f["neighbour"]["kept"] for f in removed], dtype=float)
    reverse = pd.Series([f["reverse"]["kept"] for f in removed], dtype=float)
    forward = pd.Series([f["forward"]["after_max"] for f in removed], dtype=float)
    others = [probe_figures(after)["forward"] for after in afters[count:]]
    before = pd.Series([f["before_mean"] for f in others], dtype=float)
    after = pd.Series([f["after_mean"] for f in others], dtype=float)
    return {
        "neighbours_kept": kept.mean(),
        "neighbours_worst": kept.min(),
        "forward_worst": forward.max(),
        "reverse_kept": reverse.mean(),
        "others_kept": (after / before).clip(upper=1).mean(),
    }


def _orders(analysis: Analysis) -> pd.DataFrame:
    """The first cards removed in their order and in the reverse one, figure by figure.

    `same_rows` counts a concept's weight vectors that both orders rewrite with the same bits,
    `shared_rows` those that another concept's edit of the same order rewrites too: with none, the
    patches of an order can be put on in any other and give the same model.
    """
    cards = analysis.concepts[: analysis.few(analysis.options.ordered, 2)]
    runs = {"given": cards, "reversed": cards[::-1]}
    found = {name: analysis.erasure(of) for name, of in runs.items()}
    patches = {
        name: dict(zip([c.name for c in of], found[name].patches, strict=True))
        for name, of in runs.items()
    }
    rows = []
    for name, of in runs.items():
        reported = {c["name"]: c["probes"] for c in found[name].report["concepts"]}
        for place, card in enumerate(of, start=1):
            pair = diff(patches["given"][card.name], patches["reversed"][card.name])
            row = _ordered(name, place, card, reported[card.name], pair)
            rows.append(row | {"shared_rows": _shared(patches[name], card)})
    return pd.DataFrame(rows)


def _ordered(
    order: str, place: int, card: Concept, probes: dict[str, Any], pair: pd.DataFrame
) -> dict[str, Any]:
    return {
        "order": order,
        "place": place,
        "concept": card.name,
        "forward_worst": probes["forward"]["after_max"],
        "reverse_kept": probes["reverse"]["kept"],
        "neighbours_kept": probes["neighbour"]["kept"],
        "rows": len(pair),
        "same_rows": int((pair["status"] == "same").sum()),
    }


def _shared(patches: dict[str, Patch], card: Concept) -> int:
    others = [patch for name, patch in patches.items() if name != card.name]
    if not others:
        return 0
    status = diff(patches[card.name], merge(others))["status"]
    return int(status.isin(["same", "different"]).sum())


if __name__ == "__main__":
    command_line(main)
