"""`python -m tfx_pipeline <command>`: trains, evaluates, reports and serves."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import re
import sys
import types
from typing import NoReturn

from absl import flags

from data.spec import SpecError
from tfx_pipeline import environment
from tfx_pipeline.layout import OutputError

COMMANDS = (
    "run",
    "simulate",
    "report",
    "compare",
    "serve",
    "predict",
    "embed",
    "extract",
    "add_tasks",
    "launch",
    "manifests",
    "plan",
)
_USAGE_ERROR = 2
_NO_INTEGER = r"flag (--\w+)=.*: invalid literal for int\(\).*: (.*)", r"\1: a whole number, not \2"
"""What absl says of a flag that isn't an integer, and what we do."""


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 asked for wrongly."""
    environment.prepare()
    name, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name not in COMMANDS:
        return _refuse(f"no command {name!r}; there are: {', '.join(COMMANDS)}")
    # Imported only now, and a command imports TFX only when it runs: help and errors come at once.
    command = importlib.import_module(f"tfx_pipeline.commands.{name}")
    own, further = _parted(arguments)
    if {"-h", "--help"} & set(own):
        print(_help(name, command))
        return 0
    try:
        unknown = command.FLAGS([name, *own])[1:]
        if unknown:
            return _refuse(f"{name} takes only flags (--name=value), not {unknown[0]!r}")
        if hasattr(command, "BECOMES"):
            return _become(command.BECOMES, *command.arguments(command.FLAGS), *further)
        if further:
            return _refuse(f"{name} passes nothing on, so it takes nothing after `--`")
        flags.FLAGS(["tfx_pipeline"])  # libraries expect the global flags to be parsed
        return command.main(command.FLAGS)
    except flags.UnrecognizedFlagError as error:
        hint = f"; flags of {command.BECOMES} go after `--`" if hasattr(command, "BECOMES") else ""
        return _refuse(f"{error}{hint}")
    except flags.IllegalFlagValueError as error:
        return _refuse(re.sub(*_NO_INTEGER, str(error)))
    except (flags.Error, SpecError, OutputError) as error:
        return _refuse(str(error))


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and what after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _become(module: str, *arguments: str) -> NoReturn:
    """Replaces this process."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _USAGE_ERROR


def _overview() -> str:
    lines = ["usage: python -m tfx_pipeline <command> [--flag=value ...]", ""]
    for name in COMMANDS:
        command = importlib.import_module(f"tfx_pipeline.commands.{name}")
        lines.append(f"  {name:<10}{_doc(command).splitlines()[0]}")
    return "\n".join([*lines, "", "python -m tfx_pipeline <command> --help shows its flags."])


def _help(name: str, command: types.ModuleType) -> str:
    further = f" [-- flags of python -m {command.BECOMES}]" if hasattr(command, "BECOMES") else ""
    usage = f"usage: python -m tfx_pipeline {name} [--flag=value ...]{further}"
    lines = [usage, "", _doc(command), ""]
    described = list(itertools.chain(*command.FLAGS.flags_by_module_dict().values()))
    width = max(len(flag.name) for flag in described)
    for flag in described:
        default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        told = "" if default in (None, "") else f" (default: {default})"
        lines.append(f"  --{flag.name:<{width}}  {flag.help}{told}")
    return "\n".join(lines)


def _doc(command: types.ModuleType) -> str:
    return inspect.cleandoc(command.__doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
