"""A checkpoint ranked on disk: what `rank` gives of the loaded model."""

import json

import pandas as pd
import pytest
import torch
from commands import mistake, run
from patch_models import boot, read_model, save_model
from test_ranking import COLUMNS

from tars_lens.common.errors import TarsError
from tars_lens.method import ranking
from tars_lens.method.disk_ranking import checkpoint_cosines, rank_checkpoint
from tars_lens.method.ranking import cosines, null_distribution, rank
from tars_lens.method.targeting import TargetingVector

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


pytestmark = pytest.mark.usefixtures("own_cache")


def _directions(count, width=16):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "phi3", "opt", "neox", "gemma3"])
def test_the_cosines_are_those_of_the_loaded_model(arch, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK", 7 * 16)  # blocks that divide no matrix
    lens, _ = boot(save_model(tmp_path / "model", arch, dtype=dtype))
    targets = _directions(3)
    expected, found = cosines(lens, targets), checkpoint_cosines(tmp_path / "model", targets)
    assert found.places == expected.places
    torch.testing.assert_close(found.norms, expected.norms, rtol=3e-7, atol=0)
    # a cosine is a sum of 16 products of at most 1: a few units in the last place of 1
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=3e-7)


def test_the_table_is_that_of_rank_and_a_sharded_checkpoint_is_one(tmp_path):
    whole = save_model(tmp_path / "whole", "llama", dtype=torch.bfloat16)
    read_model(whole).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    lens, _ = boot(whole)
    options = {"roles": ["out", "gate"], "layers": [2, 0], "top": 9}
    expected = rank(lens, _directions(2), **options)
    for folder in ("whole", "shards"):
        found = rank_checkpoint(tmp_path / folder, _directions(2), **options)
        assert list(found.columns) == COLUMNS
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.ones(5), {}, r"width 16; got vectors of shape \(1, 5\)"),
        (torch.zeros(16), {}, "must have a direction; got zeros"),
        (torch.ones(16), {"top": 0}, "at least 1 row, got top=0"),
        (torch.ones(16), {"layers": []}, "at least one layer and one role"),
        (torch.ones(16), {"layers": [3]}, "no layer 3: model has 0 to 2"),
        (torch.ones(16), {"roles": ["gate"]}, "no role 'gate': model has in, out"),
    ],
)
def test_what_cannot_be_ranked(given, options, message, tmp_path):
    folder = save_model(tmp_path / "model", "gpt2")
    with pytest.raises(TarsError, match=message):
        rank_checkpoint(folder, given, **options)


def test_a_truncated_shard_is_one_plain_message(tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(TarsError, match=r"model\.safetensors' is not a whole safetensors file"):
        rank_checkpoint(folder, _directions(1))


def test_inspect_ranks_on_disk_against_saved_vectors_without_a_model(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model", "llama", dtype=torch.bfloat16)
    lens, _ = boot(folder)
    one, two = (lens.vectors(*place)[5].float() for place in ((1, "in"), (2, "out")))
    for name, vector in (("one", one), ("two", two)):
        TargetingVector(vector, vector, (4,), 0.5, pd.DataFrame({"step": [0]})).save(
            tmp_path / f"{name}.safetensors"
        )
    monkeypatch.setattr("tars_lens.model.loading.load", None)  # not to be called
    words = ["inspect", "saturn", "--model", folder, "--top", "2", "--seed", "3"]
    vectors = ["--vector", tmp_path / "one.safetensors", "--vector", tmp_path / "two.safetensors"]
    code, out, err = run(*words, *vectors, "--json", "--out", tmp_path / "out")
    assert code == 0, err
    found = json.loads(out)
    assert [(row["vector"], row["label"], row["role"]) for row in found["ranking"][::2]] == [
        ("one", "L1N5", "in"),
        ("two", "L2N5", "out"),
    ]
    assert all(row["cosine"] == pytest.approx(1, abs=1e-6) for row in found["ranking"][::2])
    expected = null_distribution(lens, seed=3)
    assert found["null"]["threshold"] == pytest.approx(expected.threshold, abs=1e-6)
    assert found["null"]["vectors"] == expected.vectors
    assert [row["above_null"] for row in found["ranking"][::2]] == [True, True]
    assert pd.read_csv(tmp_path / "out" / "ranking.csv")["label"].tolist()[0] == "L1N5"
    assert "216 MLP weight vectors read from disk" in run(*words, *vectors).out
    other = save_model(tmp_path / "world", "gpt2") / "model.safetensors"
    assert "not a targeting vector" in mistake(*words, "--vector", other)
