"""`tars-lens audit`: neurons of a checkpoint that look planted, and how to silence them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import AsJson, Dtype, Quiet, console, path_option, progress, tell_json
from tars_lens.common.errors import TarsError


def audit(
    checkpoint: Annotated[
        str, typer.Argument(help="A folder, a built-in name, a hub id or a .gguf file.")
    ],
    base: Annotated[
        str | None, typer.Option(help="What it was made from: names everything that differs.")
    ] = None,
    out: Annotated[
        Path | None, path_option("Write the checkpoint with the suspicious neurons silenced.")
    ] = None,
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find neurons that were planted in a checkpoint, name what they silence, and silence them."""
    if out is not None:
        from tars_lens.model.folders import check_free

        check_free(out)
    with progress(quiet) as advance:
        advance(f"loading {checkpoint}", 0, 1)
        from tars_lens.evaluation.audit import audit as run
        from tars_lens.evaluation.audit import silencing
        from tars_lens.model.loading import load

        lens = load(checkpoint, dtype=dtype, advance=advance)
        other = None if base is None else load(base, dtype=dtype, advance=advance)
        found = run(lens, other, advance=advance)
    if as_json:
        tell_json(found)
    elif not quiet:
        from tars_lens.report.summary import print_audit

        print_audit(found.to_dict(), console())
    if out is None:
        return
    if found.found.empty:
        raise TarsError("no neuron looks planted, so there is nothing to silence: leave --out out.")
    _write(checkpoint, silencing(lens, found), out)
    if not (quiet or as_json):
        typer.echo(f"written: {out}, with {len(found.found)} neurons silenced")


def _write(checkpoint: str, patch: Any, out: Path) -> None:
    from tars_lens.model.checkpoints import resolve
    from tars_lens.patch.export import export

    export([patch], resolve(checkpoint).folder, out)
