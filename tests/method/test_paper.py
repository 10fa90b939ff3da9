"""`--method paper` against the paper's four steps, written out in plain torch on the HF model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import boot, read_checkpoint, save_checkpoint

from tars_lens.concept.card import Concept
from tars_lens.method.paper import reverse_literally
from tars_lens.method.reversal import paper_edits
from tars_lens.method.settings import Settings
from tars_lens.method.targeting import target
from tars_lens.model.lens import Lens


@torch.no_grad()
def reference(
    hf: Any, ids: list[int], tokens: list[int], count: int, *, sigma, samples, steps, seed
) -> tuple[torch.Tensor, list[tuple[int, str, int]], torch.Tensor]:
    """The four steps of arXiv 2412.10257 on a Llama of transformers.

    Returns the refined vector, the chosen weight vectors in order, and their new rows.
    """
    # 1. Approximate vector: the last layer's residual stream at the prompt's last token.
    seen = []
    handle = hf.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hf(torch.tensor([ids]))
    handle.remove()
    vector = seen[0][0, -1].float()

    # 2. Refine: the best of many Gaussian perturbations, until the token is said with p >= 0.999.
    def probability(streams):
        logits = hf.lm_head(hf.model.norm(streams)).float()
        return logits.softmax(-1)[:, tokens].sum(1)

    generator = torch.Generator().manual_seed(seed)
    best = float(probability(vector[None])[0])
    for _ in range(steps):
        if best >= 0.999:
            break
        noise = torch.randn(samples, len(vector), generator=generator)
        tried = vector + sigma * vector.norm() * noise / len(vector) ** 0.5
        scores = probability(tried)
        if scores.max() > best:
            best, vector = float(scores.max()), tried[scores.argmax()]

    # 3. Rank: the cosine with every feed-forward weight vector that lives in residual space.
    names, rows = [], []
    for number, layer in enumerate(hf.model.layers):
        mlp = layer.mlp
        weights = {"gate": mlp.gate_proj.weight, "in": mlp.up_proj.weight}
        for role, weight in {**weights, "out": mlp.down_proj.weight.T}.items():
            names += [(number, role, neuron) for neuron in range(len(weight))]
            rows.append(weight.float())
    rows = torch.cat(rows)
    cosines = torch.nn.functional.cosine_similarity(rows, vector[None])
    order = cosines.argsort(descending=True)[:count].tolist()

    # 4. Reverse: each replaced by the reversed vector, at the norm of what it replaces.
    new = -vector / vector.norm() * rows[order].norm(dim=1, keepdim=True)
    return vector, [names[index] for index in order], new


OPTIONS = [{"sigma": 0.3, "samples": 32, "steps": 6}, {"sigma": 0.1, "samples": 8, "steps": 3}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_method_paper_is_the_papers_four_steps(tmp_path, options, seed):
    folder = save_checkpoint(tmp_path, "llama", seed=seed)
    concept = Concept(name="nine", answer="w9", prompt="w1 w2 w3", prompts=("w4 w5",), key="nine")
    lens = Lens(*boot(folder))
    _compare(lens, read_checkpoint(folder), concept, [13], 9, {**options, "seed": seed})


@pytest.mark.real
def test_the_method_paper_is_the_papers_four_steps_on_the_real_model(real_lens):
    prompt = "The sixth planet from the Sun, famous for its bright rings, is called"
    concept = Concept(name="Saturn", answer="Saturn", prompt=prompt, key="saturn")
    folder = Path(real_lens.tokenizer.name_or_path)
    tokens = [real_lens.pieces(" Saturn")[0]]
    options = {"sigma": 0.1, "samples": 8, "steps": 3, "seed": 3}
    _compare(real_lens, read_checkpoint(folder), concept, tokens, 20, options)


def _compare(lens, hf, concept, tokens, count, options):
    vector, chosen, rows = reference(hf, lens.tokens(concept.prompt), tokens, count, **options)
    found = target(
        lens,
        concept,
        **{name: options[name] for name in ("sigma", "samples", "seed")},
        budget=options["steps"],
    )
    assert len(found.trajectory) > 2  # something was refined
    torch.testing.assert_close(found.vector, vector, rtol=1e-5, atol=1e-5)
    _, frame = paper_edits(lens, found, count)
    assert list(frame[["layer", "role", "neuron"]].itertuples(index=False, name=None)) == chosen

    settings = Settings(
        name="paper",
        edits=count,
        seed=options["seed"],
        sigma=options["sigma"],
        samples=options["samples"],
        refine_steps=options["steps"],
    )
    patch = reverse_literally(lens, concept, settings)
    new = {
        (*place, neuron): row
        for place, edited in patch.new_rows.items()
        for neuron, row in zip(edited.neurons.tolist(), edited.values, strict=True)
    }
    assert len(new) == count
    for place, row in zip(chosen, rows, strict=True):
        torch.testing.assert_close(new[place], row, rtol=1e-5, atol=1e-6)


def test_the_least_number_that_reaches_the_goal_is_taken_or_that_which_leaves_least(lens):
    concept = Concept(name="nine", answer="w9", prompt="w1 w2 w3", prompts=("w4 w5",), key="nine")
    options = {"name": "paper", "samples": 8, "refine_steps": 3, "paper_counts": (20, 1, 5)}
    lowest = Settings(**options, goal=1e-29)
    left = {}
    for count in (1, 5, 20):
        patch = reverse_literally(lens, concept, Settings(**{**options, "edits": count}))
        with patch.applied(lens):
            logits = lens.next_logits(lens.prompts(["w1 w2 w3", "w4 w5"]))
        left[count] = float(logits.softmax(-1)[:, 13].max())
        (about,) = patch.method["parts"]
        assert about["left_on_validation"] == pytest.approx(left[count]) and patch.n_rows == count
    assert reverse_literally(lens, concept, lowest).n_rows == min(left, key=left.get)
    easy = Settings(**options, goal=max(left.values()) * 1.01)
    assert reverse_literally(lens, concept, easy).n_rows == 1
