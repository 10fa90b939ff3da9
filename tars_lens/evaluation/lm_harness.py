"""Tasks of lm-eval-harness on base and edited model, where the package and its data are."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tars_lens.common.errors import TarsError
from tars_lens.evaluation.subject import Subject
from tars_lens.model.lens import Lens


def harness() -> Any:
    """The package.

    Raises:
        TarsError: It isn't installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise TarsError(
            "--lm-eval needs the lm-eval package: pip install 'tars-lens[lm-eval]'."
        ) from error
    return lm_eval


def harness_tasks(
    lens: Lens, subject: Subject, tasks: Sequence[str], *, limit: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """Scores of both models.

    Args:
        lens: The base.
        subject: The edited model.
        tasks: Names of lm-eval tasks, whose data must be on this machine or in reach.
        limit: At most so many items a task.
        seed: Of few-shot sampling.

    Returns:
        Columns task, metric, base, edited.

    Raises:
        TarsError: lm-eval isn't installed, has no such task, or can't get its data.
    """
    package = harness()
    before = _scores(package, lens, tasks, limit, seed)
    with subject.held(lens) as edited:
        after = _scores(package, edited, tasks, limit, seed)
    rows = [(*key, value, after.get(key)) for key, value in sorted(before.items())]
    return pd.DataFrame(rows, columns=["task", "metric", "base", "edited"])


def _scores(
    package: Any, lens: Lens, tasks: Sequence[str], limit: int | None, seed: int
) -> dict[tuple[str, str], float]:
    hf = getattr(lens.model, "original_model", None)
    if hf is None:
        raise TarsError("lm-eval needs a Hugging Face model: load it with tars_lens.load.")
    try:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=hf, tokenizer=lens.tokenizer)
        found = package.simple_evaluate(
            model=model, tasks=list(tasks), limit=limit, random_seed=seed, bootstrap_iters=0
        )
    except Exception as error:  # an unknown task and data out of reach fail in their own ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TarsError(f"lm-eval can't run {', '.join(tasks)}: {reason}") from error
    return {
        (task, metric): float(value)
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and "stderr" not in metric
    }
