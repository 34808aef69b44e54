"""Several runs compared: commands, summaries, reports."""
