"""What unedited models know of the built-in cards' probes: a table, and one row a probe.

A probe counts in a report only where the base model knows it, so this is what each card can show:

    python analyses/known_probes.py --model smollm2-135m --model gemma-3-270m --out runs/known
"""

import argparse
import logging
from pathlib import Path

import pandas as pd
from common import command_line

import tars_lens
from tars_lens.common.files import write_json, write_text
from tars_lens.evaluation.probes import KINDS, base_frame
from tars_lens.model.lens import Lens

logger = logging.getLogger(__name__)

_INTRODUCTION = """# What the unedited models know of the built-in concept cards

Known of all reported probes of a card; a reverse probe that is a set phrase (it says the same
with the card's substitute in place of the name) is not counted as known, and is given in
brackets. Probes were chosen by what the unedited models know, never by what an edit does.
Made by `analyses/known_probes.py`.
"""


def main() -> None:
    """Measures every built-in card (or those named) on each model, and writes the tables."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    frames: list[pd.DataFrame] = []
    manifest = []
    for name in options.model:
        lens = tars_lens.load(name)
        manifest.append({"model": lens.name, "sha256": lens.sha256})
        frames.extend(_measured(lens, key) for key in options.concept)
    rows = pd.concat(frames, ignore_index=True)
    write_text(options.out / "known_probes.csv", rows.to_csv(index=False))
    write_json(options.out / "manifest.json", {"models": manifest, "concepts": options.concept})
    write_text(options.out / "known_probes.md", _page(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", nargs="*", default=list(tars_lens.builtin_concepts()))
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _measured(lens: Lens, key: str) -> pd.DataFrame:
    """The reported and the validation probes of one card, by one base model."""
    concept = tars_lens.Concept.load(key)
    splits = {"probes": concept.probes, "validation": concept.validation}
    frames = [
        base_frame(lens, concept, probes).assign(split=split) for split, probes in splits.items()
    ]
    logger.info("%s: %s", lens.name, key)
    return pd.concat(frames, ignore_index=True).assign(model=lens.name, card=key)


def _page(rows: pd.DataFrame) -> str:
    parts = [_INTRODUCTION]
    for split, title in (("probes", "Reported"), ("validation", "Validation")):
        chosen = rows[rows["split"] == split]
        kinds = [kind for kind in KINDS if (chosen["kind"] == kind).any()]
        parts.append(f"## {title}\n\n{_table(chosen, kinds)}\n")
    return "\n".join(parts)


def _table(rows: pd.DataFrame, kinds: list[str]) -> str:
    lines = [
        f"| card | model | {' | '.join(kinds)} |",
        "|---" * (len(kinds) + 2) + "|",
    ]
    for (card, model), found in rows.groupby(["card", "model"], sort=False):
        cells = [_cell(found[found["kind"] == kind]) for kind in kinds]
        lines.append(f"| {card} | {model} | {' | '.join(cells)} |")
    for model, found in rows.groupby("model", sort=False):
        cells = [_cell(found[found["kind"] == kind]) for kind in kinds]
        lines.append(f"| all | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: pd.DataFrame) -> str:
    """`known/n`, with the set phrases that the model would otherwise know in brackets."""
    known = rows["known"] & ~rows["set_phrase"]
    phrases = int((rows["known"] & rows["set_phrase"]).sum())
    return f"{int(known.sum())}/{len(rows)}" + (f" ({phrases})" if phrases else "")


if __name__ == "__main__":
    command_line(main)
