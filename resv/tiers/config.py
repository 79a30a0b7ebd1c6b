"""Where a stream's keys and values may lie, and how much of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Tiers(BaseModel):
    """Capacities count all layers and batch items together.

    Without `folder` the disk tier is a temporary one that goes with the process. A folder that is opened `read_only`
    shows what its writer has landed; what is added to it here stays in memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_bytes: int | None = Field(default=None, gt=0, description="keys and values on the device; None = no limit")
    copies_bytes: int = Field(default=0, ge=0, description="of that, for copies of fetched tokens, LRU by step")
    host_bytes: int | None = Field(default=None, ge=0, description="keys and values on the host; None = no limit")
    disk: bool = Field(default=False, description="have a disk tier; a folder implies it")
    folder: Path | None = Field(default=None, description="disk tier that stays; None = a temporary one")
    disk_bytes: int | None = Field(default=None, gt=0, description="most that the disk tier takes; None = no limit")
    read_only: bool = Field(default=False, description="read the folder that another process writes")
    sync: bool = Field(default=True, description="force each step to the disk before it counts, unless temporary")

    @model_validator(mode="after")
    def _check(self) -> Tiers:
        if self.read_only and self.folder is None:
            raise ValueError("read_only needs a folder to read")
        if self.disk_bytes is not None and not self.has_disk:
            raise ValueError("disk_bytes limits a disk tier: set folder, or disk: true")
        return self

    @property
    def has_disk(self) -> bool:
        return self.disk or self.folder is not None
