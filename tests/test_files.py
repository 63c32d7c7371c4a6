"""Files and folders that are whole or not there."""

import pytest

from keras_bert_app.files import atomic_directory, atomic_file


def test_a_file_appears_whole_and_alone(tmp_path):
    with atomic_file(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_others_may_read_a_file_as_the_umask_says(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_appears_whole_and_alone(tmp_path):
    with atomic_directory(tmp_path / "a") as temporary:
        (temporary / "inside").write_text("1")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "inside").read_text() == "1"


def test_a_failure_leaves_no_folder(tmp_path):
    with pytest.raises(OSError, match="full"), atomic_directory(tmp_path / "a") as temporary:
        (temporary / "inside").write_text("1")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("1")
    with pytest.raises(OSError), atomic_directory(tmp_path / "a") as temporary:
        (temporary / "new").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]
