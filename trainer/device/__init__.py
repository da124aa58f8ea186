"""The device program: an epoch as steps that are recorded once and replayed, alone or beside others."""
