"""The paper's steps and the recipe made of them: from a card to a patch. Knows `patch`."""
