"""The command line: `tap predict` and `tap convert`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tokenize_anything import __version__
from tokenize_anything.cli_convert import add_convert_command
from tokenize_anything.cli_evaluate import add_evaluate_command
from tokenize_anything.cli_everything import add_everything_command
from tokenize_anything.cli_predict import add_predict_command
from tokenize_anything.cli_search import add_search_command
from tokenize_anything.cli_semantic import add_semantic_command
from tokenize_anything.cli_tokens import add_tokens_command
from tokenize_anything.cli_train import add_train_command

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 2, 130

# What wrong input, missing files, missing packages and full or closed places raise.
_EXPECTED_ERRORS = (ValueError, TypeError, OSError, ImportError)
_COORDINATE_OPTIONS = ("--point", "--box")
_NEGATIVE_NUMBER = re.compile(r"-[\d.]")


class _Parser(argparse.ArgumentParser):
    """Raises on wrong arguments, so that every error leaves through the same door."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `tap`; None takes those of the process.

    Returns:
        Exit code: 0, or 2 after one line of error on stderr, or 130 after Ctrl-C.

    Raises:
        SystemExit: after --help and --version.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _never_fail_to_print()
    try:
        with _short_warnings():
            arguments = make_parser().parse_args(_attach_negative_numbers(words))
            run: Callable[[argparse.Namespace], None] = arguments.run
            run(arguments)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _close_stdout()
    except KeyboardInterrupt:
        print("tap: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _EXPECTED_ERRORS as error:
        print(f"tap: error: {_one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_OK


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="tap",
        description="Mask, concept and caption for what points, boxes and sketches show.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tap {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_predict_command(commands)
    add_everything_command(commands)
    add_convert_command(commands)
    add_evaluate_command(commands)
    add_train_command(commands)
    add_semantic_command(commands)
    add_tokens_command(commands)
    add_search_command(commands)
    return parser


def _attach_negative_numbers(words: Sequence[str]) -> list[str]:
    """Join `--box -5,0,20,30` to `--box=-5,0,20,30`, which argparse would take for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in _COORDINATE_OPTIONS and _NEGATIVE_NUMBER.match(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show warnings meant for users as one line each, and no others."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"tap: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _never_fail_to_print() -> None:
    """Print what the terminal's encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _close_stdout() -> None:
    """Keep the interpreter from writing the rest into the closed pipe when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
