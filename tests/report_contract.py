"""The contract of `report.json`, schema 1, and what its figures must be to one another."""

import math
from typing import Any

TEXT, FLAG, COUNT, NUMBER = "text", "flag", "count", "number"
FIGURE = "number or null"

_FIVE = {
    "tokens": COUNT,
    **dict.fromkeys(("median", "mean", "p95", "p99", "max"), FIGURE),
}
_SILENCE = dict.fromkeys(("unchanged", "unchanged_from_silenced", "hosts_kl_mean"), FIGURE)
_DAMAGE = {**_FIVE, **_SILENCE}
_COUNTED = dict.fromkeys(("n", "known", "said_before", "said_after"), COUNT)

CONTRACT: dict[str, Any] = {
    "schema": COUNT,
    "model": {"name": TEXT, "sha256": TEXT, "layers": COUNT, "d_model": COUNT, "d_mlp": COUNT},
    "method": {"name": TEXT, "seed": COUNT},
    "concepts": [
        {
            "name": TEXT,
            "edits": [{"layer": COUNT, "role": TEXT, "neuron": COUNT, "cosine": FIGURE}],
            "probes": {
                "forward": {
                    **_COUNTED,
                    **dict.fromkeys(("before_mean", "after_mean", "after_max", "erased"), FIGURE),
                },
                "reverse": {
                    **_COUNTED,
                    **dict.fromkeys(("set_phrases", "said_substitute", "said_after_own"), COUNT),
                    "kept": FIGURE,
                },
                "neighbour": {**_COUNTED, "kept": FIGURE, "worst_kept": FIGURE},
                "multilingual": {**_COUNTED, "kept": FIGURE, "languages": {}},
            },
            "seconds": NUMBER,
        }
    ],
    "kl": {"corpus": TEXT, **_DAMAGE, "elsewhere": _DAMAGE},
    "verified": {
        "rows_changed": COUNT,
        "rows_planned": COUNT,
        "others_identical": FLAG,
        "restored_identical": FLAG,
    },
    "cost": {"seconds": NUMBER, "peak_rss_bytes": COUNT},
}


def problems(report: dict[str, Any]) -> list[str]:
    """Everything that a report breaks of the contract; keys beside it are allowed."""
    shape = CONTRACT if report.get("kl") else {k: v for k, v in CONTRACT.items() if k != "kl"}
    found = _misfits(report, shape, "report")
    return found or [*_header(report), *_probes(report), *_kl(report), *_proof(report)]


def _misfits(value: Any, shape: Any, at: str) -> list[str]:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{at} is no object"]
        missing = [f"{at}.{key} is missing" for key in shape if key not in value]
        present = (key for key in shape if key in value)
        return missing + [p for k in present for p in _misfits(value[k], shape[k], f"{at}.{k}")]
    if isinstance(shape, list):
        if not isinstance(value, list) or not value:
            return [f"{at} is no array, or an empty one"]
        return [p for i, v in enumerate(value) for p in _misfits(v, shape[0], f"{at}[{i}]")]
    return [] if _fits(value, shape) else [f"{at} is {value!r}, no {shape}"]


def _fits(value: Any, kind: str) -> bool:
    if kind == TEXT:
        return isinstance(value, str) and value != ""
    if kind == FLAG or isinstance(value, bool):
        return kind == FLAG and isinstance(value, bool)
    if kind == COUNT:
        return isinstance(value, int) and value >= 0
    if value is None:
        return kind == FIGURE
    return isinstance(value, int | float) and math.isfinite(value)


def _header(report: dict[str, Any]) -> list[str]:
    model, found = report["model"], []
    if report["schema"] != 1:
        found.append("another schema")
    if len(model["sha256"]) != 64 or set(model["sha256"]) - set("0123456789abcdef"):
        found.append("report.model.sha256 is no SHA-256")
    if report["method"]["name"] not in ("tars", "paper"):
        found.append("report.method.name is unknown")
    for concept in report["concepts"]:
        for edit in concept["edits"]:
            inside = edit["layer"] < model["layers"] and edit["neuron"] < model["d_mlp"]
            if not inside or edit["role"] not in ("gate", "in", "out"):
                found.append(f"no such weight vector: {edit}")
            if edit["cosine"] is not None and abs(edit["cosine"]) > 1 + 1e-6:
                found.append(f"no cosine: {edit}")
    return found


def _probes(report: dict[str, Any]) -> list[str]:
    found = []
    for concept in report["concepts"]:
        for kind, figures in concept["probes"].items():
            at = f"{concept['name']}, {kind}"
            if figures["known"] > figures["n"]:
                found.append(f"{at}: more known than asked")
            if max(v for k, v in figures.items() if k.startswith("said_")) > figures["known"]:
                found.append(f"{at}: more said than known")
            key = "erased" if kind == "forward" else "kept"
            if (figures[key] is None) != (figures["known"] == 0):
                found.append(f"{at}: null stands for 'none is known', and only for that")
            if figures[key] is not None and figures[key] < 0:
                found.append(f"{at}: {key} is below 0")
            if kind in ("forward", "neighbour") and (figures[key] or 0) > 1:
                found.append(f"{at}: {key} is above 1")
        reverse = concept["probes"]["reverse"]
        anyway = reverse["said_after"] - reverse["said_after_own"]
        if not 0 <= anyway <= reverse["said_substitute"]:
            found.append(f"{concept['name']}: what is said anyway doesn't add up")
        forward = concept["probes"]["forward"]
        if forward["known"] and not 0 <= forward["after_mean"] <= forward["after_max"] <= 1:
            found.append(f"{concept['name']}: forward mean and worst are out of order")
        neighbour = concept["probes"]["neighbour"]
        worst, kept = neighbour["worst_kept"], neighbour["kept"]
        if None not in (worst, kept) and not (neighbour["worst"] and worst <= kept + 1e-9):
            found.append(f"{concept['name']}: the worst neighbour is not the worst")
        if not all(
            len(code) == 2 and value >= 0
            for code, value in concept["probes"]["multilingual"]["languages"].items()
        ):
            found.append(f"{concept['name']}: languages are malformed")
    return found


def _kl(report: dict[str, Any]) -> list[str]:
    if report["kl"] is None:
        return []
    found, whole = [], report["kl"]
    for at, five in (("kl", whole), ("kl.elsewhere", whole["elsewhere"])):
        values = [five[key] for key in ("median", "p95", "p99", "max")]
        if five["tokens"] == 0:
            ordered = [*values, *(five[key] for key in _SILENCE)] == [None] * 7
        else:
            ordered = None not in values and values[0] >= 0 and values == sorted(values)
            ordered = ordered and 0 <= five["mean"] <= five["max"] and five["hosts_kl_mean"] >= 0
            shares = [five[key] for key in ("unchanged", "unchanged_from_silenced")]
            ordered = ordered and all(0 <= value <= 1 for value in shares)
        if not ordered:
            found.append(f"{at}: the figures are out of order")
    if not 0 <= whole["elsewhere"]["tokens"] <= whole["tokens"] or whole["tokens"] == 0:
        found.append("kl: the tokens don't add up")
    return found


def _proof(report: dict[str, Any]) -> list[str]:
    edits = [
        (edit["layer"], edit["role"], edit["neuron"])
        for concept in report["concepts"]
        for edit in concept["edits"]
    ]
    verified, cost = report["verified"], report["cost"]
    found = []
    if verified["rows_planned"] != len(set(edits)):
        found.append("verified: not the rows of the edits are planned")
    if cost["seconds"] <= 0 or cost["peak_rss_bytes"] < 1_000_000:
        found.append("cost: nothing costs nothing")
    return found
