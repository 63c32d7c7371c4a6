import http.server
import pathlib
import shutil
import subprocess
import threading

import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.client import PredictClient
from serving.server import serve

SERVING = pathlib.Path(__file__).parent.parent / "serving"


@pytest.fixture
def service():
    return yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["model-server"]


def test_the_stock_configuration_is_taken_by_the_embedded_server(tmp_path):
    text = (SERVING / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    assert [entry.name for entry in config.model_config_list.config] == ["sentiment"]
    module = tf.Module()
    module.same = tf.function(lambda text: {"same": text}, [tf.TensorSpec([None], tf.string, name="text")])
    tf.saved_model.save(module, str(tmp_path / "sentiment" / "1"), {"serving_default": module.same})
    path = tmp_path / "models.config"
    path.write_text(text.replace("/models/", f"{tmp_path}/"))
    with (
        serve(model_config_file=path, port=0) as server,
        PredictClient(server.address, "sentiment") as client,
    ):
        assert client.predict(["a"]) == [{"same": "a"}]


def test_the_container_gets_the_files_its_command_names(service):
    mounts = dict(mount.removesuffix(":ro").split(":") for mount in service["volumes"])
    assert all(mount.endswith(":ro") for mount in service["volumes"])
    assert mounts == {"../exported": "/models", "./models.config": "/etc/models.config"}
    assert "--model_config_file=/etc/models.config" in service["command"]
    assert (SERVING / "models.config").exists()


def test_the_ports_are_the_commands_and_stay_on_this_machine(service):
    ports = [flag.split("=")[1] for flag in service["command"] if "port=" in flag]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]


def test_the_image_is_of_a_version_that_has_the_tokenizers_ops(service):
    name, version = service["image"].split(":")
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
