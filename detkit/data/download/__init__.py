"""Public data sets: fetched, checked, unpacked, and the lines of a recipe that read them."""

from __future__ import annotations

from detkit.data.download.sets import DATA_SETS, Archive, DataSet, Downloaded, download
from detkit.data.download.transfer import DownloadError, fetch
from detkit.data.download.unpack import ArchiveError, unpack

__all__ = [
    "DATA_SETS",
    "Archive",
    "ArchiveError",
    "DataSet",
    "DownloadError",
    "Downloaded",
    "download",
    "fetch",
    "unpack",
]
