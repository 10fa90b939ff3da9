"""What a run of the model is watched and steered by: points, hooks, and beginning at a layer.

With `lens.py` and `capturing.py` the only module that knows how TransformerLens calls things.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Site = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_z", "attn_out", "mlp_in", "mlp_post", "mlp_out"
]

_HOOKS: dict[Site, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "mlp_in": "mlp.in.hook_in",  # not mlp.hook_in, which OPT doesn't pass in 3.9
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}


class Point(NamedTuple):
    """A place in the network: `Point("resid_post", 3)` is the residual stream after layer 3.

    `mlp_in` is the MLP's input after norm and gain, `mlp_post` the neurons' activations, and
    `mlp_out` what the MLP adds to the stream (after a post-norm, where there is one). `attn_z` is
    what each head reads, `[batch, pos, heads, d_head]`, and `attn_out` what the attention adds.
    """

    site: Site
    layer: int


Keep = Callable[[Point, Tensor], None]
"""Is given what passes a point."""


class Seen(Exception):  # noqa: N818 - not an error: ends a run that has shown all it was asked for
    """Every point was seen."""


@contextmanager
def watching(model: Any, points: set[Point], keep: Keep, *, hooked: bool) -> Iterator[None]:
    """Calls `keep` on what passes each point while the block runs.

    Args:
        model: The bridge or `HookedTransformer`.
        points: Where to look.
        keep: What is called.
        hooked: Whether it is a `HookedTransformer`.
    """
    hooks, handles = [], []
    for point in points:
        if hooked and point.site == "mlp_in":  # has no hook point of its own
            mlp = model.blocks[point.layer].mlp
            handles.append(mlp.register_forward_pre_hook(_module_hook(point, keep)))
        else:
            hooks.append((_name(point), _lens_hook(point, keep)))
    try:
        with model.hooks(fwd_hooks=hooks):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replacing(model: Any, values: Mapping[Point, Tensor]) -> Iterator[None]:
    """Sends other values on from some points while the block runs."""
    hooks = [(_name(point), _replacing_hook(value)) for point, value in values.items()]
    with model.hooks(fwd_hooks=hooks):
        yield


@contextmanager
def changing_mlp(
    model: Any, layer: int, change: Callable[[Tensor], Tensor], *, hooked: bool
) -> Iterator[None]:
    """Sends on what `change` makes of an MLP's output, before any norm, while the block runs.

    Args:
        model: The bridge or `HookedTransformer`.
        layer: Whose MLP.
        change: Given `[batch, pos, d_model]`; gradients flow through it.
        hooked: Whether it is a `HookedTransformer`.
    """
    if hooked:
        mlp = model.blocks[layer].mlp
        handle = mlp.register_forward_hook(lambda _module, _inputs, output: change(output))
        try:
            yield
        finally:
            handle.remove()
        return
    # the out-projection and not the MLP, which OPT's blocks don't call
    hooks = [(f"blocks.{layer}.mlp.out.hook_out", lambda value, hook: change(value))]  # noqa: ARG005 - as below
    with model.hooks(fwd_hooks=hooks):
        yield


class Resumption:
    """Begins a model's runs at a layer, from a residual stream.

    `start_at_layer` of the bridge is absent in 3.9, and in 4.3 runs every block all the same.
    Here each block keeps its place, and so its own mask and rotary settings (Gemma).

    Args:
        model: The bridge or `HookedTransformer`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._output: type | None = None
        self._extra: tuple[Any, ...] = ()

    @contextmanager
    def at(self, resume: tuple[int, Tensor] | None) -> Iterator[None]:
        """Makes the blocks before a layer pass through, the last of them handing out the stream.

        Args:
            resume: `(layer, residual)`, or `None` for whole runs.
        """
        if resume is None or resume[0] == 0:
            yield
            return
        if self._output is None:
            self._learn(resume[1].device)
        layer, residual = resume
        skipped = list(self._model.blocks)[:layer]
        try:
            for block in skipped:
                object.__setattr__(block, "forward", self._passing(residual))
            yield
        finally:
            for block in skipped:
                block.__dict__.pop("forward", None)

    def _passing(self, residual: Tensor) -> Callable[..., Any]:
        def forward(*_args: Any, **_kwargs: Any) -> Any:
            return residual if self._output is not tuple else (residual, *self._extra)

        return forward

    def _learn(self, device: torch.device) -> None:
        """Whether this architecture's blocks return a tensor or a tuple, by one short run."""

        def look(_module: Any, _inputs: Any, output: Any) -> None:
            self._output = tuple if isinstance(output, tuple) else Tensor
            self._extra = tuple(None for _ in output[1:]) if isinstance(output, tuple) else ()

        handle = self._model.blocks[0].register_forward_hook(look)
        try:
            self._model(torch.zeros(1, 1, dtype=torch.long, device=device))
        finally:
            handle.remove()


def _name(point: Point) -> str:
    return f"blocks.{point.layer}.{_HOOKS[point.site]}"


def _lens_hook(point: Point, keep: Keep) -> Callable[..., None]:
    def hook(value: Tensor, hook: Any) -> None:  # noqa: ARG001 - the hook point, by TL's protocol
        keep(point, value)

    return hook


def _replacing_hook(new: Tensor) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - as above
        return new.to(value).reshape(value.shape)

    return hook


def _module_hook(point: Point, keep: Keep) -> Callable[..., None]:
    def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
        keep(point, inputs[0])

    return hook
