"""The room that touches TransformerLens: ids, residuals, activations, read-out, weight views.

A `Lens` is made over a raw `TransformerBridge` (transformer-lens 3.9 to 4.x) or over an
unprocessed `HookedTransformer` (3.9). What differs between architectures and versions ends here.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.common.surroundings import check_writable, undisturbed
from tars_lens.model import lens_checks
from tars_lens.model.capturing import Capture, Resume
from tars_lens.model.model_state import model_hashes, model_state
from tars_lens.model.model_state import tensor_sha256 as tensor_sha256
from tars_lens.model.running import Point as Point
from tars_lens.model.running import Site as Site
from tars_lens.model.running import changing_mlp
from tars_lens.model.spelling import Spelling

Role = Literal["gate", "in", "out"]


class Batch(NamedTuple):
    """Prompts padded on the right, which a causal model doesn't see from the left.

    Attributes:
        ids: Token ids, padded with 0.
        last: The position of each prompt's last token.
    """

    ids: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]


class Lens:
    """A causal language model seen through the few operations that this package needs.

    Args:
        model: A raw `TransformerBridge`, or a `HookedTransformer` from
            `from_pretrained_no_processing`.
        tokenizer: The Hugging Face tokenizer; the model's own where not given.
        name: What reports call the model.
        sha256: The hash of the checkpoint's weight files, for reports.

    Raises:
        TarsError: The model is folded, a mixture of experts, packed, or has no tokenizer.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, *, name: str | None = None, sha256: str = ""
    ) -> None:
        lens_checks.check_editable(model)
        check_writable(model)
        self.model = model.eval()
        self.tokenizer = tokenizer if tokenizer is not None else model.tokenizer
        if self.tokenizer is None:
            raise TarsError("the model has no tokenizer: pass one, Lens(model, tokenizer).")
        self.spelling = Spelling(self.tokenizer)
        self.name = name or str(getattr(model.cfg, "model_name", "model"))
        self.sha256 = sha256
        self._hooked = lens_checks.is_hooked_transformer(model)
        self._capture = Capture(model, hooked=self._hooked)

    # --- shape ---------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return len(self.model.blocks)

    @cached_property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.vectors(0, "out").shape[1])

    @cached_property
    def d_mlp(self) -> int:
        """The number of neurons in a layer."""
        return int(self.vectors(0, "out").shape[0])

    @property
    def d_vocab(self) -> int:
        """The number of tokens that the unembedding knows."""
        return int(self.unembedding.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.vectors(0, "out").dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.vectors(0, "out").device

    @property
    def gated(self) -> bool:
        """Whether the MLPs have a gate beside their in-projection."""
        return lens_checks.weight(self._mlp(0), "W_gate") is not None

    @property
    def roles(self) -> tuple[Role, ...]:
        """The kinds of MLP weight vectors that live in residual space."""
        return ("gate", "in", "out") if self.gated else ("in", "out")

    # --- weights -------------------------------------------------------------------------------

    def vectors(self, layer: int, role: Role) -> Float[Tensor, "d_mlp d_model"]:
        """A live view of one kind of weight vectors: writing to it edits the model.

        Args:
            layer: 0 to `n_layers - 1`.
            role: `gate` and `in` read the residual stream, `out` writes to it.

        Raises:
            TarsError: No such layer or role in this model.
        """
        if not 0 <= layer < self.n_layers:
            raise TarsError(f"no layer {layer}: {self.name} has 0 to {self.n_layers - 1}.")
        found = lens_checks.weight(self._mlp(layer), f"W_{role}")
        if found is None:
            raise TarsError(f"no role {role!r}: {self.name} has {', '.join(self.roles)}.")
        rows = found if role == "out" else found.T
        return rows.detach()

    def bias(self, layer: int, role: Role) -> Float[Tensor, " width"] | None:
        """The bias of the neurons' `gate` or `in` pre-activations, where the model has one.

        `out` gives that of the MLP's output, which is as wide as the stream.
        """
        found = lens_checks.weight(self._mlp(layer), f"b_{role}")
        return None if found is None else found.detach()

    def tensor_sha256(self, layer: int, role: Role) -> str:
        """SHA-256 of `vectors(layer, role)` as contiguous `[d_mlp, d_model]` bytes.

        The same for a bridge, a `HookedTransformer` and a checkpoint on disk.
        """
        return tensor_sha256(self.vectors(layer, role))

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding, a live view."""
        return self.model.unembed.W_U.detach()

    @cached_property
    def final_gain(self) -> Float[Tensor, " d_model"]:
        """The gain of the final norm (`1 + weight` where the architecture stores an offset)."""
        return self.norm_gain(self.model.ln_final)

    def post_norm_gain(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """The gain of the norm after the MLP (Gemma 2 and 3), or `None` where there is none."""
        norm = lens_checks.submodule(self.model.blocks[layer], "ln2_post")
        return None if norm is None else self.norm_gain(norm)

    def mlp_norm_gain(self, layer: int) -> Float[Tensor, " d_model"]:
        """The gain of the norm before the MLP; that of the shared norm in parallel blocks."""
        block = self.model.blocks[layer]
        norm = lens_checks.submodule(block, "ln2")
        return self.norm_gain(lens_checks.submodule(block, "ln1") if norm is None else norm)

    @property
    def bounds_writes(self) -> bool:
        """Whether a norm after each MLP bounds what it adds to the stream (Gemma 2 and 3)."""
        return self.post_norm_gain(0) is not None

    def norm_gain(self, norm: Any) -> Float[Tensor, " d_model"]:
        """The gain of one of the model's norms (`1 + weight` where it stores an offset)."""
        weight = lens_checks.weight(norm, "w" if self._hooked else "weight")
        if weight is None:  # OLMo's has none
            return torch.ones(self.d_model, dtype=self.dtype, device=self.device)
        offset = not self._hooked and getattr(self.model.cfg, "rmsnorm_uses_offset", False)
        return weight.detach() + 1 if offset else weight.detach()

    @property
    def logit_cap(self) -> float | None:
        """The soft cap `cap * tanh(logit / cap)` of the logits (Gemma 2), or `None`."""
        cap = getattr(self.model.cfg, "output_logits_soft_cap", None)
        return float(cap) if cap is not None and cap > 0 else None

    @property
    def centres(self) -> bool:
        """Whether the final norm takes the mean out (LayerNorm) or not (RMSNorm)."""
        return not str(self.model.cfg.normalization_type).startswith("RMS")

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that the model is made of, live, by name; see `model_state`."""
        return model_state(self.model)

    def hashes(self, without: Container[str] = ()) -> dict[str, str]:
        """SHA-256 of every tensor of `state`, but for those whose names are left out."""
        return model_hashes(self.model, without)

    def check_length(self, width: int) -> None:
        """Refuses texts of more tokens than the model can read.

        Raises:
            TarsError: It says how many it reads.
        """
        lens_checks.check_length(self.model, width)

    # --- text ----------------------------------------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        """The tokenizer's own ids of a text, with the BOS that it adds by itself, if any."""
        return self._embedded(self.spelling.begun(text))

    def pieces(self, text: str) -> list[int]:
        """The ids of a text that continues another: no special tokens."""
        return self._embedded(self.spelling.continued(text))

    def string(self, token: int) -> str:
        """What a token says."""
        return self.spelling.says(int(token))

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Pads sequences of ids on the right."""
        if not sequences or not all(sequences):
            raise TarsError("an empty prompt gives the model nothing to read: write some text.")
        width = max(map(len, sequences))
        self.check_length(width)
        rows = [[*ids, *[0] * (width - len(ids))] for ids in sequences]
        last = torch.tensor([len(ids) - 1 for ids in sequences], device=self.device)
        return Batch(torch.tensor(rows, device=self.device), last)

    def prompts(self, texts: Sequence[str]) -> Batch:
        """`tokens` of each text, as a batch."""
        return self.batch([self.tokens(text) for text in texts])

    # --- runs ----------------------------------------------------------------------------------

    @undisturbed
    def capture(
        self,
        ids: Int[Tensor, "batch pos"],
        points: Sequence[Point],
        *,
        positions: Int[Tensor, " batch"] | None = None,
        last: Int[Tensor, " batch"] | None = None,
        resume: Resume | None = None,
        replace: Mapping[Point, Float[Tensor, "batch pos ..."]] | None = None,
    ) -> dict[Point, Float[Tensor, "..."]]:
        """Runs the model as far as the last point needs, and keeps what is seen at the points.

        Args:
            ids: Token ids.
            points: Where to look.
            positions: One position a row, kept alone; every position where not given. What stands
                behind it isn't run.
            last: The last position of each row that matters: what is kept of those behind it means
                nothing.
            resume: `(layer, residual)`: start at this layer from this residual stream (as
                `resid_pre` gives it) without running the layers before.
            replace: What goes on from a point in place of what came to it. Not for `mlp_in` and
                the points of the stream, which `resume` sets.

        Returns:
            For each point `[batch, pos, width]`, or `[batch, width]` with `positions`.
        """
        end = positions if last is None else last
        if end is None or replace:
            return self._capture.whole(ids, points, positions, resume, replace)
        return self._capture.as_far_as(end, ids, points, positions, resume)

    def changing_mlp(
        self, layer: int, change: Callable[[Tensor], Tensor]
    ) -> AbstractContextManager[None]:
        """Sends on what `change` makes of a layer's MLP output; see `running.changing_mlp`."""
        return changing_mlp(self.model, layer, change, hooked=self._hooked)

    def residual(
        self,
        ids: Int[Tensor, "batch pos"],
        layer: int,
        *,
        positions: Int[Tensor, " batch"] | None = None,
        resume: Resume | None = None,
    ) -> Float[Tensor, "..."]:
        """The residual stream after `layer` (-1: the last one); see `capture`."""
        point = Point("resid_post", layer % self.n_layers)
        return self.capture(ids, [point], positions=positions, resume=resume)[point]

    @undisturbed
    @torch.no_grad()
    def read_out(
        self, residual: Float[Tensor, "... d_model"], *, tokens: Sequence[int] | None = None
    ) -> Float[Tensor, "... d_vocab"]:
        """Logits in float32 of a residual stream, by the model's final norm and unembedding.

        Args:
            residual: The stream after any layer: after the last one the model's own logits, before
                it the logit lens.
            tokens: Whose logits are wanted; all of the vocabulary's where not given.
        """
        stream = residual.to(self.dtype)
        flat = stream.reshape(1, -1, stream.shape[-1])
        normed = self.model.ln_final(flat)
        if tokens is None:
            logits = self.model.unembed(normed).float()
        else:
            index = torch.tensor(list(tokens), device=self.unembedding.device)
            logits = normed.float() @ self.unembedding[:, index].float()
            bias = lens_checks.weight(self.model.unembed, "b_U")
            logits = logits if bias is None else logits + bias.detach()[index].float()
        if self.logit_cap is not None:
            logits = self.logit_cap * torch.tanh(logits / self.logit_cap)
        return logits.reshape(*stream.shape[:-1], logits.shape[-1]).to(self.device)

    def next_logits(self, batch: Batch) -> Float[Tensor, "batch d_vocab"]:
        """Logits in float32 of the token after each prompt."""
        return self.read_out(self.residual(batch.ids, -1, positions=batch.last))

    def _embedded(self, ids: list[int]) -> list[int]:
        """The ids, of which each has a row in the model's embedding."""
        if ids and max(ids) >= self._known:
            raise TarsError(
                f"the tokenizer of {self.name} spells {self.string(max(ids))!r} as token "
                f"{max(ids)}, and the model knows the tokens 0 to {self._known - 1}. Get the "
                "model's own tokenizer, or enlarge its embeddings (resize_token_embeddings)."
            )
        return ids

    @cached_property
    def _known(self) -> int:
        return self.d_vocab

    def _mlp(self, layer: int) -> Any:
        return self.model.blocks[layer].mlp
