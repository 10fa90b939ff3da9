"""The measures of the evaluation, one module each."""
