"""Finding image files quickly: which there are below a folder, which lead nowhere and which are left aside."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

from puma_plugin.datasets.errors import DatasetError

EXTENSIONS = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# What systems leave beside pictures: macOS in its zip files, Synology's index of thumbnails.
_LEFT_BEHIND = frozenset({"__MACOSX", "@eaDir"})
# What tells that a link to nothing was one to a file. No more than that, as names of classes hold dots, too (029.Crow).
_FILE_ENDINGS = EXTENSIONS | {
    *(".avif", ".bib", ".bz2", ".cfg", ".csv", ".db", ".gz", ".heic", ".html", ".ini", ".json", ".jsonl", ".lock"),
    *(".log", ".mat", ".md", ".md5", ".mov", ".mp4", ".npy", ".npz", ".parquet", ".part", ".pdf", ".pickle"),
    *(".pkl", ".pt", ".pth", ".py", ".rar", ".sh", ".sha256", ".svg", ".tar", ".tgz", ".tmp", ".toml", ".tsv"),
    *(".txt", ".xml", ".xz", ".yaml", ".yml", ".zip"),
}
_FILE_NAMES = frozenset(
    {"authors", "changelog", "citation", "copying", "licence", "license", "makefile", "notice", "readme"}
)
_ANNEXED = os.path.join(".git", "annex", "objects")


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: a known ending, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def lost_link(path: str) -> str | None:
    """What to say of a link whose target does not exist; None for anything else, also a link that leads to itself."""
    if not os.path.islink(path):
        return None
    try:
        os.stat(path)
    except FileNotFoundError:
        target = os.path.realpath(path)
        return f"{path} is a link to {target}, which does not exist; mount its disk, or mend or remove the link"
    except OSError:
        pass
    return None


def _lost_folder(entry: os.DirEntry[str]) -> str | None:
    """What `lost_link` says, of links that seem to be meant as folders."""
    if not entry.is_symlink() or _is_passed_over(entry.name) or _is_like_a_file(entry):
        return None
    return lost_link(entry.path)


def _is_like_a_file(link: os.DirEntry[str]) -> bool:
    name = link.name.lower()
    known = name in _FILE_NAMES or os.path.splitext(name)[1] in _FILE_ENDINGS
    # Of a clone by git-annex or DataLad, files that were not fetched are links to nothing.
    return known or _ANNEXED in os.readlink(link.path)


def _is_passed_over(folder_name: str) -> bool:
    return folder_name.startswith(".") or folder_name in _LEFT_BEHIND


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError as error:
        if lost := lost_link(folder):
            raise DatasetError(lost) from error
        raise


def subfolders(folder: str) -> list[str]:
    """Names of the folders directly in ``folder``, sorted, without hidden ones and those that systems leave behind.

    Links to folders that do not exist are among them: whoever reads these is told, and no class is lost in silence.

    Raises:
        DatasetError: ``folder`` is such a link.
    """
    return [
        entry.name
        for entry in _entries(folder)
        if not _is_passed_over(entry.name) and (_is_folder(entry) or _lost_folder(entry))
    ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def scan_images(
    folder: str,
    prefix: str = "",
    accept: Callable[[str], bool] = is_image_name,
    links: list[str] | None = None,
    strict: bool = False,
    _above: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield the images anywhere below ``folder`` as ``prefix`` + relative path, sorted.

    Folders that are hidden or left behind by systems are left out. Links to folders are followed; a link that leads
    back to a folder above itself is not.

    Args:
        links: takes those that are links to files, which need not exist.
        strict: links to folders that do not exist are errors; otherwise they are passed over.

    Raises:
        DatasetError: ``folder`` is a link to a folder that does not exist; with ``strict`` any below it, too.
    """
    for entry in _entries(folder):
        name = entry.name
        if _is_folder(entry):
            if _is_passed_over(name):
                continue
            trail = _above
            if entry.is_symlink():
                trail = (*_above, os.path.realpath(folder))
                target = os.path.realpath(entry.path)
                if any(place == target or place.startswith(target + os.sep) for place in trail):
                    continue
            yield from scan_images(entry.path, f"{prefix}{name}/", accept, links, strict, trail)
        elif lost := _lost_folder(entry):
            if strict:
                raise DatasetError(lost)
        elif accept(name):
            if entry.is_symlink():
                if links is not None:
                    links.append(prefix + name)
            elif not entry.is_file():  # a pipe or a device, which opening would wait for
                continue
            yield prefix + name


def left_aside(folder: str, used: Collection[str] | None) -> dict[str, int]:
    """Files below ``folder`` that are not used, counted by ending in lower case, the most frequent first.

    Args:
        used: relative paths of the images that are used; None: not known, so that no file that ends as an image counts.
    """
    found: Counter[str] = Counter()
    for key in scan_images(folder, accept=_is_not_hidden):
        is_used = is_image_name(os.path.basename(key)) if used is None else key in used
        if not is_used:
            found[os.path.splitext(key)[1].lower()] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def files_directly_in(folder: str) -> list[str]:
    """Names of the images that lie in ``folder`` itself."""
    return [entry.name for entry in _entries(folder) if is_image_name(entry.name) and not _is_folder(entry)]


def _is_not_hidden(name: str) -> bool:
    return not name.startswith(".")


def find_missing(base: str, keys: Sequence[str]) -> list[int]:
    """Places in ``keys`` whose file does not exist below ``base``; each folder is read once, links are followed."""
    folders: dict[str, frozenset[str]] = {}
    missing = []
    for index, key in enumerate(keys):
        folder, _, name = key.rpartition("/")
        if folder not in folders:
            try:
                with os.scandir(os.path.join(base, folder)) as entries:
                    folders[folder] = frozenset(
                        entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)
                    )
            except (FileNotFoundError, NotADirectoryError):
                folders[folder] = frozenset()
        if name not in folders[folder]:
            missing.append(index)
    return missing
