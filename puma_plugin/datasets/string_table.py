"""Many strings in two flat buffers."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

from puma_plugin.utils.arrays import IntArray


class StringTable(Sequence[str]):
    """A sequence of strings held as one block of bytes and an array of offsets.

    A million paths take about 50 MB instead of 130 MB as a list, and worker processes that only read them never copy
    the memory (reading a list of strings changes every string's reference count, which copies its page).

    Args:
        strings: the strings; names of files that are not valid UTF-8 survive (surrogate escapes).
        prefix: put before each string when it is read.
    """

    def __init__(self, strings: Iterable[str] = (), prefix: str = "") -> None:
        # One growing buffer: a million short bytes objects would take more than twice its memory.
        joined, lengths = bytearray(), array("q")
        for string in strings:
            encoded = os.fsencode(string)
            joined += encoded
            lengths.append(len(encoded))
        self._offsets: IntArray = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.asarray(lengths, np.int64), out=self._offsets[1:])
        self._bytes = bytes(joined)
        self._prefix = prefix

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "StringTable": ...

    def __getitem__(self, index: int | slice) -> "str | StringTable":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} strings")
        return self._prefix + os.fsdecode(self._bytes[self._offsets[place] : self._offsets[place + 1]])

    def __iter__(self) -> Iterator[str]:
        bounds = self._offsets.tolist()
        for start, stop in pairwise(bounds):
            yield self._prefix + os.fsdecode(self._bytes[start:stop])

    def __repr__(self) -> str:
        return f"StringTable({len(self)} strings, {self.nbytes:,} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return len(self._bytes) + self._offsets.nbytes

    def take(self, indices: IntArray) -> "StringTable":
        """The strings at these places, in this order."""
        taken = StringTable(prefix=self._prefix)
        starts, stops = self._offsets[:-1][indices].tolist(), self._offsets[1:][indices].tolist()
        taken._bytes = b"".join(self._bytes[start:stop] for start, stop in zip(starts, stops, strict=True))
        taken._offsets = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(np.subtract(stops, starts), out=taken._offsets[1:])
        return taken

    def with_prefix(self, prefix: str) -> "StringTable":
        """The same strings, sharing their memory, read with another prefix."""
        shared = StringTable(prefix=prefix)
        shared._bytes, shared._offsets = self._bytes, self._offsets
        return shared
