"""A card as TOML that a person can read and mend."""

import json
from collections.abc import Sequence
from typing import Any


def toml_text(table: dict[str, Any], notes: Sequence[str] = ()) -> str:
    """The card's TOML, the notes first as comments; what is empty is left out."""
    lines = [f"# {note}" for note in notes]
    for key, value in table.items():
        if isinstance(value, str):
            lines.append(f"{key} = {_text(value)}")
        elif isinstance(value, list) and value:
            lines.append(_array(key, value))
    for split in ("validation", "probes"):
        kinds = {kind: rows for kind, rows in table.get(split, {}).items() if rows}
        if kinds:
            lines += ["", f"[{split}]"]
            lines += [_array(kind, rows) for kind, rows in kinds.items()]
    return "\n".join(lines) + "\n"


def _array(key: str, values: Sequence[Any]) -> str:
    """Short names on one line, prompts on a line each."""
    items = [_text(v) if isinstance(v, str) else _pair(v) for v in values]
    line = f"{key} = [{', '.join(items)}]"
    if len(line) <= 100 and all(isinstance(v, str) for v in values) and key in ("names", "aliases"):
        return line
    inner = "\n".join(f"    {item}," for item in items)
    return f"{key} = [\n{inner}\n]"


def _pair(row: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{key} = {_text(value)}" for key, value in row.items()) + " }"


def _text(value: str) -> str:
    r"""A basic string: JSON escapes as TOML does, but for `\u007f`, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
