"""What a launcher such as torchrun has started: one process, or several."""

import os


def started_processes() -> int:
    """How many processes the launcher started, on all machines; 1 without a launcher.

    Raises:
        ValueError: the environment says something else than a number.
    """
    return number_from_environment("WORLD_SIZE", 1, least=1)


def number_from_environment(name: str, default: int, least: int = 0) -> int:
    """One of the launcher's variables; ``default`` where it is not set.

    Raises:
        ValueError: it is no whole number of at least ``least``.
    """
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(
            f"{name} is {text!r} in the environment, where a launcher such as torchrun puts a whole number from "
            f"{least}; start with torchrun, or take it out"
        )
    return int(text)


def is_first_process() -> bool:
    """Whether this is the process that talks, of those that the launcher started."""
    return os.environ.get("RANK", "0") == "0"


def require_one_process(what: str, reason: str) -> None:
    """Refuse work that each of several processes would do as a whole.

    Args:
        what: the command, for the message.
        reason: why several processes do not help it.

    Raises:
        ValueError: in the first process.
        SystemExit: in the others then, so that the message appears once.
    """
    count = started_processes()
    if count == 1:
        return
    if not is_first_process():
        raise SystemExit(0)  # The first one's exit code counts, and it must not be ended before it has spoken.
    raise ValueError(f"was started as {count} processes, but {reason}; start {what} without torchrun")
