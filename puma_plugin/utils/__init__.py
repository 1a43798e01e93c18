"""Small helpers shared by all layers."""

from puma_plugin.utils.atomic import atomic_write, remove_unfinished
from puma_plugin.utils.folder_lock import folder_lock
from puma_plugin.utils.json_files import json_ready, read_json, write_json
from puma_plugin.utils.writable import require_writable

__all__ = [
    "atomic_write",
    "folder_lock",
    "json_ready",
    "read_json",
    "remove_unfinished",
    "require_writable",
    "write_json",
]
