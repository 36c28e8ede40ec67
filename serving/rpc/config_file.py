"""Configuration files: text protos, as TF Serving's."""

from __future__ import annotations

import pathlib
from typing import TypeVar

from google.protobuf import message, text_format

_Message = TypeVar("_Message", bound=message.Message)


class ConfigError(ValueError):
    """A file that can't be used; the message names it, the line and what is wrong."""


def read(path: str, message_class: type[_Message]) -> _Message:
    """Reads a text proto.

    Raises:
      ConfigError: it can't be read, or isn't one.
    """
    try:
        return parse(path, pathlib.Path(path).read_text(), message_class)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text file") from None


def parse(path: str, text: str, message_class: type[_Message]) -> _Message:
    """A text proto's message; `path` is where the text came from, for the error."""
    name = message_class.DESCRIPTOR.full_name
    try:
        return text_format.Parse(text, message_class())
    except text_format.ParseError as error:
        # Its own text starts with "line:column : ".
        raise ConfigError(f"{path}:{str(error)} (a text proto of {name})") from None
