"""Feature extractors: networks that turn images into the numbers that scores are made of."""
