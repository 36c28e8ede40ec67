"""Plain HTTP requests, as a client of the REST API makes them."""

import json
import ssl
import urllib.error
import urllib.request
from typing import Any, NamedTuple


class Answer(NamedTuple):
    code: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error's body, which holds nothing else."""
        (key,) = self.json
        assert key == "error"
        return self.json[key]


def ask(
    url: str,
    body: Any = None,
    *,
    verb: str = "",
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """GET, or POST where there is a body: bytes as they are, anything else as JSON."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    verb = verb or ("GET" if body is None else "POST")
    request = urllib.request.Request(url, body, headers or {}, method=verb)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as response:
            return Answer(response.status, response.read(), dict(response.headers))
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(), dict(error.headers))
