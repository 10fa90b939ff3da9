"""A name becomes a `Lens`: checkpoints, architectures, tokens, weights. Knows `common`."""
