"""What more text on a card would help, told by the card alone."""

from tars_lens.concept.card import Concept

_PROMPTS = 4
_CONTRAST = 4


def advice(concept: Concept) -> list[str]:
    """A sentence for each kind of text that the card is short of; what matters most comes first.

    Whether the contrast is of the concept's own kind is not looked at: answers among the nearest
    words of the vocabulary don't tell it ("Charles" is near Henry and George, and a card for
    Berlin with the Eiffel Tower as contrast passes).
    """
    found = []
    count = len(concept.concept_prompts)
    if count < _PROMPTS:
        found.append(
            f"{count} prompt{'s' if count > 1 else ''} lead{'s' if count == 1 else ''} to it: with "
            f"{_PROMPTS} or more in different words (`prompts`), descriptions that none of them is "
            "like are read too."
        )
    if not concept.contrast:
        found.append("it has no `contrast`: prompts that lead to things like it keep those.")
    elif (count := len(concept.contrast)) < _CONTRAST:
        number = f"{count} `contrast` prompt{'s' if count > 1 else ''}"
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
