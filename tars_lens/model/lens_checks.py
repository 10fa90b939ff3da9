"""Which models can be edited: what a `Lens` refuses, and the remedy."""

from typing import Any

import torch

from tars_lens.common.errors import TarsError
from tars_lens.model.placement import check_present

_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier")
"""By what Granite, Cohere and Falcon-H1 rescale their logits."""

_TABLED = ("codegen", "gptj", "mpt")
"""Rotary and ALiBi models whose angles and slopes are a table all the same."""

_UNPROCESSED = (
    "Load it with HookedTransformer.from_pretrained_no_processing, or as a TransformerBridge "
    "without enable_compatibility_mode."
)


def check_editable(model: Any) -> None:
    """Refuses what can't be edited exactly.

    Raises:
        TarsError: Folded or centred weights, a mixture of experts, packed weights, weights that
            are not in memory, or no TransformerLens model at all.
    """
    if not hasattr(model, "blocks") or not hasattr(model, "cfg"):
        raise TarsError(
            f"a Lens needs a TransformerBridge or a HookedTransformer, got {type(model).__name__}. "
            "tars_lens.load(name) makes one from a name, a folder or a GGUF file."
        )
    if not len(model.blocks):
        raise TarsError(
            "the model has no layers (num_hidden_layers is 0), so there is nothing to edit. Choose "
            "another model."
        )
    check_present(model, "the model")
    if getattr(model, "compatibility_mode", False) is True or _is_folded(model):
        raise TarsError(
            "the model's norms are folded into its weights, so an edit could not be carried back "
            f"to the checkpoint. {_UNPROCESSED}"
        )
    for layer, block in enumerate(model.blocks):
        _check_mlp(layer, submodule(block, "mlp"))
    if is_hooked_transformer(model) and _is_centred(model):
        raise TarsError(
            "the model's writing weights were centred when it was loaded, so an edit could not be "
            f"carried back to the checkpoint. {_UNPROCESSED}"
        )
    _check_read_out(model)


def check_length(model: Any, width: int) -> None:
    """Refuses texts of more tokens than a model that keeps a table of positions has there.

    Raises:
        TarsError: With both numbers.
    """
    config = getattr(submodule(model, "original_model"), "config", None)
    tabled = (
        is_hooked_transformer(model)
        or getattr(config, "model_type", "") in _TABLED
        or getattr(model.cfg, "positional_embedding_type", "") == "standard"
    )
    if tabled and width > model.cfg.n_ctx:
        raise TarsError(
            f"a text of {width} tokens is too long: the model reads {model.cfg.n_ctx} at the most."
        )


def is_hooked_transformer(model: Any) -> bool:
    """Whether the model is TransformerLens 3's own implementation rather than a bridge."""
    return any(kind.__name__ == "HookedTransformer" for kind in type(model).__mro__)


def weight(module: Any, name: str) -> torch.Tensor | None:
    """A tensor attribute of a TransformerLens component, or `None`."""
    try:
        found = getattr(module, name)
    except AttributeError:
        return None
    return found if isinstance(found, torch.Tensor) else None


def submodule(module: Any, name: str) -> Any | None:
    """A part of a TransformerLens component, or `None`."""
    try:
        return getattr(module, name)
    except AttributeError:
        return None


def _check_mlp(layer: int, mlp: Any) -> None:
    rows_in, rows_out = weight(mlp, "W_in"), weight(mlp, "W_out")
    if rows_in is None or rows_out is None:
        raise TarsError(
            f"layer {layer} has no plain MLP (mixture of experts?). Only dense models can be "
            "edited: choose a dense model of the same family."
        )
    if rows_in.ndim != 2 or rows_out.ndim != 2:
        raise TarsError(
            f"layer {layer} is a mixture of experts. Only dense models can be edited: choose a "
            "dense model of the same family."
        )
    if not rows_out.is_floating_point() or rows_in.shape != rows_out.T.shape:
        raise TarsError(
            f"layer {layer} has packed (quantised) weights, which can't be edited in place. Load "
            "the model with dequantised weights; tars_lens.load does so for GGUF files."
        )


def _check_read_out(model: Any) -> None:
    """Refuses logits that are more than the final norm, the unembedding and a soft cap."""
    norm, rows = submodule(model, "ln_final"), weight(submodule(model, "unembed"), "W_U")
    width = model.blocks[0].mlp.W_out.shape[1]
    empty = norm is None or getattr(norm, "original_component", norm) is None  # a post-norm OPT's
    if empty or rows is None or rows.shape[0] != width:
        raise TarsError(
            "the model's logits aren't made by a final norm and an unembedding as wide as its "
            f"stream ({width}), so they can't be read after every layer. Choose another model."
        )
    config = getattr(submodule(model, "original_model"), "config", None)
    for name in _SCALES:
        scale = getattr(config, name, None)
        if scale is not None and scale != 1:
            raise TarsError(
                f"the model rescales its logits ({name} = {scale}), which isn't supported: its "
                "probabilities would be wrong. Choose another model."
            )


def _is_folded(model: Any) -> bool:
    return str(getattr(model.cfg, "normalization_type", "")) in ("LNPre", "RMSPre")


def _is_centred(model: Any) -> bool:
    """Centring leaves every writing row with a mean of rounding size; no trained row has one."""
    rows = model.blocks[0].mlp.W_out.detach().float()
    return bool(rows.mean(dim=1).abs().max() < 1e-6 * rows.abs().max())
