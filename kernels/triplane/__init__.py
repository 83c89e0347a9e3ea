"""The `triplane` hot path: tri-planes sampled and rendered. Start at README.md, then triplane_reference.py."""
