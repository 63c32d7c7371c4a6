"""The embedded model server: TensorFlow Serving's gRPC API from Python, for a laptop, a test, CI.

    python -m serving.server --model_name=sentiment --model_base_path=exported/sentiment --port=8500

Flags are named as `tensorflow_model_server` names them. Where that program is installed, `stock_command`
says how it is started for the same models.
"""

import logging
import os
import shlex
import shutil
import signal
import sys

from serving import config

DRAIN_S = 60.0  # seconds that requests under way have to finish once asked to stop


def stock_command(port, model_name=None, model_base_path=None, model_config_file=None):
    """The command line of the stock server for the same arguments, or None where it is not installed.

    The stock server listens on every address of the machine; it has no flag for one.
    """
    program = shutil.which("tensorflow_model_server")
    if program is None:
        return None
    if model_config_file:
        return [program, f"--port={port}", f"--model_config_file={os.path.abspath(model_config_file)}"]
    return [
        program,
        f"--port={port}",
        f"--model_name={model_name}",
        f"--model_base_path={os.path.abspath(model_base_path)}",
    ]


def serve(model_name=None, model_base_path=None, model_config_file=None, host="127.0.0.1", port=8500):
    """Start the embedded server and return it, answering: a `serving.service.ModelServer`.

    Its `address` and `port` say where (port 0 takes a free one); `stop()`, or leaving it as a context
    manager, ends it. Raises `serving.config.StartError`, one line, where it cannot start.
    """
    if model_config_file:
        plans = config.plan(config.read_config(model_config_file))
    elif model_name and model_base_path:
        plans = config.plan(config.one_model(model_name, model_base_path))
    else:
        raise config.StartError("give --model_name and --model_base_path, or --model_config_file")
    # Below level 2 TensorFlow logs the messages of failed requests, which may quote them. It reads this
    # once, when it is first imported: hence the import here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from serving import service

    return service.ModelServer(host, port).start(plans)


def wait(server):
    """Say that `server` answers, wait for SIGTERM or SIGINT, finish what is under way, and stop it.

    A second SIGINT ends the process at once; a second SIGTERM does not, as supervisors send it to a process
    and to its group. For the main thread only.
    """
    # A pipe, as the system may hand the signal to a thread of the runtime, which does not wake this one.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    print(f"embedded server: {server.store} on {server.address} (gRPC)", flush=True)
    while os.read(told, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
        pass
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("embedded server: stopping, requests under way are finished", flush=True)
    server.stop(DRAIN_S)


def main(**arguments):
    """`serve` with these arguments until told to stop; the exit status, 2 where it cannot start."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what is wrong is said below, in one line
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        server = serve(**arguments)
    except config.StartError as error:
        print(f"embedded server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    wait(server)
    return 0


def run(model_base_path, model_name, host, port):
    """Serve a model until told to stop, by the stock server where it is installed; ends the process.

    Says which of the two it is.
    """
    command = stock_command(port, model_name, model_base_path)
    if command is None:
        sys.exit(main(model_name=model_name, model_base_path=model_base_path, host=host, port=port))
    print(f"stock server, on every address of this machine: {shlex.join(command)}", flush=True)
    os.execv(command[0], command)


if __name__ == "__main__":
    from absl import app, flags

    flags.DEFINE_integer("port", 8500, "gRPC port; 0 takes a free one", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 for every one of the machine")
    flags.DEFINE_string("model_name", None, "name that clients ask for")
    flags.DEFINE_string("model_base_path", None, "folder of the model's version folders")
    flags.DEFINE_string("model_config_file", None, "ModelServerConfig as text, in place of the two above")
    NAMES = ("port", "host", "model_name", "model_base_path", "model_config_file")
    app.run(lambda _: sys.exit(main(**{name: flags.FLAGS[name].value for name in NAMES})))
