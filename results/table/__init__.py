"""The table: its statistics, its cells, and how they are shown."""
