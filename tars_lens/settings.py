"""Every choice of the method in one place, written into each report and patch."""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from tars_lens.errors import TarsError

MethodName = Literal["tars", "paper"]

HostName = Literal["idle", "carrier"]

METHODS = "tars: this package's recipe; paper: targeted reversal as the abstract has it."
"""What the methods are, for `--help`."""

LAST_SEED = 2**63 - 1
"""The largest seed; NumPy takes none below 0, and torch none of more than 64 bits."""

_LEAST = sys.float_info.min
"""The smallest float of full precision: what is divided by a smaller one may be infinite."""

_POSITIVE = (
    *("max_kl", "max_neighbour_kl", "forward_ridge", "reverse_ridge", "write_ridge"),
    *("forward_cap", "goal", "lens_goal", "safety", "reverse_strength", "samples"),
)

_NOT_NEGATIVE = ("neighbour_weight", "unread", "sigma", "refine_steps")

_PAIRS = ("readable_depths",)


@dataclass(frozen=True)
class Settings:
    """The settings of `erase`.

    Depths are shares of the number of layers: the constants were found on SmolLM2-135M and used
    unchanged on Gemma-3-270M.

    Attributes:
        name: `tars`, this package's recipe, or `paper`, the abstract taken literally.
        seed: Of every random draw, from 0 to `LAST_SEED`.
        edits: At most so many weight vectors a concept; `None` leaves it to the method.
        max_kl: What the mean KL on plain validation text may be, for one concept's each part.
        max_neighbour_kl: What the KL at near prompts may be, the concept's token left out.
        keep_neighbours: The share of its probability that the likeliest token must keep at each
            near prompt, by each part.
        readable_depths: Between which depths a neuron stops the name before the logit lens can
            read it: at the first layer where it becomes readable.
        reverse_depths: Where a neuron may turn the name into nothing in particular: the first of
            them after which the name is no longer read further on.
        named_depth: Where it is read further on.
        unread: The score there, at the name, that is low enough (1 in the base).
        host: The neuron that is given up: the one that plain text would miss least, or the one that
            carries the concept most.
        centred: Whether the readers subtract the mean of plain text.
        leaning: Whether late neurons read how far the model leans to the concept, where they can.
        forward_ridge: Of the forward discriminant, in units of the covariance's mean diagonal.
        reverse_ridge: Of the reverse discriminant.
        write_ridge: Of the write target.
        neighbour_weight: Of the neighbours' tokens in the write target.
        forward_thresholds: Scores below which the forward neuron is silent, tried in order.
        bounded_thresholds: Tried beside these where a norm bounds what an MLP writes: the write is
            then nearly whole at any score above the threshold.
        forward_cap: Score from which on the forward write grows no more, and which each of the
            concept's prompts has at least where the last forward neuron reads the leaning.
        reverse_thresholds: The same of the reverse neurons.
        goal: The concept's probability that is low enough at a prompt it is chosen on.
        lens_goal: The same where the logit lens reads it before the last layer.
        safety: How many times the smallest strength that reaches the goal is used.
        reverse_strength: Size of the reverse write, in units of the layer's natural write.
        sigma: Noise of the refinement, relative to the vector's norm.
        samples: Perturbations tried in each step of the refinement.
        refine_steps: Steps after which the refinement gives up.
        paper_counts: Numbers of edits that `paper` tries on validation text.
    """

    name: MethodName = "tars"
    seed: int = 0
    edits: int | None = None
    max_kl: float = 0.001
    max_neighbour_kl: float = 0.1
    keep_neighbours: float = 0.8
    readable_depths: tuple[float, float] = (0.6, 0.83)
    reverse_depths: tuple[float, ...] = (0.07, 0.12, 0.17)
    named_depth: float = 0.39
    unread: float = 0.2
    host: HostName = "idle"
    centred: bool = True
    leaning: bool = True
    forward_ridge: float = 0.2
    reverse_ridge: float = 0.05
    write_ridge: float = 0.01
    neighbour_weight: float = 10.0
    forward_thresholds: tuple[float, ...] = (0.15, 0.25)
    bounded_thresholds: tuple[float, ...] = (0.4,)
    forward_cap: float = 0.5
    reverse_thresholds: tuple[float, ...] = (0.4, 0.5, 0.6)
    goal: float = 0.001
    lens_goal: float = 0.01
    safety: float = 2.0
    reverse_strength: float = 1.5
    sigma: float = 0.1
    samples: int = 64
    refine_steps: int = 200
    paper_counts: tuple[int, ...] = (1, 2, 5, 10, 20)

    def __post_init__(self) -> None:
        if self.name not in ("tars", "paper"):
            raise TarsError(f"unknown method {self.name!r}. There is: paper, tars.")
        if self.host not in get_args(HostName):
            raise TarsError(f"unknown host {self.host!r}. There is: carrier, idle.")
        if not 0 <= self.seed <= LAST_SEED:
            raise TarsError(f"a seed must be from 0 to {LAST_SEED}, got {self.seed}.")
        if self.edits is not None and self.edits < 1:
            raise TarsError(f"--edits must be at least 1, got {self.edits}.")
        if not 0 < self.keep_neighbours < 1:
            raise TarsError(
                f"--keep-neighbours must be a share between 0 and 1, got {self.keep_neighbours}."
            )
        for name in _POSITIVE:
            _check(name, [getattr(self, name)], "above 0", lambda x: 0 < x < math.inf)
            _check(name, [getattr(self, name)], f"at least {_LEAST}", lambda x: x >= _LEAST)
        for name in _NOT_NEGATIVE:
            _check(name, [getattr(self, name)], "at least 0", lambda x: 0 <= x < math.inf)
        for name in ("forward_thresholds", "bounded_thresholds", "reverse_thresholds"):
            _check(name, getattr(self, name), "numbers", math.isfinite)
        _check("named_depth", [self.named_depth], "from 0 to 1", _is_depth)
        for name in ("reverse_depths", "readable_depths"):
            _check(name, getattr(self, name), "from 0 to 1", _is_depth)
        _check("paper_counts", self.paper_counts, "at least 1", lambda x: x >= 1)
        if self.readable_depths != tuple(sorted(self.readable_depths)):
            raise TarsError(
                f"readable_depths must be a first depth and a last, got {self.readable_depths}."
            )
        for name in ("forward_thresholds", "reverse_thresholds", "reverse_depths", "paper_counts"):
            if not getattr(self, name):
                raise TarsError(f"{name} must have one value at least.")

    def readable_layers(self, n_layers: int) -> tuple[int, ...]:
        """The layers where the name may be stopped first, before the last one."""
        first, last = (_layers((depth,), n_layers)[0] for depth in self.readable_depths)
        return tuple(range(first, min(last, max(n_layers - 2, 0)) + 1)) or (n_layers - 1,)

    def late_thresholds(self, bounded: bool) -> tuple[float, ...]:
        """The thresholds of a forward neuron, in order; more of them where a norm bounds it."""
        return self.forward_thresholds + (self.bounded_thresholds if bounded else ())

    def reverse_layers(self, n_layers: int) -> tuple[int, ...]:
        """The layers where the reverse neuron may sit, earliest first."""
        return _layers(self.reverse_depths, n_layers)

    def named_layer(self, n_layers: int) -> int:
        """The layer before which a name must no longer be read."""
        after = self.reverse_layers(n_layers)[-1] + 1
        return min(max(_layers((self.named_depth,), n_layers)[0], after), n_layers - 1)

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """All layers at which neurons read, earliest first."""
        some = _layers((*self.reverse_depths, 1.0), n_layers)
        return tuple(sorted({*some, self.named_layer(n_layers), *self.readable_layers(n_layers)}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def setting_value(name: str, value: Any, method: MethodName = "tars") -> Any:
    """A setting's value as a file or a caller gives it, in the kind that the setting is of.

    A list becomes a tuple, and a whole number a float where the setting is one. A setting that is
    usually `None` is a count.

    Args:
        name: The setting; `name` and `seed` are none of a file's.
        value: What was given.
        method: Whose usual value tells the kind.

    Raises:
        TarsError: There is no such setting, or the value is of another kind.
    """
    usual = Settings(name=method)
    known = {f.name for f in fields(Settings)} - {"name", "seed"}
    if name not in known:
        raise TarsError(f"no setting {name!r}; allowed: {', '.join(sorted(known))}.")
    default = getattr(usual, name)
    try:
        found = _like(value, default)
        if name in _PAIRS and len(found) != 2:
            raise TypeError
        return found
    except TypeError as error:
        raise TarsError(f"setting {name!r} must be like {default!r}, got {value!r}.") from error


def _is_depth(value: int | float) -> bool:
    return 0 <= value <= 1


def _check(
    name: str, values: Iterable[int | float], wanted: str, right: Callable[[int | float], bool]
) -> None:
    for value in values:
        if not right(value):
            raise TarsError(f"{name} must be {wanted}, got {value}.")


def _like(value: Any, default: Any) -> Any:
    """A value in the kind that the default is of; `TypeError` where it is of another."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_like(each, default[0]) for each in value)
    if isinstance(default, float) and (isinstance(value, float) or type(value) is int):
        return float(value)
    if default is None and value is None:
        return None
    if type(value) is not (int if default is None else type(default)):
        raise TypeError
    return value


def _layers(depths: tuple[float, ...], n_layers: int) -> tuple[int, ...]:
    found = {min(n_layers - 1, max(min(1, n_layers - 1), round(d * n_layers))) for d in depths}
    return tuple(sorted(found))
