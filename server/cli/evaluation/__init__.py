"""``medley eval`` on a running server: what its traffic scored, and a data set played through it. Knows no models."""
