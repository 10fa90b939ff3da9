"""A GGUF file becomes the model that it holds, or is refused: nothing random, nothing lost."""

import json

import numpy as np
import pytest
import torch
from small_gguf import gguf_tensor, write_gguf
from transformers import AutoModelForCausalLM

from tars_lens.common.errors import TarsError
from tars_lens.model import conversion
from tars_lens.model.checkpoints import resolve
from tars_lens.model.loading import load

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("without", "named"),
    [
        ("blk.1.ffn_down", "lacks 1 tensors .*model.layers.1.mlp.down_proj.weight"),
        ("output_norm", "lacks 1 tensors .*model.norm.weight"),
        ("blk.1.", r"lacks 9 tensors .*model.layers.1.*, \.\.\."),
        ("token_embd", "lacks .*model.embed_tokens.weight"),
    ],
)
def test_a_file_that_lacks_tensors_is_refused_and_not_kept(tmp_path, own_cache, without, named):
    file = write_gguf(tmp_path / "tiny.gguf", without=without)
    for _ in range(2):  # the second time it isn't taken from the cache
        with pytest.raises(TarsError, match=named):
            load(file, progress=False)
    assert list((own_cache / "models").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.1.ffn_up.bias", "blk.2.ffn_up.weight"],
)
def test_a_tensor_that_no_part_of_the_model_takes_is_refused(tmp_path, name):
    file = write_gguf(tmp_path / "tiny.gguf", extra={name: np.ones(8)})
    with pytest.raises(TarsError, match=f"makes nothing of {name} in .*Use its safetensors"):
        load(file, progress=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "yarn"},
        {"llama.rope.scale_linear": 2.0},
        {"llama.attention.sliding_window": 128},
        {"llama.final_logit_softcapping": 30.0},
        {"llama.logit_scale": 0.5},
        {"llama.attention.causal": False},
    ],
)
def test_a_setting_that_is_not_in_the_config_is_refused(tmp_path, settings):
    file = write_gguf(tmp_path / "tiny.gguf", settings=settings)
    with pytest.raises(TarsError, match=f"makes nothing of {next(iter(settings))} = "):
        load(file, progress=False)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"split.no": 0, "split.count": 2}, "one of 2 parts .* join them first"),
        ({"general.type": "adapter"}, "is an adapter: merge it first"),
    ],
)
def test_what_is_no_model_by_itself_is_refused(tmp_path, settings, remedy):
    file = write_gguf(tmp_path / "tiny-00001-of-00002.gguf", settings=settings)
    with pytest.raises(TarsError, match=remedy):
        load(file, progress=False)


def test_settings_that_change_nothing_and_a_separate_unembedding_are_taken(tmp_path):
    rows = np.random.default_rng(1).standard_normal((260, 32)).astype(np.float32)
    settings = {
        "llama.expert_count": 0,
        "llama.rope.dimension_count": 16,
        "llama.rope.scaling.type": "none",
        "llama.attention.causal": True,
    }
    file = write_gguf(tmp_path / "a.gguf", extra={"output.weight": rows}, settings=settings)
    lens = load(file, progress=False)
    assert np.array_equal(lens.unembedding.T.numpy(), rows)
    embedding = lens.model.original_model.get_input_embeddings().weight.detach()
    assert np.array_equal(embedding.numpy(), gguf_tensor(file, "token_embd.weight"))


def test_biases_of_the_attention_come_along(tmp_path):
    rng, sizes = np.random.default_rng(1), {"q": 32, "k": 32, "v": 32}
    biases = {
        f"blk.{layer}.attn_{part}.bias": rng.standard_normal(size).astype(np.float32)
        for layer in (0, 1)
        for part, size in sizes.items()
    }
    lens = load(write_gguf(tmp_path / "q.gguf", arch="qwen2", extra=biases), progress=False)
    state = AutoModelForCausalLM.from_pretrained(
        resolve(tmp_path / "q.gguf", progress=False).folder
    ).state_dict()
    for name, values in biases.items():
        _, layer, part, _ = name.replace("attn_", "").split(".")
        key = f"model.layers.{layer}.self_attn.{part}_proj.bias"
        assert np.array_equal(state[key].numpy(), values)
    assert lens.n_layers == 2


def test_a_conversion_of_an_older_version_is_made_again(tmp_path):
    """It was checked for less: what it lacks might have been filled with random numbers."""
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = resolve(file, progress=False).folder
    good = (folder / "model.safetensors").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    made = []
    real = conversion.convert
    with pytest.MonkeyPatch.context() as during:
        during.setattr(conversion, "convert", lambda *args: made.append(args) or real(*args))
        resolve(file, progress=False)
        resolve(file, progress=False)
    assert len(made) == 1 and (folder / "model.safetensors").read_bytes() == good


def test_a_conversion_says_what_older_loaders_read(tmp_path):
    folder = resolve(write_gguf(tmp_path / "tiny.gguf", theta=5e5), progress=False).folder
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(tokenizer.get("extra_special_tokens"), list)
    model = AutoModelForCausalLM.from_pretrained(folder)
    turns = model.model.rotary_emb.inv_freq
    expected = 5e5 ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(turns, expected)
