"""`tars-lens patch`: a patch looked at, proven, applied to a checkpoint, taken out, joined."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli_paths import path_argument, path_option
from tars_lens.errors import TarsError

app = typer.Typer(
    help="Look at, prove, apply, take out, join and export patches.", no_args_is_help=True
)

Files = Annotated[list[Path], path_argument("Patch files (.safetensors), in order.")]
File = Annotated[Path, path_argument("A patch file (.safetensors).")]
Base = Annotated[
    str, typer.Option("--model", "-m", help="The base: a built-in name, a hub id or a folder.")
]
Out = Annotated[Path, path_option("The new folder or file.")]
NewFolder = Annotated[Path | None, path_option("The new folder.", "--out")]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Edit the checkpoint's own files, and keep the old rows.")
]
Force = Annotated[bool, typer.Option("--force", help="Apply to another base all the same.")]


@app.command()
def show(file: File, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show what a patch changes, in what base, how it was made and what was measured."""
    from tars_lens.patch import Patch
    from tars_lens.patch_tools import show as view

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
    files: Files,
    model: Base = "smollm2-135m",
    edited: Annotated[
        Path | None, path_option("Compare this edited checkpoint with its base instead.")
    ] = None,
    force: Force = False,
) -> None:
    """Prove that exactly the planned vectors change, nothing else does, and undoing is exact."""
    from tars_lens.patch import Patch

    patches = [Patch.load(file) for file in files]
    if edited is not None:
        from tars_lens.checkpoints import resolve
        from tars_lens.export import verify_checkpoint
        from tars_lens.in_place import recover

        recover(edited)  # what a killed write in place has left half done is no proof
        found = verify_checkpoint(patches, resolve(model).folder, edited)
    else:
        from tars_lens.loading import load
        from tars_lens.verification import verify as prove

        found = prove(load(model), patches, force=force)
    typer.echo(
        f"{found.rows_changed} of {found.rows_planned} planned vectors changed; all else "
        f"bit-identical: {_yes(found.others_identical)}; undone bit-identically: "
        f"{_yes(found.restored_identical)}"
    )
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def apply(files: Files, out: Out, model: Base = "smollm2-135m", force: Force = False) -> None:
    """Write an edited checkpoint that keeps its patches, so that `revert` can take them out."""
    from tars_lens.checkpoint_stack import apply_to_checkpoint
    from tars_lens.checkpoints import resolve
    from tars_lens.patch import Patch

    patches = [Patch.load(file) for file in files]
    apply_to_checkpoint(patches, resolve(model).folder, out, force=force)
    typer.echo(f"{', '.join(patch.label for patch in patches)} applied: {out}")


@app.command()
def revert(
    file: File,
    checkpoint: Annotated[
        Path, path_argument("A checkpoint made by `patch apply`, or patched in place.")
    ],
    out: NewFolder = None,
    in_place: InPlace = False,
) -> None:
    """Take one patch out of an edited checkpoint, whatever was applied after it."""
    _one_of(out, in_place)
    from tars_lens.checkpoint_stack import recorded_patches, revert_checkpoint
    from tars_lens.in_place import recover, revert_in_place
    from tars_lens.patch import Patch

    patch = Patch.load(file)
    if out is not None:
        recover(checkpoint)  # what a killed write in place has left half done
        revert_checkpoint(patch, checkpoint, out)
    else:
        revert_in_place(patch, checkpoint)
    edited = out or checkpoint
    left = ", ".join(other.label for other in recorded_patches(edited)) or "none"
    typer.echo(f"{patch.label} taken out: {edited} (patches left: {left})")


@app.command()
def export(
    files: Files,
    out: NewFolder = None,
    model: Base = "smollm2-135m",
    in_place: InPlace = False,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link weight files that hold no edited vector.")
    ] = False,
    force: Force = False,
) -> None:
    """Write a plain Hugging Face folder with the patches put in, with no model in memory.

    Files are cloned where the disk can, else copied. With --link, untouched weight files take no
    space, but whatever writes to one changes the base's too. With --in-place the base's own files
    are edited; `patch revert` takes it back.
    """
    _one_of(out, in_place)
    from tars_lens.checkpoints import resolve
    from tars_lens.export import export as write
    from tars_lens.patch import Patch

    patches = [Patch.load(file) for file in files]
    if out is None:
        _export_in_place(patches, model, force)
        return
    write(patches, resolve(model).folder, out, force=force, link=link)
    typer.echo(f"written: {out} (AutoModelForCausalLM.from_pretrained({str(out)!r}))")


def _export_in_place(patches: list[Any], model: str, force: bool) -> None:
    from tars_lens.files import user_path
    from tars_lens.in_place import export_in_place

    folder = user_path(model)
    if not folder.is_dir():
        raise TarsError(
            f"--in-place edits a folder of your own, and {model!r} is none: give --out, or the "
            "checkpoint's folder as --model."
        )
    export_in_place(patches, folder, force=force)
    typer.echo(
        f"{', '.join(patch.label for patch in patches)} written into {folder}; `tars-lens patch "
        f"revert FILE {folder} --in-place` takes a patch out."
    )


def _one_of(out: Path | None, in_place: bool) -> None:
    if (out is None) != in_place:
        raise TarsError("give either --out FOLDER or --in-place.")


@app.command()
def merge(files: Files, out: Out) -> None:
    """Join patches of one base into one file; of a shared row the later patch wins."""
    from tars_lens.patch import Patch
    from tars_lens.patch_tools import merge as join

    joined = join([Patch.load(file) for file in files])
    joined.save(out)
    typer.echo(f"{joined.label}: {joined.n_rows} vectors, written: {out}")


@app.command()
def diff(a: File, b: File) -> None:
    """Compare two patches row by row."""
    from tars_lens.patch import Patch
    from tars_lens.patch_tools import diff as compare

    frame: Any = compare(Patch.load(a), Patch.load(b))
    typer.echo(frame.to_string(index=False) if len(frame) else "both patches are empty")


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
