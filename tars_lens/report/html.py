"""A run as one self-contained page: opens offline, prints, and works without JavaScript."""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import tars_lens.report.assets as assets
from tars_lens.common.errors import told
from tars_lens.common.files import user_path, write_text
from tars_lens.report import gallery, tables
from tars_lens.report.run import Run, load_run
from tars_lens.report.style import visible, visible_lines
from tars_lens.report.summary import certificate_lines
from tars_lens.report.verdict import key_of, lead, misses, proven, verdicts


def write_report(folder: Path | str, out: Path | str | None = None) -> Path:
    """Writes the page of a run.

    Args:
        folder: What `tars-lens erase` made.
        out: The file; `report.html` in the folder where not given.

    Returns:
        The file.

    Raises:
        TarsError: No run there, one that can't be read, or the file can't be written.
    """
    path = user_path(out if out is not None else Path(folder) / "report.html")
    run = load_run(folder)
    with told(f"the run in {str(folder)!r} can't be drawn", "Make it again: tars-lens erase."):
        page = render(run)
    write_text(path, page)
    return path


def render(run: Run) -> str:
    """The page, as text; the same run gives the same page."""
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    report = run.report
    environment = Environment(
        loader=PackageLoader("tars_lens.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, lines=visible_lines, key=key_of)
    return environment.get_template("report.html.j2").render(
        report=report,
        lead=lead(report),
        verdicts=verdicts(report),
        proven=proven(report),
        misses=misses(run),
        effect=tables.effect_table(report),
        damage=tables.damage_table(report),
        texts=_texts(run),
        tables=tables.run_tables(run),
        tokens=tables.flow_tokens(run),
        effect_figures=gallery.effect_figures(run),
        damage_figures=gallery.damage_figures(run),
        certificate=certificate_lines(run.certificate) if run.certificate else [],
        silence_figures=gallery.silence_figures(run),
        flow_figures=gallery.flow_figures(run),
        vector_figures=gallery.vector_figures(run),
        settings=tables.settings_of(report),
        versions=tables.versions_of(report),
        style=Markup(_asset("report.css")),
        # what is hashed into the page's policy must be in it to the byte
        script=Markup(script),
        script_hash=digest,
    )


def _texts(run: Run) -> list[dict[str, str]]:
    if "texts" not in run.tables:
        return []
    columns = ["concept", "kind", "prompt", "before", "after"]
    table = run.tables["texts"]
    rows = table.reindex(columns=columns, fill_value="").itertuples(index=False)
    return [dict(zip(columns, map(str, row), strict=True)) for row in rows]


def _asset(name: str) -> str:
    return files(assets).joinpath(name).read_text(encoding="utf-8")
