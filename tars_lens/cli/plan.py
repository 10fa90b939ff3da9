"""`tars-lens plan`: the memory of an erasure, from a model's config alone."""

import json
from typing import Annotated

import typer

from tars_lens.cli.options import AsJson

_MOST = 10**9


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a config.json, a hub id, a built-in model, llama-3.1-8b or -70b."
        ),
    ],
    dtype: Annotated[
        str, typer.Option(help="auto (the config's own), float32, bfloat16 or float16.")
    ] = "auto",
    gpus: Annotated[int, typer.Option(help="How many GPUs; 0 for this processor.")] = 0,
    gpu_memory: Annotated[float, typer.Option(help="Of each GPU, in GB.")] = 80,
    memory: Annotated[
        float | None, typer.Option(help="Of the machine, in GB; what is free here by default.")
    ] = None,
    kl_tokens: Annotated[int, typer.Option(help="Tokens that the KL is measured on.")] = 25_600,
    as_json: AsJson = False,
) -> None:
    """Tell what an erasure will take before it takes it; refuse (exit 2) what won't fit."""
    from tars_lens.common.errors import TarsError
    from tars_lens.experiments.planning import plan as reckon

    for option, given in (("--memory", memory), ("--gpu-memory", gpu_memory)):
        if given is not None and not 0 < given <= _MOST:
            raise TarsError(f"{option} must be above 0 and at most {_MOST:,} GB, got {given}.")
    found = reckon(
        model,
        dtype=dtype,
        gpus=gpus,
        gpu_bytes=int(gpu_memory * 1e9),
        host_bytes=None if memory is None else int(memory * 1e9),
        kl_tokens=kl_tokens,
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    elif found.needed_bytes <= found.usable_bytes:
        typer.echo(
            f"{model}: {found.shape.parameters / 1e9:.2f} billion weights in {found.dtype}, "
            f"{found.shape.mlp_vectors:,} MLP weight vectors; on {found.machine}"
        )
        for part, size in found.memory.itertuples(index=False):
            typer.echo(f"  {size / 1e9:9.2f} GB  {part}")
        free = found.usable_bytes / 1e9
        typer.echo(f"  {found.needed_bytes / 1e9:9.2f} GB  in all, of {free:,.1f} GB")
    found.check()
