"""What each attribution of one prompt costs, in forward passes of the model.

    python benchmarks/attribution_cost.py PATCH [--model smollm2-135m] [--concept saturn]

Prints a table: seconds (the median of several runs, after one that warms up) and their ratio to
one forward pass of the same prompt with its logits at every position, timed in between.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

import tars_lens
from tars_lens import attribution
from tars_lens.concept import Concept, ProbeSet
from tars_lens.forms import first_tokens
from tars_lens.patch import Patch


def main() -> None:
    """Times everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patch", help="a patch file of the concept's removal")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--concept", default="saturn")
    parser.add_argument("--prompt", help="the card's first reported forward probe by default")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    lens = tars_lens.load(options.model)
    concept, patch = Concept.load(options.concept), Patch.load(options.patch)
    prompt = options.prompt or concept.probes.forward[0].prompt
    ids = lens.prompts([prompt]).ids
    rows = compare(lens, concept, patch, prompt, options.runs)
    forward = rows.pop("forward pass")
    print(f"{lens.name}, {ids.shape[1]} tokens, {torch.get_num_threads()} threads: {prompt!r}")
    print(f"{patch.n_rows} edited vectors, the first in layer {min(k for k, _ in patch.edits)}\n")
    print("| analysis | seconds | forward passes |\n|---|---:|---:|")
    print(f"| forward pass | {forward:.3f} | 1.0 |")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.3f} | {seconds / forward:.1f} |")
    parts = attribution.direct_attribution(lens, prompt, concept, patch=patch)
    print(f"\nThe parts miss the logit by at most {parts.error:.2g}:")
    print(parts.logits.drop(columns="text").to_string(index=False))
    flow = attribution.propagation(lens, prompt, concept, patch=patch)
    print(flow.summary().drop(columns="text").to_string(index=False))


def compare(
    lens: tars_lens.Lens, concept: Concept, patch: Patch, prompt: str, runs: int
) -> dict[str, float]:
    """Median seconds of a forward pass and of each analysis, taken in turns."""
    ids = lens.prompts([prompt]).ids
    vector = lens.unembedding[:, first_tokens(lens, concept)[0]].float()
    probe = next(p for p in concept.probes.forward if p.prompt == prompt)
    one = replace(concept, probes=ProbeSet(forward=(probe,)))
    attributes = list(dict.fromkeys(p.answer for p in concept.probes.reverse))
    calls: dict[str, Callable[[], object]] = {
        "forward pass": lambda: _forward(lens, ids),
        "propagation": lambda: attribution.propagation(
            lens, prompt, concept, patch=patch, vector=vector
        ),
        "propagation, no patch": lambda: attribution.propagation(lens, prompt, concept),
        "direct attribution": lambda: attribution.direct_attribution(
            lens, prompt, concept, patch=patch
        ),
        f"edit effects ({patch.n_rows} vectors)": lambda: attribution.edit_effects(
            lens, patch, one
        ),
        "causal trace, resid_post": lambda: attribution.causal_trace(lens, prompt, concept, patch),
        f"enrichment (8 contexts, {len(attributes)} attributes)": lambda: attribution.enrichment(
            lens, concept, patch=patch
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if run:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


@torch.no_grad()
def _forward(lens: tars_lens.Lens, ids: torch.Tensor) -> torch.Tensor:
    return lens.model(ids, return_type="logits")


if __name__ == "__main__":
    main()
