"""Where each concept flows and where it stops, and what its removal leaves in the depths."""

import logging
from collections.abc import Iterator, Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tars_lens.attribution.direct import direct_attribution
from tars_lens.attribution.flow import Propagation, propagation
from tars_lens.attribution.languages import languages_by_layer
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Probe
from tars_lens.evaluation.known import Known
from tars_lens.model.generation import continuations
from tars_lens.model.lens import Lens
from tars_lens.model.readings import read_tokens, stream_ends
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import merge

logger = logging.getLogger(__name__)

_TOKENS = 12
_DEPTHS = 6


def texts_table(lens: Lens, known: Sequence[Known], patches: Sequence[Patch]) -> pd.DataFrame:
    """What the model writes, likeliest token by likeliest token, before and after.

    Of each concept its detailed prompt, and the known probes that the base model is surest of:
    one forward, one reverse, one neighbour.

    Returns:
        Columns concept, kind (prompt, forward, reverse or neighbour), prompt, before, after.
    """
    rows = [(k.concept.name, kind, prompt) for k in known for kind, prompt in _to_continue(k)]
    prompts = [prompt for *_, prompt in rows]
    frame = pd.DataFrame(rows, columns=["concept", "kind", "prompt"])
    for when, held in (("before", ()), ("after", tuple(patches))):
        with stack.holding(lens, held):
            frame[when] = continuations(lens, prompts, _TOKENS)
    return frame


def propagation_tables(
    lens: Lens, known: Sequence[Known], patches: Sequence[Patch]
) -> dict[str, pd.DataFrame]:
    """The propagation maps of the surest forward and reverse probe of each concept.

    Args:
        lens: The base model.
        known: What it knows of each concept.
        patches: All that are removed together.

    Returns:
        `propagation` and `propagation_summary`, as `Propagation` has them, with columns concept,
        kind and answer; `prompt` counts through all concepts.
    """
    merged = merge(patches)
    maps: list[pd.DataFrame] = []
    sums: list[pd.DataFrame] = []
    for index, (of, kind, probe) in enumerate(_to_follow(known)):
        wanted = of.wanted(lens, kind, probe)
        try:
            found = propagation(lens, probe.prompt, wanted, patch=merged)
        except TarsError as error:  # known by another form than its first token
            logger.warning("no propagation map is drawn: %s", error)
            continue
        for rows, frame in zip((maps, sums), _both(found), strict=True):
            about = {"concept": of.concept.name, "kind": kind, "answer": probe.answer}
            rows.append(frame.assign(prompt=index, **about))
    if not maps:
        return {}
    return {
        "propagation": pd.concat(maps, ignore_index=True),
        "propagation_summary": pd.concat(sums, ignore_index=True),
    }


def attribution_table(lens: Lens, known: Sequence[Known], patches: Sequence[Patch]) -> pd.DataFrame:
    """Direct logit attribution at the surest forward probe of each concept.

    Returns:
        As `DirectAttribution.to_frame`, with a column concept; `prompt` counts the concepts.
    """
    merged = merge(patches)
    found = []
    for index, of in enumerate(k for k in known if k.probes("forward", 1)):
        prompt = of.probes("forward", 1)[0].prompt
        try:
            parts = direct_attribution(lens, prompt, of.tokens, patch=merged).to_frame()
        except TarsError as error:  # also where an architecture's parts don't add up
            logger.warning("no attribution is drawn: %s", error)
            continue
        found.append(parts.assign(prompt=index, concept=of.concept.name))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def depth_table(lens: Lens, known: Sequence[Known], patches: Sequence[Patch]) -> pd.DataFrame:
    """The most that the logit lens reads of each concept at any layer, at the prompt's last token.

    Of each concept's known forward probes, the six that the base model is surest of.

    Returns:
        Columns concept, prompt, largest_before, layer_before, largest_after, layer_after (-1: the
        embedding).
    """
    rows = [(of, probe.prompt) for of in known for probe in of.probes("forward", _DEPTHS)]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame([(of.concept.name, prompt) for of, prompt in rows])
    frame.columns = pd.Index(["concept", "prompt"])
    for when, held in (("before", ()), ("after", tuple(patches))):
        with stack.holding(lens, held):
            streams = stream_ends(lens, [prompt for _, prompt in rows])
        read = [_largest(lens, streams[:, i], of.tokens) for i, (of, _) in enumerate(rows)]
        frame[f"largest_{when}"] = [p for p, _ in read]
        frame[f"layer_{when}"] = [layer for _, layer in read]
    return frame


def languages_table(lens: Lens, known: Sequence[Known], patches: Sequence[Patch]) -> pd.DataFrame:
    """What the logit lens reads in other languages: `languages_by_layer` of every concept."""
    merged = merge(patches)
    found = [languages_by_layer(lens, of.concept, merged).to_frame() for of in known]
    return pd.concat(found, ignore_index=True)


def _to_continue(of: Known) -> Iterator[tuple[str, str]]:
    yield "prompt", of.concept.prompt
    for kind, most in (("forward", 1), ("reverse", 1), ("neighbour", 1)):
        yield from ((kind, probe.prompt) for probe in of.probes(kind, most))


def _to_follow(known: Sequence[Known]) -> list[tuple[Known, str, Probe]]:
    return [
        (of, kind, probe)
        for of in known
        for kind in ("forward", "reverse")
        for probe in of.probes(kind, 1)
    ]


def _both(found: Propagation) -> tuple[pd.DataFrame, pd.DataFrame]:
    return found.to_frame(), found.summary()


def _largest(
    lens: Lens, stream: Float[Tensor, "layers d_model"], tokens: Sequence[int]
) -> tuple[float, int]:
    best = read_tokens(lens, stream, tokens).probability.max(dim=0)
    return float(best.values), int(best.indices) - 1
