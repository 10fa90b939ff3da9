"""The site's formulas: a `math` fence becomes MathML, which browsers draw without a script."""

from latex2mathml.converter import convert


def on_config(config):
    """Adds the fence to the ones that the Markdown extension knows."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": _formula}]
    return config


def _formula(source, _language, _class, _options, _markdown, **_):
    return f'<div class="math">{convert(source.strip(), display="block")}</div>'
