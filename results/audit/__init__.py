"""Whether what is in a run folder is whole and right: `python -m results verify RUN`."""
