"""The client: numpy, protobuf and grpcio, no TensorFlow.

from serving.client import Client, example

client = Client("localhost:8500")
request = example({"user_id": "42", "sequence_item": [3, 1, 4], "candidate_item": [1, 5]})
client.predict("my_model", {"examples": [request]})
"""

from serving.client.client import Client, Signature, VersionStatus
from serving.client.example import ExampleError, example
from serving.errors import ServingError

__all__ = ["Client", "ExampleError", "ServingError", "Signature", "VersionStatus", "example"]
