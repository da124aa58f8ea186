"""Stages of a rental that fail, hang, or do what they should; and jobs of which one ends its process."""
