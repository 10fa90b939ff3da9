"""`tars-lens serve`: a local page over a run, to ask both models and to switch neurons off."""

import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from tars_lens.cli.options import Quiet, path_argument, progress, tell
from tars_lens.common.errors import TarsError


def serve(
    folder: Annotated[Path, path_argument("What `tars-lens erase --out` made.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The base; the run's own by default.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8765,
    quiet: Quiet = False,
) -> None:
    """Ask the base and the edited model in a browser, on this machine alone."""
    try:
        import uvicorn
    except ImportError as error:
        raise TarsError(
            "the page needs starlette and uvicorn: pip install 'tars-lens[serve]'."
        ) from error
    from tars_lens.report.run import load_run

    report = load_run(folder).report
    patches = _patches(folder, [found["name"] for found in report["concepts"]])
    name = model or report["model"]["name"]
    with progress(quiet) as advance:
        advance(f"loading {name}", 0, 1)
        from tars_lens.attribution.workbench import Workbench
        from tars_lens.cli.serving.app import application
        from tars_lens.model.loading import load

        bench = Workbench(load(name, advance=advance), patches)
    listening = _socket(port)
    tell([f"http://127.0.0.1:{listening.getsockname()[1]}/ (Ctrl-C ends it)"], quiet=quiet)
    config = uvicorn.Config(application(bench), log_level="warning", access_log=False)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _patches(folder: Path, names: list[str]) -> list[Any]:
    """The run's patches, in the order of removal.

    Raises:
        TarsError: One isn't there, or is no patch.
    """
    from tars_lens.patch.patch import Patch

    there = [Patch.load(file) for file in sorted(folder.glob("*.safetensors"))]
    by_name = {card["name"]: patch for patch in there for card in patch.concepts}
    lost = [name for name in names if name not in by_name]
    if lost:
        raise TarsError(
            f"{str(folder)!r} holds no patch of {', '.join(lost)}: give the folder as `tars-lens "
            "erase` made it."
        )
    return [by_name[name] for name in names]


def _socket(port: int) -> socket.socket:
    """A socket of this machine alone.

    Raises:
        TarsError: The port is taken, or not ours to take.
    """
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        found.close()
        raise TarsError(
            f"port {port} can't be used ({error.strerror}): choose another with --port, or 0 for "
            "any that is free."
        ) from error
    return found
