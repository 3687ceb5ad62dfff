"""Students of fewer steps from a teacher."""
