"""Pretrain, fine-tune, evaluate, export, verify, serve and query BERT classifiers.

python run.py VERB --flag=value ...        python run.py VERB --help
"""

import contextlib
import difflib
import json
import os
import signal
import sys
from pathlib import Path

from keras_bert_app import command_line
from keras_bert_app import config as configuration
from keras_bert_app.command_line import CONFIG, FLAGS, listed, real_number, string, whole_number, yes_or_no
from keras_bert_app.errors import Stopped, UserError, needing_beam


def vocab():
    """Learn a vocabulary from the documents of --input: text with blank lines between them, or .jsonl."""
    from keras_bert_app.text.tokenizer import TokenizerOptions
    from keras_bert_app.training import pretraining

    options = TokenizerOptions(**_given(VOCABULARY_OPTIONS))
    print(pretraining.learn(FLAGS.input, Path(FLAGS.output), FLAGS.vocab_size, options))


def tokenize(*texts):
    """Show how texts are cut into pieces, or with --compare where a Hugging Face tokenizer does it otherwise.

    run.py tokenize --source=SOURCE [--compare=DIR] TEXT... or --input=FILE

    With --compare the exit code is 1 where texts differ.
    """
    from keras_bert_app import features
    from keras_bert_app.data.readers import read_texts
    from keras_bert_app.text import comparison
    from keras_bert_app.text.tokenizer import BertTokenizer
    from keras_bert_app.training import initial

    if bool(texts) == bool(FLAGS.input):
        raise UserError(
            'give either texts, such as: run.py tokenize --source=vocab.txt "a quiet triumph"; or --input'
        )
    given = [os.fsencode(text) for text in texts]
    if FLAGS.input:
        given = (row[features.TEXT] for row in read_texts(FLAGS.input, {features.TEXT: features.TEXT}))
    tokenizer = BertTokenizer(*initial.load_tokenizer(FLAGS.source, _given(TOKENIZER_OPTIONS)))
    if not FLAGS.compare:
        return print(comparison.table(tokenizer, list(given)))
    count = num_different = 0
    for difference in comparison.differences(
        tokenizer, comparison.load_reference(Path(FLAGS.compare)), given
    ):
        count += 1
        if difference:
            num_different += 1
            print(difference)
    print(f"{num_different:,} of {count:,} texts differ")
    if num_different:
        sys.exit(1)


def _given(chosen):
    """The values of those of the flags that were given."""
    return {name: value for name, *_ in chosen if (value := FLAGS[name].value) is not None}


def prepare():
    """Turn the documents of --input into examples for pretraining; goes on where one was interrupted."""
    from keras_bert_app.data import workers

    num_workers = FLAGS.num_workers or _num_cores()
    if num_workers > 1 and not FLAGS.beam:
        workers.start_importing("keras_bert_app.quiet_tensorflow", "keras_bert_app.data.pretraining")
    from keras_bert_app import quiet_tensorflow  # noqa: F401
    from keras_bert_app.training import pretraining

    config = configuration.freeze(FLAGS.config)
    print(pretraining.prepare(config, FLAGS.input, Path(FLAGS.output), num_workers, FLAGS.beam))


def pretrain():
    """Pretrain an encoder in a workdir, or go on where one was interrupted; then evaluate it."""
    from keras_bert_app.training import pretraining

    _train(pretraining.pretrain)


def finetune():
    """Fine-tune a classifier in a workdir, or go on where one was interrupted; then evaluate it."""
    from keras_bert_app.training import finetuning

    _train(finetuning.finetune)


def _train(train):
    from keras_bert_app import evaluation
    from keras_bert_app.training.strategy import is_chief, make_strategy

    config, workdir = configuration.freeze(FLAGS.config), Path(FLAGS.workdir)
    train(config, workdir)
    if is_chief(make_strategy(config.train)):
        print(evaluation.evaluate_test(workdir))


def launch(*arguments):
    """Pretrain or fine-tune in several processes here; when one dies or hangs, all go on from a checkpoint.

    run.py launch [--num_workers=2 ...] pretrain --config=FILE --workdir=DIR ...

    Flags of launch come before the verb, the verb's own after it. When a process dies, the others are ended
    within 6 s; when one hangs, all are, --hang_seconds and 6 s after its last sign of life. Exit codes:
    0 finished, 1 no restarts left, 2 a user's mistake, 75 stopped by SIGTERM and saved, 130, 143 interrupted.
    """
    from keras_bert_app.training import launch as launcher

    verb, *verb_flags = arguments or [None]
    if verb not in LAUNCHED:
        raise UserError(
            f"launch runs {' or '.join(LAUNCHED)}, not {verb or 'nothing'}; such as: "
            "run.py launch --num_workers=2 pretrain --config=FILE --workdir=DIR"
        )
    for argument in verb_flags:
        if argument.lstrip("-").partition("=")[0] in (name for name, *_ in VERBS["launch"][1]):
            raise UserError(f"{argument} is a flag of launch; write it before {verb}")
    # So that mistakes are said here, once.
    command_line.parse(verb, verb_flags, *VERBS[verb][1:])
    command = [sys.executable, __file__, verb, *verb_flags, "--config.train.strategy=multi_worker"]
    checkpoints = Path(FLAGS.workdir, "checkpoints")
    sys.exit(launcher.run(command, FLAGS.num_workers, FLAGS.hang_seconds, FLAGS.restarts, checkpoints))


def evaluate():
    """Metrics and a report of a workdir's best checkpoint: on --input, else on the run's own test set."""
    from keras_bert_app import evaluation

    workdir = Path(FLAGS.workdir)
    if FLAGS.input:
        print(evaluation.evaluate_file(workdir, FLAGS.input, FLAGS.output and Path(FLAGS.output)))
    else:
        print(evaluation.evaluate_test(workdir))


def predict():
    """Answer each text of --input with a line of JSON; goes on where one was interrupted.

    --input is a file, a folder or a pattern: .txt (one text a line), .jsonl, .csv, .tsv, also as .gz or .bz2.
    A run (--workdir) answers, or a bundle (--export_dir: its newest version, or the folder of one). With
    --beam workers do, who see input, output and bundle under the same paths; interrupted, that starts anew.
    """
    from keras_bert_app.scoring import models, parts, resumable

    if bool(FLAGS.workdir) == bool(FLAGS.export_dir):
        raise UserError("predict takes either a run's --workdir or a bundle's --export_dir")
    if FLAGS.beam and FLAGS.workdir:
        raise UserError("--beam takes a bundle: run.py export writes one, give it as --export_dir")
    output, columns = Path(FLAGS.output), models.given_columns(FLAGS.text_column, FLAGS.pair_column)
    if FLAGS.workdir:
        model = models.open_run(Path(FLAGS.workdir), columns)
    else:
        model = models.open_bundle(Path(FLAGS.export_dir), columns)
    files = parts.files_to_read(FLAGS.input, model.columns, output)
    if FLAGS.beam:
        with needing_beam():
            from keras_bert_app.scoring import pipeline
        count = pipeline.predict_files_on_beam(model, files, output, FLAGS.beam)
    else:
        count = resumable.predict_files(model, files, output)
    print(f"{count} answers in {output}")


def import_():
    """Someone's weights to a run's folder, which every verb takes: Hugging Face, Google, KerasHub and others.

    The source is a folder or file, or a packaged name. What it lacks, a head or the pooler, starts fresh
    only where --fresh names it.
    """
    from keras_bert_app.training import importing

    options = _given(VOCABULARY_OPTIONS) if FLAGS.tokenizer else None
    print(importing.import_weights(FLAGS.source, Path(FLAGS.output), FLAGS.fresh or (), FLAGS.pairs, options))


def publish():
    """A run's best checkpoint for others: a Hugging Face or KerasHub folder, Google's checkpoint, .keras."""
    from keras_bert_app.export import publishing

    formats = (*publishing.FORMATS, publishing.KERAS)
    if FLAGS.format not in formats:
        raise UserError(f"--format is {FLAGS.format!r}; it takes one of {', '.join(formats)}")
    print(publishing.publish(Path(FLAGS.workdir), FLAGS.format, Path(FLAGS.output)))


def inspect(*sources):
    """Show what a run or someone's weights are made of: architecture, tokenizer, provenance, hashes, tensors.

    run.py inspect SOURCE
    """
    from keras_bert_app import inspection

    if len(sources) != 1:
        raise UserError("inspect takes one source, such as: run.py inspect runs/sentiment")
    print(inspection.inspect(sources[0]))


def export():
    """Write a workdir's best checkpoint as the next version of a bundle for TensorFlow Serving."""
    from keras_bert_app.export import bundle
    from keras_bert_app.export.options import ExportOptions

    options = ExportOptions(**_given(EXPORT_OPTIONS))
    print(f"exported {bundle.export(Path(FLAGS.workdir), Path(FLAGS.export_dir), options)}")


def verify():
    """Prove that a bundle stands alone: moved, run without this project and without Python TensorFlow."""
    from keras_bert_app.export import verification

    print(verification.verify(Path(FLAGS.export_dir), FLAGS.server_version))


def serve():
    """Serve a bundle over gRPC and REST: by tensorflow_model_server if installed, else by our own."""
    from serving import server

    server.run(
        FLAGS.export_dir,
        FLAGS.model or Path(FLAGS.export_dir).resolve().name,
        host=FLAGS.host,
        port=FLAGS.port,
        rest_api_port=FLAGS.rest_api_port,
        enable_batching=FLAGS.enable_batching,
        enable_per_model_batching_parameters=FLAGS.enable_batching,
    )


def query(*texts):
    """Ask a model server about texts, with --pairs about pairs, and print its answers, a line of JSON each.

    run.py query --model=NAME [--target=HOST:PORT[,HOST:PORT...]] TEXT... or --input=FILE
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what is wrong is said in one line, not by gRPC's log
    from serving import query as asking
    from serving.errors import ServerError

    rows, tls = _rows_to_ask(texts), _tls()
    if FLAGS.version is not None and FLAGS.version_label:
        raise UserError("give --version or --version_label, not both")
    if FLAGS.rest:
        from serving.rest_client import RestPredictClient as Client
    else:
        from serving.client import PredictClient as Client
    try:
        client = Client(FLAGS.target or f"localhost:{8501 if FLAGS.rest else 8500}", FLAGS.model, tls=tls)
        with client:
            asking.query(
                client,
                rows,
                signature_name=FLAGS.signature,
                version=FLAGS.version,
                label=FLAGS.version_label,
                timeout=FLAGS.timeout or None,
            )
    except ServerError as error:
        sys.exit(f"error: {error}")
    except ValueError as error:
        raise UserError(str(error)) from error


def _tls():
    from serving.connection import Tls

    files = (FLAGS.root_certificates, FLAGS.client_certificate, FLAGS.client_key, FLAGS.server_name)
    return Tls(*files) if FLAGS.tls or any(files) else None


def _rows_to_ask(texts):
    from keras_bert_app import features
    from keras_bert_app.data.readers import read_texts

    if bool(texts) == bool(FLAGS.input):
        raise UserError(
            'give the texts to ask about, such as: run.py query --model=sentiment "a quiet triumph", '
            "or --input"
        )
    names = (features.TEXT, features.TEXT_PAIR) if FLAGS.pairs else (features.TEXT,)
    if FLAGS.input:
        return read_texts(FLAGS.input, {name: name for name in names})
    if len(texts) % len(names):
        raise UserError(
            f"--pairs takes texts two by two, first and second of each pair; here are {len(texts)}"
        )
    given = iter(map(os.fsencode, texts))
    return [dict(zip(names, row, strict=True)) for row in zip(*[given] * len(names), strict=True)]


def loadtest():
    """Load a model server: latency by length, throughput at a latency, proposed batching parameters.

    Requests of one text each arrive at random at --rate (one, or several that rise: 50,100,200), however
    slowly they are answered; without it, the highest rate is searched for at which 99 in 100 are answered
    within --target_p99_ms. Texts are those of --input, else made up. --model may be MODEL@VERSION or @LABEL.
    """
    from keras_bert_app.files import atomic_directory, is_taken
    from serving import latency
    from serving import loadtest as load

    output = Path(FLAGS.output)
    if is_taken(output):
        raise UserError(f"{output} is there already; give another --output")
    with _told():
        rates = FLAGS.rate and load.parse_rates(FLAGS.rate)
        target, names = _text_model(f"{FLAGS.target or 'localhost:8500'}/{FLAGS.model}")
        rows = _texts_for(names) if FLAGS.input else load.made_texts(FLAGS.seed, len(names))
        times = {"seconds": FLAGS.duration_s, "warmup": FLAGS.warmup_s, "target_ms": FLAGS.target_p99_ms}
        results = load.run(target, _signature(), names, rows, rates, **times, seed=FLAGS.seed, tls=_tls())
    with atomic_directory(output) as folder:
        (folder / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
        (folder / "batching_parameters.txt").write_text(results["batching"]["text"])
        latency.plot(results, folder / "latency.png")
    print(latency.verdict(results), f"results in {output}", sep="\n")


def compare():
    """Send the texts of --input to two versions, models or servers: how often and where the answers differ.

    --a and --b are host:port[/MODEL][@VERSION or @LABEL], such as localhost:8500/sentiment@canary; --model is
    for those that name none. Where the signature gives a label, that counts; else numbers further apart than
    --tolerance do. Exit codes: 0 compared, 1 more than --max_disagreement differ, 2 a mistake.
    """
    from tqdm import tqdm

    from keras_bert_app.files import atomic_file
    from serving import compare as comparing

    with _told():
        (a, names), (b, others) = (_text_model(spec, FLAGS.model) for spec in (FLAGS.a, FLAGS.b))
        if names != others:
            raise UserError(
                f"a takes {', '.join(names)}, b takes {', '.join(others)}; they can't be compared"
            )
        texts = tqdm(_texts_for(names), "compare", unit=" texts", disable=None)
        found = comparing.compare(comparing.ask(a, b, _signature(), names, texts, _tls()), FLAGS.tolerance)
    if FLAGS.output:
        with atomic_file(FLAGS.output) as path:
            path.write_text(comparing.as_lines(found.changes), encoding="utf-8")
    print(comparing.report(found, a, b, FLAGS.limit))
    if FLAGS.max_disagreement is not None and found.rate > FLAGS.max_disagreement:
        print(f"{found.rate:.2%} is more than --max_disagreement={FLAGS.max_disagreement}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _told():
    """What a model server, or what asks it, refuses is a user's mistake, told in one line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # not by gRPC's log as well
    from serving.errors import ServerError
    from serving.targets import TargetError

    try:
        yield
    except (ServerError, TargetError) as error:
        raise UserError(str(error)) from error


def _text_model(spec, model=None):
    """The Target of a spec, and the names of the texts that --signature takes there."""
    from serving import targets

    target = targets.parse(spec, model)
    return target, targets.text_inputs(target, _signature(), _tls())


def _signature():
    return FLAGS.signature or "serving_default"


def _texts_for(names):
    """The rows of --input: as many texts each as there are names."""
    from keras_bert_app import features
    from keras_bert_app.data.readers import read_texts

    columns = (features.TEXT, features.TEXT_PAIR)[: len(names)]
    rows = [tuple(row.values()) for row in read_texts(FLAGS.input, dict(zip(columns, columns, strict=True)))]
    if not rows:
        raise UserError(f"{FLAGS.input}: no text in it; give a file with at least one")
    return rows


def demo():
    """The whole way on packaged weights and texts: pretrain, fine-tune, export, verify, serve, query."""
    from keras_bert_app import demonstration

    demonstration.main(Path(__file__))


def _num_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


WORKDIR = string("workdir", "the run's folder")
INPUT = string(
    "input", "file to read; for vocab, prepare and predict also a folder, or a pattern such as 'texts/*.txt'"
)
OUTPUT = string(
    "output",
    "file (vocab, predict, compare) or folder (prepare, evaluate, import, publish, loadtest) to write",
)
VOCAB_SIZE = whole_number("vocab_size", "entries of the vocabulary at most", 30000, least=1)
VOCABULARY_OPTIONS = (
    yes_or_no("lower_case", "lower-case, as is the default; --nolower_case doesn't"),
    yes_or_no("strip_accents", "delete accents; if not given, as lower_case; --nostrip_accents doesn't"),
    yes_or_no(
        "split_chinese", "make each Chinese character a word, as is the default; --nosplit_chinese doesn't"
    ),
)
NEVER_SPLIT = listed(
    "never_split",
    "pieces, with commas between, that stand for themselves where a text has them, such as [MASK]",
)
TOKENIZER_OPTIONS = (*VOCABULARY_OPTIONS, NEVER_SPLIT)
SOURCE = string(
    "source",
    "a run's or Hugging Face folder, a packaged name (minilm-l6), or a vocab.txt, which the options are for",
)
FROM = string(
    "source", "a folder or file of weights, such as a Hugging Face folder, or a packaged name (minilm-l6)"
)
FRESH = listed(
    "fresh", "layers, with commas between, that the source lacks and that start fresh: pooler, head"
)
PAIRS = yes_or_no("pairs", "the classifier is asked about pairs of texts", False)
TOKENIZER = yes_or_no(
    "tokenizer", "take the tokenizer too; --notokenizer for one of another kind than WordPiece", True
)
FORMAT = string("format", "huggingface, google, kerashub or keras")
COMPARE = string("compare", "a Hugging Face folder, whose tokenizer is asked too")
NUM_WORKERS = whole_number("num_workers", "processes; if not given, one a core", least=1)
BEAM = string(
    "beam",
    "options of an Apache Beam pipeline that does the work, such as '--runner=FlinkRunner --flink_master=…'",
    "",
)
TEXT_COLUMN = string("text_column", "column of the texts; if not given, as in the run's config, or text")
PAIR_COLUMN = string("pair_column", "column of the second texts, where the model is asked about pairs")
WORKERS = whole_number("num_workers", "processes to start", 2, least=1)
HANG_SECONDS = whole_number(
    "hang_seconds",
    "so long without a sign of life (600 before the first, if that is more), a process hangs; "
    "more than a compilation or a checkpoint takes",
    300,
    least=1,
)
RESTARTS = whole_number("restarts", "at most so many in a row without a new checkpoint", 3)
EXPORT_OPTIONS = (
    whole_number("top_k", "also give so many of the likeliest labels with their scores"),
    yes_or_no(
        "calibrate",
        "fit a temperature on the run's evaluation split, so that scores are as often right as they say, or "
        "each label's threshold where texts have several; measured on its test split",
        False,
    ),
    real_number("abstain", "give no label where the calibrated score is lower, such as 0.8; calibrates too"),
    string(
        "precision", "of the weights: float32, bfloat16 or int8, measured on the evaluation split", "float32"
    ),
    real_number("max_loss", "accuracy that the precision may cost; 0.01 is one point", 0.01),
    whole_number(
        "keep", "versions to keep, the new one among them; older ones are removed; if not given, all"
    ),
)
EXPORT_DIR = string("export_dir", "folder of a bundle's versions")
SERVER_VERSION = string(
    "server_version", "refuse a bundle that a stock model server of this version can't load, such as 2.19"
)
MODEL = string("model", "name of the model at the server; for serve: the name of the folder if not given")
TARGET = string(
    "target",
    "the server's address, several with commas between; if not given, port 8500, or 8501 with --rest",
)
VERSION = whole_number("version", "version to ask; if not given, the latest")
VERSION_LABEL = string("version_label", "label of the version to ask, such as canary")
SIGNATURE = string("signature", "signature to ask; if not given, the model's default")
TIMEOUT = whole_number("timeout", "seconds to wait for 1,024 answers, retries included; 0: without end", 60)
REST = yes_or_no("rest", "ask over REST, not gRPC", False)
ASKED_PAIRS = yes_or_no("pairs", "ask about pairs of texts", False)
TLS = (
    yes_or_no("tls", "encrypt, trusting the well-known authorities; the flags below imply it", False),
    string("root_certificates", "PEM file of the authorities to trust in place of those"),
    string("client_certificate", "PEM file of the client's own certificate, for servers that ask for one"),
    string("client_key", "PEM file of its key"),
    string("server_name", "the name in the server's certificate, where it isn't the address' host"),
)
HOST = string("host", "address that the embedded server listens on", "127.0.0.1")
PORT = whole_number("port", "gRPC port", 8500, most=65535)
REST_PORT = whole_number("rest_api_port", "REST port; -1: no REST", 8501, least=-1, most=65535)
BATCHING = yes_or_no(
    "enable_batching", "compute requests that come together together, as the bundle proposes", False
)

RATE = string("rate", "requests a second: one rate, or several that rise, such as 50,100,200")
DURATION_S = real_number("duration_s", "seconds that a rate is measured", 10.0, least=0.1)
WARMUP_S = real_number("warmup_s", "seconds that a rate is kept up before, uncounted", 2.0)
TARGET_P99_MS = real_number("target_p99_ms", "99 in 100 requests are to be answered within it", 100.0, 0.1)
SEED = whole_number("seed", "of the arrivals and of the texts", 0)
A = string("a", "who is asked: host:port[/MODEL][@VERSION or @LABEL]")
B = string("b", "who is asked the same")
TOLERANCE = real_number("tolerance", "numbers may differ by so much", 0.0)
MAX_DISAGREEMENT = real_number("max_disagreement", "share that may differ; any if not given", most=1.0)
LIMIT = whole_number("limit", "changes to print, the most confident first", 20)

LAUNCHED = ("pretrain", "finetune")
# Verb -> what it does, its flags, and those of them that must be given.
VERBS = {
    "vocab": (vocab, (INPUT, OUTPUT, VOCAB_SIZE, *VOCABULARY_OPTIONS), ("input", "output")),
    "tokenize": (tokenize, (SOURCE, INPUT, COMPARE, *TOKENIZER_OPTIONS), ("source",)),
    "prepare": (prepare, (CONFIG, INPUT, OUTPUT, NUM_WORKERS, BEAM), ("config", "input", "output")),
    "pretrain": (pretrain, (CONFIG, WORKDIR), ("config", "workdir")),
    "finetune": (finetune, (CONFIG, WORKDIR), ("config", "workdir")),
    "launch": (launch, (WORKERS, HANG_SECONDS, RESTARTS), ()),
    "evaluate": (evaluate, (WORKDIR, INPUT, OUTPUT), ("workdir",)),
    "predict": (
        predict,
        (WORKDIR, EXPORT_DIR, INPUT, OUTPUT, TEXT_COLUMN, PAIR_COLUMN, BEAM),
        ("input", "output"),
    ),
    "import": (import_, (FROM, OUTPUT, FRESH, PAIRS, TOKENIZER, *VOCABULARY_OPTIONS), ("source", "output")),
    "publish": (publish, (WORKDIR, FORMAT, OUTPUT), ("workdir", "format", "output")),
    "inspect": (inspect, (), ()),
    "export": (export, (WORKDIR, EXPORT_DIR, *EXPORT_OPTIONS), ("workdir", "export_dir")),
    "verify": (verify, (EXPORT_DIR, SERVER_VERSION), ("export_dir",)),
    "serve": (serve, (EXPORT_DIR, MODEL, HOST, PORT, REST_PORT, BATCHING), ("export_dir",)),
    "query": (
        query,
        (TARGET, MODEL, INPUT, ASKED_PAIRS, SIGNATURE, VERSION, VERSION_LABEL, TIMEOUT, REST, *TLS),
        ("model",),
    ),
    "loadtest": (
        loadtest,
        (TARGET, MODEL, SIGNATURE, INPUT, RATE, TARGET_P99_MS, DURATION_S, WARMUP_S, SEED, OUTPUT, *TLS),
        ("model", "output"),
    ),
    "compare": (
        compare,
        (A, B, MODEL, SIGNATURE, INPUT, TOLERANCE, MAX_DISAGREEMENT, LIMIT, OUTPUT, *TLS),
        ("a", "b", "input"),
    ),
    "demo": (demo, (), ()),
}
# What verbs take besides flags; see command_line.parse.
TAKES = {"tokenize": "texts", "query": "texts", "inspect": "texts", "launch": "verb"}


def main(arguments: list[str]) -> None:
    """Run one verb.

    Raises:
        UserError: unknown verb or flag, a missing flag, or what the verb itself refuses.
    """
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        return print(usage())
    verb, *rest = arguments
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        raise UserError(
            f"unknown verb {verb!r}" + (f"; did you mean {near[0]}?" if near else f"\n\n{usage()}")
        )
    function, verb_flags, required = VERBS[verb]
    if any(argument in ("--help", "-h", "--helpfull") for argument in rest):
        return print(command_line.usage(verb, function.__doc__, verb_flags, required))
    texts = command_line.parse(verb, rest, verb_flags, required, TAKES.get(verb, ""))
    if function not in (query, loadtest, compare, demo, launch, prepare):
        from keras_bert_app import quiet_tensorflow  # noqa: F401
    return function(*texts)


def usage() -> str:
    """The verbs, a line each."""
    lines = [f"  {verb:<10} {function.__doc__.splitlines()[0]}" for verb, (function, _, _) in VERBS.items()]
    return "\n".join([__doc__.strip(), "", *lines])


def _interrupted(number, frame):
    # An exception, so that temporary files are removed on the way out, which no second signal may cut short.
    for other in INTERRUPTS:
        signal.signal(other, signal.SIG_IGN)
    # On a terminal the progress bar's line is still open.
    new_line = "\n" if sys.stderr.isatty() else ""
    message = "interrupted; the same command goes on from the last checkpoint, if there is one"
    print(new_line + message, file=sys.stderr)
    raise SystemExit(128 + number)


INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

if __name__ == "__main__":
    for number in INTERRUPTS:
        signal.signal(number, _interrupted)
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + signal.SIGINT if stop.signal == signal.SIGINT else os.EX_TEMPFAIL)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(1)
