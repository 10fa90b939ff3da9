"""Every constant that decides an edit, in one place; written into each report and patch."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from tars_lens.common.errors import TarsError

MethodName = Literal["tars", "paper"]

METHODS = "tars: this package's recipe; paper: targeted reversal as the abstract has it."
"""What the methods are, for `--help`."""

LAST_SEED = 2**63 - 1
"""The largest seed; NumPy takes none below 0, and torch none of more than 64 bits."""

_POSITIVE = (
    *("lens_ridge", "reader_ridge", "name_ridge", "write_ridge", "prompt_weight"),
    *("likely_weight", "said_reversal", "read_reversal", "largest_write"),
    *("bounded_strength", "gain", "name_reversal", "name_bounded_strength", "goal", "samples"),
    *("constant_ridge", "post_norm_ridge", "least_gain", "least_span"),
)

_NOT_NEGATIVE = (
    *("neighbour_weight", "unread", "sigma", "refine_steps", "write_slack", "name_slack"),
    *("nearest_words", "likely_tokens", "near_names", "copied_names"),
)

_PROBABILITIES = (
    *("said_threshold", "read_threshold", "readable", "least_p", "likely_p", "led_p"),
)

_SHARES = ("named_depth", "host_share", "name_threshold", "idle_share", "steady", "start_quiet")

_LEAST = 1e-30
"""The smallest value of what is divided by: a smaller one may give infinities."""


@dataclass(frozen=True)
class Settings:
    """The settings of `erase`; one set for every card and model.

    Depths are shares of the number of layers. Probabilities are the concept's, by the logit lens.

    Attributes:
        name: `tars`, this package's recipe, or `paper`, the abstract taken literally.
        seed: Of every random draw, from 0 to `LAST_SEED`.
        edits: At most so many weight vectors a concept; `None` leaves it to the method.
        neurons: At most so many whole neurons a concept, where `edits` doesn't say.
        depths: Where suppression neurons sit beside the last layer's, which there always is.
        led_p: The card's prompts after which the base says the concept with this probability are
            the ones it is read at; without any, the best one.
        readable: A neuron before the last layer is left out where the lens reads the concept with
            less than this probability at each of the card's prompts.
        said_threshold: Probability below which the last layer's neuron is silent.
        read_threshold: The same of the neurons before it.
        least_span: By so many nats at least what a neuron hears at the card's prompts is taken to
            exceed its threshold.
        said_reversal: How many times what the concept's log-probability exceeds the threshold by
            the last layer's neuron takes off its logit.
        read_reversal: The same of the neurons before it.
        largest_write: The most that is written, in units of the stream's usual norm.
        bounded_strength: Where a norm follows the MLP: norm of the write at the card's prompts, in
            units of the MLP's usual output.
        lens_ridge: Of the division by the norm's gain, in units of its mean square.
        reader_ridge: Of the regression, in units of the mean variance of the MLP's input.
        prompt_weight: What each group of prompts counts, as a share of the plain text.
        likely_weight: What plain text counts where the concept is likely.
        likely_p: From this probability on it is.
        constant_ridge: Of the direction that reads 1 on all text, in units of the mean variance.
        least_p: Smaller probabilities are taken for this one.
        write_ridge: Of the write target, in units of the covariance's mean diagonal.
        write_slack: How unlike the concept's tokens may be lowered; 0 lowers every one alike.
        post_norm_ridge: Of the division of a write by a post-norm's gain, in units of its mean
            square.
        neighbour_weight: Of the neighbours' tokens in the write target.
        nearest_words: So many of the vocabulary's nearest words are neighbours.
        likely_tokens: So many of the likeliest tokens after each of the card's prompts are.
        near_names: So many names of the concept's kind the name is told from.
        copied_names: So many of them stand in texts that repeat a name.
        host_share: Of a layer's neurons, the share that plain text misses least; the one among
            them that is best aligned with what is written is given up. 0 takes the idlest.
        idle_share: With one or two vectors: of a layer's neurons, the idlest share may be a host.
        steady: With one or two vectors: the least that the rows that stay say at any prompt, as a
            share of their mean.
        least_gain: With one vector: the least activation at the card's prompts.
        gain: Activation of a neuron at the card's prompts.
        start_quiet: How far below its threshold a neuron is kept at the BOS that begins every text,
            as a share of `gain`: what is written there is attended to by every later position.
        name_depths: Where the name's neuron may sit: the first of them after which the name is no
            longer read further on.
        named_depth: Where it is read further on.
        unread: The score there, at the name, that is low enough (1 in the base).
        name_threshold: Score of the name below which its neuron is silent.
        name_reversal: Size of its write, in units of the stream's norm at the name.
        name_bounded_strength: The same where a norm follows the MLP, in units of the MLP's usual
            output.
        name_ridge: Of the name's discriminant, in units of the mean variance.
        name_slack: How far from plain text (squared, whitened) a spelling of the name must lie for
            it to be read.
        goal: For `paper`: the concept's probability that is low enough on validation text.
        sigma: For `paper`: noise of the refinement, relative to the vector's norm.
        samples: For `paper`: perturbations tried in each step of the refinement.
        refine_steps: For `paper`: steps after which the refinement gives up.
        paper_counts: For `paper`: numbers of edits that are tried on validation text.
    """

    name: MethodName = "tars"
    seed: int = 0
    edits: int | None = None
    neurons: int = 4
    depths: tuple[float, ...] = (0.9,)
    led_p: float = 0.05
    readable: float = 0.01
    said_threshold: float = 0.0005
    read_threshold: float = 0.001
    least_span: float = 1.0
    said_reversal: float = 2.5
    read_reversal: float = 1.5
    largest_write: float = 0.5
    bounded_strength: float = 1.0
    lens_ridge: float = 0.05
    reader_ridge: float = 1.0
    prompt_weight: float = 0.3
    likely_weight: float = 5.0
    likely_p: float = 1e-4
    constant_ridge: float = 0.05
    least_p: float = 1e-6
    write_ridge: float = 0.01
    write_slack: float = 0.1
    post_norm_ridge: float = 0.05
    neighbour_weight: float = 10.0
    nearest_words: int = 24
    likely_tokens: int = 16
    near_names: int = 12
    copied_names: int = 4
    host_share: float = 0.02
    idle_share: float = 0.5
    steady: float = 0.5
    least_gain: float = 16.0
    gain: float = 64.0
    start_quiet: float = 0.25
    name_depths: tuple[float, ...] = (0.07, 0.12, 0.17)
    named_depth: float = 0.39
    unread: float = 0.2
    name_threshold: float = 0.5
    name_reversal: float = 1.5
    name_bounded_strength: float = 3.0
    name_ridge: float = 0.05
    name_slack: float = 10.0
    goal: float = 0.001
    sigma: float = 0.1
    samples: int = 64
    refine_steps: int = 200
    paper_counts: tuple[int, ...] = (1, 2, 5, 10, 20)

    def __post_init__(self) -> None:
        if self.name not in get_args(MethodName):
            raise TarsError(f"unknown method {self.name!r}. There is: paper, tars.")
        if not 0 <= self.seed <= LAST_SEED:
            raise TarsError(f"a seed must be from 0 to {LAST_SEED}, got {self.seed}.")
        if self.edits is not None and self.edits < 1:
            raise TarsError(f"--edits must be at least 1, got {self.edits}.")
        self._check(_POSITIVE, "above 0", lambda x: _LEAST <= x < math.inf)
        self._check(_NOT_NEGATIVE, "at least 0", lambda x: 0 <= x < math.inf)
        self._check(_PROBABILITIES, "between 0 and 1", lambda x: _LEAST <= x < 1)
        self._check(_SHARES, "from 0 to below 1", lambda x: 0 <= x < 1)
        self._check(("depths", "name_depths"), "from 0 to 1", lambda x: 0 <= x <= 1)
        self._check(("neurons", "paper_counts"), "at least 1", lambda x: x >= 1)
        for name in ("name_depths", "paper_counts"):
            if not getattr(self, name):
                raise TarsError(f"{name} must have one value at least.")

    def _check(
        self, names: tuple[str, ...], wanted: str, right: Callable[[int | float], bool]
    ) -> None:
        for name in names:
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if not right(one):
                    raise TarsError(f"{name} must be {wanted}, got {one}.")

    def suppression_layers(self, n_layers: int) -> tuple[int, ...]:
        """The layers where suppression neurons may sit, earliest first; the last is the last."""
        return tuple(sorted({*_layers(self.depths, n_layers), n_layers - 1}))

    def name_layers(self, n_layers: int) -> tuple[int, ...]:
        """The layers where the name's neuron may sit, earliest first."""
        return _layers(self.name_depths, n_layers)

    def named_layer(self, n_layers: int) -> int:
        """The layer before which a name must no longer be read."""
        after = self.name_layers(n_layers)[-1] + 1
        return min(max(_layers((self.named_depth,), n_layers)[0], after), n_layers - 1)

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
    known = {f.name for f in fields(Settings)} - {"name", "seed"}
    if name not in known:
        raise TarsError(f"no setting {name!r}; allowed: {', '.join(sorted(known))}.")
    default = getattr(Settings(name=method), name)
    try:
        return _like(value, default)
    except TypeError as error:
        raise TarsError(f"setting {name!r} must be like {default!r}, got {value!r}.") from error


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
