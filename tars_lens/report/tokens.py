"""Tokens coloured by a figure, for a page: the colour never tells alone, the figure stands by."""

from collections.abc import Sequence

from markupsafe import Markup

from tars_lens.report.style import visible

_WRITTEN = 0.1


def coloured(
    tokens: Sequence[str], values: Sequence[float], *, high: float = 1.0, unit: str = "p"
) -> Markup:
    """A row of tokens, each shaded by its value and underlined the thicker the larger it is.

    Args:
        tokens: As the tokenizer has them; spaces and line ends become visible.
        values: One each; missing ones (NaN) stay plain.
        high: The value of the full shade.
        unit: What the values are, for the tooltips.

    Returns:
        Escaped HTML; values of a tenth of `high` and more are written beside their token.
    """
    spans = [_token(token, value, high, unit) for token, value in zip(tokens, values, strict=True)]
    return Markup('<span class="tokens" dir="auto">{}</span>').format(Markup("<wbr>").join(spans))


def in_context(before: str, token: str, after: str, value: float, *, high: float) -> Markup:
    """A token in its text: what stands before it, the token shaded by a KL, what comes next."""
    return Markup(
        '<span class="tokens" dir="auto">{}{}<span class="next" title="what the text goes on with">'
        "{}</span></span>"
    ).format(visible(before), _token(token, value, high, "KL", written=False), visible(after))


def _token(token: str, value: float, high: float, unit: str, *, written: bool = True) -> Markup:
    shown = visible(token).replace(" ", "␣")
    if value != value:
        return Markup('<span class="token">{}</span>').format(shown)
    share = min(max(value / high, 0.0), 1.0) if high > 0 else 0.0
    figure = Markup("<sub>{}</sub>").format(f"{value:.2f}") if written and share >= _WRITTEN else ""
    return Markup('<span class="token" style="--share:{}" title="{} {}">{}{}</span>').format(
        f"{share:.2f}", unit, f"{value:.3g}", shown, figure
    )
