import torch

from tars_lens.discriminant import discriminant, held_out_scores


def _plain(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Anisotropic plain text about a mean that isn't zero, as residual streams are."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 3.0, 12)
    y = torch.randn(4000, 12, generator=generator) * scale + 2.0
    return y, y.mean(0), torch.cov(y.T, correction=0)


def test_scores_one_on_the_concept_and_zero_on_plain_text():
    y, mean, covariance = _plain()
    concept = y[:20] * 0.1 + torch.linspace(5, -5, 12)
    reader = discriminant([concept], y[:0], mean, covariance, ridge=0.1)
    torch.testing.assert_close(reader.score(concept).mean(), torch.tensor(1.0))
    assert reader.score(y).mean().abs() < 1e-4
    assert reader.score(y).std() < 0.3


def test_not_centred_it_scores_zero_where_there_is_nothing():
    y, mean, covariance = _plain()
    concept = y[:20] * 0.1 + torch.linspace(5, -5, 12)
    given = (y[:3], mean, covariance)
    reader = discriminant([concept], *given, ridge=0.1, centred=False)
    centred = discriminant([concept], *given, ridge=0.1)
    torch.testing.assert_close(reader.score(concept).mean(), torch.tensor(1.0))
    assert reader.score(torch.zeros(12)) == 0
    assert reader.score(y).mean().abs() > 10 * centred.score(y).mean().abs()
    assert torch.equal(reader.bias, centred.bias)
    one = [reader.weight @ concept[0], held_out_scores(concept[:2], *given, ridge=0.1)[0]]
    assert one[1] != held_out_scores(concept[:2], *given, ridge=0.1, centred=False)[0]


def test_without_ridge_or_neighbours_it_is_fishers():
    y, mean, covariance = _plain()
    concept = mean + torch.linspace(1, 2, 12)[None]
    reader = discriminant([concept], y[:0], mean, covariance, ridge=0.0)
    fisher = torch.linalg.inv(covariance) @ (concept[0] - mean)
    cosine = torch.cosine_similarity(reader.weight, fisher, dim=0)
    assert cosine > 0.9999


def test_neighbours_are_told_apart_only_if_they_are_given():
    y, mean, covariance = _plain()
    shared = torch.linspace(-4, 4, 12)
    own, near = torch.zeros(12), torch.zeros(12)
    own[0], near[1] = 1.0, 1.0
    concept = (mean + shared + own)[None]
    neighbours = (mean + shared + near)[None]
    blind = discriminant([concept], y[:0], mean, covariance, ridge=0.1)
    seeing = discriminant([concept], neighbours, mean, covariance, ridge=0.1)
    assert blind.score(neighbours).item() > 0.5
    assert seeing.score(neighbours).item() < 0.6 * blind.score(neighbours).item()


def test_the_bias_vector_stands_in_for_a_bias():
    y, mean, covariance = _plain()
    reader = discriminant([y[:5]], y[:0], mean, covariance, ridge=0.1)
    ones = y @ reader.bias
    torch.testing.assert_close(ones.mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert ones.std() < 0.35


def test_a_row_is_zero_at_the_threshold_and_the_gain_at_score_one():
    y, mean, covariance = _plain()
    reader = discriminant([y[:5] + 4], y[:0], mean, covariance, ridge=0.1)
    row = reader.row(threshold=0.25, gain=16.0)
    # moved along the part of w that leaves v . y alone, the pre-activation is exact
    along = reader.weight - reader.bias * (reader.weight @ reader.bias) / (
        reader.bias @ reader.bias
    )
    step = along / (along @ reader.weight)
    torch.testing.assert_close(row @ (mean + step), torch.tensor(16.0), rtol=1e-3, atol=1e-3)
    at_threshold = row @ (mean + 0.25 * step)
    torch.testing.assert_close(at_threshold, torch.tensor(0.0), atol=1e-3, rtol=0)
    assert row @ mean < 0


def test_every_form_of_a_name_is_read_however_many_there_are():
    y, mean, covariance = _plain()
    far = 30 * torch.eye(12)[:6]
    forms = [mean + form[None] for form in far]
    reader = discriminant(forms, y[:0], mean, covariance, ridge=0.1)
    scores = torch.cat([reader.score(form) for form in forms])
    together = discriminant([torch.cat(forms)], y[:0], mean, covariance, ridge=0.1)
    averaged = torch.cat([together.score(form) for form in forms])
    assert scores.min() > 0.9
    assert averaged.min() < 0.5


def test_held_out_scores_are_those_of_readers_made_without_the_example():
    y, mean, covariance = _plain()
    concept = y[:5] * 0.5 + torch.linspace(6, -6, 12)
    near = y[5:9] + 1
    found = held_out_scores(concept, near, mean, covariance, ridge=0.2)
    for i in range(5):
        rest = concept[[j for j in range(5) if j != i]]
        reader = discriminant([rest], near, mean, covariance, ridge=0.2)
        torch.testing.assert_close(found[i], reader.score(concept[i]), rtol=1e-3, atol=1e-4)
    assert held_out_scores(concept[:1], near, mean, covariance, ridge=0.2).tolist() == [1.0]
