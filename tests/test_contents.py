from pathlib import Path

import pytest

from keras_bert_app.errors import UserError
from keras_bert_app.export import contents, saved_model


def test_a_bundle_states_its_signatures_operations_server_and_files(tiny_bundle):
    found = contents.describe(tiny_bundle / "1")
    assert found["signatures"] == saved_model.signatures(saved_model.read(tiny_bundle / "1"))
    assert found["signatures"]["classify"]["method_name"] == saved_model.CLASSIFY
    assert found["operations"]["tensorflow_text"] == ["FastWordpieceTokenizeWithOffsets"]
    assert "FastWordpieceTokenizeWithOffsets" not in found["operations"]["tensorflow"]
    assert found["minimum_server_version"] == "2.16"
    names = {str(path.relative_to(tiny_bundle / "1")) for path in (tiny_bundle / "1").rglob("*.*")}
    assert names - found["files"].keys() == {"assets.extra", "batching_params.pbtxt"}
    assert found["files"]["saved_model.pb"]["bytes"] == (tiny_bundle / "1/saved_model.pb").stat().st_size


def test_files_in_folders_are_compared_byte_by_byte(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"abc")
    stated = contents.identities(tmp_path)
    (tmp_path / "export.json").touch()
    assert contents.check_files(tmp_path, stated, "export.json") == 2
    (tmp_path / "a" / "b" / "c").write_bytes(b"abd")
    with pytest.raises(UserError, match="a/b/c: isn't as it was exported; copy the version again"):
        contents.check_files(tmp_path, stated, "export.json")
    (tmp_path / "a" / "b" / "c").write_bytes(b"ab")
    with pytest.raises(UserError, match="a/b/c: has 2 of 3 bytes"):
        contents.check_files(tmp_path, stated, "export.json")


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "variables").symlink_to(tmp_path)
    with pytest.raises(UserError, match="variables: is a link"):
        contents.check_files(tmp_path / "version", {}, "export.json")


def test_a_signature_that_is_not_stated_is_refused():
    with pytest.raises(UserError, match="v/saved_model.pb: signature s isn't stated; export it again"):
        contents.check_signatures(Path("v"), {"s": {}}, {})
