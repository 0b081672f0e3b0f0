"""Files: replaced atomically, checked when they are read, and locked while a run writes them."""

from bough.storage.atomic import append_line, complete_lines, make_folder, write_files, write_text
from bough.storage.digest import file_digest, tensors_digest
from bough.storage.lock import exclusive
from bough.storage.state import read_state, write_state

__all__ = [
    "append_line", "complete_lines", "exclusive", "file_digest", "make_folder", "read_state", "tensors_digest", "write_files",
    "write_state", "write_text",
]  # fmt: skip
