"""The command ``tamis``: its list of commands, and how every failure ends in one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from tamis.cli import (
    bench,
    build,
    check,
    compare,
    crossover,
    demo,
    env,
    estimate,
    explain,
    inspect,
    profile,
    prune,
    run,
    sensitivity,
)
from tamis.cli.output import complain
from tamis.errors import TamisError

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("env", env.command),
    ("demo", demo.command),
    ("check", check.command),
    ("estimate", estimate.command),
    ("sensitivity", sensitivity.command),
    ("prune", prune.command),
    ("build", build.command),
    ("inspect", inspect.command),
    ("run", run.command),
    ("bench", bench.command),
    ("profile", profile.command),
    ("explain", explain.command),
    ("compare", compare.command),
    ("crossover", crossover.command),
)

USAGE_ERROR = 2
CANNOT_WRITE = 7
UNEXPECTED = 70
INTERRUPTED = 130
BROKEN_PIPE = 141

_TRACEBACK = "--traceback"
_USAGE: Any = typer.BadParameter.__base__  # what every mistake on the command line is


def application() -> typer.Typer:
    """The command line as a Typer application."""
    app = typer.Typer(
        add_completion=False,
        help="Inference compiler and runtime for structurally sparse neural networks.",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_global_options)
    for name, command in COMMANDS:
        app.command(name)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    # PyTorch's OpenMP threads spin for about 15 ms after their last work, on cores that OpenVINO's threads or the next
    # engine of a race need. A spin of a tenth of a millisecond still covers the gaps between two layers.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command; every error becomes one line on stderr and an exit code (see ``tamis.errors``)."""
    show_traceback = _TRACEBACK in arguments or bool(os.environ.get("TAMIS_TRACEBACK"))
    arguments = [argument for argument in arguments if argument != _TRACEBACK]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = typer.main.get_command(application()).main(list(arguments), prog_name="tamis", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        return _report(error)
    except KeyboardInterrupt:
        complain("error: interrupted")
        return INTERRUPTED


def _report(error: Exception) -> int:
    if isinstance(error, TamisError):
        complain(f"error: {error}")
        return error.exit_code
    if isinstance(error, _USAGE):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "tamis"
        message = error.format_message().rstrip(".")
        end = "" if message.endswith("?") else "."
        complain(f"error: {message}{end} See '{command} --help'.")
        return USAGE_ERROR
    if isinstance(error, BrokenPipeError):
        _forget_stdout()
        return BROKEN_PIPE
    if isinstance(error, OSError) and error.filename is None and error.errno is not None:
        _forget_stdout()
        complain(f"error: cannot write the output: {error.strerror}")
        return CANNOT_WRITE
    complain(
        f"error: unexpected {type(error).__name__}: {error}. This is a mistake in Tamis: "
        f"please report it with the output of 'tamis {_TRACEBACK} ...'"
    )
    return UNEXPECTED


def _forget_stdout() -> None:
    """Nobody reads the output any more: keep the interpreter from trying to write the rest of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
    """Tamis's own warnings are for the user; those of libraries are not."""
    if category.__module__.startswith("tamis"):
        complain(f"warning: {message}")


def _global_options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    traceback: Annotated[
        bool, typer.Option(_TRACEBACK, help="Show the traceback of an error (also: TAMIS_TRACEBACK=1).")
    ] = False,
) -> None:
    if version:
        from tamis import __version__

        typer.echo(f"tamis {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
