"""Whether files that a result depends on have changed since, without reading a million images."""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from puma_plugin.datasets import BENCHMARK, DatasetError, read_manifest
from puma_plugin.datasets.image_scan import is_image_name, scan_images
from puma_plugin.experiments.data.sources import open_sources
from puma_plugin.experiments.settings.config import DataConfig
from puma_plugin.utils.paths import full_path


def data_digest(config: DataConfig) -> str | None:
    """A digest of the files of the configured data: other names, sizes or times of change give another one.

    Images and annotations are not opened; of the small files `few_shot` and `known_bad` the content counts.

    Returns:
        Hexadecimal digits; None for the embedded benchmark, which has no files.

    Raises:
        ValueError: the root or the manifest cannot be read. A distribution that is not there only changes the digest.
    """
    if config.kind == "embedded" and config.few_shot is None:
        return None
    total = hashlib.sha256()
    for name, path in _files(config):
        total.update(f"{name}\0{_size_and_time(path)}\n".encode("utf-8", "surrogateescape"))
    for setting in (config.few_shot, config.known_bad):
        total.update(f"{None if setting is None else file_digest(Path(full_path(setting)))}\n".encode())
    return total.hexdigest()


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file's content; None if there is no such file. Read once in a process, and when it has changed."""
    return _content(str(path), _size_and_time(str(path))) if path.is_file() else None


@lru_cache
def _content(path: str, size_and_time: str) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _size_and_time(path: str) -> str:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _files(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Name and path of every file: names do not change when the whole data moves."""
    if config.kind == "embedded":
        return
    if config.kind == "manifest":
        assert config.manifest is not None
        table = read_manifest(config.manifest, config.root)
        yield "", table.path
        yield from ((key, os.path.join(table.base, key)) for key in table.keys)
        return
    for source in open_sources(config):
        folder, accept = source.place, is_image_name
        if config.kind == "benchmark":
            accept = _any
            try:
                folder = BENCHMARK[source.name].locate(source.place).folder
            except DatasetError:
                folder = ""
        if not os.path.isdir(folder):
            # Loading says what is wrong, of all distributions together.
            yield source.name, folder
            continue
        for key in scan_images(folder, accept=accept):
            yield f"{source.name}/{key}", os.path.join(folder, key)


def _any(name: str) -> bool:
    """Annotations count as well as images."""
    return True
