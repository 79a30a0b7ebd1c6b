"""Keys and values of a stream on device, host and disk: see `store.py`; the disk's format is in `reader.py`."""
