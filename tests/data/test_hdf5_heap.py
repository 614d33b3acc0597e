"""Global heaps of HDF5: sound ones pass, those on which the library would hang are found first."""

import struct

import pytest

from climafuse.data.hdf5_heap import EXAMINED_BYTES, check_heaps
from climafuse.data.sources import open_climate
from climafuse.errors import ClimateFileError
from tests.data import fixtures


def _heap(*objects, size=128):
    """A heap as the specification has it: header of 16 bytes, objects (number, length), then free space."""
    body = b"".join(
        struct.pack("<HHIQ", number, 1, 0, length) + bytes(-(-length // 8) * 8) for number, length in objects
    )
    free = size - 16 - len(body)
    return (
        b"GCOL\x01\0\0\0"
        + struct.pack("<Q", size)
        + body
        + struct.pack("<HHIQ", 0, 0, 0, free).ljust(free, b"\0")
    )


@pytest.mark.parametrize("objects", [(), ((1, 8),), ((1, 5), (2, 17)), ((7, 0),), ((1, 80),)])
def test_sound_heaps_pass(objects, tmp_path):
    (tmp_path / "file").write_bytes(b"before " + _heap(*objects) + b" after")
    check_heaps(tmp_path / "file")


def test_free_space_of_no_size_is_found(tmp_path):
    whole = bytearray(_heap((1, 8)))
    whole[16 + 24 + 8 : 16 + 24 + 16] = bytes(8)  # after header and object, the size of object 0
    (tmp_path / "file").write_bytes(whole)
    with pytest.raises(ValueError, match="at byte 0 is broken"):
        check_heaps(tmp_path / "file")


def test_the_ends_of_a_large_file_are_examined(tmp_path):
    broken = b"GCOL\x01\0\0\0" + struct.pack("<Q", 64) + bytes(48)
    for place, found in ((5, True), (EXAMINED_BYTES + 5, False), (3 * EXAMINED_BYTES - 100, True)):
        with (tmp_path / "file").open("wb") as file:
            file.truncate(3 * EXAMINED_BYTES)  # sparse
            file.seek(place)
            file.write(broken)
        if found:
            with pytest.raises(ValueError, match=f"byte {place}"):
                check_heaps(tmp_path / "file")
        else:
            check_heaps(tmp_path / "file")


def test_a_file_that_hangs_the_library_is_refused(tmp_path):
    """Zeros in the heap, as a download leaves them that made the file in its final size first."""
    path = tmp_path / "fields.nc"
    fixtures.write(fixtures.era5(fixtures.truth()), str(path), "netcdf4")
    content = bytearray(path.read_bytes())
    start = content.index(b"GCOL") + 16
    content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(ClimateFileError, match="heap of texts") as caught:
        open_climate(path)
    assert str(path) in str(caught.value)
