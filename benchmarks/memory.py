"""Peak resident memory of a whole `erase` against the model's own size in float32."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from timing import arguments, show

_LOAD = """
import json, sys
from timing import peak_bytes
import tars_lens.evaluation.erasure, tars_lens.model.loading
imports = peak_bytes()
lens = tars_lens.load(sys.argv[1], progress=False)
size = 4 * sum(p.numel() for p in lens.model.original_model.parameters())
print(json.dumps({"model": size, "imports": imports, "loaded": peak_bytes()}))
"""
_ERASE = """
import json, sys
from timing import peak_bytes
from tars_lens.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as stopped:
    if stopped.code:
        raise
print(json.dumps({"erase": peak_bytes()}))
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; the processes measured are not this one."""
    parser = arguments(__doc__)
    parser.add_argument("--concepts", nargs="+", default=["sherlock_holmes", "saturn"])
    parser.add_argument("--corpus", help="as for tars-lens erase")
    parser.add_argument("--kl-tokens", type=int, default=25_600)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        erase = ["erase", *options.concepts, "--model", options.model, "--quiet", "--out", folder]
        erase += ["--kl-tokens", str(options.kl_tokens)]
        erase += ["--corpus", options.corpus] if options.corpus else []
        found = _run(_LOAD, [options.model]) | _run(_ERASE, erase)
    size, floor = found["model"], found["imports"]
    peaks = {"imports": floor, "model loaded": found["loaded"], "erase": found["erase"]}
    rows = [
        {
            "case": name,
            "peak_mb": peak / 1e6,
            "ratio": peak / size,
            "ratio_without_imports": (peak - floor) / size,
        }
        for name, peak in peaks.items()
    ]
    show(
        f"Peak memory of erasing {', '.join(options.concepts)} from {options.model}",
        pd.DataFrame(rows),
        reference=f"the model's {size / 1e6:.0f} MB in float32",
        out=options.out,
    )


def _run(code: str, argv: Sequence[str]) -> dict[str, float]:
    """Runs code in a fresh process, which tells its peak; a parent's own is not inherited."""
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    command = [sys.executable, "-c", path + code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
