"""`run.py launch`, with small scripts in place of workers that train."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import fresh_flags

import run
from keras_bert_app.errors import UserError
from keras_bert_app.training import launch

# ml_collections' own, when it loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
ROOT = Path(run.__file__).parent
SENTIMENT = "--config=configs/sentiment.py"
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from keras_bert_app.training import heartbeat

folder = Path(__file__).parent
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
with open(folder / f"starts-{index}", "a") as file:
    print(json.dumps([os.getpid(), os.environ["TF_CONFIG"]]), file=file)
attempt = len((folder / f"starts-{index}").read_text().splitlines())
launcher = os.getppid()

def on_sigterm(code):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if code is None else lambda *_: sys.exit(code))

def say_ready():
    (folder / f"ready-{index}-{attempt}").touch()

def wait_until_ready(*indices):
    while not all((folder / f"ready-{other}-{attempt}").exists() for other in indices):
        time.sleep(0.01)

def wait():
    # Not for ever, should a test fail.
    time.sleep(120)
    sys.exit("nobody ended this worker")

"""
# Worker 1 does something as soon as worker 0 waits, to see the signal that it is sent in `code`.
WAITING = "on_sigterm({code})\nsay_ready()\nif index == 0: wait()\nwait_until_ready(0)\n"


@pytest.fixture(autouse=True)
def workers_import_this_project_and_are_watched_closely(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)


@pytest.fixture
def launched(tmp_path):
    """Source of a worker -> exit code of launching two."""

    def call(source, hang_seconds=60, restarts=3):
        (tmp_path / "worker.py").write_text(WORKER + source)
        command = [sys.executable, str(tmp_path / "worker.py")]
        return launch.run(command, 2, hang_seconds, restarts, tmp_path / "checkpoints")

    return call


@pytest.fixture
def little_grace(monkeypatch):
    """Workers that don't react are killed soon."""
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.1)


def starts(folder, index):
    """Process id and TF_CONFIG of each start of a worker."""
    path = folder / f"starts-{index}"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(process, json.loads(config)) for process, config in lines]


def counts(folder):
    """How often each worker was started; checks that none of them is left."""
    for index in (0, 1):
        for process, _ in starts(folder, index):
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)
    return [len(starts(folder, index)) for index in (0, 1)]


def test_workers_that_finish_make_launch_finish(launched, tmp_path, capfd):
    assert launched("") == 0
    assert counts(tmp_path) == [1, 1]
    assert capfd.readouterr() == ("", "")


def test_what_worker_0_writes_passes_untouched_and_lines_of_others_carry_their_number(launched, capfd):
    source = (
        "say_ready()\nif index: wait_until_ready(0)\n"
        "os.write(1, b'out %d\\r' % index)\nos.write(2, b'err %d' % index)\n"
        "if index: os.write(1, b'\\r\\nsecond line\\nlast, unfinished')\n"
        "else: wait_until_ready(1)\n"
    )
    assert launched(source) == 0
    out, err = capfd.readouterr()
    assert out == "out 0\r"
    assert err.replace("err 0", "") == (
        "[worker 1] out 1\rerr 1\n[worker 1] second line\n[worker 1] last, unfinished\n"
    )


def test_each_worker_knows_all_addresses_and_its_place_and_can_listen_there(launched, tmp_path):
    source = (
        "import socket\n"
        "address = json.loads(os.environ['TF_CONFIG'])['cluster']['worker'][index].split(':')\n"
        "socket.create_server((address[0], int(address[1]))).close()\n"
        "say_ready()\nwait_until_ready(0, 1)\nif attempt == 1: sys.exit(1)\n"
    )
    assert launched(source) == 0
    for number in (0, 1):
        configs = [starts(tmp_path, index)[number][1] for index in (0, 1)]
        assert [config["task"] for config in configs] == [
            {"type": "worker", "index": index} for index in (0, 1)
        ]
        assert configs[0]["cluster"] == configs[1]["cluster"]
        addresses = configs[0]["cluster"]["worker"]
        assert len(set(addresses)) == 2
        assert {address.rsplit(":", 1)[0] for address in addresses} == {"127.0.0.1"}


def test_a_worker_has_a_session_of_its_own_and_no_input(launched):
    assert launched("sys.exit(0 if os.getsid(0) == os.getpid() and not sys.stdin.read() else 3)") == 0


@pytest.mark.parametrize("mistaken", [0, 1])
def test_a_users_mistake_ends_all_for_good(launched, little_grace, tmp_path, capfd, mistaken):
    source = (
        f"on_sigterm(None)\nsay_ready()\nwait_until_ready(0, 1)\nif index == {mistaken}: sys.exit(2)\nwait()"
    )
    assert launched(source) == 2
    assert counts(tmp_path) == [1, 1]
    assert capfd.readouterr().err == ""


def test_a_mistake_is_found_behind_the_failure_that_it_brings_about(launched, tmp_path):
    source = (
        "on_sigterm(2)\nsay_ready()\nwait_until_ready(0, 1)\n"
        "if index: sys.exit('the other is gone')\nwait()\n"
    )
    assert launched(source) == 2
    assert counts(tmp_path) == [1, 1]


@pytest.mark.parametrize("reaction", [0, 75, 143, None])
def test_one_that_is_killed_makes_all_start_again(launched, little_grace, tmp_path, capfd, reaction):
    source = (
        "if attempt == 2: sys.exit()\n"
        + WAITING.format(code=reaction)
        + "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert launched(source) == 0
    assert counts(tmp_path) == [2, 2]
    assert capfd.readouterr().err == (
        "launch: worker 1 was ended by signal 9 (Killed); "
        "all start again from the last checkpoint, restart 1 of 3\n"
    )


@pytest.mark.parametrize("reaction", [75, None])
@pytest.mark.parametrize("hang", ["wait()", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_one_that_hangs_makes_all_start_again(launched, little_grace, tmp_path, capfd, hang, reaction):
    source = (
        f"if attempt == 2: sys.exit()\non_sigterm({reaction})\nheartbeat.beat()\nif index: {hang}\n"
        "while True:\n    heartbeat.beat()\n    time.sleep(0.05)\n"
    )
    assert launched(source, hang_seconds=2) == 0
    assert counts(tmp_path) == [2, 2]
    said = capfd.readouterr().err
    assert "worker 1 gave no sign of life for 2 s; all start again" in said


def test_a_worker_has_longer_until_its_first_beat(launched, tmp_path):
    assert launched("time.sleep(0.5)\n", hang_seconds=0.1) == 0
    assert counts(tmp_path) == [1, 1]


def test_a_worker_that_never_beats_hangs(launched, little_grace, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(launch, "START_SECONDS", 0.5)
    assert launched("wait()", hang_seconds=0.1, restarts=0) == 1
    said = capfd.readouterr().err
    assert "gave no sign of life for 0.5 s; giving up after 0 restarts without a new checkpoint\n" in said


def test_launch_gives_up_after_so_many_restarts_without_a_new_checkpoint(launched, tmp_path, capfd):
    assert launched(WAITING.format(code=75) + "sys.exit(7)\n", restarts=2) == 1
    assert counts(tmp_path) == [3, 3]
    assert capfd.readouterr().err.splitlines() == [
        "launch: worker 1 ended with exit code 7; all start again from the last checkpoint, restart 1 of 2",
        "launch: worker 1 ended with exit code 7; all start again from the last checkpoint, restart 2 of 2",
        "launch: worker 1 ended with exit code 7; giving up after 2 restarts without a new checkpoint",
    ]


def test_a_new_checkpoint_brings_the_restarts_back(launched, tmp_path):
    source = (
        "if attempt == 9: sys.exit()\n"
        + WAITING.format(code=75)
        + "if attempt < 4: (folder / 'checkpoints' / f'step-0000000{attempt}').mkdir(parents=True)\n"
        + "(folder / 'checkpoints' / f'.step-0000000{attempt}.tmp').touch()\nsys.exit(7)\n"
    )
    assert launched(source, restarts=1) == 1
    assert counts(tmp_path) == [4, 4]


@pytest.mark.parametrize(
    ("number", "reactions", "code"),
    [
        (signal.SIGTERM, (75, 75), 75),
        (signal.SIGINT, (75, 75), 130),
        (signal.SIGTERM, (0, 0), 0),
        (signal.SIGTERM, (0, 75), 75),
        (signal.SIGTERM, (143, 143), 143),
        (signal.SIGTERM, (75, 1), 143),
        (signal.SIGINT, (75, 143), 130),
        (signal.SIGTERM, (75, 2), 2),
    ],
)
def test_signals_are_passed_on_and_the_answers_make_the_exit_code(
    launched, tmp_path, capfd, number, reactions, code
):
    source = (
        f"on_sigterm({reactions}[index])\nsay_ready()\nwait_until_ready(0, 1)\n"
        f"if index == 0: os.kill(launcher, {number:d})\nwait()\n"
    )
    assert launched(source) == code
    assert counts(tmp_path) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("launch: asking the workers to save and stop; a second signal kills them\n") == 1
    assert said.count("not started again") == (1 if code in (130, 143) and reactions != (75, 75) else 0)


def test_one_that_is_still_saving_may_go_on_after_another_failed(launched, little_grace, tmp_path):
    source = (
        "def save(*_):\n    time.sleep(1)\n    (folder / 'saved').touch()\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save if index == 0 else lambda *_: sys.exit(1))\n"
        "say_ready()\nwait_until_ready(0, 1)\n"
        "if index == 0: os.kill(launcher, signal.SIGTERM)\nwait()\n"
    )
    assert launched(source) == 143
    assert (tmp_path / "saved").exists()


def test_a_second_signal_kills_and_one_right_after_the_first_does_not(launched, tmp_path):
    source = (
        "on_sigterm(None)\nsay_ready()\nwait_until_ready(0, 1)\nif index: wait()\n"
        "first = time.monotonic()\n"
        "while True:\n    (folder / 'last').write_text(str(time.monotonic() - first))\n"
        "    os.kill(launcher, signal.SIGTERM)\n    time.sleep(0.1)\n"
    )
    assert launched(source) == 143
    assert counts(tmp_path) == [1, 1]
    assert float((tmp_path / "last").read_text()) > 0.5


def test_a_worker_that_others_interrupt_ends_all_for_good(launched, tmp_path, capfd):
    assert launched(WAITING.format(code=75) + "sys.exit(143)\n") == 143
    assert counts(tmp_path) == [1, 1]
    assert capfd.readouterr().err == "launch: worker 1 ended with exit code 143; not started again\n"


def test_workers_that_others_told_to_stop_make_launch_stop(launched, tmp_path):
    assert launched("sys.exit(75)\n") == 75
    assert counts(tmp_path) == [1, 1]


def test_handlers_of_signals_are_put_back(launched):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert launched("") == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_workers_end_when_launch_is_killed(tmp_path):
    (tmp_path / "worker.py").write_text(
        WORKER + "heartbeat.beat()\nsay_ready()\ntry:\n"
        "    while True:\n        heartbeat.beat()\n        time.sleep(0.05)\n"
        "finally:\n    (folder / f'ended-{index}').touch()\n"
    )
    program = (
        "import sys; from pathlib import Path; from keras_bert_app.training import launch; "
        "launch.run([sys.executable, 'worker.py'], 2, 60, 3, Path('checkpoints'))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL)
    for name in ("ready-0-1", "ready-1-1", "ended-0", "ended-1"):
        give_up = time.monotonic() + 60
        while not (tmp_path / name).exists():
            assert time.monotonic() < give_up, name
            time.sleep(0.05)
        if name == "ready-1-1":
            launcher.kill()
            launcher.wait()


@pytest.fixture
def command_of(monkeypatch):
    """Arguments after `launch` -> what launch.run is called with."""

    def call(*arguments):
        seen = []
        fresh_flags(monkeypatch)
        monkeypatch.setattr(launch, "run", lambda *given: seen.append(given) or 75)
        monkeypatch.chdir(ROOT)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the config file before
        with pytest.raises(SystemExit) as end:
            run.main(["launch", *arguments])
        assert end.value.code == 75
        return seen[0]

    return call


def test_a_worker_runs_the_verb_with_its_flags_and_the_strategy_of_several(command_of):
    verb = ("finetune", SENTIMENT, "--workdir", "w", "--config.train.epochs=4")
    command, *rest = command_of("--num_workers", "3", "--restarts=0", *verb)
    assert command == [sys.executable, run.__file__, *verb, "--config.train.strategy=multi_worker"]
    assert rest == [3, 300, 0, Path("w/checkpoints")]
    assert command_of("pretrain", SENTIMENT, "--workdir=v")[1:] == (2, 300, 3, Path("v/checkpoints"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "launch runs pretrain or finetune, not nothing; such as: run.py launch --num_workers=2 pretrain",
        ),
        (["--num_workers=2"], "launch runs pretrain or finetune, not nothing; such as: run.py launch"),
        (["predict", "--workdir=w"], "launch runs pretrain or finetune, not predict; such as: run.py launch"),
        (["--num_workers=0", "pretrain"], "flag --num_workers=0: 0 is not a positive integer"),
        (["--hang_seconds=0", "pretrain"], "flag --hang_seconds=0: 0 is not a positive integer"),
        (["--restarts=-1", "pretrain"], "flag --restarts=-1: -1 is not a non-negative integer"),
        ([SENTIMENT, "pretrain"], "--config is no flag of launch; write those of the verb after it"),
        (["--workdir=w", "pretrain"], "--workdir is no flag of launch; write those of the verb after it"),
        (["--config.init=None", "pretrain"], "--config.init is no flag of launch; write those of the verb"),
        (
            ["finetune", SENTIMENT, "--num_workers=2"],
            "--num_workers=2 is a flag of launch; write it before finetune",
        ),
        (["finetune", SENTIMENT], "finetune needs --workdir; see run.py finetune --help"),
        (["finetune", SENTIMENT, "--workdir"], "Missing value for flag --workdir"),
        (["finetune", SENTIMENT, "--workdir=w", "w2"], "finetune takes no 'w2'"),
        (["finetune", SENTIMENT, "--workdir=w", "--config.train.epochs=0"], "config.train.epochs is 0"),
    ],
)
def test_a_mistake_is_refused_in_one_line_before_a_worker_starts(command_of, arguments, message):
    with pytest.raises(UserError) as error:
        command_of(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_launcher_itself_brings_no_heavy_library():
    program = (
        "import sys, run; from keras_bert_app.training import launch; launch.run = lambda *_: 0\n"
        f"try: run.main(['launch', 'finetune', '{SENTIMENT}', '--workdir=w'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, check=True)
