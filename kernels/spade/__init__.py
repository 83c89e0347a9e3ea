"""The `spade` hot path: modulated instance normalisation. Start at README.md, then spade_reference.py."""
