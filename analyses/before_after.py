"""The README's picture: what a model said before and after an erasure, drawn from a run.

    python analyses/before_after.py runs/demo --concept Saturn --out docs

Of each kind it takes the first probes of the card that the base knows and that fit the width, so
that nothing is picked by its result.
"""

import argparse
from html import escape
from pathlib import Path

import pandas as pd

from tars_lens.common.files import write_text
from tars_lens.report.run import load_run
from tars_lens.report.style import visible

WIDTH, ROW, LEFT, BAR = 860, 23, 560, 180
LONGEST = 66
GROUPS = {
    "forward": "From a description to the name: meant to go",
    "reverse": "From the name to what is known of it: meant to go",
    "neighbour": "Other things: meant to stay",
}
THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "before": "#0072b2", "after": "#d55e00"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "before": "#56b4e9", "after": "#e69f00"},
}


def chosen(probes: pd.DataFrame, concept: str, count: int) -> pd.DataFrame:
    """The first known probes of each kind, in the card's order."""
    counts = probes["known"] & (probes["set_phrase"].map(str) != "True")
    own = probes[(probes["concept"] == concept) & counts]
    short = own[(own["prompt"].str.len() + own["answer"].str.len()) <= LONGEST]
    return short.groupby("kind", sort=False).head(count)


def drawn(table: pd.DataFrame, title: str, theme: dict[str, str]) -> str:
    """The picture as SVG text."""
    lines, y = [], 26
    lines.append(_text(0, y, title, "title"))
    y += 22
    for name, x in (("before", LEFT), ("after", LEFT + 70)):
        lines.append(f'<rect x="{x}" y="{y - 9}" width="9" height="9" class="{name}"/>')
        lines.append(_text(x + 14, y, name, "soft"))
    lines.append(_text(LEFT + 140, y, "probability of the answer", "soft"))
    for kind, heading in GROUPS.items():
        rows = table[table["kind"] == kind]
        if rows.empty:
            continue
        lines.append(_text(0, y, heading, "head"))
        for row in rows.itertuples():
            y += ROW
            lines += _row(y, row)
        y += ROW + 14
    style = (
        "text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;"
        f"fill:{theme['ink']}}} .title{{font-size:17px;font-weight:600}} "
        f".soft,.head{{fill:{theme['soft']};font-size:12px}} .answer{{font-weight:700}} "
        f".number{{font-size:11px}} .before{{fill:{theme['before']}}} "
        f".after{{fill:{theme['after']}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - 14}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{style}</style>'
        + "".join(lines)
        + "</svg>\n"
    )


def _row(y: int, row) -> list[str]:
    prompt = visible(" ".join(str(row.prompt).split()))
    answer = f'<tspan class="answer"> {escape(visible(str(row.answer)))}</tspan>'
    found = [f'<text x="12" y="{y}">{escape(prompt)}{answer}</text>']
    for offset, kind, p in ((-11, "before", row.p_before), (-3, "after", row.p_after)):
        width = max(1.0, BAR * float(p))
        found.append(
            f'<rect x="{LEFT}" y="{y + offset}" width="{width:.1f}" height="7" class="{kind}"/>'
        )
    numbers = f"{row.p_before:.2f} → {_small(row.p_after)}"
    found.append(_text(LEFT + BAR + 16, y, numbers, "number"))
    return found


def _small(p: float) -> str:
    return "0.0000" if p < 0.00005 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def main() -> None:
    """Draws both themes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a folder that `tars-lens erase` wrote")
    parser.add_argument("--concept", help="one of its concepts; the first by default")
    parser.add_argument("--count", type=int, default=3, help="probes of each kind")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    run = load_run(args.run)
    name = args.concept or run.report["concepts"][0]["name"]
    (concept,) = (c for c in run.report["concepts"] if c["name"] == name)
    table = chosen(run.tables["probes"], name, args.count)
    model = run.report["model"]["name"]
    title = f"{name} removed from {model}: {len(concept['edits'])} weight vectors replaced"
    for theme, colours in THEMES.items():
        write_text(args.out / f"before_after_{theme}.svg", drawn(table, title, colours))


if __name__ == "__main__":
    main()
