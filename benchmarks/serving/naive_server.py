"""What one writes in an afternoon: TensorFlow in Python, gRPC's threads, `tf.make_ndarray`.

    python -m benchmarks.serving.naive_server MODEL_DIR

Prints the port once it answers.
"""

import os
import sys
from concurrent import futures

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import grpc  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402


class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, path: str):
        self._model = tf.saved_model.load(path)
        self._signature = self._model.signatures["serving_default"]

    def Predict(self, request, context):
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        response = predict_pb2.PredictResponse()
        for name, value in self._signature(**inputs).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response


def main(path: str) -> None:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(64), options=unlimited)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(path), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
