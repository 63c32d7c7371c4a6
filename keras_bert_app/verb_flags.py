"""The flags of run.py's verbs: what they are called, mean and take, and which verb has which."""

from keras_bert_app.command_line import CONFIG, listed, real_number, string, whole_number, yes_or_no

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
FORMATS = ("huggingface", "google", "kerashub", "keras")
FORMAT = string("format", f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
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

# Verb -> its flags, and those of them that must be given.
VERB_FLAGS = {
    "vocab": ((INPUT, OUTPUT, VOCAB_SIZE, *VOCABULARY_OPTIONS), ("input", "output")),
    "tokenize": ((SOURCE, INPUT, COMPARE, *TOKENIZER_OPTIONS), ("source",)),
    "prepare": ((CONFIG, INPUT, OUTPUT, NUM_WORKERS, BEAM), ("config", "input", "output")),
    "pretrain": ((CONFIG, WORKDIR), ("config", "workdir")),
    "finetune": ((CONFIG, WORKDIR), ("config", "workdir")),
    "launch": ((WORKERS, HANG_SECONDS, RESTARTS), ()),
    "evaluate": ((WORKDIR, INPUT, OUTPUT), ("workdir",)),
    "predict": (
        (WORKDIR, EXPORT_DIR, INPUT, OUTPUT, TEXT_COLUMN, PAIR_COLUMN, BEAM),
        ("input", "output"),
    ),
    "import": ((FROM, OUTPUT, FRESH, PAIRS, TOKENIZER, *VOCABULARY_OPTIONS), ("source", "output")),
    "publish": ((WORKDIR, FORMAT, OUTPUT), ("workdir", "format", "output")),
    "inspect": ((), ()),
    "export": ((WORKDIR, EXPORT_DIR, *EXPORT_OPTIONS), ("workdir", "export_dir")),
    "verify": ((EXPORT_DIR, SERVER_VERSION), ("export_dir",)),
    "serve": ((EXPORT_DIR, MODEL, HOST, PORT, REST_PORT, BATCHING), ("export_dir",)),
    "query": (
        (TARGET, MODEL, INPUT, ASKED_PAIRS, SIGNATURE, VERSION, VERSION_LABEL, TIMEOUT, REST, *TLS),
        ("model",),
    ),
    "loadtest": (
        (TARGET, MODEL, SIGNATURE, INPUT, RATE, TARGET_P99_MS, DURATION_S, WARMUP_S, SEED, OUTPUT, *TLS),
        ("model", "output"),
    ),
    "compare": (
        (A, B, MODEL, SIGNATURE, INPUT, TOLERANCE, MAX_DISAGREEMENT, LIMIT, OUTPUT, *TLS),
        ("a", "b", "input"),
    ),
    "demo": ((), ()),
}
# What verbs take besides flags; see command_line.parse.
TAKES = {"tokenize": "texts", "query": "texts", "inspect": "texts", "launch": "verb"}
