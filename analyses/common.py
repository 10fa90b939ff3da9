"""What the analyses share: their options, one erasure for all, files of fixed bytes, a manifest."""

import argparse
import hashlib
import json
import logging
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from matplotlib.figure import Figure

import tars_lens
from tars_lens.attribution.explaining.effects import interference_table
from tars_lens.common.errors import TarsError
from tars_lens.common.files import sha256_file, write_json, write_text
from tars_lens.concept.card import Concept
from tars_lens.evaluation.erasure import Erasure
from tars_lens.evaluation.known import Known
from tars_lens.evaluation.probes import base_frame
from tars_lens.method.settings import MethodName, Settings
from tars_lens.model.lens import Lens
from tars_lens.patch.edit import package_versions
from tars_lens.patch.patch import Patch
from tars_lens.report.figures import interference
from tars_lens.report.style import figure, save
from tars_lens.text.corpus import load_corpus
from tars_lens.text.windows import Windows, cut

logger = logging.getLogger(__name__)

FIVE = ("saturn", "sherlock_holmes", "paris", "einstein", "oxygen")
TWO = FIVE[:2]

_HERE = Path(__file__).parent
_BESIDE = ("matplotlib", "numpy", "pandas")


@dataclass
class Analysis:
    """One script at work: its model, its cards, and the files that it has written.

    Attributes:
        name: The script's, with which its files begin.
        command: How it was called.
        options: model, out, method, seed, corpus, quick, concept, and the script's own.
        lens: The model.
        concepts: The cards.
        files: Written so far.
    """

    name: str
    command: str
    options: argparse.Namespace
    lens: Lens
    concepts: list[Concept]
    files: list[Path] = field(default_factory=list)
    _bases: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The folder of the tables and figures."""
        return Path(self.options.out)

    def erasure(
        self,
        concepts: Sequence[Concept] | None = None,
        *,
        edits: int | None = None,
        kl_tokens: int = 0,
        settings: Settings | None = None,
    ) -> Erasure:
        """The concepts removed one after another; made once for all analyses.

        It is kept under `out/runs` by all that it depends on, this package's source among it.

        Args:
            concepts: Which cards; the analysis's where not given.
            edits: At most so many weight vectors a concept.
            kl_tokens: How much text the KL is measured on.
            settings: Another method than the options name; `edits` is then its own.
        """
        cards = list(self.concepts if concepts is None else concepts)
        settings = settings or Settings(
            name=self.options.method, seed=self.options.seed, edits=edits
        )
        key: list[Any] = [self.lens.sha256, [card.to_dict() for card in cards], settings.to_dict()]
        key += [kl_tokens, self.options.corpus, package_versions(), _source_sha256()]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.out / "runs" / name
        if not (folder / "report.json").is_file():  # written last: a run that is there is whole
            logger.info("%s: removing %s", self.name, ", ".join(card.name for card in cards))
            found = tars_lens.erase(
                self.lens,
                cards,
                settings=settings,
                corpus=load_corpus(self.options.corpus),
                kl_tokens=kl_tokens,
                bases=[self._base(card) for card in cards],
            )
            found.save(folder)
        return _read(folder, cards)

    def _base(self, card: Concept) -> pd.DataFrame:
        """What the base says to a card's probes, asked once however often it is removed."""
        asked = [card.name, card.names, card.surface_forms, card.substitute]
        key = json.dumps([*asked, card.to_dict().get("probes")], sort_keys=True)
        if key not in self._bases:
            self._bases[key] = base_frame(self.lens, card)
        return self._bases[key]

    def windows(self, tokens: int) -> Windows:
        """Plain text for the KL: so many tokens of it, a tenth of them where it is to be quick."""
        corpus = load_corpus(self.options.corpus)
        return cut(self.lens, corpus, reported_tokens=self.few(tokens, max(1, tokens // 10)))

    def few(self, usual: int, quick: int) -> int:
        """How many of something: fewer where it is to be quick."""
        return quick if self.options.quick else usual

    def table(self, frame: pd.DataFrame, suffix: str = "") -> None:
        """Writes a table as CSV, to six digits: a later one is rounding's."""
        path = self.out / f"{self._stem(suffix)}.csv"
        write_text(path, frame.to_csv(index=False, float_format="%.6g"))
        self.files.append(path)

    def figure(self, figure: Figure, suffix: str = "") -> None:
        """Writes a figure as PDF and PNG."""
        self.files += save(figure, self.out / self._stem(suffix))

    def interference(self, found: Erasure) -> None:
        """Writes what each concept's edit alone does to each concept's probes, and its figure."""
        known = [Known.of(self.lens, card, found.tables["probes"]) for card in self.concepts]
        table = interference_table(self.lens, known, found.patches)
        self.table(table, "interference")
        made, axes = figure(2, height=max(2.1, 1.3 + 0.22 * len(known)), across=2)
        interference(table, axes)
        self.figure(made, "interference")

    def finish(self) -> None:
        """Writes the manifest: what was run on what, and the hash of each file."""
        beside = {package: version(package) for package in _BESIDE}
        write_json(
            self.out / f"{self.name}.json",
            {
                "analysis": self.name,
                "command": self.command,
                "model": {"name": self.lens.name, "sha256": self.lens.sha256},
                "concepts": [concept.name for concept in self.concepts],
                "method": self.options.method,
                "seed": self.options.seed,
                "quick": self.options.quick,
                "versions": package_versions() | {"python": platform.python_version()} | beside,
                "files": {path.name: sha256_file(path) for path in self.files},
            },
        )
        logger.info("%s: written to %s", self.name, self.out)

    def _stem(self, suffix: str) -> str:
        return f"{self.name}_{suffix}" if suffix else self.name


def parser(
    description: str | None, concepts: Sequence[str], seed: int = 0
) -> argparse.ArgumentParser:
    """The options that all analyses have."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("concept", nargs="*", default=list(concepts), help="names or paths of cards")
    made.add_argument(
        "--model", default="smollm2-135m", help="built-in name, hub id, folder, .gguf"
    )
    made.add_argument("--out", type=Path, default=_HERE / "out", help="default: analyses/out")
    made.add_argument("--seed", type=int, default=seed)
    made.add_argument("--method", default="tars", choices=get_args(MethodName))
    made.add_argument("--corpus", help="plain text, as for `tars-lens erase`")
    made.add_argument("--quick", action="store_true", help="less text, fewer prompts")
    return made


def begin(
    options: argparse.ArgumentParser, file: str, argv: Sequence[str] | None = None
) -> Analysis:
    """Reads the options, loads the model and the cards."""
    given = list(sys.argv[1:] if argv is None else argv)
    parsed = options.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # tells of each table of a font
    name = Path(file).stem
    return Analysis(
        name=name,
        command=shlex.join(["python", f"analyses/{name}.py", *map(str, given)]),
        options=parsed,
        lens=tars_lens.load(parsed.model),
        concepts=[Concept.load(concept) for concept in parsed.concept],
    )


def command_line(main: Callable[[], None]) -> None:
    """Runs a script: what is wrong with its input is one message and exit code 2."""
    try:
        main()
    except TarsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _read(folder: Path, cards: Sequence[Concept]) -> Erasure:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    tables = {
        # tokens that read "null" or "nan" are there
        path.stem: pd.read_csv(path, keep_default_na=path.stem != "kl_worst")
        for path in sorted(folder.glob("*.csv"))
    }
    patches = tuple(Patch.load(folder / f"{card.key}.safetensors") for card in cards)
    return Erasure(patches, report, tables)


def _source_sha256() -> str:
    """Of this package's own source: a run of another recipe is another run."""
    root = Path(tars_lens.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {sha256_file(path)}\n".encode())
    return digest.hexdigest()
