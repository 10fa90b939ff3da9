"""What each attribution of one prompt costs, in forward passes of the model over that prompt."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from timing import Case, arguments, compared, interleaved, show

import tars_lens
from tars_lens import attribution
from tars_lens.concept.card import Concept, ProbeSet
from tars_lens.concept.forms import first_tokens
from tars_lens.patch.patch import Patch

_REFERENCE = "forward pass"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, the error of the parts' sum, and where the concept stops."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--concept", default="saturn", help="built-in name or path of a card")
    parser.add_argument("--patch", help="a patch file; 4 reversed vectors where not given")
    parser.add_argument("--probe", type=int, default=0, help="which reported forward probe to read")
    options = parser.parse_args(argv)
    lens = tars_lens.load(options.model, progress=False)
    concept = Concept.load(options.concept)
    patch = Patch.load(options.patch) if options.patch else _reversed(lens, concept)
    prompt = concept.probes.forward[options.probe].prompt
    first = min(layer for layer, _ in patch.edits)
    seconds = interleaved(_cases(lens, concept, patch, options.probe), options.repeats)
    show(
        f"Attribution of {prompt!r} in {lens.name}: {len(lens.tokens(prompt))} tokens, "
        f"{patch.n_rows} edited vectors, the first in layer {first} of {lens.n_layers}",
        compared(seconds, _REFERENCE),
        reference="one forward pass with its logits at every position",
        out=options.out,
    )
    parts = attribution.direct_attribution(lens, prompt, concept, patch=patch)
    flow = attribution.propagation(lens, prompt, concept, patch=patch)
    print(f"\nthe parts miss the logit by at most {parts.error:.2g}")
    for frame in (parts.logits, flow.summary()):
        print(frame.drop(columns="text").to_string(index=False))


def _cases(lens: tars_lens.Lens, concept: Concept, patch: Patch, probe: int) -> dict[str, Case]:
    asked = concept.probes.forward[probe]
    prompt = asked.prompt
    ids = lens.prompts([prompt]).ids
    vector = lens.unembedding[:, first_tokens(lens, concept)[0]].float()
    one = replace(concept, probes=ProbeSet(forward=(asked,)))
    return {
        _REFERENCE: lambda: _forward(lens, ids),
        "propagation": lambda: attribution.propagation(
            lens, prompt, concept, patch=patch, vector=vector
        ),
        "propagation, no patch": lambda: attribution.propagation(lens, prompt, concept),
        "direct attribution": lambda: attribution.direct_attribution(
            lens, prompt, concept, patch=patch
        ),
        f"edit effects, {patch.n_rows} vectors": lambda: attribution.edit_effects(lens, patch, one),
        "causal trace, resid_post": lambda: attribution.causal_trace(lens, prompt, concept, patch),
        "enrichment, 8 contexts": lambda: attribution.enrichment(lens, concept, patch=patch),
    }


def _reversed(lens: tars_lens.Lens, concept: Concept) -> Patch:
    vector = tars_lens.target(lens, concept)
    return tars_lens.reverse(lens, vector, tars_lens.rank(lens, vector, top=4), concept=concept)


@torch.no_grad()
def _forward(lens: tars_lens.Lens, ids: torch.Tensor) -> torch.Tensor:
    return lens.model(ids, return_type="logits")


if __name__ == "__main__":
    main()
