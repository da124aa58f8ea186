"""The run folder: every name in it, and what keeps it whole."""
