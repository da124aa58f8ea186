"""The pages: pictures, the report, class activation maps."""
