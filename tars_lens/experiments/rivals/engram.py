"""AI Engram (Kwon et al., arXiv 2606.14997): what each matrix owes to a concept, subtracted."""

from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.experiments.rivals.base import Edit, extra, recorded
from tars_lens.experiments.rivals.choosing import gentlest
from tars_lens.experiments.rivals.facts import Facts, other_facts, own_facts
from tars_lens.model.lens import Lens
from tars_lens.text.windows import Windows

PLAIN_WINDOWS = 16  # more tokens than a small model's widest matrix reads dimensions
_STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.5, 2.0)


def engram(lens: Lens, concept: Concept, windows: Windows, seed: int) -> Edit:
    """`W <- W - a f W C_forget pinv(C_total)`, for every matrix of attention and MLPs.

    `C` is the second moment of what a matrix reads: of the card's facts, and of these with the near
    facts and plain text. The facts are read without their first token, which is like no other and
    the same in every text. `f` is the share of the tokens that are to be forgotten times how much
    of a matrix the subtracted part is, beside the matrix where it is most (the paper's adaptive
    norm). The package does all of it on the bridge's own linear layers.
    """
    package = extra("engram")
    editor = package.EngramEditor(lens.model)
    if not any(isinstance(module, tuple(editor.registry)) for module in lens.model.modules()):
        raise TarsError(
            f"{lens.name} keeps its weights in no linear layers that the rival 'engram' can read. "
            "Load it as a TransformerBridge, or name other rivals (--rivals)."
        )
    own = Facts.of(lens, own_facts(concept))
    near = other_facts(concept)
    forget = [(own.ids, own.read)]
    total = [(facts.ids, facts.read) for facts in (own, *([Facts.of(lens, near)] if near else []))]
    plain = windows.statistics[:PLAIN_WINDOWS].split(4)
    total += [(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in plain]
    with redirect_stderr(StringIO()):  # it draws bars of its own on a terminal
        moments = [
            editor.collect_statistics(
                batches,
                batch_fn=lambda batch: batch[0],
                mask_fn=lambda batch: batch[1],
                layers_to_transform=list(range(lens.n_layers)),
            )
            for batches in (forget, total)
        ]
        found = editor.compute_engram_weights(*moments)
    return gentlest(lens, concept, _edits(lens, package, editor, found))


def _edits(lens: Lens, package: Any, editor: Any, found: Any) -> Iterator[Edit]:
    scale = package.compose(package.count_ratio(), package.weight_norm())
    for strength in _STRENGTHS:

        def change(strength: float = strength) -> None:
            editor.apply(found, alpha=strength, scale=scale, inplace=True)

        yield recorded(lens, change)
