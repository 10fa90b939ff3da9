"""tars_lens: find, remove and explain a concept in a language model."""
