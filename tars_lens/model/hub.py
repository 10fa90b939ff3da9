"""A model of the Hugging Face hub as a local folder."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from tars_lens.common.errors import TarsError, unknown
from tars_lens.model.catalogue import BUILT_IN
from tars_lens.model.folders import WEIGHTS, weight_files, weight_names

_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_NOT = ["*/*"]  # other formats of the same weights stand in subfolders
_TEMPLATES = "additional_chat_templates/*.jinja"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def snapshot(name: str) -> Path:
    """The folder of a hub model: what is already there, else downloaded without any pickle.

    Raises:
        TarsError: The hub is out of reach, or has no such model, or wants a login for it.
    """
    cached = _cached(name)
    if cached is not None:
        return cached
    try:
        return _fetched(name)
    except GatedRepoError as error:
        raise TarsError(
            f"the hub gives {name!r} only to those who accepted its terms: accept them on its "
            "page, and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise unknown("model", name, BUILT_IN, "The hub has no public model of that name.") from (
            error
        )
    except Exception as error:  # a proxy's refusal has a type of its own for each HTTP library
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise unknown(
            "model",
            name,
            BUILT_IN,
            f"It looks like a hub id, but the hub could not be reached and no copy is here "
            f"({reason})",
        ) from error


def _fetched(name: str) -> Path:
    """What is small first, and then the weights that its index names, and no others.

    Many repositories hold the same weights twice (`consolidated.safetensors`).
    """
    folder = Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns=_NOT))
    if _is_whole(folder):
        return folder
    wanted = [*(weight_names(folder) or [WEIGHTS]), _TEMPLATES]
    return Path(snapshot_download(name, allow_patterns=wanted, revision=folder.name))


def _cached(name: str) -> Path | None:
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether nothing is missing: an interrupted download leaves a snapshot without some files."""
    try:
        weight_files(folder)
    except TarsError:
        return False
    names = {file.name for file in folder.iterdir()}
    return "config.json" in names and not names.isdisjoint(_TOKENIZERS)
