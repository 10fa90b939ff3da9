"""Every built-in card removed alone: effect, damage, depth and time, one row a card.

python analyses/cards.py --model smollm2-135m

The logit lens is read at the end of each known forward probe, after every layer from the first at
which the base reads the concept there by more than a bigram: by 0.05 more than at the prompt's last
word alone.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from common import Analysis, begin, command_line, parser
from jaxtyping import Float
from torch import Tensor

from tars_lens.concept.card import Concept, builtin_concepts
from tars_lens.concept.forms import first_tokens
from tars_lens.evaluation.erasure import Erasure
from tars_lens.model.lens import Lens, Point
from tars_lens.model.readings import read_tokens

_BEYOND = 0.05


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the table, card by card."""
    options = parser(__doc__, builtin_concepts())
    options.add_argument("--kl-tokens", type=int, default=0, help="of the KL of each alone")
    analysis = begin(options, __file__, argv)
    rows = []
    for concept in analysis.concepts:
        found = analysis.erasure([concept], kl_tokens=analysis.options.kl_tokens)
        rows.append(_row(analysis, concept, found))
        analysis.table(pd.DataFrame(rows))  # each as it comes: a run may be stopped
    analysis.finish()


def _row(analysis: Analysis, concept: Concept, found: Erasure) -> dict[str, Any]:
    (entry,) = found.report["concepts"]
    probes, kl = entry["probes"], found.report["kl"] or {}
    forward, reverse = probes["forward"], probes["reverse"]
    neighbour, languages = probes["neighbour"], probes["multilingual"]
    frame = found.tables["probes"]
    known = frame[(frame["kind"] == "forward") & frame["known"]]["prompt"].tolist()
    return {
        "concept": concept.name,
        "vectors": len(entry["edits"]),
        "forward_worst": forward["after_max"],
        "forward_known": forward["known"],
        "forward_said": forward.get("said_after"),
        "reverse_kept": reverse["kept"],
        "reverse_known": reverse["known"],
        "reverse_said_own": reverse.get("said_after_own"),
        "lens_at_ends": lens_at_ends(analysis.lens, concept, known, found),
        "neighbours_kept": neighbour["kept"],
        "neighbours_worst": neighbour["worst"],
        "neighbours_worst_kept": neighbour["worst_kept"],
        "neighbours_known": neighbour["known"],
        "languages_kept": languages["kept"],
        "languages_known": languages["known"],
        "kl_mean": kl.get("elsewhere", {}).get("mean"),
        "kl_p99": kl.get("elsewhere", {}).get("p99"),
        "seconds": entry["seconds"],
    }


def lens_at_ends(
    lens: Lens, concept: Concept, prompts: Sequence[str], found: Erasure
) -> float | None:
    """The largest probability that the lens gives the concept where it counts, after the edit."""
    if not prompts:
        return None
    alone = [prompt.split()[-1] for prompt in prompts]
    beyond = _read(lens, concept, prompts) > _read(lens, concept, alone) + _BEYOND
    counts = beyond.int().cummax(dim=0).values.bool()
    (patch,) = found.patches
    with patch.applied(lens):
        after = _read(lens, concept, prompts)
    return float(after[counts].max()) if counts.any() else 0.0


def _read(lens: Lens, concept: Concept, prompts: Sequence[str]) -> Float[Tensor, "layers prompts"]:
    """The concept's probability by the lens at the end of each prompt, after each layer."""
    batch = lens.prompts(prompts)
    points = [Point("resid_post", layer) for layer in range(lens.n_layers)]
    seen = lens.capture(batch.ids, points, positions=batch.last)
    stream = torch.cat([seen[point] for point in points])
    found = read_tokens(lens, stream, first_tokens(lens, concept)).probability
    return found.reshape(lens.n_layers, len(prompts))


if __name__ == "__main__":
    command_line(main)
