"""The kernels, one folder per hot path, importable as `fastface.kernels.<slug>`.

An installed package holds the folders right here. In a checkout they live in `<repository>/kernels`, which is not a
package of its own (PyPI has a package of that name), so its path is added to this one's.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "kernels"
if (_CHECKOUT / "warp").is_dir():
    __path__.append(str(_CHECKOUT))
