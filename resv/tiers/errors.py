"""What can go wrong with the tiers of a cache: each message says what was wrong, where, and what is allowed."""

from __future__ import annotations


class TierError(ValueError):
    """A tier that cannot do what it was asked."""


class DeviceFullError(TierError):
    """Keys and values that must lie on the device do not fit there."""


class HostFullError(TierError):
    """The host cannot take what leaves the device, and there is no disk tier below it."""


class DiskFullError(TierError):
    """A step that does not fit on the disk. Nothing of it stays; earlier steps are as they were."""


class FolderInUseError(TierError):
    """A folder that another process is writing."""


class FolderError(TierError):
    """A folder that is no disk tier, or one of another model."""
