"""What a lens promises for every architecture, on both lines of TransformerLens."""

import importlib.util

import pytest
import torch
import transformers
from tiny import (
    ARCHITECTURES,
    COMMON,
    boot,
    random_bridge,
    read_tokenizer,
    save_checkpoint,
    tiny_lens,
)

from tars_lens.common.errors import TarsError
from tars_lens.model.lens import Batch, Lens, Point
from tars_lens.model.lens_parts import (
    attention_output,
    held_final_norm,
    held_post_norm,
    unembedding_bias,
)
from tars_lens.model.logit_parts import logit_parts
from tars_lens.model.weights import Rows, written

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3")
POST_NORM = ("gemma2", "gemma3")
BIASED = ("gpt2", "neox", "opt")
TEXTS = ["w3 w5 w9 w20 w33", "w7 w8", "w40 w2 w2 w15"]

parametrise = pytest.mark.parametrize("arch", ARCHITECTURES)


def _hf(lens: Lens):
    return lens.model.original_model


def _close(a: torch.Tensor, b: torch.Tensor, atol: float = 2e-6) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@parametrise
def test_ids_are_the_tokenizers_own(arch, tmp_path):
    save_checkpoint(tmp_path, arch)
    before = read_tokenizer(tmp_path)("w3 w5")["input_ids"]
    bridge, tokenizer = boot(tmp_path)
    lens = Lens(bridge, tokenizer)
    assert lens.tokens("w3 w5") == before
    assert lens.pieces("w3 w5") == before


@parametrise
def test_roles_and_shapes(arch):
    lens = tiny_lens(arch)
    assert lens.roles == (("gate", "in", "out") if arch in GATED else ("in", "out"))
    assert lens.gated == (arch in GATED)
    assert (lens.n_layers, lens.d_model, lens.d_mlp, lens.d_vocab) == (3, 16, 24, 64)
    for role in lens.roles:
        assert lens.vectors(1, role).shape == (24, 16)
    assert (lens.bias(1, "in") is not None) == (arch in BIASED)
    assert (lens.post_norm_gain(1) is not None) == (arch in POST_NORM)
    assert lens.centres == (arch in BIASED)


@parametrise
def test_the_read_out_of_the_last_residual_is_the_models_logits(arch):
    lens = tiny_lens(arch)
    batch = lens.prompts(TEXTS)
    with torch.no_grad():
        logits = _hf(lens)(batch.ids).logits.float()
    residual = lens.residual(batch.ids, -1)
    _close(lens.read_out(residual), logits, 2e-5)
    ends = logits[torch.arange(len(TEXTS)), batch.last]
    _close(lens.next_logits(batch), ends, 2e-5)


@parametrise
def test_neuron_activations_are_those_of_the_weight_vectors(arch):
    lens = tiny_lens(arch)
    ids = lens.prompts(TEXTS[:1]).ids
    into, post = Point("mlp_in", 1), Point("mlp_post", 1)
    seen = lens.capture(ids, [into, post])
    act = transformers.activations.ACT2FN[_activation(_hf(lens).config)]
    pre = {role: seen[into] @ lens.vectors(1, role).T for role in lens.roles if role != "out"}
    for role in pre:
        if lens.bias(1, role) is not None:
            pre[role] = pre[role] + lens.bias(1, role)
    expected = act(pre["gate"]) * pre["in"] if lens.gated else act(pre["in"])
    _close(seen[post], expected)


def _activation(config) -> str:
    for name in ("hidden_activation", "hidden_act", "activation_function"):
        if getattr(config, name, None):
            return getattr(config, name)
    raise AttributeError(config)


@parametrise
def test_the_stream_is_the_sum_of_its_parts(arch):
    lens = tiny_lens(arch)
    ids = lens.prompts(TEXTS[:1]).ids
    points = [Point(site, 1) for site in ("resid_pre", "resid_post", "mlp_out")]
    seen = lens.capture(ids, points)
    if arch != "neox":  # whose attention runs beside its MLP, on the same stream
        middle = lens.capture(ids, [Point("resid_mid", 1)])[Point("resid_mid", 1)]
        _close(middle + seen[points[2]], seen[points[1]])
    following = lens.capture(ids, [Point("resid_pre", 2)])[Point("resid_pre", 2)]
    assert torch.equal(following, seen[points[1]])


@parametrise
def test_the_heads_add_up_to_what_attention_writes(arch):
    lens = tiny_lens(arch)
    ids = lens.prompts(TEXTS[:1]).ids
    read, wrote = Point("attn_z", 1), Point("attn_out", 1)
    seen = lens.capture(ids, [read, wrote])
    weights, bias = attention_output(lens, 1)
    assert (weights.shape, bias is not None) == ((2, 8, 16), arch in BIASED)
    total = torch.einsum("bphe,hem->pm", seen[read], weights)
    total = total if bias is None else total + bias
    norm = held_post_norm(lens, 1, "attention", total)
    assert (norm is not None) == (arch in POST_NORM)
    if norm is not None:
        total = (total.double() * norm.inverse_scale[:, None] * norm.gain + norm.bias).float()
    _close(total, seen[wrote][0])


@parametrise
def test_the_held_final_norm_is_linear_and_gives_the_logits(arch):
    lens = tiny_lens(arch)
    rows = lens.residual(lens.prompts(TEXTS[:1]).ids, -1)[0]
    norm = held_final_norm(lens, rows)
    unembedding = lens.unembedding[:, [7] * len(rows)].T.double()
    logits = (rows.double() * norm.pulled_back(unembedding)).sum(dim=1) + unembedding @ norm.bias
    bias = unembedding_bias(lens)
    logits = logits if bias is None else logits + bias[7]
    cap = lens.logit_cap
    logits = cap * torch.tanh(logits / cap) if cap else logits
    _close(logits.float(), lens.read_out(rows)[:, 7], 2e-5)


@parametrise
@pytest.mark.parametrize("site", ["attn_z", "attn_out", "mlp_post", "mlp_out"])
def test_what_replaces_an_activation_goes_on(arch, site):
    lens = tiny_lens(arch)
    ids = lens.prompts(TEXTS[:1]).ids
    point, end = Point(site, 1), Point("resid_post", 1)
    seen = lens.capture(ids, [point, end])
    other = lens.capture(ids.flip(1), [point])[point]
    same = lens.capture(ids, [end], replace={point: seen[point]})
    assert torch.equal(same[end], seen[end])
    changed = lens.capture(ids, [end], replace={point: other})
    if site in ("attn_z", "mlp_post"):
        assert not torch.allclose(changed[end], seen[end])
    elif site == "mlp_out" or arch == "neox":  # nothing of this layer reads it
        _close(changed[end] - seen[end], other - seen[point])
    else:
        assert not torch.allclose(changed[end] - seen[end], other - seen[point])
    assert torch.equal(lens.residual(ids, 1), seen[end])


@parametrise
def test_positions_keep_one_row_each(arch):
    lens = tiny_lens(arch)
    batch = lens.prompts(TEXTS)
    point = Point("mlp_in", 2)
    every = lens.capture(batch.ids, [point])[point]
    one = lens.capture(batch.ids, [point], positions=batch.last)[point]
    assert torch.equal(one, every[torch.arange(len(TEXTS)), batch.last])


@parametrise
def test_padding_on_the_right_is_not_seen(arch):
    lens = tiny_lens(arch)
    together = lens.next_logits(lens.prompts(TEXTS))
    alone = torch.cat([lens.next_logits(lens.prompts([text])) for text in TEXTS])
    _close(together, alone, 2e-5)


@parametrise
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_resuming_equals_the_whole_run_without_the_layers_before(arch, layer):
    lens = tiny_lens(arch)
    ids = lens.prompts(TEXTS).ids
    start = Point("resid_pre", layer)
    prefix = lens.capture(ids, [start])[start]
    whole = lens.residual(ids, -1)
    lens.residual(ids, -1, resume=(layer, prefix))  # the first time learns what blocks return
    ran: list[int] = []
    handles = [
        lens.model.blocks[k].mlp.register_forward_hook(lambda *_, k=k: ran.append(k))
        for k in range(3)
    ]
    resumed = lens.residual(ids, -1, resume=(layer, prefix))
    for handle in handles:
        handle.remove()
    assert torch.equal(resumed, whole)
    assert not layer or 0 not in ran
    again = lens.residual(ids, -1)
    assert torch.equal(again, whole)


def test_resuming_keeps_each_layers_own_attention(tmp_path):
    """Gemma 3 mixes sliding and full attention; a window of 4 tells the layers apart."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    save_checkpoint(tmp_path, "gemma3")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    bridge, tokenizer = boot(tmp_path)
    lens = Lens(bridge, tokenizer)
    ids = torch.arange(4, 34)[None]
    whole = lens.residual(ids, -1)
    for layer in (1, 2):
        start = Point("resid_pre", layer)
        prefix = lens.capture(ids, [start])[start]
        assert torch.equal(lens.residual(ids, -1, resume=(layer, prefix)), whole)


@parametrise
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_are_live_and_restored_exactly(arch, dtype):
    lens = tiny_lens(arch, dtype)
    ids = lens.prompts(TEXTS).ids
    with torch.no_grad():
        before = _hf(lens)(ids).logits
        for role in lens.roles:
            digest = lens.tensor_sha256(1, role)
            rows = -4 * lens.vectors(1, role)[[3, 9, 11]]
            with written(lens, {(1, role): Rows(torch.tensor([3, 9, 11]), rows)}):
                assert torch.equal(lens.vectors(1, role)[[3, 9, 11]], rows)
                assert not torch.equal(_hf(lens)(ids).logits, before)
                assert lens.tensor_sha256(1, role) != digest
            assert torch.equal(_hf(lens)(ids).logits, before)
            assert lens.tensor_sha256(1, role) == digest


@parametrise
def test_the_final_gain_rebuilds_the_read_out(arch):
    lens = tiny_lens(arch)
    residual = lens.residual(lens.prompts(TEXTS[:1]).ids, -1)[0, -1]
    centred = residual - residual.mean() if lens.centres else residual
    config = _hf(lens).config
    names = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    eps = next((getattr(config, n) for n in names if hasattr(config, n)), 1e-5)
    normed = centred / (centred.square().mean() + eps).sqrt() * lens.final_gain
    logits = normed @ lens.unembedding
    bias = getattr(lens.model.ln_final, "bias", None)
    if bias is not None:
        logits = logits + bias @ lens.unembedding
    cap = getattr(config, "final_logit_softcapping", None)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    _close(lens.read_out(residual), logits, 1e-4)


@pytest.mark.parametrize("arch", POST_NORM)
def test_the_post_norm_gain_is_that_of_the_norm_after_the_mlp(arch):
    lens = tiny_lens(arch)
    out = torch.randn(16)
    normed = out / (out.square().mean() + _hf(lens).config.rms_norm_eps).sqrt()
    with torch.no_grad():
        expected = lens.model.blocks[1].ln2_post(out[None, None])[0, 0]
    _close(normed * lens.post_norm_gain(1), expected, 1e-5)


def test_what_a_lens_gives_can_be_written_to_and_be_part_of_a_gradient(lens):
    ids, point = torch.tensor([[4, 5, 6]]), Point("resid_post", 1)
    resume = (2, lens.capture(ids, [point])[point])
    last = torch.tensor([2])
    found = [resume[1], lens.residual(ids, -1, resume=resume), lens.next_logits(Batch(ids, last))]
    found.append(lens.capture(ids, [point], positions=last)[point])
    for values in found:  # none is a tensor of torch.inference_mode, which allows neither
        weight = torch.ones_like(values, requires_grad=True)
        (slope,) = torch.autograd.grad((weight * values).sum(), [weight])
        assert torch.equal(slope, values)
        values[..., 0] = -torch.inf


def test_hooks_and_passed_over_blocks_are_gone_after_an_error(lens):
    ids = lens.prompts(TEXTS[:1]).ids
    whole = lens.residual(ids, -1)
    wrong = torch.zeros(1, 5, 7)
    with pytest.raises(TarsError, match="the model can.t read 1 texts"):
        lens.residual(ids, -1, resume=(1, wrong))
    assert torch.equal(lens.residual(ids, -1), whole)
    assert not any(block.__dict__.get("forward") for block in lens.model.blocks)
    hooks = [point for point in lens.model.hook_dict.values() if point.fwd_hooks]
    assert hooks == []


def test_no_such_layer_or_role(lens):
    with pytest.raises(TarsError, match="no layer 3: tiny-llama has 0 to 2"):
        lens.vectors(3, "out")
    with pytest.raises(TarsError, match="no role 'gate'.*in, out"):
        tiny_lens("gpt2").vectors(0, "gate")


def test_an_empty_prompt_is_refused(lens):
    with pytest.raises(TarsError, match="empty prompt"):
        lens.prompts([""])


def test_a_mixture_of_experts_is_refused(tmp_path):
    bridge, tokenizer = boot(save_checkpoint(tmp_path, "mixtral"))
    with pytest.raises(TarsError, match="mixture of experts.*dense model"):
        Lens(bridge, tokenizer)


def test_a_folded_bridge_is_refused(tmp_path):
    bridge, tokenizer = boot(save_checkpoint(tmp_path, "llama"))
    bridge.enable_compatibility_mode()
    with pytest.raises(TarsError, match="folded.*compatibility_mode"):
        Lens(bridge, tokenizer)


def test_a_model_that_is_none_of_transformer_lens_is_refused():
    with pytest.raises(TarsError, match="TransformerBridge or a HookedTransformer, got Linear"):
        Lens(torch.nn.Linear(2, 2))


# HookedTransformer was taken out of TransformerLens 4.0; the environment with 3.9 runs these.
HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
skip_without = pytest.mark.skipif(not HOOKED, reason="HookedTransformer is gone from 4.0 on")
expected_warning = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")


def on_hooked(test):
    return skip_without(expected_warning(test))


def _hooked(gated: bool, normalization: str = "RMS"):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=3,
        d_model=16,
        d_mlp=24,
        n_ctx=32,
        d_head=8,
        n_heads=2,
        d_vocab=64,
        act_fn="silu" if gated else "gelu",
        gated_mlp=gated,
        normalization_type=normalization,
        seed=0,
        device="cpu",
    )
    return HookedTransformer(config)


class _Tokenizer:
    """Numbers as text, for a model that was made without a tokenizer."""

    def __call__(self, text: str, **_options):
        return {"input_ids": [int(word) if word.isdigit() else 1 for word in text.split()]}

    def decode(self, ids):
        return " ".join(map(str, ids))


@on_hooked
@pytest.mark.parametrize("gated", [True, False])
def test_a_hooked_transformer_is_seen_as_a_bridge_is(gated):
    model = _hooked(gated, "RMS" if gated else "LN")
    lens = Lens(model, _Tokenizer())
    assert lens.roles == (("gate", "in", "out") if gated else ("in", "out"))
    ids = lens.prompts(["3 5 9 20"]).ids
    with torch.no_grad():
        logits = model(ids)
    _close(lens.read_out(lens.residual(ids, -1)), logits, 1e-5)
    into, post = Point("mlp_in", 1), Point("mlp_post", 1)
    seen = lens.capture(ids, [into, post])
    pre = {role: seen[into] @ lens.vectors(1, role).T for role in lens.roles if role != "out"}
    if gated:
        expected = torch.nn.functional.silu(pre["gate"]) * (pre["in"] + lens.bias(1, "in"))
    else:
        expected = torch.nn.functional.gelu(pre["in"] + lens.bias(1, "in"))
    _close(seen[post], expected)
    start = Point("resid_pre", 2)
    prefix = lens.capture(ids, [start])[start]
    assert torch.equal(lens.residual(ids, -1, resume=(2, prefix)), lens.residual(ids, -1))
    for role in lens.roles:
        with written(lens, {(1, role): Rows(torch.tensor([3]), -9 * lens.vectors(1, role)[[3]])}):
            assert not torch.equal(model(ids), logits)
        assert torch.equal(model(ids), logits)


@on_hooked
@pytest.mark.parametrize("gated", [True, False])
def test_the_parts_of_a_hooked_transformers_logit_add_up(gated):
    lens = Lens(_hooked(gated, "RMS" if gated else "LN"), _Tokenizer())
    batch = lens.prompts(["3 5 9 20", "7 8"])
    parts = logit_parts(lens, batch, [9, 11])
    own = lens.next_logits(batch)[[0, 1], [9, 11]].double()
    _close(parts.logit, own, 1e-6)
    assert (parts.coarse_error.abs() < 1e-6).all() and (parts.fine_error.abs() < 1e-6).all()
    assert (parts.heads.abs() > 1e-6).any()


@on_hooked
def test_a_folded_hooked_transformer_is_refused():
    with pytest.raises(TarsError, match="folded.*from_pretrained_no_processing"):
        Lens(_hooked(True, "RMSPre"), _Tokenizer())


@on_hooked
def test_a_centred_hooked_transformer_is_refused():
    model = _hooked(False, "LN")
    model.center_writing_weights(model.state_dict())
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.W_out -= block.mlp.W_out.mean(-1, keepdim=True)
    with pytest.raises(TarsError, match="centred.*from_pretrained_no_processing"):
        Lens(model, _Tokenizer())


@parametrise
def test_an_mlps_output_can_be_changed_while_a_block_runs(arch):
    lens = tiny_lens(arch)
    ids, point = torch.tensor([[4, 9, 33]]), Point("mlp_out", 1)
    before = lens.capture(ids, [point])[point]
    with lens.changing_mlp(1, torch.zeros_like):
        assert lens.capture(ids, [point])[point].abs().max() == 0.0
    assert torch.equal(lens.capture(ids, [point])[point], before)


# --- what can't be read after every layer ------------------------------------------------------


def test_logits_that_are_rescaled_are_refused():
    config = transformers.GraniteConfig(**COMMON, logits_scaling=8.0)
    with pytest.raises(TarsError, match=r"rescales its logits \(logits_scaling = 8.0\)"):
        Lens(random_bridge(config))
    usual = transformers.GraniteConfig(**COMMON)
    assert Lens(random_bridge(usual)).n_layers == 3


def test_a_stream_of_another_width_than_the_unembedding_is_refused():
    config = transformers.OPTConfig(
        vocab_size=64,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=8,
        do_layer_norm_before=False,
        pad_token_id=3,
    )
    with pytest.raises(TarsError, match="aren't made by a final norm and an unembedding"):
        Lens(random_bridge(config))


def test_a_norm_without_a_gain_has_a_gain_of_one():
    lens = Lens(random_bridge(transformers.OlmoConfig(**COMMON, pad_token_id=3)))
    assert torch.equal(lens.final_gain, torch.ones(lens.d_model))
    ids = torch.tensor([[4, 5, 6]])
    read = lens.read_out(lens.residual(ids, -1))
    assert (read - lens.model(ids, return_type="logits").float()).abs().max() < 1e-5


def test_a_text_longer_than_the_learned_positions_is_one_message():
    for arch in ("gpt2", "opt"):
        lens = tiny_lens(arch)
        with pytest.raises(TarsError, match="a text of 65 tokens is too long: the model reads 64"):
            lens.batch([[4] * 65])
    assert tiny_lens("llama").batch([[4] * 65]).ids.shape == (1, 65)
