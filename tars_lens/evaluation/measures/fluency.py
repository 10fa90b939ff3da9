"""What the subject goes on to say of the concept: whether it is language, and what it names."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from tars_lens.concept.card import Concept, forms_in
from tars_lens.evaluation import intervals
from tars_lens.evaluation.context import Context
from tars_lens.evaluation.measure import Measure, Result
from tars_lens.evaluation.near import neighbour_names
from tars_lens.model.generation import continuations
from tars_lens.model.lens import Lens

_REFUSAL = re.compile(
    r"\b(?:i (?:can(?:no|')t|don't know|do not know|am not sure)|i'm (?:sorry|not sure)|unknown)\b",
    re.IGNORECASE,
)
_GIBBERISH = 0.5
"""Below this plausibility a text isn't language; a random one has 0, the base's own 1."""


def fluency(context: Context) -> Result:
    """Of each continuation: n-gram entropy against the base's, times plausibility to the base.

    Repetition lowers the first, gibberish the second: `(log V - loss) / (log V - loss of the
    base's own text)`, with `loss` the base's mean loss on the text and `V` its vocabulary.
    """
    asked = _prompts(context)
    texts = [text for _, text in asked]
    base = context.base
    before = base.once("texts", lambda: continuations(base.lens, texts, context.suite.new_tokens))
    own = base.once("losses", lambda: _losses(base.lens, texts, before))
    with context.edited() as lens:
        after = continuations(lens, texts, context.suite.new_tokens)
    said = _losses(base.lens, texts, after)
    ceiling = math.log(base.lens.d_vocab)
    rows = []
    for i, (concept, text) in enumerate(asked):
        plausible = _share(ceiling - said[i], ceiling - own[i])
        rows.append(
            {
                "concept": concept.name,
                "prompt": text,
                "base_text": before[i],
                "edited_text": after[i],
                "words": len(after[i].split()),
                **{f"distinct_{n}": distinct(after[i], n) for n in (1, 2, 3)},
                "entropy_before": entropy(before[i]),
                "entropy": entropy(after[i]),
                "plausible": plausible,
                "fluency": _share(entropy(after[i]), entropy(before[i])) * plausible,
                "says": instead(concept, after[i], plausible),
            }
        )
    items = pd.DataFrame(rows)
    interval = intervals.bootstrap(
        items[["fluency"]].to_numpy(float),
        intervals.mean,
        seed=context.seed,
        resamples=context.suite.resamples,
    )
    return Result("fluency", "fluency", _figures(items), interval, items)


def distinct(text: str, n: int) -> float:
    """The share of different n-grams among all n-grams of words; 0 where there are none."""
    grams = _grams(text, n)
    return len(set(grams)) / len(grams) if grams else 0.0


def entropy(text: str) -> float:
    """The mean of the entropies of bigrams and trigrams of words, in bits."""
    return sum(_entropy(_grams(text, n)) for n in (2, 3)) / 2


def instead(concept: Concept, text: str, plausible: float) -> str:
    """What a continuation says: the concept, a neighbour, a refusal, gibberish, or else."""
    if forms_in(text, concept.mentions):
        return "the concept"
    if plausible < _GIBBERISH:
        return "gibberish"
    if _REFUSAL.search(text):
        return "a refusal"
    named = forms_in(text, neighbour_names(concept))
    return f"a neighbour: {named[0]}" if named else "another thing"


def _figures(items: pd.DataFrame) -> dict[str, Any]:
    numbers = ("fluency", "plausible", "entropy_before", "entropy", "words")
    said = items["says"].str.split(":").str[0].value_counts().sort_index()
    return {
        **{name: float(items[name].mean()) for name in numbers},
        **{f"distinct_{n}": float(items[f"distinct_{n}"].mean()) for n in (1, 2, 3)},
        "says": {str(what): int(count) for what, count in said.items()},
        "prompts": len(items),
    }


def _prompts(context: Context) -> list[tuple[Concept, str]]:
    """The first known forward prompts of each concept; the card's own prompt where none is."""
    asked = []
    for concept in context.base.concepts:
        table = context.base_answers("forward")
        own = table[(table["concept"] == concept.name) & table["known"]]["prompt"].tolist()
        texts = own[: context.suite.prompts] or [concept.prompt]
        asked += [(concept, text) for text in texts]
    return asked


def _losses(lens: Lens, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """The lens's mean loss on each text after its prompt, in nats; that of chance for no text."""
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        head, whole = lens.tokens(prompt), lens.tokens(prompt + text)
        if len(whole) <= len(head):
            found.append(math.log(lens.d_vocab))
            continue
        batch = lens.batch([whole])
        logits = lens.read_out(lens.residual(batch.ids, -1)[0, len(head) - 1 : -1])
        target = batch.ids[0, len(head) :]
        found.append(float(torch.nn.functional.cross_entropy(logits, target)))
    return found


def _share(part: float, whole: float) -> float:
    if whole <= 0:
        return 1.0 if part >= whole else 0.0
    return min(1.0, max(0.0, part / whole))


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _entropy(grams: list[tuple[str, ...]]) -> float:
    counts = Counter(grams)
    total = len(grams)
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0


MEASURES = (
    Measure(
        name="fluency",
        about="n-gram entropy against the base's, times plausibility: 1 is the base's own text",
        better="high",
        suite="quick",
        run=fluency,
        controls={"quick": "none", "full": "all"},
    ),
)
