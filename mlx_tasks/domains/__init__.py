"""What kind of images a dataset holds, and the sampler settings that suit it."""
