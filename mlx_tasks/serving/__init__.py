"""A registered model behind HTTP."""
