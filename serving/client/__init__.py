"""The client: numpy, protobuf and grpcio, no TensorFlow.

from serving.client import Client

client = Client("localhost:8500")
user = {"user_id": "42", "sequence_item": [3, 1, 4], "candidate_item": [1, 5]}
client.score("my_model", user)  # {"click": [0.12, 0.34]}

`AsyncClient` is the same for asyncio; `KnowledgeClient` asks the knowledge centre. `predict` runs
any signature of any model; `example` writes the `tf.Example` it may take.
"""

from serving.client.async_client import AsyncClient
from serving.client.client import Client
from serving.client.example import ExampleError, example
from serving.client.exchange import Retries
from serving.client.flows import VersionStatus
from serving.client.knowledge import KnowledgeAnswer, KnowledgeClient
from serving.client.signatures import Signature
from serving.client.tls import Tls
from serving.errors import ServingError

__all__ = [
    "AsyncClient",
    "Client",
    "ExampleError",
    "KnowledgeAnswer",
    "KnowledgeClient",
    "Retries",
    "ServingError",
    "Signature",
    "Tls",
    "VersionStatus",
    "example",
]
