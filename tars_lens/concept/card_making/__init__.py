"""A concept card from nothing but a name: what texts and the model itself say of it."""

from tars_lens.concept.card_making.making import Draft, make_card

__all__ = ["Draft", "make_card"]
