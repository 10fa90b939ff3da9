import pytest
import torch
from tiny import tiny_lens


@pytest.fixture
def lens():
    """A tiny random Llama."""
    return tiny_lens("llama")


@pytest.fixture(scope="session")
def real_lens():
    """SmolLM2-135M with its real weights; tests leave it as they found it."""
    from tars_lens.loading import load

    return load("smollm2-135m", progress=False)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
