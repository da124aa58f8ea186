"""The fixed trainer: what a trial is, and how it is trained. Knows neither Ray nor the run folder."""
