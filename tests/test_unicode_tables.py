"""The table of characters is the one that its script writes."""

from benchmarks import unicode_tables


def test_the_module_is_what_the_script_writes_today(tmp_path):
    unicode_tables.write(tmp_path / "tables.py")
    assert (tmp_path / "tables.py").read_bytes() == unicode_tables.PATH.read_bytes()
