"""`tars-lens patch`: a patch looked at, proven, applied to a checkpoint, taken out, joined."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import (
    DEFAULT_MODEL,
    Force,
    Model,
    Patches,
    path_argument,
    path_option,
)

app = typer.Typer(
    help="Look at, prove, apply, take out, join and export patches.", no_args_is_help=True
)

File = Annotated[Path, path_argument("A patch file (.safetensors).")]
Out = Annotated[Path, path_option("The new folder or file.")]


@app.command()
def show(file: File, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show what a patch changes, in what base, how it was made and what was measured."""
    from tars_lens.patch.patch import Patch
    from tars_lens.patch.patch_tools import show as view

    header, frame = view(Patch.load(file))
    if as_json:
        known = frame.notna() & ~frame.isin([float("inf"), float("-inf")])
        edits = frame.astype(object).where(known, None)  # JSON knows no NaN
        whole = {**header, "edits": edits.to_dict("records")}
        typer.echo(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False))
        return
    for key, value in header.items():
        plain = isinstance(value, int) or (isinstance(value, str) and value.isprintable())
        typer.echo(f"{key}: {value if plain else json.dumps(value)}")
    typer.echo(frame.to_string(index=False))


@app.command()
def verify(
    files: Patches,
    model: Model = DEFAULT_MODEL,
    edited: Annotated[
        Path | None, path_option("Compare this edited checkpoint with its base instead.")
    ] = None,
    force: Force = False,
) -> None:
    """Prove that exactly the planned vectors change, nothing else does, and undoing is exact."""
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in files]
    if edited is not None:
        from tars_lens.model.checkpoints import resolve
        from tars_lens.patch.export import verify_checkpoint

        found = verify_checkpoint(patches, resolve(model).folder, edited)
    else:
        from tars_lens.model.loading import load
        from tars_lens.patch.verification import verify as prove

        found = prove(load(model), patches, force=force)
    typer.echo(
        f"{found.rows_changed} of {found.rows_planned} planned vectors changed; all else "
        f"bit-identical: {_yes(found.others_identical)}; undone bit-identically: "
        f"{_yes(found.restored_identical)}"
    )
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def apply(files: Patches, out: Out, model: Model = DEFAULT_MODEL, force: Force = False) -> None:
    """Write an edited checkpoint that keeps its patches, so that `revert` can take them out."""
    from tars_lens.model.checkpoints import resolve
    from tars_lens.patch.checkpoint_stack import apply_to_checkpoint
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in files]
    apply_to_checkpoint(patches, resolve(model).folder, out, force=force)
    typer.echo(f"{', '.join(patch.label for patch in patches)} applied: {out}")


@app.command()
def revert(
    file: File,
    checkpoint: Annotated[Path, path_argument("A checkpoint made by `patch apply`.")],
    out: Out,
) -> None:
    """Take one patch out of an edited checkpoint, whatever was applied after it."""
    from tars_lens.patch.checkpoint_stack import recorded_patches, revert_checkpoint
    from tars_lens.patch.patch import Patch

    patch = Patch.load(file)
    revert_checkpoint(patch, checkpoint, out)
    left = ", ".join(other.label for other in recorded_patches(out)) or "none"
    typer.echo(f"{patch.label} taken out: {out} (patches left: {left})")


@app.command()
def export(
    files: Patches,
    out: Out,
    model: Model = DEFAULT_MODEL,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link weight files that hold no edited vector.")
    ] = False,
    force: Force = False,
) -> None:
    """Write a plain Hugging Face folder with the patches put in, with no model in memory.

    Patches are cloned where the disk can, else copied. With --link, untouched weight files take no
    space, but whatever writes to one changes the base's too.
    """
    from tars_lens.model.checkpoints import resolve
    from tars_lens.patch.export import export as write
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in files]
    write(patches, resolve(model).folder, out, force=force, link=link)
    typer.echo(f"written: {out} (AutoModelForCausalLM.from_pretrained({str(out)!r}))")


@app.command()
def merge(files: Patches, out: Out) -> None:
    """Join patches of one base into one file; of a shared row the later patch wins."""
    from tars_lens.patch.patch import Patch
    from tars_lens.patch.patch_tools import merge as join

    joined = join([Patch.load(file) for file in files])
    joined.save(out)
    typer.echo(f"{joined.label}: {joined.n_rows} vectors, written: {out}")


@app.command()
def diff(a: File, b: File) -> None:
    """Compare two patches row by row."""
    from tars_lens.patch.patch import Patch
    from tars_lens.patch.patch_tools import diff as compare

    frame: Any = compare(Patch.load(a), Patch.load(b))
    typer.echo(frame.to_string(index=False) if len(frame) else "both patches are empty")


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
