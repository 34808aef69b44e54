"""A run and its directory: one arm end to end, and the comparison of the arms."""
