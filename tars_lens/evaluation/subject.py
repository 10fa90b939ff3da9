"""What is examined: an edit of the base model that can be held and let go, or another model."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from tars_lens.common.errors import TarsError
from tars_lens.model.lens import Lens
from tars_lens.model.weights import Edits, Place, Rows, written
from tars_lens.patch import stack
from tars_lens.patch.patch import Patch
from tars_lens.patch.verification import final_rows

BLOCKED = "blocked token"
"""The trivial rival, which a method has to beat on reverse, alias and depth."""

MOST_ROWS = 2000
"""A checkpoint that differs in more weight vectors was trained, not edited by neuron."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under examination.

    Attributes:
        name: What tables call it: `edited`, or the name of a control.
        held: Given the base's lens, makes the model be the subject while its block runs and
            yields the lens to ask; afterwards the base is as it was, bit by bit.
        edits: The weight vectors that differ from the base's, where they are known and few.
        digest: Tells this subject from any other, for results that are kept.
        control: Whether it stands beside the result for comparison.
    """

    name: str
    held: Callable[[Lens], AbstractContextManager[Lens]]
    edits: Edits = field(default_factory=dict)
    digest: str = ""
    control: bool = False


def untouched(name: str = "untouched") -> Subject:
    """The base model itself: the examiner's own control."""
    return Subject(name, nullcontext, digest="base")


def patched(lens: Lens, patches: Sequence[Patch], *, force: bool = False) -> Subject:
    """The base with patches on it.

    Raises:
        TarsError: No patch, or one that was made for another base.
    """
    if not patches:
        raise TarsError("there is nothing to evaluate: give at least one patch.")
    for patch in patches:
        stack.check(lens, patch, force=force)
    digest = " ".join(patch.sha256 for patch in patches)

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with stack.holding(base, patches):
            yield base

    return Subject("edited", held, _left_by(patches, lens.dtype), digest)


def _left_by(patches: Sequence[Patch], dtype: torch.dtype) -> Edits:
    """What the patches leave in the model, whatever bases they were made for."""
    places = sorted({place for patch in patches for place in patch.edits})
    final = {place: final_rows(patches, place) for place in places}
    return {
        place: Rows(torch.tensor(list(rows)), torch.stack(list(rows.values())).to(dtype))
        for place, rows in final.items()
    }


def rewritten(name: str, edits: Edits) -> Subject:
    """The base with other rows in it, under no patch's name: a control."""

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with written(base, edits):
            yield base

    return Subject(name, held, edits, _digest(edits), control=True)


def checkpoint(base: Lens, edited: Lens) -> Subject:
    """Another checkpoint of the base's kind, however it was made.

    Raises:
        TarsError: It has another shape or another tokenizer, so that nothing can be compared.
    """
    check_alike(base, edited)
    edits = differing_rows(base, edited, MOST_ROWS)
    return Subject("edited", lambda _: nullcontext(edited), edits, weights_digest(edited))


def check_alike(base: Lens, edited: Lens) -> None:
    """Refuses two models of which one can't be an edit of the other.

    Raises:
        TarsError: They differ in shape or tokenizer.
    """
    for what in ("n_layers", "d_model", "d_mlp", "d_vocab", "roles"):
        ours, theirs = getattr(base, what), getattr(edited, what)
        if ours != theirs:
            raise TarsError(
                f"{edited.name} is no edit of {base.name}: {what} is {theirs}, not {ours}. Give "
                "two checkpoints of one architecture."
            )
    sample = "The quick brown fox, 1984: d\u00e9j\u00e0 vu."
    if base.tokens(sample) != edited.tokens(sample):
        raise TarsError(
            f"{edited.name} reads text with another tokenizer than {base.name}: their next tokens "
            "can't be compared. Save the base's tokenizer beside the edited weights."
        )


def weights_digest(lens: Lens) -> str:
    """The hash of all weights as they are in memory, whatever file they came from."""
    hashes = lens.hashes()
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def differing_rows(base: Lens, edited: Lens, most: int | None = None) -> Edits:
    """The MLP rows in which two models differ, as the edited one has them.

    Args:
        base: One.
        edited: The other.
        most: Nothing is given where more rows differ.
    """
    found: dict[Place, Rows] = {}
    count = 0
    for layer in range(base.n_layers):
        for role in base.roles:
            old, new = base.vectors(layer, role), edited.vectors(layer, role)
            index = (old != new).any(dim=1).nonzero()[:, 0]
            count += len(index)
            if most is not None and count > most:
                return {}
            if len(index):
                found[layer, role] = Rows(index, new[index].clone())
    return found


def _digest(edits: Edits) -> str:
    digest = hashlib.sha256()
    for place, rows in sorted(edits.items()):
        digest.update(f"{place} {rows.neurons.tolist()}".encode())
        digest.update(rows.values.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
