"""What docs/service.md tells a caller to write, run against a server."""

from __future__ import annotations

import re
from pathlib import Path

import cloud.client
from cloud.client import errors

PAGE = (Path(__file__).parents[3] / "docs" / "service.md").read_text("utf-8")


def test_the_python_of_the_page_runs(address: str, capsys):
    whole, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(whole.replace("127.0.0.1:50051", address), "service.md", "exec"), {})
    assert capsys.readouterr().out == "a long text → its headline\n"


def test_the_python_of_the_page_calls_methods_that_are_there():
    called = re.findall(r"client\.(\w+)\(", PAGE)
    assert all(hasattr(cloud.client.Client, name) for name in called)


def test_the_table_of_errors_has_every_code_that_the_client_knows():
    listed = set(re.findall(r"^\| ([A-Z_]+) \|", PAGE, re.MULTILINE))
    known = {line.split()[2] for line in str(errors.__doc__).splitlines() if "|-- " in line}
    assert listed - {"INTERNAL", "UNAVAILABLE"} <= known
