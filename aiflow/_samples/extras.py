"""Packages that only some commands need, and what to say when they are missing."""

from __future__ import annotations

from importlib.util import find_spec

import click

# import name → the name to install it by
_DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"}


class MissingExtraError(click.ClickException):
    """A package of the extra ``demo`` is not installed. The message says how to install it."""

    exit_code = 2


def require(*packages: str) -> None:
    """Raise unless every package can be imported (they are looked for, not imported).

    Parameters
    ----------
    *packages : str
        Import names, such as ``"PIL"``.

    Raises
    ------
    MissingExtraError
        Naming all that are missing, and the command that installs them.
    """
    missing = [_DISTRIBUTIONS.get(package, package) for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtraError(f"this needs {', '.join(missing)}; install with: pip install 'aiflow-dpdk[demo]'")
