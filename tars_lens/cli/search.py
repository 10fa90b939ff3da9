"""`tars-lens search`: the method's settings tried against validation, never against the probes."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from tars_lens.cli.options import path_option
from tars_lens.method.settings import LAST_SEED, METHODS


def search(
    concepts: Annotated[list[str], typer.Argument(help="Built-in names or paths to cards.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A built-in name, a hub id, a folder or a .gguf.")
    ] = "smollm2-135m",
    out: Annotated[Path, path_option("Its folder; an earlier search in it is continued.")] = Path(
        "runs/search"
    ),
    trials: Annotated[int, typer.Option(help="Trials in all, those of other workers too.")] = 50,
    method: Annotated[str, typer.Option(help=METHODS)] = "tars",
    space: Annotated[
        Path | None, path_option("A TOML file: settings, each with the list of values to try.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Plain text, as for erase.")] = None,
    kl_tokens: Annotated[int, typer.Option(help="Tokens that the KL is measured on.")] = 4_096,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=LAST_SEED, help="Seed of the sampler and of every erasure's draws."
        ),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no summary.")
    ] = False,
) -> None:
    """Search the method's settings on validation text; run it again, or beside itself, to go on."""
    from tars_lens.common.errors import unknown
    from tars_lens.common.files import user_path, writable_folder
    from tars_lens.common.progress import progress
    from tars_lens.concept.card import Concept
    from tars_lens.experiments.searching import OBJECTIVES, RULE, SPACE, check_space
    from tars_lens.experiments.searching import search as run
    from tars_lens.method.settings import MethodName, Settings

    if method not in get_args(MethodName):
        raise unknown("method", method, get_args(MethodName))
    name: Any = method
    base = Settings(name=name, seed=seed)
    cards = [Concept.load(concept) for concept in concepts]
    tried = check_space(_space(space), base) if space else SPACE
    folder = writable_folder(user_path(out))
    try:
        with progress(quiet=quiet) as advance:
            advance(f"loading {model}", 0, 1)
            from tars_lens.model.loading import load
            from tars_lens.text.corpus import load_corpus

            lens = load(model, advance=advance)
            found = run(
                lens,
                cards,
                folder / "journal.log",
                corpus=load_corpus(corpus, advance=advance),
                trials=trials,
                space=tried,
                base=base,
                kl_tokens=kl_tokens,
                seed=seed,
                advance=advance,
            )
    except KeyboardInterrupt:
        typer.echo(f"stopped; finished trials are kept in {out}: run it again.", err=True)
        raise typer.Exit(130) from None
    found.save(folder)
    if not quiet:
        shown = found.front[["trial", *OBJECTIVES, "picked", *tried]]
        typer.echo(shown.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
        typer.echo(f"Picked: {RULE}.")
        typer.echo(f"Written to {out}: trials.csv, front.csv, picked.json.")


def _space(file: Path) -> dict[str, list[object]]:
    from tars_lens.common.errors import TarsError
    from tars_lens.common.text import read_toml

    table = read_toml(file, "search space")
    for name, values in table.items():
        if not isinstance(values, list):
            raise TarsError(f"{file}: {name!r} must be a list of the values to try.")
    return {k: [tuple(v) if isinstance(v, list) else v for v in vs] for k, vs in table.items()}
