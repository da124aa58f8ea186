"""Datasets by name: which files hold them, how rows and pictures become arrays, and where these are kept."""

from trainer.data.dataset import PAD, SIZE, Dataset, class_names, folder, load, refuse_shared, subset

__all__ = ["PAD", "SIZE", "Dataset", "class_names", "folder", "load", "refuse_shared", "subset"]
