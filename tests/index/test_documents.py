"""Every kind of file is read with its places; what cannot be read is told with its name and why."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fpdf import FPDF
from pypdf import PdfReader, PdfWriter

from sollol.errors import BadInput
from sollol.index.chunks import Cut
from sollol.index.documents import Documents, Passage, place

CUT = Cut(200, 20)


def read(*paths: Path, cut: Cut = CUT) -> tuple[list[Passage], dict[str, str]]:
    documents = Documents(paths)
    passages = list(documents.passages(cut))
    assert documents.all_read
    return passages, {Path(file).name: why for file, why in documents.skipped}


def make_pdf(path: Path, *pages: str) -> Path:
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for text in pages:
        pdf.add_page()
        pdf.multi_cell(0, text=text)
    pdf.output(str(path))
    return path


def encrypt(plain: Path, path: Path, user: str, owner: str = "owner") -> Path:
    with PdfWriter() as writer:
        writer.append_pages_from_reader(PdfReader(plain))
        writer.encrypt(user, owner, algorithm="AES-256")
        writer.write(path)
    return path


def test_text_keeps_its_offset(tmp_path: Path) -> None:
    text = "First paragraph.\n\n" + "word " * 60
    (tmp_path / "a.md").write_text(text)
    passages, skipped = read(tmp_path)
    assert not skipped
    assert [text[p.start : p.start + len(p.text)] for p in passages] == [p.text for p in passages]
    assert place(passages[0]) == f"{tmp_path / 'a.md'}, character 0"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "Grüße"),
        ("utf-16", "Grüße aus Köln"),
        ("utf-16-le", "plain letters"),
        ("cp1252", "Die Äpfel und das Öl kosten über fünf Euro."),
        ("cp1252", "El niño español comió en París."),
        ("cp1251", "Привет, как дела сегодня?"),
        ("cp932", "日本語のテキストです。これは分散処理の説明です。"),
    ],
)
def test_other_encodings_are_recognised(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert [p.text for p in read(tmp_path)[0]] == [text]


def test_a_file_larger_than_a_slice_is_read_whole(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(40_000))
    (tmp_path / "a.txt").write_text(text)
    words = {word for p in read(tmp_path, cut=Cut(1000, 0))[0] for word in p.text.split()}
    assert words == set(text.split())


def test_html_is_what_a_browser_shows(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title>Title</title><style>p {}</style><script>var x;</script></head>
    <body><!-- no --><h1>Head</h1><p>One <b>bold</b>
      word.<br>Next</p><ul><li>a<li>b</ul><table><tr><td>1</td><td>2</td></tr></table><pre>x
  y</pre></body></html>"""
    (tmp_path / "a.html").write_text(page)
    ((text, *_),), _ = read(tmp_path)
    assert [line for line in text.split("\n") if line] == [
        *("Title", "Head", "One bold word.", "Next", "a", "b", "1 2", "x", "y")
    ]


def test_json_lines_keep_their_line(tmp_path: Path) -> None:
    lines = ['{"text": "one", "id": 7}', "", '"two"', "{broken", '{"q": "three", "a": "four", "n": 1}', "5", '{"n": 2}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    passages, skipped = read(tmp_path)
    assert [(p.text, p.unit, p.number) for p in passages] == [
        *(("one", "line", 1), ("two", "line", 3), ("q: three\na: four", "line", 5))
    ]
    assert skipped == {"a.jsonl": "3 lines are not JSON with text (the first is line 4)"}


def test_tables_keep_their_row_and_the_names_of_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('name,says\nAda,"Hello,\nyou"\n,alone\n')
    (tmp_path / "b.csv").write_text("1;2\n3;\n")
    passages, _ = read(tmp_path)
    assert [(p.text, p.number) for p in passages] == [
        *(("name: Ada\nsays: Hello,\nyou", 2), ("says: alone", 3), ("1, 2", 1), ("3", 2))
    ]
    assert place(passages[0]).endswith("a.csv, row 2")


def test_pdf_pages_are_numbered(tmp_path: Path) -> None:
    make_pdf(tmp_path / "a.pdf", "The first page.", "The second page.")
    passages, skipped = read(tmp_path)
    assert [(p.text, p.unit, p.number) for p in passages] == [
        *(("The first page.", "page", 1), ("The second page.", "page", 2))
    ]
    assert not skipped
    assert place(passages[1]).endswith("a.pdf, page 2")


def test_a_pdf_is_encrypted_only_if_it_asks_for_a_password(tmp_path: Path) -> None:
    plain = make_pdf(tmp_path / "plain.bin", "Secret.")
    encrypt(plain, tmp_path / "locked.pdf", user="secret")
    encrypt(plain, tmp_path / "open.pdf", user="")
    passages, skipped = read(tmp_path)
    assert [p.text for p in passages] == ["Secret."]
    assert set(skipped) == {"locked.pdf"}
    assert "is encrypted; decrypt it first" in skipped["locked.pdf"]


def test_unreadable_files_are_told_by_name_and_do_not_stop_the_others(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(3000)
    (tmp_path / "a-empty.txt").write_bytes(b"")
    (tmp_path / "b-space.md").write_text(" \n\n ")
    (tmp_path / "c-noise.txt").write_bytes(noise)
    (tmp_path / "d-noise.txt").write_bytes(noise.replace(b"\0", b"\1"))
    (tmp_path / "e.pdf").write_bytes(b"%PDF-1.7 and no more")
    (tmp_path / "f.pdf").write_bytes(b"")
    (tmp_path / "g.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "h.txt")
    (tmp_path / "i.html").write_bytes(noise)
    make_pdf(tmp_path / "j.pdf", "", "")
    (tmp_path / "k.txt").write_text("good")
    (tmp_path / "l.docx").write_text("another kind")
    passages, skipped = read(tmp_path)
    assert [p.text for p in passages] == ["good"]
    expected = {
        "a-empty.txt": "is empty",
        "b-space.md": "holds no text",
        "c-noise.txt": "is not text (binary data)",
        "d-noise.txt": "is not text (binary data)",
        "e.pdf": "is not a PDF",
        "f.pdf": "is empty",
        "g.txt": "No such file",
        "h.txt": "not a regular file",
        "i.html": "is not text",
        "j.pdf": "without text (scanned?)",
    }
    assert set(skipped) == set(expected)
    for name, why in expected.items():
        assert why in skipped[name]


def test_what_no_index_can_hold_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud800 zero \\u0000 end"}')
    assert [p.text for p in read(tmp_path)[0]] == ["half ? zero   end"]


def test_files_are_found_once_in_order_without_hidden_ones_and_without_the_output(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden.txt", ".git/x.txt", "sub/c.md", "out.jsonl", "note.docx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    paths = [tmp_path, tmp_path / "a.txt", tmp_path / "note.docx"]
    documents = Documents(paths, leave_out=[tmp_path / "out.jsonl"])
    assert [file.name for file in documents.files] == ["a.txt", "b.txt", "c.md"]
    assert documents.other_kinds == 1


def test_a_path_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such file or folder: .*nowhere"):
        Documents([tmp_path, tmp_path / "nowhere"])


def test_the_total_is_estimated_and_in_the_end_exact(docs: Path) -> None:
    documents = Documents([docs])
    estimates = [documents.estimated_total() for _ in documents.passages(CUT)]
    exact = len(estimates)
    assert documents.estimated_total() == exact
    assert all(0.5 * exact < estimate < 2 * exact for estimate in estimates[exact // 4 :])
