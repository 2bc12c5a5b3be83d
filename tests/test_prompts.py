"""The shipped prompts, and files of the user's."""

from __future__ import annotations

import csv
import io
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skrr_export.errors import InputError
from skrr_export.prompts import calibration_prompts, default_prompts, read_prompts


def test_shipped_prompts_cover_what_their_description_promises() -> None:
    prompts = default_prompts()
    assert len(prompts) >= 50
    assert len(set(prompts)) == len(prompts)
    assert prompts.count("") == 1  # the null prompt
    assert max(len(prompt.split()) for prompt in prompts) > 80  # longer than CLIP's 77 tokens
    assert sum(len(prompt.split()) <= 2 for prompt in prompts) > 3
    assert any('"' in prompt for prompt in prompts)
    characters = "".join(prompts)
    for first, last in (("Ѐ", "ӿ"), ("一", "鿿"), ("🌀", "🧿")):  # Cyrillic, Han, emoji
        assert any(first <= character <= last for character in characters)
    assert any(prompt != prompt.strip() for prompt in prompts)  # white space that a pipeline may strip
    assert "\r" not in characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", ["a cat"]),
        ("a cat\n", ["a cat"]),
        ("a cat\n\na dog\n", ["a cat", "", "a dog"]),
        ("\n", [""]),
        ("\n\n", ["", ""]),
        ("a cat\r\na dog\r\n", ["a cat", "a dog"]),
        ("  kept as it is \t\n", ["  kept as it is \t"]),
        ("one\u2028still one\x0bstill\n", ["one\u2028still one\x0bstill"]),
        ("日本の猫\n", ["日本の猫"]),
    ],
)
def test_each_line_is_a_prompt(text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(text.encode())
    assert read_prompts(tmp_path / "prompts.txt") == expected


def test_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("a cat\n".encode("utf-8-sig"))
    assert read_prompts(tmp_path / "prompts.txt") == ["a cat"]


def test_file_that_holds_no_prompts_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    with pytest.raises(InputError, match=f"cannot read the prompts in {file}: No such file"):
        read_prompts(file)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=f"{file} holds no prompts"):
        read_prompts(file)
    file.write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=f"cannot read the prompts in {file}: not UTF-8 text"):
        read_prompts(file)
    with pytest.raises(InputError, match=f"cannot read the prompts in {tmp_path}: Is a directory"):
        read_prompts(tmp_path)


# CSV


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt\na cat\na dog\n", ["a cat", "a dog"]),
        ("id,Prompt\n1,a cat\n2,\n", ["a cat", ""]),
        ("CAPTION ,id\r\na cat,1\r\n", ["a cat"]),
        ("text,caption,prompt\nt,c,p\n", ["p"]),
        ("text,caption,id\nt,c,1\n", ["c"]),
        ("text,id\nt,1\n", ["t"]),
        ("a cat\na dog\n", ["a cat", "a dog"]),  # a single column needs no header
        ("a cat", ["a cat"]),
        ('"a cat, sitting"\n""\n', ["a cat, sitting", ""]),
        ('text\n"a ""STOP"" sign"\nthe word "no"\n', ['a "STOP" sign', 'the word "no"']),
        ('prompt\n"one\ntwo\r\nthree"\nfour\n', ["one two three", "four"]),
        ("prompt\n\na cat\n\n\na dog\n", ["a cat", "a dog"]),  # blank lines hold no record
        ("prompt\n  kept as it is \t\n日本の猫\u2028\n", ["  kept as it is \t", "日本の猫\u2028"]),
    ],
)
@pytest.mark.parametrize("name", ["prompts.csv", "PROMPTS.CSV"])
def test_csv_column_holds_the_prompts(name: str, text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert read_prompts(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,words\n1,a cat\n", "line 1: none of the 2 columns is named prompt, caption or text"),
        ("\n\nid,words\n", "line 3: none of the 2 columns is named prompt, caption or text"),
        (
            "prompt\na cat, sitting\n",
            "line 2: 2 fields, where the first line has 1; a prompt that holds a comma needs quotes",
        ),
        (
            'prompt,id\n"one\ntwo",1\n\na cat\n',
            "line 5: 1 fields, where the first line has 2; a prompt that holds a comma needs quotes",
        ),
        ('prompt\na cat\n"never\nclosed\n', "line 3: unexpected end of data"),
        ('prompt\n"a cat" sits\n', "line 2: ',' expected after '\"'"),
    ],
)
def test_malformed_csv_is_refused_by_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_prompts(file)
    assert str(caught.value) == f"{file}: {message}"


LINES = st.text() | st.text(alphabet="a ,\"\n\r'\u2028;\t\\")
"""Prompts, and such as CSV and JSON must quote."""


def _joined(prompt: str) -> str:
    return prompt.replace("\r\n", " ").replace("\r", " ").replace("\n", " ")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples."""
    return tmp_path_factory.mktemp("prompts")


@given(rows=st.lists(st.tuples(LINES, LINES), min_size=1), name=st.sampled_from(["prompt", "Caption", "TEXT"]))
def test_csv_gives_back_what_was_written(rows: list[tuple[str, str]], name: str, folder: Path) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("other", name), *rows])
    (folder / "prompts.csv").write_bytes(text.getvalue().encode())
    assert read_prompts(folder / "prompts.csv") == [_joined(prompt) for _, prompt in rows]


@given(prompts=st.lists(LINES, min_size=1), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@example(prompts=["", ""], quoting=csv.QUOTE_MINIMAL)
def test_csv_of_one_column_gives_back_what_was_written(prompts: list[str], quoting: Any, folder: Path) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting).writerows([("prompt",), *((prompt,) for prompt in prompts)])
    written = text.getvalue()
    (folder / "prompts.csv").write_bytes(written.encode())
    expected = [_joined(prompt) for prompt in prompts]
    assert read_prompts(folder / "prompts.csv") == expected
    if prompts[0].strip().lower() not in ("prompt", "caption", "text"):
        (folder / "prompts.csv").write_bytes(written.split("\n", 1)[1].encode("utf-8-sig"))  # without its header
        assert read_prompts(folder / "prompts.csv") == expected


# JSON lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a cat"\n"a dog"\n', ["a cat", "a dog"]),
        ('"a cat"', ["a cat"]),
        ('{"id": 1, "prompt": "a cat"}\n{"caption": ""}\r\n{"text": "t", "id": 3}\n', ["a cat", "", "t"]),
        ('{"text": "t", "caption": "c", "prompt": "p"}\n{"text": "t", "caption": "c"}\n', ["p", "c"]),
        ('\n"a cat"\n  \n\n{"prompt": "a dog"}\n\n', ["a cat", "a dog"]),
        ('"one\\ntwo\\r\\nthree\\rfour"\n', ["one two three four"]),
        ('"\u2028 \\u65e5 \\ud83d\\ude00"\n', ["\u2028 日 😀"]),
    ],
)
def test_json_line_holds_a_prompt(text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert read_prompts(tmp_path / "prompts.jsonl") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat", "Expecting value (column 1)"),
        ('"a cat', "Unterminated string starting at (column 1)"),
        ('"a cat" "a dog"', "Extra data (column 9)"),
        ("5", "not a JSON string, nor an object whose prompt, caption or text is one"),
        ("null", "not a JSON string, nor an object whose prompt, caption or text is one"),
        ('["a cat"]', "not a JSON string, nor an object whose prompt, caption or text is one"),
        ('{"Prompt": "a cat"}', "not a JSON string, nor an object whose prompt, caption or text is one"),
        (
            '{"prompt": null, "text": "a cat"}',
            "not a JSON string, nor an object whose prompt, caption or text is one",
        ),
        ('"\\ud83d"', "'utf-8' codec can't encode character '\\ud83d' in position 0: surrogates not allowed"),
        ("[" * 100_000, None),
        ("9" * 10_000, None),
    ],
)
def test_malformed_json_is_refused_by_line(line: str, message: str | None, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"a cat"\n\n{line}\n')
    with pytest.raises(InputError) as caught:
        read_prompts(file)
    assert str(caught.value).startswith(f"{file}: line 3: {message or ''}")
    assert message is None or str(caught.value).endswith(message)


@given(
    prompts=st.lists(st.tuples(LINES, st.sampled_from([None, "prompt", "caption", "text"])), min_size=1),
    ascii_only=st.booleans(),
)
def test_json_lines_give_back_what_was_written(
    prompts: list[tuple[str, str | None]], ascii_only: bool, folder: Path
) -> None:
    documents = [prompt if key is None else {"id": 1, key: prompt} for prompt, key in prompts]
    text = "\n".join(json.dumps(document, ensure_ascii=ascii_only) for document in documents)
    (folder / "prompts.jsonl").write_bytes(text.encode())
    assert read_prompts(folder / "prompts.jsonl") == [_joined(prompt) for prompt, _ in prompts]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", ""), ("a.csv", "prompt\n"), ("a.csv", "\n"), ("a.jsonl", "\n \n")]
)
def test_file_without_a_prompt_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} holds no prompts"


# Calibration


def test_calibration_prompts_are_the_captions_and_then_the_prompts() -> None:
    from importlib import resources

    file = Path(str(resources.files("skrr_export") / "data" / "captions.txt"))
    captions = file.read_text(encoding="utf-8").splitlines()
    prompts = calibration_prompts()
    assert captions
    assert prompts == captions + [prompt for prompt in default_prompts() if prompt]
    assert len(set(prompts)) == len(prompts)
    assert "" not in prompts


def test_calibration_prompts_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"captions.txt": ["b", "a", "b"], "prompts.txt": ["", "a", "c"]}
    monkeypatch.setattr("skrr_export.prompts._shipped", files.__getitem__)
    assert calibration_prompts() == ["b", "a", "c"]


@pytest.mark.parametrize("name", ["prompts.txt", "captions.txt"])
def test_shipped_prompts_are_packaged_as_plain_files(name: str) -> None:
    from importlib import resources

    file = Path(str(resources.files("skrr_export") / "data" / name))
    assert stat.S_ISREG(file.stat().st_mode)
    assert file.read_text(encoding="utf-8").endswith("\n")
