import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from conftest import fresh_flags, tiny_config, tiny_rows

import run
from keras_bert_app import verb_flags
from keras_bert_app.errors import UserError
from keras_bert_app.export import publishing
from keras_bert_app.text.vocabulary import Vocabulary

# ml_collections' own, when it loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
ROOT = Path(run.__file__).parent
SENTIMENT = "--config=configs/sentiment.py"


@pytest.fixture
def config_of(monkeypatch):
    """Arguments after `finetune` -> the config that it is called with."""

    def call(*arguments):
        seen = []
        fresh_flags(monkeypatch)
        monkeypatch.setitem(
            run.VERBS, "finetune", (lambda: seen.append(run.FLAGS.config), *run.VERBS["finetune"][1:])
        )
        monkeypatch.chdir(ROOT)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the config file before
        run.main(["finetune", "--workdir=w", *arguments])
        return run.configuration.freeze(seen[0])

    return call


def test_flags_change_the_config_that_the_file_gives(config_of):
    config = config_of(SENTIMENT, "--config.train.learning_rate=3e-4", "--config.data.group_column=film")
    assert (config.train.learning_rate, config.data.group_column) == (3e-4, "film")
    assert (config.init, config.data.train) == ("minilm-l6", "reviews")


def test_the_path_of_the_config_may_be_an_argument_of_its_own(config_of):
    config = config_of("--config", "configs/sentiment.py", "--config.train.epochs", "4")
    assert (config.train.epochs, config.data.train) == (4, "reviews")


def test_none_takes_a_value_back(config_of):
    config = config_of(
        SENTIMENT, "--config.init=None", "--config.train.patience=2", "--config.data.group_column=None"
    )
    assert (config.init, config.train.patience, config.data.group_column) == (None, 2, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SENTIMENT, "--config.train.lerning_rate=1"], "did you mean config.train.learning_rate?"),
        ([SENTIMENT, "--config.train.batch_size=abc"], "--config.train.batch_size=abc: "),
        ([SENTIMENT, "--config.train.batch_size=-1"], "config.train.batch_size is -1; it takes at least 1"),
        ([SENTIMENT, "--config.train.learning_rate=nan"], "config.train.learning_rate is nan"),
        ([SENTIMENT, "--config.train.precision=half"], "it takes one of float32, mixed_bfloat16, mixed_"),
        (
            [SENTIMENT, "--config.encoder.num_heads=5", "--config.encoder.hidden_dim=12"],
            "the nearest that does is 4",
        ),
        ([SENTIMENT, "--workdri=x"], "Did you mean: workdir"),
        ([SENTIMENT, "surplus"], "finetune takes no 'surplus'; flags are written --name=value"),
        (
            ["--config=configs/sentimnet.py"],
            "no such file; there is configs/classification.py, configs/pretrain_",
        ),
        (["--config.train.epochs=3"], "finetune needs --config=FILE before --config.KEY=VALUE"),
        ([], "finetune needs --config; see run.py finetune --help"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_line_that_says_what_to_write(config_of, arguments, message):
    with pytest.raises(UserError) as error:
        config_of(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "c.py has no get_config(); a config file is Python with a get_config() that returns "),
        ("def get_config(:\n", "c.py:1: invalid syntax"),
        (
            "import nothing_of_this_name\n",
            "c.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        ("def get_config():\n    raise ValueError('a\\nb')\n", "c.py:2: ValueError: a b"),
        ("def get_config():\n    return {}['k']\n", "c.py:2: KeyError: 'k'"),
        ("open('/no/such')\n", "c.py: [Errno 2] No such file or directory: '/no/such'"),
        ("def get_config():\n    return 3\n", "c.py: get_config() gives 3; a config file is Python with"),
        (
            "def get_config():\n    return {'trian': {}}\n",
            "unknown key config.trian; did you mean config.data.train?",
        ),
        (
            "from keras_bert_app.config import default\n"
            "def get_config():\n    c = default()\n    c.train.batch_size = 'x'\n    return c\n",
            "c.py:4: TypeError: ",
        ),
    ],
)
def test_a_config_file_that_cannot_be_used_is_refused_in_one_line(config_of, tmp_path, source, message):
    (tmp_path / "c.py").write_text(source)
    with pytest.raises(UserError) as error:
        config_of(f"--config={tmp_path / 'c.py'}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetuen"], "unknown verb 'finetuen'; did you mean finetune?"),
        (["predict", "--workdir=x"], "predict needs --input, --output; see run.py predict --help"),
        (["serve", "--export_dir=x", "--port=70000"], "--port=70000"),
        (["vocab", "--input=x", "--output=y", "--vocab_size=many"], "--vocab_size=many"),
        (["query", "--model=m"], "give the texts to ask about"),
        (["tokenize", "a text"], "tokenize needs --source; see run.py tokenize --help"),
        (
            ["tokenize", "--source=vocab.txt"],
            "give either texts, such as: run.py tokenize --source=vocab.txt",
        ),
        (
            ["tokenize", "--source=vocab.txt", "--input=x.txt", "a text"],
            "give either texts, such as: run.py ",
        ),
        (
            ["tokenize", "--source=no/such.txt", "a text"],
            "'no/such.txt': no such file or folder, nor a packaged name",
        ),
        (
            ["tokenize", "--source=minilm-l6", "--nolower_case", "a"],
            "--lower_case is for a vocab.txt; minilm-",
        ),
        (["tokenize", "--source=minilm-l6", "--compare=no/such", "a"], "no/such: no such folder"),
        (["tokenize", "--source=minilm-l6", "--input=no/such.txt"], "no/such.txt"),
    ],
)
def test_a_wrong_command_is_refused(monkeypatch, arguments, message):
    fresh_flags(monkeypatch)
    with pytest.raises(UserError) as error:
        run.main(arguments)
    assert message in str(error.value)


def tokenize(monkeypatch, capsys, *arguments):
    """What `run.py tokenize ARGUMENTS` prints, and its exit code."""
    fresh_flags(monkeypatch)
    code = 0
    try:
        run.main(["tokenize", *map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    return capsys.readouterr().out, code


@pytest.fixture
def bert_folder(tmp_path):
    """A tokenizer as transformers saves it, and vocab.txt."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "##s", "Good", "[", "mask", "]"]
    ids = {piece: number for number, piece in enumerate(pieces)}
    transformers.BertTokenizer(vocab=ids).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return tmp_path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_texts_on_which_a_hugging_face_tokenizer_differs_are_listed(monkeypatch, capsys, bert_folder, suffix):
    texts = ["goods Good", "good [MASK]"]
    lines = texts if suffix == ".txt" else [json.dumps({"text": text}) for text in texts]
    path = (bert_folder / "texts").with_suffix(suffix)
    path.write_text("\n".join(lines) + "\n")
    compared = (f"--source={bert_folder}", f"--compare={bert_folder}")
    said = "text 2: 'good [MASK]'\n  ours:   good [ mask ]\n  theirs: good [MASK]\n1 of 2 texts differ\n"
    assert tokenize(monkeypatch, capsys, *compared, f"--input={path}") == (said, 1)
    assert tokenize(monkeypatch, capsys, *compared, texts[0]) == ("0 of 1 texts differ\n", 0)


def test_options_are_for_a_vocabulary_alone(monkeypatch, capsys, bert_folder):
    compared = (f"--source={bert_folder / 'vocab.txt'}", f"--compare={bert_folder}", "Good")
    assert tokenize(monkeypatch, capsys, *compared) == ("0 of 1 texts differ\n", 0)
    said = "text 1: 'Good'\n  ours:   Good\n  theirs: good\n1 of 1 texts differ\n"
    assert tokenize(monkeypatch, capsys, *compared, "--nolower_case") == (said, 1)


def test_the_tokens_of_texts_are_shown_for_runs_too(monkeypatch, capsys, tiny_run, tmp_path):
    (tmp_path / "texts.txt").write_text("the film\nGood 中!\n", encoding="utf-8")
    ids = Vocabulary.load(tiny_run / "vocab.txt").ids
    expected = (
        "'the film'\n"
        "id  bytes  characters  piece\n"
        f"{ids['the']:2}    0:3         0:3  the\n"
        f"{ids['film']:2}    4:8         4:8  film\n"
        "\n'Good 中!'\n"
        "id  bytes  characters  piece\n"
        f"{ids['good']:2}    0:4         0:4  good\n"
        f"{ids['中']:2}    5:8         5:6  中\n"
        f"{ids['!']:2}    8:9         6:7  !\n"
    )
    shown = tokenize(monkeypatch, capsys, f"--source={tiny_run}", f"--input={tmp_path / 'texts.txt'}")
    assert shown == (expected, 0)
    assert tokenize(monkeypatch, capsys, f"--source={tiny_run}", "the film", "Good 中!") == shown


@pytest.mark.parametrize("verb", run.VERBS)
def test_the_help_of_a_verb_lists_its_flags(capsys, verb):
    run.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"run.py {verb}: ")
    assert all(f"--{name}" in shown for name, *_ in run.VERBS[verb][1])
    assert ("--config.train.learning_rate=5e-05" in shown) is (verb in ("prepare", "pretrain", "finetune"))


def test_the_help_lists_every_verb_and_brings_no_heavy_library():
    program = (
        "import sys, run; run.main(['--help']); run.main(['finetune', '--help']); "
        "assert not {'tensorflow', 'keras', 'numpy', 'grpc'} & set(sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert all(f"\n  {verb} " in shown.stdout for verb in run.VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["finetune", SENTIMENT, "--workdir=w", "--config.train.epochs=0"],
            "config.train.epochs is 0;",
        ),
        (
            ["finetune", SENTIMENT, "--workdir=w", "--config.data.train=no.csv"],
            "no.csv: no such file",
        ),
        (["finetune", "--config=configs/classification.py", "--workdir=w"], "config.data.train is not set"),
        (
            ["pretrain", "--config=configs/pretrain_cpu.py", "--workdir=w", "--config.init=no"],
            "'no': no such",
        ),
        (["prepare", "--config=configs/pretrain_cpu.py", "--input=no", "--output=x"], "no: no such file"),
        (["vocab", "--input=no", "--output=x"], "no: no such file"),
        (["tokenize", "--source=no", "a"], "'no': no such file or folder"),
        (["tokenize", "--source=README.md"], "give either texts"),
        (["evaluate", "--workdir=no"], "no is no run's folder"),
        (["predict", "--workdir=no", "--input=README.md", "--output=x"], "no is no run's folder"),
        (["predict", "--export_dir=no", "--input=README.md", "--output=x"], "no has no version folder"),
        (["import", "--source=no", "--output=x"], "'no': no such file or folder"),
        (["import", "--source=no", "--output=docs"], "docs is there already"),
        (
            ["publish", "--workdir=no", "--format=tar", "--output=x"],
            "--format is 'tar'; it takes one",
        ),
        (["inspect", "no"], "'no': no such file or folder"),
        (["export", "--workdir=no", "--export_dir=x"], "no is no run's folder"),
        (["export", "--workdir=no", "--export_dir=x", "--precision=int7"], "--precision is 'int7'"),
        (["verify", "--export_dir=no"], "no has no version folder"),
        (["serve", "--export_dir=no"], "no has no version folder"),
        (["query", "--model=m", "--input=no"], "no: "),
        (["loadtest", "--model=m", "--output=docs"], "docs is there already"),
        (["compare", "--a=x", "--b=y", "--model=m", "--input=no"], "'x' is no address"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_line_before_tensorflow_starts(tmp_path, arguments, message):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was started')\n")
    answer = subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ") and message in answer.stderr
    assert (answer.stderr.count("\n"), answer.stdout) == (1, "")


def test_tensorflow_comes_without_what_it_and_keras_can_do_without():
    program = (
        "import gc, sys\n"
        "from keras_bert_app import quiet_tensorflow, evaluation\n"
        "from keras_bert_app.export import bundle, verification\n"
        "heavy = {'sklearn', 'matplotlib', 'jax', 'torch', 'transformers', 'keras_hub', 'kagglehub'}\n"
        "heavy |= {'scipy.stats', 'scipy.optimize', 'scipy.spatial', 'scipy.cluster'}\n"
        "print(*heavy & set(sys.modules))\n"
        "print(gc.isenabled())\n"
        "import sklearn.metrics, matplotlib.figure\n"  # as reports take them
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert answer.stdout.splitlines() == ["", "True"]


@pytest.mark.parametrize("client", ["client", "rest_client"])
def test_the_clients_ask_without_tensorflow(client):
    program = (
        f"import sys, run, serving.query, serving.{client}, keras_bert_app.data.readers\n"
        "print(*{'tensorflow', 'keras', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert answer.stdout == "\n"


def test_the_formats_that_publish_takes_are_those_that_there_are():
    assert (*publishing.FORMATS, publishing.KERAS) == verb_flags.FORMATS


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def as_flags(config, path=""):
    """A frozen config as the flags that make it of the default."""
    for name, value in (config if isinstance(config, dict) else run.configuration.to_dict(config)).items():
        if isinstance(value, dict):
            yield from as_flags(value, f"{path}{name}.")
        elif value is not None:
            yield f"--config.{path}{name}={value}"


def test_a_run_asked_to_stop_saves_leaves_nothing_half_written_and_the_same_command_goes_on(tmp_path):
    given = tiny_config(tmp_path / "data", tiny_rows(), **{"train.epochs": 2000, "train.keep_checkpoints": 2})
    (tmp_path / "c.py").write_text(
        "from keras_bert_app.config import default\ndef get_config():\n    return default()\n"
    )
    workdir = tmp_path / "run"
    command = ["finetune", f"--config={tmp_path / 'c.py'}", f"--workdir={workdir}", *as_flags(given)]
    reached = 0
    for number, code in ((signal.SIGTERM, os.EX_TEMPFAIL), (signal.SIGINT, 130)):
        process = started(*command)
        said = ""
        # Two evaluations, so that there is a checkpoint whatever comes.
        while said.count("evaluation at step") < 2:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in said + rest
        assert not [str(path) for path in workdir.rglob("*.tmp")]
        steps = sorted(int(path.name.rsplit("-", 1)[-1]) for path in (workdir / "checkpoints").iterdir())
        assert steps[-1] > reached
        assert f"stopped; the checkpoint of step {steps[-1]} is saved, the same command goes on" in rest
        assert ("going on from the checkpoint" in said) is (reached > 0)
        reached = steps[-1]
    assert run.configuration.freeze(json.loads((workdir / "config.json").read_text())["config"]) == given
