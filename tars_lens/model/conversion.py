"""A GGUF file to a Hugging Face folder of plain float32 safetensors, compared tensor by tensor."""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from tars_lens.common.errors import TarsError, reason
from tars_lens.common.files import write_json
from tars_lens.model.gguf_checks import check_model, read_header

logger = logging.getLogger(__name__)

_READER: Any = modeling_gguf_pytorch_utils
_SAMPLE = "Saturn's rings, 1610: naïve ‘ansae’\n\n\tСатурн 土星"  # of what tokenizers differ in


def dequantised_bytes(file: Path) -> int:
    """The size that a GGUF file's weights have in float32; reads its header alone.

    Raises:
        TarsError: It isn't a GGUF file, it is cut short, or it is no model by itself.
    """
    return 4 * sum(int(tensor.n_elements) for tensor in read_header(file).tensors)


def convert(file: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file to `folder`, and proves what was written.

    Raises:
        TarsError: transformers can't read the file's architecture, the model that it makes isn't
            the file's, or what was written isn't the model that was read.
    """
    with quiet_transformers(), _without_bar():
        model, tokenizer = _read(file, folder)
        hf_quantizer = getattr(model, "hf_quantizer", None)
        if hf_quantizer is not None:
            # else save_pretrained refuses, and the folder would claim packed weights
            hf_quantizer.remove_quantization_config(model)
        model.config.__dict__.pop("quantization_config", None)
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # a full disk, above all
            raise OSError(str(error)) from error
        tokenizer.init_kwargs.pop("is_local", None)  # where it was made is nobody's concern
        tokenizer.init_kwargs.pop("local_files_only", None)
        tokenizer.save_pretrained(folder)
        _for_older_loaders(folder)
        (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
        _check_weights(model, folder)
        _check_tokenizer(tokenizer, folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' bars and notes off the terminal while the block runs."""
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _without_bar() -> Iterator[None]:
    """Takes away the one bar of transformers' GGUF reader that its own switch doesn't reach."""
    bar = getattr(_READER, "tqdm", None)
    if bar is None:
        yield
        return
    _READER.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        _READER.tqdm = bar


def _read(file: Path, folder: Path) -> tuple[Any, Any]:
    header = read_header(file)
    # by itself in a folder, under a plain name: configs beside the user's file are not for it
    alone = folder / "gguf"
    alone.mkdir()
    link = alone / "model.gguf"
    try:
        os.symlink(file.resolve(), link)
    except OSError:
        shutil.copyfile(file, link)
    loader: Any = AutoModelForCausalLM  # whose annotations know nothing of the loading info
    options = {"gguf_file": link.name, "local_files_only": True}
    try:
        model, found = loader.from_pretrained(
            alone,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(alone, **options)
    except Exception as error:  # an unknown architecture or a damaged tensor fails in any way
        raise TarsError(
            f"transformers {transformers.__version__} can't read {str(file)!r}: {reason(error)}. "
            "Convert it to a safetensors folder with the tools of its model, and give that folder."
        ) from error
    finally:
        shutil.rmtree(alone)
    check_model(file, header, model, found)
    return model.eval(), tokenizer


def _for_older_loaders(folder: Path) -> None:
    """Says what transformers 4 looks for elsewhere, and what stands on it: vLLM, llama.cpp.

    It would take its own default for a rope that isn't given at the top of the config, without a
    word, and has no class of a tokenizer that version 5 names.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    whole, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    older = {
        "rope_theta": whole.get("rope_theta"),
        "rope_local_base_freq": sliding.get("rope_theta"),
        "partial_rotary_factor": whole.get("partial_rotary_factor"),
    }
    config |= {key: value for key, value in older.items() if value is not None}
    write_json(file, config)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that both versions know
    if isinstance(special := config.get("extra_special_tokens"), list):
        del config["extra_special_tokens"]
        config["additional_special_tokens"] = special
    write_json(file, config)


def _check_weights(model: Any, folder: Path) -> None:
    """Compares the files with the model, bit by bit, without a second model in memory."""
    state = model.state_dict()
    written: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - the handle is no mapping
                if key not in state or not torch.equal(stored.get_tensor(key), state[key]):
                    raise _differs(file, key)
                written.add(key)
    held = {state[key].data_ptr() for key in written}
    for key, tensor in state.items():
        if tensor.data_ptr() not in held:  # tied tensors are stored once
            raise _differs(folder, key)


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if again(_SAMPLE)["input_ids"] != tokenizer(_SAMPLE)["input_ids"]:
        raise _differs(folder, "the tokenizer")


def _differs(where: Path, what: str) -> TarsError:
    return TarsError(
        f"the conversion went wrong: {what} in {where.name!r} is not what the GGUF file holds. "
        "Try again with the versions of constraints.txt."
    )
