"""The shipped prompts, and files of the user's."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from skrr_export.errors import InputError
from skrr_export.prompts import default_prompts, read_prompts


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


def test_shipped_prompts_are_packaged_as_a_plain_file() -> None:
    from importlib import resources

    file = Path(str(resources.files("skrr_export") / "data" / "prompts.txt"))
    assert stat.S_ISREG(file.stat().st_mode)
    assert file.read_text(encoding="utf-8").endswith("\n")
