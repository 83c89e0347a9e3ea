"""The systems: each computes once what depends on the portrait, and per frame only the rest."""
