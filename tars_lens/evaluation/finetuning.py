"""Full fine-tuning of a model in place, as an attacker would do it who wants a concept back."""

from collections.abc import Sequence

import torch

from tars_lens.evaluation.suites import Suite
from tars_lens.model.lens import Lens
from tars_lens.text.windows import WIDTH

LEARNING_RATE = 1e-5


def fine_tune(lens: Lens, texts: Sequence[str], suite: Suite, *, seed: int) -> None:
    """Trains every weight on texts of at most 256 tokens: AdamW, one text a step.

    To be called inside `restoring.restored`. The order of the texts is drawn from the seed; the
    model stays in evaluation mode, so that nothing else is random.

    Args:
        lens: The model, which is changed.
        texts: What it is trained on.
        suite: How many epochs.
        seed: Of the order.
    """
    named = dict(lens.model.named_parameters())
    weights = [named[name] for name, _ in lens.state() if name in named]
    wanted = [weight.requires_grad for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    sequences = [ids for text in texts if len(ids := lens.tokens(text)[:WIDTH]) > 1]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE)
        for _ in range(suite.epochs):
            for index in torch.randperm(len(sequences), generator=generator).tolist():
                _step(lens, sequences[index], optimizer)
    finally:
        for weight, want in zip(weights, wanted, strict=True):
            weight.grad = None
            weight.requires_grad_(want)


@torch.enable_grad()
def _step(lens: Lens, sequence: Sequence[int], optimizer: torch.optim.Optimizer) -> None:
    ids = torch.tensor([list(sequence)], device=lens.device)
    logits = lens.model(ids, return_type="logits")[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
