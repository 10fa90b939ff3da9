"""Plain text, and what the base model does on it; knows the model, not the method."""
