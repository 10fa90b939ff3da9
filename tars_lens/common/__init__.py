"""What any room may use: text, files, errors; knows nothing of models."""
