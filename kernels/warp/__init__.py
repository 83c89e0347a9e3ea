"""The `warp` hot path: keypoint volume warping, packing and composition. Start at README.md, then warp_reference.py."""
