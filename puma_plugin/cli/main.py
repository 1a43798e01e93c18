"""The command `puma`: finds the subcommand, loads only what it needs, and turns mistakes into one clear line."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import puma_plugin
from puma_plugin.utils.launcher import require_one_process
from puma_plugin.utils.messages import message_of

COMMANDS = {
    "demo": "train and compare on eight image distributions that come with the package; no download",
    "train": "train one embedding model on your datasets",
    "compare": "methods, losses and settings against each other, in one table",
    "evaluate": "evaluate a trained model",
    "datasets": "list and verify the eight datasets of the paper on disk; draw few-shot splits",
    "bench": "speed, memory and agreement of the operators against other ways to compute them (needs the checkout)",
    "info": "what is installed and compiled, and how to fix what is not",
}

_ALONE = {
    "demo": "it has worker processes of its own (--workers)",
    "compare": "it has worker processes of its own (--workers)",
    "datasets": "one is enough for it",
    "bench": "it measures one",
    "info": "one is enough for it",
}
"""Commands that several processes do not run together, and why."""

_HELP = "\n".join(
    [
        "usage: puma <command> [options]",
        "",
        "One embedding model for many heterogeneous image datasets.",
        "",
        "commands:",
        *(f"  {name:<10}{text}" for name, text in COMMANDS.items()),
        "",
        "options:",
        "  --help      this text; `puma <command> --help` for a command's own",
        "  --version   the version",
        "",
        "A mistake in the input is reported in one line, with exit code 2; PUMA_TRACEBACK=1 shows where it arose.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `puma` with these arguments (default: those of the process) and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP)
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"puma_plugin {puma_plugin.__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        return _fail("puma", f"unknown command {command!r}; give one of {', '.join(COMMANDS)}")
    try:
        if command in _ALONE:
            require_one_process(f"puma {command}", _ALONE[command])
        with _warnings_in_words(f"puma {command}"):
            code = _run(importlib.import_module(f"puma_plugin.cli.{command}"), command, rest)
        if sys.stdout is not None:  # it was closed from the start
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"\npuma {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough. Nothing must be flushed to it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("PUMA_TRACEBACK") == "1":
            raise
        return _fail(f"puma {command}", message_of(error))


@contextmanager
def _warnings_in_words(who: str) -> Iterator[None]:
    """This package's own warnings as one sentence, without the line of code that they come from."""
    usual = warnings.formatwarning

    def in_words(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(os.path.dirname(puma_plugin.__file__)):
            return f"{who}: warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = in_words
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _run(module: ModuleType, command: str, arguments: list[str]) -> int:
    if command != "info":
        return module.main(arguments)
    if not arguments:
        return module.main()
    if arguments[0] in ("-h", "--help"):
        print(f"usage: puma info\n\n{COMMANDS['info']}; exit code 1 if an operator is missing that could be used here")
        return 0
    return _fail("puma info", f"takes no options, got {arguments[0]!r}")


def _fail(who: str, message: str) -> int:
    print(f"{who}: error: {_one_line(message)}", file=sys.stderr)
    return 2


def _one_line(message: str) -> str:
    """Lines that are sentences of their own are told apart by a semicolon."""
    joined = ""
    for line in (" ".join(line.split()) for line in message.splitlines()):
        if joined and line:
            joined += " " if joined[-1] in ":;,." or line.startswith("->") else "; "
        joined += line
    return joined


if __name__ == "__main__":
    sys.exit(main())
