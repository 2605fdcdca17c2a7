"""Files that a reader sees whole."""

import os
from pathlib import Path


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file so that a reader sees the old one or the new one, never a part.

  The content goes to PATH.part first, which a killed process may leave behind.

  Args:
    path: of the file; its folder must exist.
    content: text is written as UTF-8.
  """
  path = Path(path)
  part = path.with_name(path.name + '.part')
  part.write_bytes(content.encode() if isinstance(content, str) else content)
  part.replace(path)
