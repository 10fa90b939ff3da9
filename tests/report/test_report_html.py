import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import report_frames as frames
from report_frames import NAMES, a_report
from typer.testing import CliRunner

from tars_lens.cli.app import app
from tars_lens.common.errors import TarsError
from tars_lens.report.figures import kl_histogram
from tars_lens.report.html import write_report
from tars_lens.report.run import load_run
from tars_lens.report.verdict import lead

VOID = {"meta", "link", "br", "hr", "img", "wbr", "input"}


class Page(HTMLParser):
    """The page's elements and text, and whether every element was closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return re.sub(r"\s+", " ", "".join(self.text))


def _worst():
    row = {"window": 0, "position": 3, "kl": 8.5, "names_concept": False}
    texts = {"context": frames.HOSTILE, "token": " null", "next": "</td><script>"}
    return frames.pd.DataFrame([{**row, **texts}] * 40)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with every table that a run can have."""
    folder = tmp_path_factory.mktemp("run")
    texts = [(n, frames.HOSTILE, "Saturn and its rings", frames.HOSTILE) for n in NAMES]
    columns = ["concept", "prompt", "before", "after"]
    tables = {
        "probes": frames.probes(NAMES),
        "edits": frames.edits(),
        "kl_worst": _worst(),
        "texts": frames.pd.DataFrame(texts, columns=columns),
        "propagation": frames.propagation(prompts=8),
        "propagation_summary": frames.summary(),
        "attribution": frames.attribution(),
        "edit_effects": frames.effects(),
        "interference": frames.interference(),
        "kl_histogram": kl_histogram(frames.kl(), frames.kl() < 1),
        "depth": frames.depth(NAMES),
        "curve": frames.curve(NAMES),
        "trajectory": frames.trajectory(NAMES),
        "null": frames.cosines().assign(threshold=0.19),
        "neurons_used": frames.neurons_used(NAMES),
        "parts": frames.parts(NAMES),
        "languages_by_layer": frames.language_depths(NAMES[:2]),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    (folder / "report.json").write_text(json.dumps(a_report()))
    write_report(folder)
    return folder


def _bare(tmp_path, report=None):
    (tmp_path / "report.json").write_text(json.dumps(report or a_report()))
    return tmp_path


def _page(folder):
    return Page(write_report(folder).read_text())


def test_the_page_holds_all_that_a_run_has_in_under_three_megabytes(whole):
    path = whole / "report.html"
    page = Page(path.read_text())
    assert path.stat().st_size < 3e6
    assert page.open == []
    sections = [a["id"] for a in page.all("section")]
    assert sections == [
        "verdict",
        "misses",
        "texts",
        "effect",
        "damage",
        "flow",
        "edits",
        "probes",
        "settings",
        "cite",
    ]
    links = {a["href"] for a in page.all("a")}
    assert links == {f"#{name}" for name in sections}
    # 5 of probes, 8 maps, 2 of languages by layer, and one each of seven more
    assert len(page.all("figure")) == len(page.all("svg")) == 22
    # the bias after the last layer counts, which a layer read as text would hide
    assert "sum of n = 62 parts" in page.words
    assert "davies2024targeted" in page.words and "torch2.13.0" in page.words.replace(" ", "")


def test_the_page_fetches_nothing_and_lets_nothing_run(whole):
    text = (whole / "report.html").read_text()
    page = Page(text)
    policy = next(
        a["content"] for a in page.all("meta") if "content" in a and "src" in a["content"]
    )
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert len(page.all("script")) == 1
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    without_names = re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert "://" not in without_names


def test_hostile_text_is_shown_and_not_run(whole):
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert text.count("<script") == 1 and "<i>model" not in text and "<b>Jupiter" not in text
    assert "<script>alert('x')</script> \"&\" $x$ ⟨U+0007⟩ ⟨U+202E⟩ ホームズ" in page.words
    assert "<b>Jupiter</b> fell to 80%" in page.words
    assert not set("\x07\u202e") & set(text)
    assert "␣null" in page.words
    labels = [a["aria-label"] for a in page.all("svg")]
    assert any('"><script>alert(1)</script>' in label for label in labels)


def test_identifiers_are_unique_and_all_that_is_referred_to_is_there(whole):
    page = Page((whole / "report.html").read_text())
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = {a[k][1:] for _, a in page.elements for k in ("href", "xlink:href") if k in a}
    used = {name for name in used if not name.startswith("ata:")}
    used |= set(re.findall(r"url\(#([^)]+)\)", (whole / "report.html").read_text()))
    assert used and used <= set(ids)


def test_the_page_can_be_read_without_seeing_it(whole):
    page = Page((whole / "report.html").read_text())
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("role") == "img" and a.get("aria-label") for a in page.all("svg"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 8
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    languages = {a.get("lang") for _, a in page.elements} - {None}
    assert languages == {"en", "fr", "de", "ja", "hi"}


def test_the_same_run_gives_the_same_page(whole, tmp_path):
    again = write_report(whole, tmp_path / "again.html")
    assert again.read_bytes() == (whole / "report.html").read_bytes()


def test_vectors_that_the_recipe_did_not_use_are_drawn_for_the_paper_s_method_alone(tmp_path):
    frames.trajectory(NAMES).to_csv(tmp_path / "trajectory.csv", index=False)
    frames.cosines().assign(threshold=0.19).to_csv(tmp_path / "null.csv", index=False)
    frames.edits().to_csv(tmp_path / "edits.csv", index=False)
    assert _page(_bare(tmp_path)).all("figure") == []
    report = a_report()
    report["method"]["name"] = "paper"
    drawn = [a["id"] for a in _page(_bare(tmp_path, report)).all("figure")]
    assert drawn == ["figure-neurons", "figure-cosines", "figure-trajectory"]


def test_tables_that_are_not_there_leave_their_section_out(tmp_path):
    page = _page(_bare(tmp_path))
    sections = [a["id"] for a in page.all("section")]
    assert sections == ["verdict", "misses", "settings", "cite"]
    assert page.all("figure") == []
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in sections}


def test_the_verdict_is_that_of_the_figures(tmp_path):
    report = a_report(("Mars", "Venus", "Ceres", "Vesta"))
    mars, venus, ceres, vesta = (concept["probes"] for concept in report["concepts"])
    venus["forward"].update(erased=6 / 7, after_max=0.02)
    ceres["reverse"]["kept"] = 0.92
    vesta["forward"].update(dict.fromkeys(mars["forward"]), n=8, known=0)
    report["verified"]["others_identical"] = False
    mars["reverse"]["said_after"] = 2
    venus["forward"]["said_after"] = 1
    ceres["reverse"].update(said_after=3, said_after_own=1)
    words = _page(_bare(tmp_path, report)).words
    assert (
        "Mars: removed. Mars is no longer said on any of 7 prompts; 2 of 7 facts about it still "
        "are (2 of them with another name in its place too). From the description to the name, 7"
    ) in words
    assert (
        "Venus: not fully removed. Venus is said on 1 of 7 prompts (6 before); none of 7 facts "
        "about it is. From the description to the name, 6 of 7"
    ) in words
    assert (
        "Ceres: the name is removed, not all that it leads to. Ceres is no longer said on any of 7 "
        "prompts; 3 of 7 facts about it still are (2 of them with another name"
    ) in words
    assert "Vesta: nothing to remove. The base model knew none of 8" in words
    assert "Not verified. 9 of 9 planned" in words
    misses = words[words.index("What fell short") : words.index("Settings and versions")]
    assert "The edit is not verified" in misses
    assert "Venus: not fully removed; one forward probe still gives it p = 0.0200" in misses
    assert "Ceres: asked by its name, the model still has 92%" in misses
    assert "Ceres: asked by its name, the model still says 1 of 7 known attributes" in misses
    assert "Mars: asked" not in misses
    assert "Probes in other languages that the base model never knew show nothing: Mars 4 of 6" in (
        misses
    )
    assert "moved by 8.5 nats" in misses


def test_one_answer_that_is_still_said_is_not_removed_however_little_is_kept(tmp_path):
    report = a_report(("Mars",))
    report["concepts"][0]["probes"]["reverse"].update(kept=0.01, said_after=1, said_after_own=1)
    words = _page(_bare(tmp_path, report)).words
    assert "Mars: the name is removed, not all that it leads to." in words
    assert "1 of 7 facts about it still is. From" in words
    assert "99.99%" in words and "6 > 1" in words


def test_a_run_of_an_earlier_version_is_shown_without_what_is_said(tmp_path):
    report = a_report(("Mars",))
    for figures in report["concepts"][0]["probes"].values():
        for key in [key for key in figures if key.startswith("said_")]:
            del figures[key]
    words = _page(_bare(tmp_path, report)).words
    assert "Mars: removed. From the description to the name, 7 of 7" in words
    assert "is no longer said" not in words


def test_a_run_without_a_kl_says_so(tmp_path):
    words = _page(_bare(tmp_path, {**a_report(), "kl": None})).words
    assert words.count("Damage on plain text was not measured.") == 2


def _without(report, *path):
    inner = report
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no report.json"),
        ("{", "can't be read as JSON"),
        ("[]", "has schema None; this version reads schema 1"),
        (json.dumps({**a_report(), "schema": 2}), "has schema 2; this version reads schema 1"),
        (json.dumps(_without(a_report(), "model", "layers")), "model.layers is missing"),
        (json.dumps({**a_report(), "concepts": []}), "concepts is no list, or empty"),
        (json.dumps({**a_report(), "kl": 3}), "kl is no object"),
        (json.dumps(_without(a_report(), "kl", "elsewhere", "max")), "max is missing"),
        (
            json.dumps(_without(a_report(), "concepts", 1, "probes", "reverse", "kept")),
            "concepts.1.probes.reverse.kept is missing",
        ),
        (json.dumps({**a_report(), "cost": {"seconds": "x", "peak_rss_bytes": 1}}), "cost.seconds"),
        (json.dumps({**a_report(), "tables": 5}), "tables is no list"),
    ],
)
def test_a_folder_that_is_no_run_is_one_message(content, message, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(TarsError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_table_of_an_earlier_run_is_not_drawn(tmp_path):
    frames.depth(NAMES).to_csv(tmp_path / "depth.csv", index=False)
    frames.interference().to_csv(tmp_path / "interference.csv", index=False)
    (tmp_path / "report.json").write_text(json.dumps({**a_report(), "tables": ["interference"]}))
    assert set(load_run(tmp_path).tables) == {"interference"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"concept,prompt\na,b\n", "texts.csv' lacks the columns before, after"),
        (b"\xff\xfe", "texts.csv' can't be read as a table"),
        (b'concept,prompt,before,after\na,b,c,"d\n', "texts.csv' can't be read as a table"),
    ],
)
def test_a_table_of_another_kind_is_one_message(content, message, tmp_path):
    (_bare(tmp_path) / "texts.csv").write_bytes(content)
    with pytest.raises(TarsError, match=message):
        write_report(tmp_path)


def test_the_command_writes_the_page_beside_the_run(tmp_path):
    result = CliRunner().invoke(app, ["report", str(_bare(tmp_path))])
    assert result.exit_code == 0 and "report.html (0.0" in result.output
    assert (tmp_path / "report.html").is_file()
    missing = CliRunner().invoke(app, ["report", str(tmp_path / "none")])
    assert isinstance(missing.exception, TarsError)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


# a browser is no dependency of the package, and its content is tested above without one
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_script_sorts_and_filters_in_a_browser(whole, tmp_path):
    # the page's own policy lets no other script run, which is what a driver in it would be
    text = (whole / "report.html").read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    driver = """<script>
      const table = document.querySelector("#probes table");
      const head = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent == "p before");
      table.tHead.rows[0].cells[head].querySelector("button").click();
      const shown = () => [...table.tBodies[0].rows].filter((r) => !r.hidden);
      const sorted = shown().map((r) => Number(r.cells[head].dataset.sort));
      const select = document.querySelector("#filter select");
      select.value = "saturn";
      select.dispatchEvent(new Event("change"));
      const left = new Set(shown().map((r) => r.cells[0].textContent));
      document.title = JSON.stringify([sorted.every((v, i) => !i || v >= sorted[i - 1]),
        sorted.length, [...left], document.querySelector("#filter").hidden]);
    </script></body>"""
    path = tmp_path / "driven.html"
    path.write_text(text.replace("</body>", driver))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}"]
    command = [CHROMIUM, *options, "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title and json.loads(title.group(1)) == [True, 125, ["Saturn"], False]


def test_the_first_sentence_counts_what_is_still_said():
    report = a_report(NAMES[:2])
    assert lead(report) == (
        "Sherlock Holmes and Saturn are no longer said on any of 14 prompts; none of 14 facts "
        "about them is still said; but for the idle neurons that were given up nothing moved on "
        "99.99% of 25,600 tokens."
    )
    one = a_report(NAMES[:1])
    one["concepts"][0]["probes"]["forward"]["said_after"] = 2
    one["concepts"][0]["probes"]["reverse"]["said_after_own"] = 3
    one["kl"] = None
    assert lead(one) == (
        "Sherlock Holmes is still said on 2 of 7 prompts; 3 of 7 facts about it are still said."
    )
    del one["concepts"][0]["probes"]["forward"]["said_after"]  # a report of an earlier version
    assert lead(one) == ""


def _certified(folder, **changed):
    last = {"neurons": [5], "tokens": 40, "silent": 0.99, "held": True}
    last |= {"kl": {"max": 0.01}, "bound": {"max": 0.5}}
    figures = {**frames._kl(corpus="wikipedia-en-sample"), "last_layer": last, **changed}
    (folder / "certificate.json").write_text(json.dumps(figures))
    spoken = frames.silence().assign(window=0, position=3, neuron="L29N5")
    spoken = spoken.assign(says_base=" Saturn", says_edited=" Mars", context=frames.HOSTILE)
    spoken.assign(token=" of").to_csv(folder / "spoken.csv", index=False)
    return folder


def test_a_certificate_in_the_folder_has_its_own_section(tmp_path):
    page = _page(_certified(_bare(tmp_path)))
    assert "silence" in [a["id"] for a in page.all("section")]
    assert "The bound holds at every position" in page.words
    assert "L29N5" in page.words and "Mars" in page.words
    assert "figure-silence" in [a.get("id") for a in page.all("figure")]
    page = _page(_certified(tmp_path, last_layer=None))
    assert "The bound holds" not in page.words and "99.99% those of the base" in page.words


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"unchanged": "all"}, "unchanged is 'all'"), ({"last_layer": {"neurons": []}}, "last_layer")],
)
def test_a_changed_certificate_is_refused(tmp_path, changed, said):
    with pytest.raises(TarsError, match=said):
        load_run(_certified(_bare(tmp_path), **changed))
    (tmp_path / "certificate.json").write_text("{")
    with pytest.raises(TarsError, match="certificate.json.*JSON"):
        load_run(tmp_path)
