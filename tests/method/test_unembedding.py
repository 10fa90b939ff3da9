import torch
from tiny import tiny_lens

from tars_lens.model.unembedding import Unembedding


def test_covariance_and_vectors_are_those_of_the_effective_unembedding():
    lens = tiny_lens("gemma3")
    found = Unembedding.fit(lens)
    columns = lens.unembedding.float()
    rows = (columns - columns.mean(1, keepdim=True)).T * lens.final_gain
    torch.testing.assert_close(found.covariance, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.vectors([3, 9]), rows[[3, 9]], rtol=1e-4, atol=1e-6)


def test_a_layer_norm_takes_the_mean_out():
    lens = tiny_lens("gpt2")
    rows = Unembedding.fit(lens).vectors([3, 9, 20])
    assert rows.mean(1).abs().max() < 1e-6


def test_the_write_target_moves_the_concept_and_spares_the_neighbours():
    lens = tiny_lens("llama")
    unembedding = Unembedding.fit(lens)
    concept, neighbours = [7], [11, 12, 13, 14]
    plain = torch.nn.functional.normalize(unembedding.vectors(concept)[0], dim=0)
    target = unembedding.write_target(concept, neighbours)
    torch.testing.assert_close(target.norm(), torch.tensor(1.0))

    def harm(direction: torch.Tensor) -> float:
        moved = unembedding.vectors([*concept, *neighbours]) @ direction
        return float(moved[1:].abs().max() / moved[0])

    assert (unembedding.vectors(concept) @ target).item() > 0
    assert harm(target) < 0.2 * harm(plain)


def test_another_spelling_is_a_variant_and_another_word_is_not():
    lens = tiny_lens("llama")
    unembedding = Unembedding.fit(lens)
    assert unembedding.is_variant(9, [9])
    assert not unembedding.is_variant(20, [9])
