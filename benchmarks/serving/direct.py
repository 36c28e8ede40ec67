"""The reference: the signature called in process, one call after the other.

    python -m benchmarks.serving.direct MODEL_DIR

A line of JSON in, `{"requests": FILE, "seconds": S}` with pickled lists of serialized examples;
a line of JSON out, `{"calls": …, "cpu": …, "wall": …}` (seconds of all calls).
"""

import json
import os
import pickle
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf  # noqa: E402


def main(path: str) -> None:
    model = tf.saved_model.load(path)
    signature = model.signatures["serving_default"]

    def call(examples: list[bytes]) -> None:
        for value in signature(examples=tf.constant(examples)).values():
            value.numpy()

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with open(asked["requests"], "rb") as file:
            requests = pickle.load(file)
        for examples in requests[:3]:
            call(examples)
        calls, wall, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < asked["seconds"]:
            call(requests[calls % len(requests)])
            calls += 1
        answer = {"calls": calls, "cpu": time.process_time() - cpu}
        print(json.dumps(answer | {"wall": time.perf_counter() - wall}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
