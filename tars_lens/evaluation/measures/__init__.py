"""One module a measure, or a family of measures that differ in what they ask alone."""
