"""What importing the client costs, beside the stock stubs that bring TensorFlow.

    python -m benchmarks.client

CPU seconds and resident memory of a fresh process that imports it: the median of five.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

RUNS = 5
IMPORTS = {
    "serving.client": "import serving.client",
    "tensorflow-serving-api's stubs": (
        "from tensorflow_serving.apis import prediction_service_pb2_grpc\nimport tensorflow"
    ),
    "numpy, protobuf and grpcio alone": (
        "import grpc.aio, numpy, google.protobuf.descriptor_pool as _"
    ),
}
_MEASURED = """
import json, resource, time
{imports}
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.process_time(), used.ru_maxrss / 1024]))
"""


def measure(imports: str) -> tuple[float, float]:
    """CPU seconds and MiB of a process that does no more than this."""
    code = _MEASURED.format(imports=imports)
    runs = []
    for _ in range(RUNS):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    seconds, mebibytes = zip(*runs, strict=True)
    return statistics.median(seconds), statistics.median(mebibytes)


def main() -> None:
    print(f"{'import':<36}{'CPU s':>8}{'MiB':>8}")
    for name, imports in IMPORTS.items():
        seconds, mebibytes = measure(imports)
        print(f"{name:<36}{seconds:>8.2f}{mebibytes:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
