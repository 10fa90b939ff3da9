"""What a baseline is: a method from the literature that gives an edit to be held and let go."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.evaluation.probes import ERASED
from tars_lens.experiments.baselines.facts import left
from tars_lens.model.lens import Lens
from tars_lens.model.parameters import copied, differing, put
from tars_lens.text.windows import Windows

Edit = Callable[[Lens], AbstractContextManager[Lens]]
"""Makes the model be edited while the block runs, then puts it back bit by bit. It can be entered
again and again, and on a model that holds other edits."""

Baseline = Callable[[Lens, Concept, Windows, int], Edit]
"""A method: given the model as it stands, a card, plain text and a seed, the edit that it makes.

It may read the card's own prompts, contrast and validation, and of the text the windows for
statistics: what `tars` may read. No baseline sees a reported probe or a reported window.
"""

EXTRAS = {"leace": ("concept_erasure", "LeaceEraser"), "engram": ("engram", "EngramEditor")}
"""By the baseline's name the package of one that is an extra, and what no namesake of it has."""


def extra(name: str) -> Any:
    """The package that a baseline needs.

    Raises:
        TarsError: It isn't installed.
    """
    module, wanted = EXTRAS[name]
    try:
        package = importlib.import_module(module)
        getattr(package, wanted)
    except (ImportError, AttributeError) as error:
        raise TarsError(
            f"the baseline {name!r} needs a package that isn't installed: pip install "
            f"'tars-lens[{name}]', or name other baselines (--baselines)."
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
        before = copied(lens)
        try:
            change()
            new = differing(lens, before)
        finally:
            put(lens, before)

    @contextmanager
    def held(base: Lens) -> Iterator[Lens]:
        with within(base):
            old = copied(base, new)
            try:
                put(base, new)
                yield base
            finally:
                put(base, old)

    return held


def gentlest(lens: Lens, concept: Concept, edits: Iterable[Edit]) -> Edit:
    """The first edit that erases the concept on its validation prompts, or what leaves least.

    Args:
        lens: The model.
        concept: The card.
        edits: The gentlest first; a later one is made only where those before it don't do.

    Raises:
        TarsError: There is none.
    """
    best: tuple[float, Edit] | None = None
    for edit in edits:
        with edit(lens):
            remains = left(lens, concept)
        if best is None or remains < best[0]:
            best = remains, edit
        if remains <= ERASED:
            break
    if best is None:
        raise TarsError(f"no setting was given to choose from for {concept.name!r}.")
    return best[1]


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
    baseline: Baseline, lens: Lens, concepts: Sequence[Concept], windows: Windows, seed: int
) -> Edit:
    """A baseline's edit of several concepts, removed in the order given."""
    edits: list[Edit] = []
    for concept in concepts:
        with together(edits)(lens):
            edits.append(baseline(lens, concept, windows, seed))
    return together(edits)
