"""The embedded stack on loopback: install, services, the followed demo, teardown."""
