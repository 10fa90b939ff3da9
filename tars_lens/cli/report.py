"""`tars-lens report`: one self-contained page from a run's folder, or a table for a README."""

from pathlib import Path
from typing import Annotated

from tars_lens.cli.options import Quiet, path_argument, path_option, tell
from tars_lens.common.errors import TarsError


def report(
    folder: Annotated[
        Path, path_argument("What `tars-lens erase --out` made; or evaluate, or compare.")
    ],
    out: Annotated[
        Path | None, path_option("The page; report.html in the folder where not given.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a run as one HTML file: verdict, damage, misses, texts, figures, settings.

    An evaluation or a comparison is written as a Markdown table beside its JSON.
    """
    if not (folder / "report.json").exists() and _is_evaluation(folder):
        if out is not None:
            raise TarsError("--out is of a run's page; a Markdown table goes beside its JSON.")
        from tars_lens.evaluation.markdown import write_markdown

        said = f"Written: {write_markdown(folder)}"
    else:
        from tars_lens.report.html import write_report

        path = write_report(folder, out)
        said = f"Written: {path} ({path.stat().st_size / 1e6:.2f} MB)"
    tell([said], quiet=quiet)


def _is_evaluation(folder: Path) -> bool:
    from tars_lens.evaluation.markdown import REPORTS

    return any((folder / name).exists() for name in REPORTS)
