"""`tars-lens chat`: base and edited answers side by side."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tars_lens.cli.options import path_argument
from tars_lens.method.settings import LAST_SEED


def chat(
    files: Annotated[list[Path], path_argument("Patch files (.safetensors), in order.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="The base: a built-in name, a hub id or a folder."),
    ] = "smollm2-135m",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Answer this and end; may be repeated. Default: prompts are typed."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 60,
    temperature: Annotated[float, typer.Option(min=0, help="0 for the likeliest tokens.")] = 0.0,
    seed: Annotated[
        int,
        typer.Option(min=0, max=LAST_SEED, help="Seed of the draws, the same for both answers."),
    ] = 0,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Show so many of the likeliest first tokens of each answer."),
    ] = None,
    template: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the tokenizer's chat template.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Take patches of another base.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no greeting.")] = False,
) -> None:
    """Type a prompt, and see what the base and the edited model make of it, side by side."""
    from rich.console import Console

    from tars_lens.common.progress import progress
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in files]
    with progress(quiet=quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.attribution.chat import Chat
        from tars_lens.cli.chat_view import converse
        from tars_lens.model.loading import load

        lens = load(model, advance=advance)
        talk = Chat(
            lens,
            patches,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            template=template,
            force=force,
        )
        advance(f"loading {model}", 1, 1)
    console = Console(highlight=False)
    shown = top or 0
    if prompt:
        converse(talk, console, prompt, top=shown)
    elif sys.stdin.isatty():
        if console.is_terminal and not quiet:
            on = ", ".join(patch.label for patch in patches)
            console.print(f"{lens.name}, edited by {on}. /help tells what there is.", markup=False)
        converse(talk, console, _typed(), top=shown, typed=True)
    else:
        converse(talk, console, sys.stdin, top=shown)


def _typed() -> Iterator[str]:
    """Lines that are typed, until Ctrl-D; Ctrl-C drops the line."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() then edits lines and remembers them

    while True:
        try:
            yield input("> ")
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo("  (Ctrl-D or /quit ends)")
