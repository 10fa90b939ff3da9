"""What a person reads: progress, summaries, figures and pages."""
