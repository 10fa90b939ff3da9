"""What a rival is: a method from the literature that gives an edit which can be held and let go."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.model.lens import Lens
from tars_lens.model.model_state import model_state
from tars_lens.text.windows import Windows

Edit = Callable[[Lens], AbstractContextManager[Lens]]
"""Makes the model be edited while the block runs, then puts it back bit by bit. It can be entered
again and again, and on a model that holds other edits."""

Rival = Callable[[Lens, Concept, Windows, int], Edit]
"""A method: given the model as it stands, a card, plain text and a seed, the edit that it makes.

It may read the card's own prompts, contrast and validation, and of the text the windows for
statistics: what `tars` may read. No rival sees a reported probe or a reported window.
"""

EXTRAS = {"leace": ("concept_erasure", "LeaceEraser"), "engram": ("engram", "EngramEditor")}
"""The package of a rival that is an extra by the rival's name, and what tells it from a namesake.
"""


def extra(name: str) -> Any:
    """The package that a rival needs.

    Raises:
        TarsError: It isn't installed.
    """
    module, wanted = EXTRAS[name]
    try:
        package = importlib.import_module(module)
        getattr(package, wanted)
    except (ImportError, AttributeError) as error:
        raise TarsError(
            f"the rival {name!r} needs a package that isn't installed: pip install "
            f"'tars-lens[{name}]', or name other rivals (--rivals)."
        ) from error
    return package


def recorded(
    lens: Lens,
    change: Callable[[], None],
    *,
    within: Callable[[Lens], AbstractContextManager[Any]] = nullcontext,
) -> Edit:
    """Changes weights once, undoes it bit by bit, and gives back the change as an edit.

    Args:
        lens: The model.
        change: Writes to any of the model's weights, in place.
        within: What must be so meanwhile, and whenever the edit is held: an unembedding of its
            own, for one.
    """
    with within(lens):
        before = {name: tensor.clone() for name, tensor in model_state(lens.model)}
        try:
            change()
            new = {
                name: tensor.clone()
                for name, tensor in model_state(lens.model)
                if not torch.equal(tensor, before[name])
            }
        finally:
            _write(lens, before)

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with within(base):
            old = {name: t.clone() for name, t in model_state(base.model) if name in new}
            try:
                _write(base, new)
                yield base
            finally:
                _write(base, old)

    return held


def together(edits: Sequence[Edit]) -> Edit:
    """Edits held one after another: of several concepts, each made with the earlier ones held."""

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with ExitStack() as stack:
            for edit in edits:
                stack.enter_context(edit(base))
            yield base

    return held


def of_all(
    rival: Rival, lens: Lens, concepts: Sequence[Concept], windows: Windows, seed: int
) -> Edit:
    """A rival's edit of several concepts, removed in the order given."""
    edits: list[Edit] = []
    for concept in concepts:
        with together(edits)(lens):
            edits.append(rival(lens, concept, windows, seed))
    return together(edits)


@torch.no_grad()
def _write(lens: Lens, values: dict[str, Tensor]) -> None:
    for name, tensor in model_state(lens.model):
        if name in values:
            tensor.copy_(values[name])
