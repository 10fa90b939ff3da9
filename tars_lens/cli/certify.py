"""`tars-lens certify`: where patches are silent on a text, and a bound on what they say there."""

from pathlib import Path
from typing import Annotated, Any

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    Corpus,
    Dtype,
    Force,
    KlTokens,
    Model,
    Patches,
    Quiet,
    at_least,
    console,
    path_option,
    progress,
    tell_written,
)


def certify(
    patches: Patches,
    model: Model = DEFAULT_MODEL,
    corpus: Corpus = None,
    kl_tokens: KlTokens = 25_600,
    dtype: Dtype = "auto",
    out: Annotated[
        Path | None, path_option("A folder for the certificate, its table and its figure.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Show where patches change no bit of plain text, and bound what they do to the rest."""
    at_least("--kl-tokens", kl_tokens, 1)
    from tars_lens.concept.card import Concept
    from tars_lens.patch.patch import Patch

    made = [Patch.load(file) for file in patches]
    with progress(quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.evaluation.silence import certify as run
        from tars_lens.model.loading import load
        from tars_lens.text.corpus import load_corpus
        from tars_lens.text.windows import cut

        lens = load(model, dtype=dtype, advance=advance)
        windows = cut(lens, load_corpus(corpus, advance=advance), reported_tokens=kl_tokens)
        found = run(lens, made, windows, force=force, advance=advance)
    cards = [Concept.from_dict(card, where=p.label) for p in made for card in p.concepts]
    figures = found.figures([form for card in cards for form in card.mentions])
    if not quiet:
        from tars_lens.report.summary import print_certificate

        spoken = found.spoken(lens, 8).to_dict("records")
        print_certificate(figures, spoken, console())
    if out is not None:
        written = _written(out, lens, found, figures)
        if not quiet:
            tell_written(out, written)


def _written(out: Path, lens: Any, found: Any, figures: dict[str, Any]) -> list[str]:
    """Writes the certificate, the positions at which the last layer speaks, and their figure."""
    from tars_lens.common.files import results_folder, write_json, write_text
    from tars_lens.report.figures import silence_bound
    from tars_lens.report.style import figure, save

    spoken = found.spoken(lens)
    with results_folder(out):
        write_json(out / "certificate.json", figures)
        write_text(out / "spoken.csv", spoken.to_csv(index=False))
        made, axes = figure()
        silence_bound(spoken, axes)
        files = save(made, out / "silence_bound")
    return ["certificate.json", "spoken.csv", *(file.name for file in files)]
