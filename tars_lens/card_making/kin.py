"""The nearest other things: by what texts name beside a concept, and by the model's geometry."""

from collections import Counter
from collections.abc import Sequence

import torch

from tars_lens.card_making.sentences import capitalised
from tars_lens.card_making.talking import mentioned_beside
from tars_lens.concept import Concept, forms_in
from tars_lens.forms import first_tokens
from tars_lens.lens import Lens
from tars_lens.unembedding import Unembedding

_CANDIDATES = 24
_DEPTH = 0.5


def neighbours(
    lens: Lens, name: str, names: Sequence[str], sentences: Sequence[str], count: int
) -> list[str]:
    """Names of other things, the nearest first.

    Candidates are what the corpus names in the same sentences most often, what the model names
    when it goes on from the name, and the words whose unembedding lies nearest to the name's. They
    are ordered by the cosine of the middle layer's stream at their last token with the concept's,
    all streams centred on the candidates' mean.
    """
    found = _candidates(lens, name, names, sentences)
    if len(found) < 2:
        return found[:count]
    batch = lens.prompts([f"We talked about {text}" for text in (name, *found)])
    layer = round(_DEPTH * (lens.n_layers - 1))
    ends = lens.residual(batch.ids, layer, positions=batch.last).float()
    ends = ends - ends.mean(dim=0)
    near = torch.cosine_similarity(ends[:1], ends[1:], dim=1)
    return [found[i] for i in near.argsort(descending=True).tolist()][:count]


def _candidates(lens: Lens, name: str, names: Sequence[str], sentences: Sequence[str]) -> list[str]:
    beside = Counter(n for sentence in sentences for n in set(capitalised(sentence)))
    said = [n for text in mentioned_beside(lens, name) for n in capitalised(f"a {text.strip()}")]
    card = Concept(name=name, answer=name, prompt=name)
    unembedding = Unembedding.fit(lens)
    near = unembedding.nearest_words(first_tokens(lens, card), _CANDIDATES // 2)
    words = [lens.string(token).strip() for token in near]
    common = [n for n, times in beside.most_common(_CANDIDATES // 2) if times > 1]
    capital = [word for word in words if word[:1].isupper()]
    every = [*common, *said, *(capital or words)]
    own = [part for form in names for part in (form, *form.split())]
    return [n for n in dict.fromkeys(every) if not forms_in(n, own) and len(n) > 2][:_CANDIDATES]
