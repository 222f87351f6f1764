"""Following a file that grows by whole lines: each look reads only what is new."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from drl_agents.monitoring.typed_json import label

FIRST_BYTES = 1 << 20  # of a file seen for the first time: about 15,000 lines of equity.csv
KEPT_BYTES = 256  # the end of what was read, kept to notice that the file was begun anew


class Tail:
    """The lines of `path`, as they are added. A line without its newline is not read yet.

    A file that was replaced, cut short or written anew is read again from where a first look would begin.
    """

    def __init__(self, path: Path, first_bytes: int = FIRST_BYTES) -> None:
        self.path, self.first_bytes = path, first_bytes
        self._offset, self._inode, self._end = 0, -1, b""

    def read(self, problems: list[str]) -> tuple[list[str], bool]:
        """The new lines, and whether they replace all earlier ones.

        A file that cannot be read is noted in `problems`, and replaces earlier lines by none.
        """
        try:
            with self.path.open("rb") as file:
                return self._read(file)
        except FileNotFoundError:
            problems.append(f"{label(self.path)}: missing")
        except OSError as error:
            problems.append(f"{label(self.path)}: cannot be read ({error.strerror})")
        self._offset, self._inode, self._end = 0, -1, b""
        return [], True

    def _read(self, file: BinaryIO) -> tuple[list[str], bool]:
        inode, size = os.fstat(file.fileno()).st_ino, file.seek(0, 2)
        file.seek(max(0, self._offset - len(self._end)))
        anew = inode != self._inode or size < self._offset or file.read(len(self._end)) != self._end
        start = max(0, size - self.first_bytes) if anew else self._offset
        file.seek(start)
        payload = file.read(size - start)
        whole = payload[: payload.rfind(b"\n") + 1]
        self._inode, self._offset = inode, start + len(whole)
        self._end = ((b"" if anew else self._end) + whole)[-KEPT_BYTES:]
        lines = whole.decode("utf-8", errors="replace").split("\n")[:-1]
        # The first look may begin within a line.
        lines = lines[1:] if anew and start else lines
        return [line.rstrip("\r") for line in lines if line.strip()], anew
