import concurrent.futures
import http.server
import importlib.resources
import json
import pathlib
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import grpc
import jsonschema
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.client import PredictClient
from serving.server import serve

SERVING = pathlib.Path(__file__).parent.parent / "serving"
KNOWN = pathlib.Path(__file__).parent / "serving_deployment"


def message(name, text):
    """A configuration message of the stock server, parsed as the server does."""
    described = (KNOWN / "messages.textproto").read_text()
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(text_format.Parse(described, descriptor_pb2.FileDescriptorProto()))
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))
    return text_format.Parse(text, kind())


def flags(command):
    """{flag: value} of a server's command line; a flag twice is an error."""
    pairs = [part.removeprefix("--").split("=", 1) for part in command]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


@pytest.fixture
def service():
    return yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["model-server"]


def test_the_compose_file_fits_the_compose_specification():
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    compose = yaml.safe_load((SERVING / "compose.yaml").read_text())
    jsonschema.validate(compose, schema)
    compose["services"]["model-server"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate(compose, schema)


def test_every_flag_is_one_that_the_stock_server_has():
    known = {line for line in (KNOWN / "flags.txt").read_text().splitlines() if line[0] != "#"}
    found = {
        str(path.relative_to(SERVING)): set(re.findall(r"(?:- |value: )--(\w+)=", path.read_text()))
        for path in SERVING.rglob("*.yaml")
    }
    assert {file for file, names in found.items() if names} == {
        "compose.yaml",
        "kserve/serving_runtime.yaml",
        "kubernetes/base/deployment.yaml",
        "kubernetes/tls/deployment.yaml",
    }
    assert {file: names - known for file, names in found.items() if names - known} == {}


@pytest.mark.parametrize("folder", [".", "kubernetes/base"])
def test_a_stock_configuration_is_taken_by_the_embedded_server(folder, tmp_path):
    text = (SERVING / folder / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert model.name == "sentiment"
    # Requests would be written to a log.
    assert not model.HasField("logging_config")
    module = tf.Module()
    module.same = tf.function(lambda text: {"same": text}, [tf.TensorSpec([None], tf.string, name="text")])
    tf.saved_model.save(module, str(tmp_path / "sentiment" / "1"), {"serving_default": module.same})
    path = tmp_path / "models.config"
    path.write_text(text.replace("/models/", f"{tmp_path}/"))
    deployment = yaml.safe_load((SERVING / "kubernetes" / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    with (
        serve(model_config_file=path, port=0, rest_api_port=0) as server,
        PredictClient(server.address, "sentiment") as client,
    ):
        for label in model.version_labels or [None]:
            assert client.predict(["a"], label=label) == [{"same": "a"}]
        if model.version_labels:
            probe = f"http://127.0.0.1:{server.rest_port}{container['readinessProbe']['httpGet']['path']}"
            with urllib.request.urlopen(probe, timeout=60) as answer:
                assert answer.status == 200
            with pytest.raises(urllib.error.HTTPError, match="Bad Request") as refused:
                urllib.request.urlopen(probe.replace("stable", "nightly"), timeout=60)
            refused.value.close()


def test_the_labels_are_of_versions_that_are_served():
    text = (SERVING / "kubernetes" / "base" / "models.config").read_text()
    (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert set(model.version_labels) == {"stable", "canary"}
    assert set(model.version_labels.values()) <= set(model.model_version_policy.specific.versions)


def test_the_thread_pool_and_monitoring_files_are_messages_of_the_stock_server():
    base = SERVING / "kubernetes" / "base"
    batching = message("BatchingParameters", (base / "batching.config").read_text())
    # The server takes nothing else from the file where models bring parameters of their own.
    assert {field.name for field, _ in batching.ListFields()} == {"num_batch_threads", "thread_pool_name"}
    monitoring = message("MonitoringConfig", (base / "monitoring.config").read_text())
    assert monitoring.prometheus_config.enable
    with pytest.raises(text_format.ParseError, match="num_threads"):
        message("BatchingParameters", "num_threads { value: 2 }")


def test_the_container_gets_the_files_its_command_names(service):
    mounts = dict(mount.removesuffix(":ro").split(":") for mount in service["volumes"])
    assert all(mount.endswith(":ro") for mount in service["volumes"])
    named = {value for name, value in flags(service["command"]).items() if name.endswith("_file")}
    assert named == set(mounts.values()) - {"/models"}
    assert mounts.pop("../exported") == "/models"
    assert all((SERVING / path).exists() for path in mounts)


def test_the_ports_are_the_commands_and_stay_on_this_machine(service):
    ports = [flags(service["command"])[name] for name in ("port", "rest_api_port")]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]


def test_the_container_has_no_privilege(service):
    assert service["read_only"] and service["user"].split(":")[0] != "0"
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]


def test_the_images_are_of_one_version_that_has_the_tokenizers_ops():
    text = "".join(path.read_text() for path in SERVING.rglob("*.yaml"))
    images = {line.split("image: ")[1] for line in text.splitlines() if " image: " in line}
    assert len(images) == 1
    name, version = images.pop().split(":")
    assert name == "tensorflow/serving"
    assert tuple(map(int, version.split("."))) >= (2, 20, 0)


@pytest.mark.parametrize("state, healthy", [("AVAILABLE", True), ("LOADING", False)])
def test_the_health_check_waits_for_the_model(service, state, healthy):
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"model_version_status": [{"version": "1", "state": "%s"}]}' % state.encode())

        def log_message(self, *arguments):
            pass

    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD" and shutil.which(command[0])
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        command[-1] = command[-1].replace("8501", str(server.server_port))
        assert (subprocess.run(command, timeout=60).returncode == 0) == healthy
    assert paths == ["/v1/models/sentiment"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder of make_certificates.sh's."""
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run([SERVING / "tls" / "make_certificates.sh", folder, "model-server"], check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def tls_address(certificates):
    """The address of a server that uses ssl.config as the stock one does (model_servers/server.cc)."""
    config = message("SSLConfig", (certificates / "ssl.config").read_text())
    credentials = grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode(),
        require_client_auth=config.client_verify,
    )
    handler = grpc.method_handlers_generic_handler(
        "echo", {"Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
    )
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, [handler])
        port = server.add_secure_port("localhost:0", credentials)
        server.start()
        yield f"localhost:{port}"
        server.stop(None).wait()


def echo(address, name, certificates, caller):
    """What a caller gets who takes the server for `name` and, if named itself, shows a certificate."""
    authority = (certificates / "authority.crt").read_bytes()
    pair = [(certificates / f"{caller}.{part}").read_bytes() for part in ("key", "crt")] if caller else []
    options = [("grpc.ssl_target_name_override", name)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, *pair), options) as channel:
        return channel.unary_unary("/echo/Echo")(b"a", timeout=30)


@pytest.mark.parametrize("name", ["localhost", "model-server"])
def test_a_caller_with_a_certificate_gets_through(name, certificates, tls_address):
    assert echo(tls_address, name, certificates, "client") == b"a"


@pytest.mark.parametrize("name, caller", [("localhost", None), ("elsewhere", "client")])
def test_a_caller_without_a_certificate_or_a_server_of_another_name_is_refused(
    name, caller, certificates, tls_address
):
    with pytest.raises(grpc.RpcError) as error:
        echo(tls_address, name, certificates, caller)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_keys_are_for_their_owners_eyes_alone(certificates):
    assert {path.stat().st_mode & 0o077 for path in certificates.iterdir()} == {0}
