"""Networks that take diffusers' configs and weight names."""
