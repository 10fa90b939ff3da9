"""`tars-lens sweep`: many erasures as independent jobs, on this machine's cores or on Ray."""

from pathlib import Path
from typing import Annotated

import typer

from tars_lens.cli.options import Quiet, path_argument, path_option, progress, stoppable, tell


def sweep(
    spec: Annotated[Path, path_argument("A TOML file: concepts, models, seeds, methods.")],
    out: Annotated[Path, path_option("Where results go; what is there is kept.")] = Path(
        "runs/sweep"
    ),
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; half of its cores by default.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run on Ray (an extra).")] = False,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: auto, or ray://host:port.")
    ] = None,
    cpus: Annotated[int, typer.Option(help="Cores that Ray gives a job.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Remove many concepts from many models, each as its own job; run again to go on."""
    from tars_lens.experiments.sweeping import TABLE
    from tars_lens.experiments.sweeping import sweep as run

    with stoppable(lambda: f"finished jobs are kept in {out}: run it again to go on."):
        with progress(quiet) as advance:
            found = run(
                spec,
                out,
                workers=workers,
                ray=ray,
                ray_address=address,
                cpus_per_job=cpus,
                advance=advance,
            )
    if not quiet:
        shown = ["concept", "model", "method", "seed", "status", "forward_after_max", "kl_p99"]
        table = found.table[shown].to_string(index=False, float_format=lambda v: f"{v:.2g}")
        tell([table, f"Written to {out}: {TABLE}, and jobs/ with a folder a job."])
    for key, problem in found.failed.items():
        typer.echo(f"failed: {key}: {problem}", err=True)
    if found.failed:
        raise typer.Exit(1)
