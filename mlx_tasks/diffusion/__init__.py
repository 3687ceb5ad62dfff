"""Pure maths of diffusion: noise schedules, parameterisations, losses, guidance."""
