"""Where a concept flows before an edit, and where it stops after."""

from tars_lens.attribution.direct import DirectAttribution, direct_attribution
from tars_lens.attribution.effects import EditEffects, edit_effects
from tars_lens.attribution.enriching import Enrichment, enrichment
from tars_lens.attribution.flow import Propagation, propagation
from tars_lens.attribution.languages import LanguagesByLayer, languages_by_layer
from tars_lens.attribution.tracing import CausalTrace, causal_trace

__all__ = [
    "CausalTrace",
    "DirectAttribution",
    "EditEffects",
    "Enrichment",
    "LanguagesByLayer",
    "Propagation",
    "causal_trace",
    "direct_attribution",
    "edit_effects",
    "enrichment",
    "languages_by_layer",
    "propagation",
]
