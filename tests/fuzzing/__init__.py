"""Damaged inputs, made from sound ones by a seeded hand, and what must hold for each: docs/fuzzing.md."""
