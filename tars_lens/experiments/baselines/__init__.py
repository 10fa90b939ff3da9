"""Other methods of removing a concept, each from its paper's definition, and their comparison."""
