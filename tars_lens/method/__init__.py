"""The paper's steps (targeting, ranking, reversal) and the recipe; knows concept, text, patch."""
