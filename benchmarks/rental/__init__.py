"""Fifteen minutes on a rented GPU in which everything has to work at first try: see `__main__`."""
