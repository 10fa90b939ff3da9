"""The caller's settings of torch and numpy, set aside while this package works.

Under autocast the figures would be of rounded weights, and its cache of them doesn't see an edit;
under another default dtype or device the statistics would be of that; in inference mode nothing
that is kept could be written to later.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import local
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from tars_lens.common.errors import TarsError

P = ParamSpec("P")
T = TypeVar("T")

_HERE = local()  # torch keeps most of these settings by thread
_CPU = torch.device("cpu")
_EXACT = "highest"  # of products in float32: the others round their factors


def undisturbed(run: Callable[P, T]) -> Callable[P, T]:
    """A function that gives the same whatever its caller has set torch and numpy to."""

    @wraps(run)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        with set_aside():
            return run(*args, **kwargs)

    return within


@contextmanager
def set_aside() -> Iterator[None]:
    """Gives torch and numpy the settings they start with, and the caller's own back after it.

    Within another such block nothing is done: what is set there is the package's own.
    """
    if getattr(_HERE, "busy", False):
        yield
        return
    _HERE.busy = True
    try:
        with ExitStack() as after:
            _set_defaults(after)
            yield
    finally:
        _HERE.busy = False


def check_writable(model: torch.nn.Module) -> None:
    """Refuses a model whose weights may only be written in inference mode.

    Raises:
        TarsError: It was made under `torch.inference_mode`.
    """
    if any(weights.is_inference() for weights in model.parameters()):
        raise TarsError(
            "the model was made under torch.inference_mode, which lets nothing be written to its "
            "weights later. Make it outside that block."
        )


def _set_defaults(after: ExitStack) -> None:
    for kind in ("cpu", "cuda", "mps", "xpu"):
        if torch.is_autocast_enabled(kind):
            after.enter_context(torch.autocast(kind, enabled=False))
    if torch.is_inference_mode_enabled():
        after.enter_context(torch.inference_mode(mode=False))
    if not torch.is_grad_enabled():
        after.enter_context(torch.enable_grad())
    if (dtype := torch.get_default_dtype()) != torch.float32:
        after.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
    if torch.get_default_device() != _CPU:
        after.enter_context(_CPU)
    if (precision := torch.get_float32_matmul_precision()) != _EXACT:
        after.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision(_EXACT)
    after.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
