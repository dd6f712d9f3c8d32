"""Versions of installed packages; ours is in pyproject.toml."""

from importlib import metadata

PACKAGE = "var-next-scale"


def version(package: str = PACKAGE) -> str:
    """Version of an installed package; "unknown" if it is not installed, as ours where it is run from a clone."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
