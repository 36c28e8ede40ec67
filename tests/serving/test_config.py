"""Configuration files and flags, as a user who gets them wrong meets them."""

import grpc
import pytest
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from serving import protos
from serving.client import Client, ServingError
from serving.local import local_server
from serving.rpc import config_file
from tests.serving.process import run_server, wait_until


def model_config(name: str, path, more: str = "") -> str:
    return f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}\n'


def models_config(*entries: str) -> str:
    return f"model_config_list {{\n{''.join(entries)}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model_config_list {\n config { nam: "a" }\n}', ':2:11 : Message type "tensorflow.serv'),
        ("model_config_list {", ':1:19 : Expected "}"'),
    ],
)
def test_a_file_with_a_mistake_names_the_line(tmp_path, text, message):
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(config_file.ConfigError) as caught:
        config_file.read(str(path), protos.ModelServerConfig)
    assert str(caught.value).startswith(f"{path}{message}")
    assert str(caught.value).endswith("(a text proto of tensorflow.serving.ModelServerConfig)")


def test_files_that_cant_be_read(tmp_path):
    with pytest.raises(config_file.ConfigError, match="no.config: No such file"):
        config_file.read(str(tmp_path / "no.config"), protos.ModelServerConfig)
    (tmp_path / "binary").write_bytes(b"\xff\xff")
    with pytest.raises(config_file.ConfigError, match="binary: is no text file"):
        config_file.read(str(tmp_path / "binary"), protos.ModelServerConfig)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of --model_base_path and --model_config_file is required"),
        (["--model_config_file=/no"], "/no: No such file or directory"),
        (["--model_config_file=/no", "--model_base_path=/m"], "leave out --model_base_path"),
        (["--model_base_pth=/m"], "Unknown command line flag 'model_base_pth'. Did you mean"),
        (["--rest_api_port=http"], "flag --rest_api_port=http: "),
        (["/m"], "only flags (--name=value), not '/m'"),
        (["--prefer_tflite_model"], "--prefer_tflite_model isn't supported: this server runs Sav"),
        (["--saved_model_tags", "gpu,serve"], "--saved_model_tags isn't supported: only the meta"),
        (["--per_process_gpu_memory_fraction=0.5"], "this server runs on CPUs only"),
        (
            [  # as TF Serving has them, and so this server
                "--enable_profiler=false",
                "--flush_filesystem_caches=true",
                "--nouse_tflite_model",
                "--num_request_iterations_for_warmup=1",
                "--num_tflite_pools=8",
                "--per_process_gpu_memory_fraction=0",
                "--platform_config_file=",
                "--saved_model_tags=serve",
            ],
            "one of --model_base_path and --model_config_file is required",
        ),
    ],
)
def test_flags_that_cant_be_honoured_are_one_clear_error(flags, message):
    done = run_server("--port=0", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_and_flags_that_dont_fit_are_one_clear_error(tmp_path):
    def refuse(message: str, *flags: str, **files: str) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        done = run_server("--port=0", f"--model_base_path={tmp_path}", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr

    refuse(
        "allowed_batch_sizes",
        f"--batching_parameters_file={tmp_path}/batching",
        batching="allowed_batch_sizes: 4 allowed_batch_sizes: 2",
    )
    refuse(
        "needs --rest_api_port",
        f"--monitoring_config_file={tmp_path}/monitoring",
        monitoring="prometheus_config { enable: true }",
    )
    refuse(
        f"{tmp_path}/ssl: server_key: PEM text expected, not a path; put the file's text here",
        f"--ssl_config_file={tmp_path}/ssl",
        ssl='server_key: "/etc/key.pem" server_cert: "/etc/cert.pem"',
    )
    begin = "-----BEGIN PRIVATE KEY-----"
    refuse(
        f"{tmp_path}/ssl: server_cert is missing",
        f"--ssl_config_file={tmp_path}/ssl",
        ssl=f'server_key: "{begin}"',
    )
    refuse(
        f"{tmp_path}/ssl: server_key and server_cert: ",
        f"--ssl_config_file={tmp_path}/ssl",
        ssl=f'server_key: "{begin}" server_cert: "{begin}"',
    )


def test_help_lists_the_flags():
    done = run_server("--help")
    assert done.returncode == 0 and not done.stderr
    assert "--model_config_file:" in done.stdout and "--rest_api_port:" in done.stdout


def test_version():
    done = run_server("--version")
    assert done.returncode == 0 and done.stdout.startswith("serving.server on TensorFlow 2.")


def test_many_models_by_file_rpc_and_edited_file(push, tmp_path):
    for name in "abc":
        push(1.0, tmp_path / name, 1)
    push(2.0, tmp_path / "a", 2)
    every = "model_version_policy { all {} }"
    labels = 'version_labels { key: "stable" value: 1 }'
    path = tmp_path / "models.config"
    path.write_text(
        models_config(
            model_config("a", tmp_path / "a", every + labels), model_config("b", tmp_path / "b")
        )
    )
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 8 } allowed_batch_sizes: [4, 8]")
    flags = (
        f"--model_config_file={path}",
        f"--batching_parameters_file={batching}",
        "--model_config_file_poll_wait_seconds=0.1",
        "--num_load_threads=2",
    )
    with local_server(None, "b", flags=flags) as server, Client(server.target) as client:

        def is_served(name: str) -> bool:
            try:
                return client.status(name)[0].state == "AVAILABLE"
            except ServingError:
                return False

        wait_until(lambda: len(client.status("a")) == 2 and is_served("a"))
        reload = model_management_pb2.ReloadConfigRequest()
        for name in "ac":
            reload.config.model_config_list.config.add(
                name=name, base_path=str(tmp_path / name), model_platform="tensorflow"
            )
        with grpc.insecure_channel(server.target) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            assert stub.HandleReloadConfigRequest(reload).status.error_code == 0
            assert is_served("c")  # by the time of the answer
            wait_until(lambda: client.status("b")[0].state == "END")
            wait_until(lambda: [s.state for s in client.status("a")] == ["AVAILABLE", "END"])
            with pytest.raises(grpc.RpcError) as caught:
                stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        path.write_text("model_config_list {")
        wait_until(lambda: "--model_config_file isn't reloaded" in server.log())
        assert is_served("a") and is_served("c")
        path.write_text(models_config(model_config("b", tmp_path / "b")))
        wait_until(lambda: is_served("b") and not is_served("c"))
        assert server.log().count("--model_config_file isn't reloaded") == 1
