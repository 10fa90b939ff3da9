"""`tars-lens search`: the method's settings tried against validation, never against the probes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    Corpus,
    KlTokens,
    Model,
    Quiet,
    Seed,
    method_called,
    path_option,
    progress,
    stoppable,
    tell,
)
from tars_lens.method.settings import METHODS


def search(
    concepts: Annotated[list[str], typer.Argument(help="Built-in names or paths to cards.")],
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, path_option("Its folder; an earlier search in it is continued.")] = Path(
        "runs/search"
    ),
    trials: Annotated[int, typer.Option(help="Trials in all, those of other workers too.")] = 50,
    method: Annotated[str, typer.Option(help=METHODS)] = "tars",
    space: Annotated[
        Path | None, path_option("A TOML file: settings, each with the list of values to try.")
    ] = None,
    corpus: Corpus = None,
    kl_tokens: KlTokens = 4_096,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Search the method's settings on validation text; run it again, or beside itself, to go on."""
    from tars_lens.common.files import user_path, writable_folder
    from tars_lens.concept.card import Concept
    from tars_lens.experiments.searching import OBJECTIVES, RULE, SPACE, check_space
    from tars_lens.method.settings import Settings

    base = Settings(name=method_called(method), seed=seed)
    cards = [Concept.load(concept) for concept in concepts]
    tried = check_space(_space(space), base) if space else SPACE
    folder = writable_folder(user_path(out))
    how = {"trials": trials, "space": tried, "base": base, "kl_tokens": kl_tokens, "seed": seed}
    with stoppable(lambda: f"finished trials are kept in {out}: run it again."):
        found = _searched(model, cards, folder, corpus, how, quiet)
    found.save(folder)
    if not quiet:
        shown = found.front[["trial", *OBJECTIVES, "picked", *tried]]
        tell([shown.to_string(index=False, float_format=lambda v: f"{v:.3g}"), f"Picked: {RULE}."])
        tell([f"Written to {out}: trials.csv, front.csv, picked.json."])


def _searched(
    model: str, cards: Any, folder: Path, corpus: str | None, how: dict[str, Any], quiet: bool
) -> Any:
    with progress(quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.experiments.searching import search as run
        from tars_lens.model.loading import load
        from tars_lens.text.corpus import load_corpus

        lens = load(model, advance=advance)
        text = load_corpus(corpus, advance=advance)
        return run(lens, cards, folder / "journal.log", corpus=text, advance=advance, **how)


def _space(file: Path) -> dict[str, list[object]]:
    from tars_lens.common.errors import TarsError
    from tars_lens.common.text import read_toml

    table = read_toml(file, "search space")
    for name, values in table.items():
        if not isinstance(values, list):
            raise TarsError(f"{file}: {name!r} must be a list of the values to try.")
    return {k: [tuple(v) if isinstance(v, list) else v for v in vs] for k, vs in table.items()}
