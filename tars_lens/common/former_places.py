"""Modules of version 0.1 under the names that scripts written for it import them by."""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PLACES = {
    "tars_lens.card_making": "tars_lens.concept.card_making",
    "tars_lens.card_making.sentences": "tars_lens.concept.card_making.sentences",
    "tars_lens.checkpoints": "tars_lens.model.checkpoints",
    "tars_lens.corpus": "tars_lens.text.corpus",
    "tars_lens.erasure": "tars_lens.evaluation.erasure",
    "tars_lens.errors": "tars_lens.common.errors",
    "tars_lens.hub": "tars_lens.model.hub",
    "tars_lens.lens": "tars_lens.model.lens",
    "tars_lens.loading": "tars_lens.model.loading",
    "tars_lens.verification": "tars_lens.patch.verification",
    "tars_lens.windows": "tars_lens.text.windows",
}
"""Where each is now."""


class FormerPlaces(MetaPathFinder, Loader):
    """Finds a module under its former name: the module itself, and not a second copy of it."""

    def find_spec(self, fullname: str, *_rest: Any) -> ModuleSpec | None:
        """Knows the former names alone."""
        return ModuleSpec(fullname, self) if fullname in PLACES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module as it is known by its own name, which it keeps."""
        module = importlib.import_module(PLACES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Puts back what the import system has written over; the module has run already."""
        former = module.__spec__
        if former is not None:
            module.__spec__ = former.loader_state


def install() -> None:
    """Lets the former names be imported, once."""
    if not any(isinstance(finder, FormerPlaces) for finder in sys.meta_path):
        sys.meta_path.insert(0, FormerPlaces())
