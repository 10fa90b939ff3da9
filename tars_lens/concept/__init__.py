"""What is to be removed: the card, its forms, its probability, cards from names. Knows `text`."""

from tars_lens.concept.card import Concept, builtin_concepts, forms_in

__all__ = ["Concept", "builtin_concepts", "forms_in"]
