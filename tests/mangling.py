"""Files that were mangled on their way: whatever reads them says one line, and writes nothing."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from patch_models import boot, random_patch, save_model
from tiny_concept import world

from tars_lens.attribution.chat import Chat
from tars_lens.common.errors import TarsError
from tars_lens.concept.card import Concept
from tars_lens.evaluation.erasure import erase
from tars_lens.evaluation.exam_file import load_exam
from tars_lens.evaluation.silence import certify
from tars_lens.experiments.sweep_jobs import read_spec
from tars_lens.model.loading import load
from tars_lens.patch.patch import Patch
from tars_lens.patch.patch_tools import show
from tars_lens.report.html import write_report
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import cut

_ODD = [None, True, -1, 0, 1, 2**31, 10**19, 0.5, 1e308, "", "x", "\x00", "../../x", [], {}, [[]]]
_ODD += ["\ud800", "<script>alert(1)</script>", "é" * 300, {"a": {"b": []}}]
_BYTES = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b'"', b"{", b"]", b"=", b"9" * 400, b"\\u"]
_SECONDS = 60

_EXAM = [
    {"q": "Rings?", "options": ["Mars", "Saturn"], "correct_answer": "Saturn"},
    {"question": "Moon?", "choices": {"A": "Titan", "B": "Io"}, "answer": "A"},
    {"q": "Who?", "a": "Doyle"},
    {"prompt_templates": ["{} orbits"], "samples": [{"subject": "Titan", "object": "Saturn"}]},
]

_TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


@cache
def originals(folder: Path) -> Path:
    """One whole file of each kind, which mangled copies are made of; made once."""
    model = save_model(folder / "model", "llama")
    lens, _ = boot(model)
    card = Concept.load(world().card)
    random_patch(lens, {(1, "out"): [5, 3]}, concepts=[card]).save(folder / "patch.safetensors")
    shutil.copy(world().card, folder / "card.toml")
    shutil.copy(world().corpus / "00.txt", folder / "text.txt")
    lines = [json.dumps({"text": f"text {i}"}) for i in range(5)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    page = "<page><title>A</title><ns>0</ns><revision><text>{}</text></revision></page>"
    articles = page.format("Saturn is a [[planet]]. " * 80) * 2
    (folder / "dump.xml").write_text(f"<mediawiki>{articles}</mediawiki>")
    (folder / "spec.toml").write_text('concepts = ["saturn"]\nmodels = ["x"]\nseeds = [0, 1]\n')
    (folder / "template.jinja").write_text(_TEMPLATE)
    (folder / "exam.json").write_text(json.dumps(_EXAM))
    base = load(world().model, progress=False)
    text = load_corpus(world().corpus, progress=False)
    made = erase(base, [card], corpus=text, kl_tokens=512)
    made.save(folder / "run")
    certificate = certify(base, made.patches, cut(base, text, reported_tokens=512))
    (folder / "run" / "certificate.json").write_text(json.dumps(certificate.figures()))
    certificate.spoken(base).to_csv(folder / "run" / "spoken.csv", index=False)
    return folder


def try_one(kind: str, seed: int, folder: Path, whole: Path) -> str:
    """Mangles a copy of one file and reads it; gives what was said, `""` where it was read.

    Raises:
        AssertionError: More than one line was said, or something was written beside the copy.
    """
    source, read = KINDS[kind]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / source
    top = whole / Path(source).parts[0]
    if top.is_dir():
        shutil.copytree(top, folder / top.name)
    else:
        shutil.copy(top, folder)
    file.write_bytes(mangled(file.read_bytes(), file.suffix, random.Random(f"{kind} {seed}")))
    before, said = _listed(folder), ""
    try:
        with _at_most(_SECONDS):
            read(file)
    except TarsError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 2000, said
    assert said == "" or _listed(folder) == before
    return said


def mangled(content: bytes, suffix: str, chance: random.Random) -> bytes:
    """A copy with one to three things wrong in it."""
    for _ in range(chance.randint(1, 3)):
        if suffix == ".json" and chance.random() < 0.7:
            content = _other_value(content, chance)
        else:
            content = _other_bytes(content, chance)
    return content


def _other_bytes(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    upto = min(len(content), at + chance.choice([0, 1, 4, 64]))
    way = chance.randrange(4)
    if way == 0:
        return content[:at]
    if way == 1:
        return content[:at] + chance.choice(_BYTES) + content[upto:]
    if way == 2:
        return content[:at] + content[at:upto] * chance.choice([2, 50]) + content[upto:]
    return (
        content[:at]
        + bytes(b ^ (1 << chance.randrange(8)) for b in content[at:upto])
        + (content[upto:])
    )


def _other_value(content: bytes, chance: random.Random) -> bytes:
    """JSON with another value, or none, somewhere in it."""
    try:
        table = json.loads(content)
    except ValueError:
        return content
    places: list[tuple[Any, Any]] = []

    def gather(value: Any) -> None:
        keys = value.keys() if isinstance(value, dict) else range(len(value))
        for key in keys:
            places.append((value, key))
            if isinstance(value[key], dict | list):
                gather(value[key])

    if isinstance(table, dict | list):
        gather(table)
    if places:
        holder, key = chance.choice(places)
        if chance.random() < 0.2:
            del holder[key]
        else:
            holder[key] = chance.choice(_ODD)
    return json.dumps(table).encode()


def _read_template(file: Path) -> None:
    lens, patch = _chatting(file.parent)
    try:
        lens.tokenizer.chat_template = file.read_bytes().decode("utf-8", "replace")
        talk = Chat(lens, [patch], max_tokens=1, template=True)
        list(talk.reply("w1 w2"))
    finally:
        lens.tokenizer.chat_template = None


@cache
def _chatting(_folder: Path) -> tuple[Any, Patch]:
    lens = load(world().model, progress=False)
    return lens, random_patch(lens, {(1, "out"): [5]})


def _read_model(file: Path) -> None:
    lens = load(file.parent, progress=False)
    lens.next_logits(lens.prompts(["w1 w2 w3"]))


KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "card": ("card.toml", Concept.load),
    "patch": ("patch.safetensors", lambda file: show(Patch.load(file))),
    "config": ("model/config.json", _read_model),
    "shard": ("model/model.safetensors", _read_model),
    "tokenizer": ("model/tokenizer.json", _read_model),
    "tokenizer's config": ("model/tokenizer_config.json", _read_model),
    "template": ("template.jinja", _read_template),
    "text": ("text.txt", load_corpus),
    "lines": ("text.jsonl", load_corpus),
    "dump": ("dump.xml", load_corpus),
    "sweep": ("spec.toml", read_spec),
    "report": ("run/report.json", lambda file: write_report(file.parent)),
    "certificate": ("run/certificate.json", lambda file: write_report(file.parent)),
    "exam": ("exam.json", load_exam),
    "table": ("run/edits.csv", lambda file: write_report(file.parent)),
}
"""What is mangled, and what reads it."""


def _listed(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


class Stuck(BaseException):
    """No `Exception`, which would be taken for a library's own."""


@contextmanager
def _at_most(seconds: int) -> Any:
    def stop(*_: Any) -> None:
        raise Stuck(f"nothing came of it in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
