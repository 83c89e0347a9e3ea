"""The `raster` hot path: triangles to pixels, nearest first. Start at README.md, then raster_reference.py."""
