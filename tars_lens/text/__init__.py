"""Plain text, and what the base model does on it. Knows `model`."""
