"""Search spaces: from a YAML file to the set of trials that it asks for."""
