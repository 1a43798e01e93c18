"""What an exception says."""


def message_of(error: BaseException) -> str:
    """An exception's message, or its name if it has none.

    torch hands on an error in a worker of a data loader with the worker's traceback as its message; what was said there
    is taken.
    """
    message = str(error) or type(error).__name__
    if not (message.startswith("Caught ") and "Original Traceback" in message):
        return message
    lines = message.rstrip().splitlines()
    innermost = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=0)
    # Behind the innermost frame come lines of code, which are indented, and then the name and the message.
    first = next((n for n in range(innermost + 1, len(lines)) if lines[n] and not lines[n].startswith(" ")), -1)
    name, _, said = "\n".join(lines[first:]).partition(": ")
    return said or name
