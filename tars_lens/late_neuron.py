"""A late neuron on trial: its rows at a reading and a strength, and how strong it must be."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from tars_lens.discriminant import Discriminant
from tars_lens.forward_readers import Reach
from tars_lens.host import host_neuron
from tars_lens.lens import Lens
from tars_lens.neuron import capped_rows, reading_rows, write_scale, writing_row
from tars_lens.neutral import Neutral
from tars_lens.strengths import LARGEST, LARGEST_BY_BOTH, STRENGTHS, smallest_strength
from tars_lens.study import Study
from tars_lens.trials import Trials
from tars_lens.weights import Edits

_UNSEEN = 2.0
_AUDIBLE = 0.05


class Reading(NamedTuple):
    """Which of a layer's readers a neuron reads with, and below which score it is silent.

    Its gate reads the leaning beside the description, or the description alone.
    """

    reader: int
    threshold: float
    leaning: bool = False


class Choice(NamedTuple):
    """A reading, and the share of the strength that it needs."""

    reading: Reading
    share: float = 1.0


@dataclass(frozen=True)
class LateNeuron:
    """A forward neuron of one layer, before its reading and strength are chosen.

    Attributes:
        lens: The model, without any other part of the edit.
        trials: What the choice is made on, run up to the layer.
        layer: Where it sits.
        neurons: Its host, and that of the neuron that caps it, if any.
        readers: Of the description, the preferred one first.
        reach: How far each of them reaches.
        leaning: What its gate may read beside the description, if anything.
        target: What is written against, unit norm.
        natural: The layer's natural size of a write.
    """

    lens: Lens
    trials: Trials
    layer: int
    neurons: tuple[int, ...]
    readers: tuple[Discriminant, ...]
    reach: tuple[Reach, ...]
    leaning: Discriminant | None
    target: Float[Tensor, " d_model"]
    natural: float
    _left: dict[tuple[Reading, float], float] = field(default_factory=dict)
    _found: dict[Reading, float] = field(default_factory=dict)
    _silent: dict[Choice, bool] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        lens: Lens,
        study: Study,
        neutral: Neutral,
        trials: Trials,
        layer: int,
        taken: Collection[tuple[int, int]],
        *,
        capped: bool,
    ) -> "LateNeuron":
        """Finds its hosts; see `recipe.forward_part`."""
        carried = trials.settings.host, study.known_prompts, study.write_target
        neurons: tuple[int, ...] = (host_neuron(lens, neutral, layer, taken, *carried),)
        if capped:
            used = {*taken, (layer, neurons[0])}
            neurons += (host_neuron(lens, neutral, layer, used, *carried),)
        read = study.forward[layer], study.reach[layer], study.leaning.get(layer)
        natural = write_scale(lens, layer, neutral)
        return cls(lens, trials, layer, neurons, *read, study.write_target, natural)

    @property
    def is_last(self) -> bool:
        """Whether the model speaks right after it."""
        return self.layer == self.lens.n_layers - 1

    @property
    def goal(self) -> float:
        """What may be left of the concept."""
        settings = self.trials.settings
        return settings.goal if self.is_last else settings.lens_goal

    def largest(self, reading: Reading) -> float:
        """The largest write that is tried, in natural sizes."""
        if self.lens.bounds_writes:
            return STRENGTHS[-1]
        return LARGEST_BY_BOTH if reading.leaning else LARGEST

    def readings(self) -> list[list[Reading]]:
        """What is tried, in order; a further group where none of those before it will do.

        In the last layer the leaning is read before the description alone, and that comes before
        less strength (of Shakespeare that left 0.0001, less strength 0.019). Before the last layer
        the reader of the prompts comes first, as that of copies is the louder one: of text that
        nothing was chosen on it gave Sherlock Holmes a p99 of 0.083, the prompts' 0.001 to 0.014
        (SmolLM2-135M). A leaning leaves much the same at each threshold there.
        """
        thresholds = self.trials.settings.late_thresholds(self.lens.bounds_writes)
        readers = range(len(self.readers))
        if self.leaning is None:
            return [_each(readers, thresholds)]
        if self.is_last:
            return [[*_each(readers, thresholds, leaning=True), *_each(readers, thresholds)]]
        first, rest = readers[:1], readers[1:]
        by_both, by_one = (_each(r, thresholds[:1], leaning=True) for r in (first, rest))
        return [by_both, _each(first, thresholds), [*by_one, *_each(rest, thresholds)]]

    def edits(self, choice: Choice) -> Edits:
        """Its rows."""
        return self._rows(choice.reading, self.strength(choice))

    def reached(self, choice: Choice) -> bool:
        """Whether the concept is gone by this neuron alone; before the last layer, by the lens."""
        return self._measured(choice.reading, self.strength(choice)) <= self.goal

    def silences(self, choice: Choice) -> bool:
        """Whether it is gone in the end as well, at every prompt that may be looked at.

        Before the last layer less than 0.05 will do: a neuron that the lens at the card's own
        prompts had passed left 0.38 of Harry Potter on validation text.
        """
        if not self.reached(choice):
            return False
        if self.is_last:
            return True
        if choice not in self._silent:
            left = self.trials.left(self.edits(choice))
            self._silent[choice] = left <= _AUDIBLE
        return self._silent[choice]

    def strength(self, choice: Choice) -> float:
        """The size of its write, in natural sizes.

        `safety` times the smallest that reaches the goal; at the last layer up to twice as much
        where a prompt that the reader was not made from scores less.
        """
        reading, safety = choice.reading, self.trials.settings.safety
        found = self._found[reading] if reading in self._found else self._smallest(reading)
        if self.is_last:
            safety *= self._for_unseen(reading)
        return choice.share * min(safety * found, self.largest(reading))

    @property
    def _cap(self) -> float:
        """The score from which on its write grows no more."""
        return self.trials.settings.forward_cap if len(self.neurons) > 1 else 1.0

    def _smallest(self, reading: Reading) -> float:
        """The smallest strength that reaches the goal, from that of a reading like it on.

        Of another reader with the same threshold, else of the last one.
        """
        found = {r: s for r, s in self._found.items() if r.leaning == reading.leaning}
        alike = [s for other, s in found.items() if other.threshold == reading.threshold]
        like = next(reversed([*found.values(), *alike]), None)
        self._found[reading] = smallest_strength(
            lambda strength: self._measured(reading, strength),
            self.goal,
            largest=self.largest(reading),
            like=like,
        )
        return self._found[reading]

    def _measured(self, reading: Reading, strength: float) -> float:
        """What is left of the concept: in the end, before the last layer anywhere from it on."""
        key = (reading, strength)
        if key not in self._left:
            measure = self.trials.left if self.is_last else self.trials.readable
            self._left[key] = measure(self._rows(reading, strength))
        return self._left[key]

    def _rows(self, reading: Reading, strength: float) -> Edits:
        reader, size = self.readers[reading.reader], strength * self.natural
        place, threshold, beside = (self.lens, self.layer), reading.threshold, None
        if reading.leaning and self.leaning is not None:
            reader, beside = self.leaning, reader
        if len(self.neurons) > 1:
            first, second = self.neurons
            return capped_rows(
                *(*place, (first, second), reader, self.target),
                threshold=threshold,
                cap=self._cap,
                size=size,
                beside=beside,
            )
        (first,) = self.neurons
        host = (*place, first)
        read = reading_rows(*host, reader, threshold=threshold, unit="linear", beside=beside)
        return {**read, **writing_row(*host, self.target, size=size, unit="linear")}

    def _for_unseen(self, reading: Reading) -> float:
        """How many times as much the write must be at the least score of a held-out prompt."""
        reach = self.reach[reading.reader]
        if not reading.leaning:
            reach = Reach(*(min(score, self._cap) - reading.threshold for score in reach))
        seen, unseen = (max(score, 1e-6) for score in reach)
        return min(_UNSEEN, max(1.0, seen / unseen))


def _each(
    readers: Iterable[int], thresholds: Iterable[float], *, leaning: bool = False
) -> list[Reading]:
    return [Reading(reader, threshold, leaning) for reader in readers for threshold in thresholds]
