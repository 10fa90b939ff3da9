"""`tars-lens report`: one self-contained page from a run's folder."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="What `tars-lens erase --out` made.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html in the folder where not given.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
) -> None:
    """Write a run as one HTML file: verdict, damage, misses, texts, figures, settings."""
    from tars_lens.report.html import write_report

    path = write_report(folder, out)
    if not quiet:
        typer.echo(f"Written: {path} ({path.stat().st_size / 1e6:.2f} MB)")
