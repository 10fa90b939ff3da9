"""A device map may place every layer where it stays; what accelerate would bring in is refused."""

import pytest
import tiny
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from tars_lens.common.errors import TarsError
from tars_lens.model import loading
from tars_lens.model.lens import Lens
from tars_lens.model.loading import load
from tars_lens.model.placement import check_present, offloaded

_MODULES = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    return tiny.save_checkpoint(tmp_path / "model", "llama")


def _map(**elsewhere):
    places = {f"model.{name}": "cpu" for name in _MODULES} | {"lm_head": "cpu"}
    return places | {f"model.layers.{layer[-1]}": place for layer, place in elsewhere.items()}


@pytest.mark.parametrize(
    ("device_map", "away"),
    [
        (_map(), {}),
        ({"": 0}, {}),
        ({"model.layers.0": 0, "model.layers.1": "cuda:1"}, {}),
        ({"model.layers.0": 0, "model.layers.1": "cpu"}, {"model.layers.1": "cpu"}),
        ({"model.layers.0": "cpu", "model.layers.1": "disk"}, {"model.layers.1": "disk"}),
    ],
)
def test_the_processor_is_a_place_to_stay_only_for_the_whole_model(device_map, away):
    assert offloaded(device_map) == away


def test_a_map_to_disk_is_refused_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr(loading, "resolve", None)  # not to be called
    with pytest.raises(TarsError) as refused:
        load(folder, device_map=_map(layer1="disk", layer2="disk"), progress=False)
    said = str(refused.value)
    assert "model.layers.1 (on disk) and 1 more would be kept off them between uses" in said
    assert "Allowed is a device map with every layer on a GPU, or every layer on the CPU" in said
    assert "Choose bfloat16 or float16, use more GPUs" in said and "\n" not in said


def test_what_accelerate_keeps_away_by_its_own_choice_is_refused(folder, monkeypatch):
    real = loading.AutoModelForCausalLM.from_pretrained

    def small(*args, **options):  # as "auto" decides where memory is short
        return real(*args, **{**options, "device_map": _map(layer1="disk")})

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", small)
    with pytest.raises(TarsError, match=r"doesn't fit on these devices: model\.layers\.1 \(on d"):
        load(folder, device_map="auto", progress=False)


def test_a_bridge_over_weights_that_are_not_there_is_refused_in_the_same_words(folder, tmp_path):
    hf = AutoModelForCausalLM.from_pretrained(
        folder, device_map=_map(layer1="disk"), offload_folder=tmp_path / "offloaded"
    )
    tokenizer = tiny.read_tokenizer(folder)
    tokenizer.init_kwargs |= {"name_or_path": str(folder), "add_bos_token": False}
    bridge = TransformerBridge.boot_transformers(
        "tiny", hf_model=hf, tokenizer=tokenizer, device="cpu", dtype=hf.dtype
    )
    with pytest.raises(TarsError, match="the model doesn't fit on these devices: .*layers"):
        Lens(bridge, tokenizer)


def test_weights_on_no_device_are_named_one_by_one():
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    with pytest.raises(TarsError, match=r"weight \(on no device\) and 1 more"):
        check_present(model, "a model")
    check_present(torch.nn.Linear(2, 2), "a model")
