"""Stages of a rental that fail, hang, or do what they should; and jobs and checks of which one ends its process."""
