"""The page of `tars-lens serve`, and what answers it; it knows the workbench alone."""
