"""A plan from a config alone: counted exactly, and refused where it won't fit."""

import json

import pytest
import tiny
import torch
from commands import mistake, run

from tars_lens.common.errors import TarsError
from tars_lens.experiments.planning import plan
from tars_lens.method.settings import Settings
from tars_lens.model import placement
from tars_lens.model.shape import shape_of

SMALL = {"host_bytes": 10**9}


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_a_shape_is_that_of_the_loaded_model(arch, tmp_path):
    lens = tiny.tiny_lens(arch)
    folder = tiny.save_checkpoint(tmp_path, arch)
    shape = shape_of(folder)
    loaded = tiny.read_checkpoint(folder)
    assert shape.parameters == sum(p.numel() for p in loaded.parameters())
    sizes = (shape.layers, shape.d_model, shape.d_mlp, shape.d_vocab, shape.roles)
    assert sizes == (lens.n_layers, lens.d_model, lens.d_mlp, lens.d_vocab, len(lens.roles))
    assert shape.mlp_vectors == lens.n_layers * len(lens.roles) * lens.d_mlp
    assert shape_of(folder / "config.json") == shape


def test_llama_3_1_is_counted_as_its_makers_do():
    small, large = shape_of("llama-3.1-8b"), shape_of("llama-3.1-70b")
    assert (small.parameters, small.mlp_vectors) == (8_030_261_248, 1_376_256)
    assert large.parameters == 70_553_706_496
    # one H100 holds 8B with room to spare; two hold the 141 GB of 70B only on paper
    plan("llama-3.1-8b", gpus=1).check()
    with pytest.raises(TarsError, match="1 GPU of 80 GB has 80.0 GB free"):
        plan("llama-3.1-70b", gpus=1).check()
    found = plan("llama-3.1-70b", gpus=8)
    found.check()
    assert 141e9 < found.needed_bytes < 152e9
    parts = found.memory.set_index("part")["bytes"]
    # of the layers where neurons read, the unembedding's, and two copies while a system is solved
    settings = Settings()
    layers = [*settings.suppression_layers(80), *settings.name_layers(80), settings.named_layer(80)]
    assert len(set(layers)) == len(layers)
    assert parts["covariances"] == (len(layers) + 3) * 4 * 8192**2


def test_memory_follows_what_is_asked_for():
    shape = shape_of("llama-3.1-8b")
    name = "llama-3.1-8b"
    half, full = (plan(name, dtype=kind) for kind in ("bfloat16", "float32"))
    weights = half.memory.set_index("part")["bytes"]["weights"]
    assert weights == 2 * shape.parameters
    assert full.memory.set_index("part")["bytes"]["weights"] == 2 * weights
    lengths = [plan(name, kl_tokens=n).needed_bytes for n in (0, 1000)]
    assert lengths[1] - lengths[0] == 1000 * shape.d_model * 2


def test_what_will_not_fit_is_refused_with_what_would_help():
    found = plan("llama-3.1-8b", dtype="float32", **SMALL)
    with pytest.raises(TarsError, match=r"needs 3\d\.\d GB, and this .* has 1\.0 GB free.*half"):
        found.check()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("llama-3.1-8c", {}, "unknown model 'llama-3.1-8c'. Did you mean 'llama-3.1-8b'"),
        ("llama-3.1-8b", {"dtype": "int4"}, "no dtype 'int4': choose one of auto"),
        ("llama-3.1-8b", {"kl_tokens": -1}, "a plan needs 0 or more, got -1 tokens"),
    ],
)
def test_what_cannot_be_planned(model, options, message):
    with pytest.raises(TarsError, match=message):
        plan(model, **options)


def test_a_mixture_of_experts_and_a_config_of_nothing_are_refused(tmp_path):
    folder = tiny.save_checkpoint(tmp_path / "moe", "mixtral")
    with pytest.raises(TarsError, match="mixture of experts"):
        shape_of(folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(TarsError, match="no causal language model that is known"):
        shape_of(tmp_path)


def test_a_container_has_its_share(monkeypatch, tmp_path):
    (tmp_path / "max").write_text(str(2**40))
    whole = placement.free_host_bytes()
    monkeypatch.setattr(placement, "_CGROUP", tmp_path / "max")
    assert placement.free_host_bytes() == pytest.approx(whole, rel=0.2)
    (tmp_path / "max").write_text("1000")
    assert placement.free_host_bytes() == 0


def test_the_command_plans_and_refuses(tmp_path):
    folder = tiny.save_checkpoint(tmp_path, "llama")
    code, out, _ = run("plan", folder)
    assert code == 0 and "weights" in out and "in all" in out
    code, out, _ = run("plan", "llama-3.1-70b", "--gpus", "8", "--json")
    found = json.loads(out)
    assert code == 0 and found["fits"] and found["parameters"] == 70_553_706_496
    assert found["needed_bytes"] == sum(row["bytes"] for row in found["memory"])
    said = mistake("plan", "llama-3.1-70b", "--memory", "24")
    assert "needs 14" in said and "24.0 GB free" in said


def test_loading_what_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    from tars_lens.model import loading

    folder = tiny.save_checkpoint(tmp_path / "model", "llama")
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "free_bytes", lambda _device: size // 2)
    monkeypatch.setattr(loading, "_model", None)  # not to be called
    with pytest.raises(TarsError, match=r"cpu has 0\.0 GB free: choose bfloat16.*tars-lens plan"):
        loading.load(folder, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "free_bytes", lambda _device: size // 2 + 1000)
    assert loading.load(folder, dtype="bfloat16", progress=False).dtype == torch.bfloat16


def test_a_device_map_gives_the_same_logits(tmp_path, monkeypatch):
    from tars_lens.model.loading import load

    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    folder = tiny.save_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16)
    plain, mapped = load(folder, progress=False), load(folder, device_map="cpu", progress=False)
    batch = plain.prompts(["w1 w2 w3", "w4 w5"])
    assert torch.equal(plain.next_logits(batch), mapped.next_logits(batch))
    everywhere = {"model.embed_tokens": "cpu", "model.layers": "cpu", "lm_head": "cpu"}
    spread = {**everywhere, "model.norm": "cpu", "model.rotary_emb": "cpu"}
    hooked = load(folder, device_map=spread, progress=False)
    assert torch.equal(plain.next_logits(batch), hooked.next_logits(batch))


@pytest.mark.parametrize("option", ["--memory", "--gpu-memory"])
@pytest.mark.parametrize("given", ["nan", "inf", "0", "-1", "1e300"])
def test_memory_that_is_none_is_refused(option, given):
    said = mistake("plan", "llama-3.1-70b", "--gpus", "1", option, given)
    assert said.startswith(f"{option} must be above 0 and at most 1,000,000,000 GB, got")
