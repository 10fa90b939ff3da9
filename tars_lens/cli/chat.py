"""`tars-lens chat`: base and edited answers side by side."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from tars_lens.cli.options import DEFAULT_MODEL, Force, Model, Patches, Quiet, Seed, progress


def chat(
    files: Patches,
    model: Model = DEFAULT_MODEL,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Answer this and end; may be repeated. Default: prompts are typed."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 60,
    temperature: Annotated[float, typer.Option(min=0, help="0 for the likeliest tokens.")] = 0.0,
    seed: Seed = 0,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Show so many of the likeliest first tokens of each answer."),
    ] = None,
    template: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the tokenizer's chat template.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Type a prompt, and see what the base and the edited model make of it, side by side."""
    from rich.console import Console

    said = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    talk = _talk(files, model, quiet, template=template, force=force, **said)
    from tars_lens.cli.chat_view import converse

    console = Console(highlight=False)
    if prompt:
        converse(talk, console, prompt, top=top or 0)
    elif sys.stdin.isatty():
        if console.is_terminal and not quiet:
            on = ", ".join(patch.label for patch in talk.patches)
            greeting = f"{talk.lens.name}, edited by {on}. /help tells what there is."
            console.print(greeting, markup=False)
        converse(talk, console, _typed(), top=top or 0, typed=True)
    else:
        converse(talk, console, sys.stdin, top=top or 0)


def _talk(files: Patches, model: str, quiet: bool, **options: Any) -> Any:
    from tars_lens.patch.patch import Patch

    patches = [Patch.load(file) for file in files]
    with progress(quiet) as advance:
        advance(f"loading {model}", 0, 1)
        from tars_lens.attribution.chat import Chat
        from tars_lens.model.loading import load

        talk = Chat(load(model, advance=advance), patches, **options)
        advance(f"loading {model}", 1, 1)
    return talk


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
