"""Windows of served images against the registered reference."""
