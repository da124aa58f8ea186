"""Sweeps: the grid minus what is finished, run by Ray Tune."""
