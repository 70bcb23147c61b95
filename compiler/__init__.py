"""Regraft: a plugin-based model compiler.

`compiler.passes`, `compiler.backends` and `compiler.plugins` stand beside this package in a checkout and inside it in a
wheel; appending the checkout's root to `__path__` makes both import alike. Importing this package loads nothing heavy.
"""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "passes").is_dir():
    __path__.append(str(_checkout))
del _checkout
