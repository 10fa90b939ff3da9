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
    from tars_lens.model.loading import load

    return load("smollm2-135m", progress=False)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A tiny Llama on disk and a lens over it; tests leave both as they found them."""
    from patch_models import boot, save_model

    folder = save_model(tmp_path_factory.mktemp("checkpoint") / "model", "llama")
    return folder, boot(folder)[0]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
