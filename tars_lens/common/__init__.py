"""What knows nothing of models: errors, whole files, the cache, plain characters, progress."""
