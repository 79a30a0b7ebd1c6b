"""Which releases of transformers the seam was written for."""

from __future__ import annotations

from types import ModuleType

# The attention interface, mask-free calls and position embeddings as they are from 5.20 on; pyproject.toml, extra `hf`.
OLDEST, FIRST_UNSUPPORTED = (5, 20), (6, 0)
SUPPORTED = ">=5.20,<6"


class TransformersVersionError(ImportError):
    """transformers is missing, too old or too new."""


def require_transformers() -> ModuleType:
    """The module; raises TransformersVersionError naming the supported releases."""
    try:
        import transformers
    except ImportError as error:
        raise TransformersVersionError(
            f"policies inside models need transformers {SUPPORTED}, which is not installed: pip install 'resv-sim[hf]'"
        ) from error
    check_version(transformers.__version__)
    return transformers


def check_version(version: str) -> None:
    """Raise TransformersVersionError unless `version` is supported."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if not OLDEST <= (major, minor) < FIRST_UNSUPPORTED:
        age = "old" if (major, minor) < OLDEST else "new"
        raise TransformersVersionError(f"transformers {version} is too {age}; supported: {SUPPORTED}")
