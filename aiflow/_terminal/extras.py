"""Optional packages, and the error message for those that are missing."""

from __future__ import annotations

from importlib.util import find_spec

import click

# import name → distribution name
_DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"}


class MissingExtraError(click.ClickException):
    """A package of the extra ``demo`` is not installed. The message contains the command that installs it."""

    exit_code = 2


def require(*packages: str) -> None:
    """Raise unless every package is installed. Nothing is imported.

    Parameters
    ----------
    *packages : str
        Import names, such as ``"PIL"``.

    Raises
    ------
    MissingExtraError
        It lists all missing packages and the command that installs them.
    """
    missing = [_DISTRIBUTIONS.get(package, package) for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtraError(f"this needs {', '.join(missing)}; install with: pip install 'aiflow-dpdk[demo]'")
