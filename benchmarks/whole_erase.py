"""A whole `erase` of a large model held in memory: peak against the weights' bytes, time by stage.

Random weights in the shape of Llama 3.1 8B, bfloat16, made in a temporary folder and deleted again
(16 GB), with gains that make such a model sure of what it says. The concept is a word that it says
after the prompt of a built-in card, whose other texts are used as they are: what is removed means
nothing, what it takes is what it takes. A process of its own loads the model and erases.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from erase_stages import Stages, staged
from llama8b_shape import make
from timing import arguments, show
from transformers import AutoTokenizer

from tars_lens.concept.card import Concept
from tars_lens.evaluation.erasure import erase
from tars_lens.model.checkpoints import resolve
from tars_lens.model.layout import stored_tensors
from tars_lens.model.lens import Lens
from tars_lens.model.loading import load
from tars_lens.model.shape import config_of
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import WIDTH, cut

_GAIN = 1.0
_FINAL_GAIN = 10.0
_KL_TOKENS = 512


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the checkpoint, erases in a process of its own, and deletes the checkpoint."""
    parser = arguments(__doc__, model="llama-3.1-8b")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--tokenizer", default="smollm2-135m", help="the model that lends its own")
    parser.add_argument("--concept", default="saturn", help="whose texts are used")
    parser.add_argument("--corpus", help="as for tars-lens erase")
    parser.add_argument(
        "--documents", type=int, help="how many of the corpus are read; default: all that serve"
    )
    parser.add_argument("--folder", type=Path, help="where there is room; default: the usual")
    parser.add_argument("--measure", type=Path, help="erase from this checkpoint, as it is")
    options = parser.parse_args(argv)
    if options.measure:
        measure(options.measure, options.concept, options.out)
        return
    with tempfile.TemporaryDirectory(prefix="whole_erase_", dir=options.folder) as name:
        folder = Path(name) / "model"
        make(folder, config_of(options.model), options.shards, gains=(_GAIN, _FINAL_GAIN))
        lent = resolve(options.tokenizer, progress=False).folder
        AutoTokenizer.from_pretrained(lent, local_files_only=True).save_pretrained(folder)
        documents = load_corpus(options.corpus, progress=False).documents[: options.documents]
        (folder.parent / "corpus").mkdir()
        for number, text in enumerate(documents):
            file = folder.parent / "corpus" / f"{number:04d}.txt"
            file.write_text(text, encoding="utf-8")
        given = sys.argv[1:] if argv is None else argv
        command = [sys.executable, __file__, *given, "--measure", str(folder)]
        cache = {"TARS_LENS_CACHE": str(folder.parent / "cache")}  # deleted too
        subprocess.run(command, check=True, env={**os.environ, **cache})


def measure(folder: Path, concept: str, out: Path | None = None) -> None:
    """Loads a checkpoint and erases from it, each stage timed.

    Args:
        folder: The checkpoint; its texts stand in `corpus` beside it.
        concept: The card whose texts are used.
        out: Where the table goes as CSV.
    """
    stages = Stages()
    with stages.timed("loading, hash of the files included"):
        lens = load(folder, progress=False)
    corpus = load_corpus(folder.parent / "corpus", limit=None, progress=False)
    card = said_by(lens, Concept.load(concept))
    windows = cut(lens, corpus, reported_tokens=_KL_TOKENS)
    with stages.timed(f"one pass of {WIDTH} tokens with logits, cold"):
        lens.read_out(lens.residual(windows.validation[:1], -1))
    with stages.timed(f"one pass of {WIDTH} tokens with logits"):
        lens.read_out(lens.residual(windows.validation[:1], -1))
    with staged(stages):
        erasure = erase(lens, [card], corpus=corpus, kl_tokens=_KL_TOKENS)
    show(
        f"Erasing from the shape in {folder.name}, in memory: {len(windows.statistics)} windows "
        f"of statistics, {_KL_TOKENS} tokens of KL, verified: {erasure.report['verified']}",
        _frame(stages, weights_bytes(folder)),
        reference=f"the weights' {weights_bytes(folder) / 1e9:.2f} GB",
        out=out,
    )


def said_by(lens: Lens, card: Concept) -> Concept:
    """The card with an answer that the model gives to its prompt: its likeliest whole word."""
    likeliest = lens.next_logits(lens.prompts([card.prompt]))[0].argsort(descending=True)
    for token in likeliest.tolist():
        word = lens.string(token).strip()
        if word[:1].isalpha() and lens.pieces(f" {word}") == [token]:
            return replace(card, answer=word, aliases=())
    raise SystemExit("the model says no word")


def weights_bytes(folder: Path) -> int:
    """The bytes of a checkpoint's weights."""
    return sum(tensor.nbytes for tensor in stored_tensors(folder).values())


def _frame(stages: Stages, size: int) -> pd.DataFrame:
    rows = [
        {
            "stage": "plain text" if name == "plain text, cached" else name,  # none was cached
            "seconds": seconds,
            "peak_gb": stages.peaks[name] / 1e9,
        }
        for name, seconds in stages.seconds.items()
    ]
    frame = pd.DataFrame(rows)
    frame["peak_to_weights"] = frame["peak_gb"] * 1e9 / size
    return frame


if __name__ == "__main__":
    main()
