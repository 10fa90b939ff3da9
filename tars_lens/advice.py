"""What more text on a card would help, told by the card and by what the model holds to be near."""

from collections.abc import Sequence

from tars_lens.concept import Concept

_PROMPTS = 4
_CONTRAST = 4
_NAMED = 4


def advice(concept: Concept, kin: Sequence[str] = ()) -> list[str]:
    """A sentence for each kind of text that the card is short of; what matters most comes first.

    Args:
        concept: The card.
        kin: The words of the vocabulary nearest to the concept, nearest first.
    """
    found = []
    count = len(concept.concept_prompts)
    if count < _PROMPTS:
        found.append(
            f"{count} prompt{'s' if count > 1 else ''} lead{'s' if count == 1 else ''} to it: with "
            f"{_PROMPTS} or more in different words (`prompts`), descriptions that none of them is "
            "like are read too."
        )
    contrast = [probe.answer for probe in concept.contrast]
    like = ", ".join(kin[:_NAMED])
    if not contrast or (kin and not _any_of(contrast, kin)):
        what = "no `contrast`" if not contrast else "no `contrast` of its own kind"
        found.append(
            f"it has {what}: prompts that lead to things like it"
            + (f" ({like})" if like else "")
            + " keep them from going with it."
        )
    elif len(contrast) < _CONTRAST:
        number = f"{len(contrast)} `contrast` prompt{'s' if len(contrast) > 1 else ''}"
        found.append(f"it has {number}: {_CONTRAST} or more keep more of what is near.")
    chosen, probes = concept.validation, concept.probes
    if not chosen.forward:
        found.append("it has no `validation.forward`: the strength is chosen on its prompts alone.")
    if not chosen.neighbour:
        found.append("it has no `validation.neighbour`, which the choice could be told to keep.")
    lacking = [kind for kind in ("forward", "reverse", "neighbour") if not getattr(probes, kind)]
    if lacking:
        found.append(f"it has no probes to show the result by: {', '.join(lacking)}.")
    return found


def _any_of(answers: Sequence[str], kin: Sequence[str]) -> bool:
    near = [word.casefold() for word in kin]
    heads = [answer.strip().casefold() for answer in answers]
    return any(head.startswith(word) or word in head.split() for head in heads for word in near)
