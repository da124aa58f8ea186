"""One family of architectures a file: `features(...)` and `head(channels, classes)`."""
