"""Files behind a URI, through fsspec: Zarr is read where it lies, any other file as a copy of the whole.

The NetCDF and GRIB libraries want a path. The copy is kept in the cache (``CLIMAFUSE_HOME``) under a name that changes
when the file behind the URI does, as far as the server tells; so it is fetched once for all processes and runs. Delete
the folder ``climate`` there to get the room back.

Lists of virtual references (kerchunk, ``reference://``) are refused: such a file makes its reader open any path or
address that it names.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from climafuse.data.files import cache_directory, whole_file
from climafuse.data.lazy import broken, reading
from climafuse.errors import ClimateFileError

# Protocol -> the extra of climafuse that brings its package.
_EXTRAS = {"http": "cloud", "https": "cloud", "gs": "arco", "gcs": "arco"}
ZARR_METADATA = ("zarr.json", ".zgroup", ".zmetadata")


def is_uri(place: str) -> bool:
    """Whether a place is a URI rather than a path."""
    return "://" in place or "::" in place


def find_uris(pattern: str) -> list[str]:
    """URIs that match a pattern.

    Args:
        pattern: A URI, with ``*`` where anything may stand; other signs are themselves, as ``?`` begins a query.

    Returns:
        The URIs in alphabetical order; the pattern itself if it is none.

    Raises:
        ClimateFileError: Nothing matches, or the protocol cannot be used here.
    """
    files, path = _file_system(pattern)
    if "*" not in pattern:
        return [pattern]
    with reading(pattern):
        found = sorted(files.unstrip_protocol(name) for name in files.glob(path))
    if not found:
        raise _absent(pattern, "no file that matches")
    return found


def is_zarr(uri: str) -> bool:
    """Whether a Zarr group lies behind a URI.

    Args:
        uri: The URI.

    Returns:
        Whether there is Zarr metadata; if not, there is a file.

    Raises:
        ClimateFileError: There is neither, or the protocol cannot be used here.
    """
    files, path = _file_system(uri)
    with reading(uri):
        # What has a query is a single file: a server may answer whatever is written behind it.
        group = path.rstrip("/")
        if "?" not in path and any(files.exists(f"{group}/{name}") for name in ZARR_METADATA):
            return True
        try:
            kind = files.info(path)["type"]
        except FileNotFoundError as error:
            raise _absent(uri, "nothing there that can be read") from error
        if kind == "directory":
            raise _absent(uri, "a directory without Zarr metadata (zarr.json or .zgroup)")
        return False


def local_copy(uri: str) -> Path:
    """A copy of a file behind a URI; fetched if there is none yet.

    Args:
        uri: Of a file.

    Returns:
        Its path. A local file is its own copy.

    Raises:
        ClimateFileError: The file is not there, or breaks off.
        OutputError: The copy cannot be written.
    """
    files, path = _file_system(uri)
    if "file" in files.protocol:
        return Path(path)
    with reading(uri):
        details = files.info(path)
        identity = json.dumps([uri, sorted((key, str(value)) for key, value in details.items())])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
        copy = cache_directory() / "climate" / digest / PurePosixPath(path.partition("?")[0]).name
        if copy.is_file():
            return copy
        with whole_file(copy) as temporary:
            with reading(uri):  # what fails here is the server's fault, not that of the place written to
                files.get_file(path, str(temporary))
            received, promised = temporary.stat().st_size, details.get("size")
            if promised is not None and received != promised:
                raise broken(uri, f"{received} of {promised} bytes")
    return copy


def _file_system(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it."""
    protocol = uri.partition(":")[0]
    if "::" in uri or protocol == "reference":
        raise ClimateFileError(
            uri,
            expected="a URI with one protocol, of the files themselves",
            received="a list of virtual references" if "reference" in uri else "a chain of protocols",
            remedy="Open the files it leads to; copies of remote files are kept without being asked for.",
        )
    try:
        import fsspec

        options: dict[str, Any] = {}
        if protocol in ("http", "https"):
            import aiohttp

            # By default aiohttp ends any transfer after five minutes, however well it goes.
            limits = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)
            options["client_kwargs"] = {"timeout": limits}
        with reading(uri):
            files, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        install = f"pip install 'climafuse[{extra}]'" if extra else "install the package it names"
        raise ClimateFileError(
            uri,
            expected=f"a package that reads {protocol}://",
            received=str(error),
            remedy=f"To read it, {install}; or download the file.",
        ) from error
    return files, path


def _absent(uri: str, received: str) -> ClimateFileError:
    return ClimateFileError(
        uri,
        expected="the URI of a NetCDF or GRIB file or a Zarr group, or a pattern of such",
        received=received,
        remedy="Check the URI, and whether you may read it.",
    )
