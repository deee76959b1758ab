"""Fetching from a local server: nothing gets its final name before it is verified."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from dbnrun import interrupt
from dbnrun.config import UserError
from dbnrun.data import source
from dbnrun.data.source import DataFile, Download, fault, fetch

CONTENT = b"records " * 5000


@pytest.fixture
def server(tmp_path):
    """A server on loopback: served[path] = (body, announced length)."""
    served: dict[str, tuple[bytes, int]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in served:
                self.send_error(404)
                return
            body, length = served[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()

    def serve(path: str, body: bytes, length: int | None = None) -> str:
        served[path] = (body, len(body) if length is None else length)
        return f"http://127.0.0.1:{httpd.server_port}{path}"

    yield serve
    httpd.shutdown()
    httpd.server_close()


def data_file(path="raw/part", content=CONTENT):
    return DataFile(path, hashlib.sha256(content).hexdigest(), len(content))


def md5(body):
    return "md5:" + hashlib.md5(body, usedforsecurity=False).hexdigest()


def leftovers(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_official_addresses_are_https_and_every_digest_is_sha256():
    downloads = [d for downloads in source.SOURCES.values() for d in downloads]
    assert len(downloads) == 7
    assert all(url.startswith("https://") for d in downloads for url in d.urls)
    assert all(len(f.sha256) == 64 and f.size > 0 for d in downloads for f in d.files)


def test_a_compressed_file_is_fetched_verified_and_unpacked(server, tmp_path):
    body = gzip.compress(CONTENT)
    download = Download((server("/part.gz", body),), md5(body), "gunzip", (data_file(),))
    fetch("mnist", tmp_path, [download], progress=False)
    assert (tmp_path / "raw/part").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["raw/part"]


def test_a_sound_file_is_left_alone_and_a_damaged_one_replaced(server, tmp_path):
    body = gzip.compress(CONTENT)
    url = server("/part.gz", body)
    download = Download((url,), md5(body), "gunzip", (data_file(),))
    (tmp_path / "raw").mkdir()
    final = tmp_path / "raw/part"
    final.write_bytes(CONTENT)
    before = final.stat().st_mtime_ns
    fetch("mnist", tmp_path, [download], progress=False)
    assert final.stat().st_mtime_ns == before
    final.write_bytes(CONTENT[:-1])
    fetch("mnist", tmp_path, [download], progress=False)
    assert final.read_bytes() == CONTENT


def test_a_second_address_serves_where_the_first_fails(server, tmp_path):
    gone = server("/x", b"").replace("/x", "/gone.gz")
    body = gzip.compress(CONTENT)
    fetch(
        "mnist", tmp_path, [Download((gone, server("/part.gz", body)), None, "gunzip", (data_file(),))], progress=False
    )
    assert (tmp_path / "raw/part").exists()


@pytest.mark.parametrize("kind", ["gunzip", "keep"])
def test_a_second_address_serves_where_the_first_answers_with_something_else(server, tmp_path, kind):
    body = CONTENT if kind == "keep" else gzip.compress(CONTENT)
    urls = server("/moved", b"<html>this page has moved</html>"), server("/part.gz", body)
    fetch("mnist", tmp_path, [Download(urls, None, kind, (data_file(),))], progress=False)
    assert (tmp_path / "raw/part").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["raw/part"]


@pytest.mark.parametrize("kind", ["gunzip", "keep"])
def test_a_fetched_file_has_the_permissions_of_any_other_file(server, tmp_path, kind):
    url = server("/part.gz", CONTENT if kind == "keep" else gzip.compress(CONTENT))
    fetch("mnist", tmp_path, [Download((url,), None, kind, (data_file(),))], progress=False)
    (tmp_path / "other").touch()
    assert (tmp_path / "raw/part").stat().st_mode == (tmp_path / "other").stat().st_mode


def _tar(*members: tuple[str, bytes, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content.decode()
            archive.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return buffer.getvalue()


REGULAR = tarfile.REGTYPE


@pytest.mark.parametrize(
    ("kind", "body", "problem"),
    [
        ("gunzip", gzip.compress(CONTENT[:-1] + b"x"), "is not the official file"),
        ("gunzip", gzip.compress(CONTENT)[:-20], "damaged"),
        ("gunzip", b"no gzip at all", "damaged"),
        ("gunzip", gzip.compress(b"\0" * 50_000_000), "is not the official file"),  # a bomb, cut off early
        ("keep", CONTENT[:-1], "39,999 bytes, expected 40,000"),
        ("tar", _tar(("raw/part", REGULAR, CONTENT[:-1])), "is not the official file"),
        ("tar", _tar(("raw/part", tarfile.SYMTYPE, b"/etc/passwd")), "is no plain file"),
        ("tar", _tar(("raw/part", tarfile.LNKTYPE, b"../../outside")), "is no plain file"),
        ("tar", _tar(("../part", REGULAR, CONTENT)), "not found"),
        ("tar", _tar(("raw/part", REGULAR, b"\0" * 50_000_000)), "is not the official file"),  # a bomb
        ("tar", _tar(("raw/part", REGULAR, CONTENT))[:-30], "damaged"),
        ("tar", b"no tar", "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
)
def test_what_is_not_official_is_refused_in_one_line_and_leaves_nothing(server, tmp_path, kind, body, problem):
    download = Download((server("/part.gz", body),), None, kind, (data_file(),))
    with pytest.raises(UserError, match=problem) as refused:
        fetch("mnist", tmp_path, [download], progress=False)
    assert "\n" not in str(refused.value)
    assert f"Put the official file at {tmp_path / 'raw/part'}" in str(refused.value)
    assert leftovers(tmp_path) == []


def test_members_outside_the_expected_ones_are_never_written(server, tmp_path):
    body = _tar(
        ("../outside", REGULAR, b"evil"), ("/tmp/dbnrun-evil", REGULAR, b"evil"), ("raw/part", REGULAR, CONTENT)
    )
    fetch("mnist", tmp_path / "data", [Download((server("/a.tar.gz", body),), md5(body), "tar", (data_file(),))])
    assert leftovers(tmp_path) == ["data/raw/part"]


def test_a_wrong_download_digest_is_refused_before_unpacking(server, tmp_path):
    download = Download((server("/part.gz", gzip.compress(CONTENT)),), "md5:" + "0" * 32, "gunzip", (data_file(),))
    with pytest.raises(UserError, match="its digest is not md5:0000"):
        fetch("mnist", tmp_path, [download], progress=False)
    assert leftovers(tmp_path) == []


def test_a_download_that_is_cut_off_leaves_nothing(server, tmp_path):
    body = gzip.compress(CONTENT)
    download = Download((server("/part.gz", body[:50], len(body)),), md5(body), "gunzip", (data_file(),))
    with pytest.raises(UserError, match=r"cannot fetch part\.gz"):
        fetch("mnist", tmp_path, [download], progress=False)
    assert leftovers(tmp_path) == []


def test_without_a_network_one_line_says_which_file_to_put_where(tmp_path):
    nowhere = ("http://127.0.0.1:9/part.gz",)
    downloads = [Download(nowhere, None, "gunzip", (data_file(f"raw/{name}"),)) for name in ("a", "b", "c")]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/b").write_bytes(CONTENT)
    with pytest.raises(
        UserError, match=r"ConnectionError.*Put the official file at \S*raw/a \(and beside it c\).*`dbnrun data mnist`"
    ) as refused:
        fetch("mnist", tmp_path, downloads, progress=False)
    assert "\n" not in str(refused.value)
    (tmp_path / "raw/a").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="raw/a is there, but: 39,999 bytes, expected 40,000"):
        fetch("mnist", tmp_path, downloads, progress=False)
    assert (tmp_path / "raw/a").read_bytes() == CONTENT[:-1]  # the user's own file is not taken away


def test_a_status_that_the_server_gives_is_said(server, tmp_path):
    gone = server("/x", b"").replace("/x", "/gone.gz")
    with pytest.raises(UserError, match=r"gone\.gz: HTTP status 404"):
        fetch("mnist", tmp_path, [Download((gone,), None, "gunzip", (data_file(),))], progress=False)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        fetch("mnist", tmp_path / "data", [Download(("http://127.0.0.1:9/x",), None, "keep", (data_file(),))])


def test_a_fault_is_said_in_words(tmp_path):
    path = tmp_path / "part"
    assert fault(path, data_file()) == "missing"
    path.write_bytes(CONTENT[:100])
    assert fault(path, data_file()) == "100 bytes, expected 40,000"
    path.write_bytes(CONTENT[:-1] + b"x")
    assert "SHA-256 differs" in fault(path, data_file())
    path.write_bytes(CONTENT)
    assert fault(path, data_file()) == ""
    assert fault(tmp_path, data_file()).startswith("cannot be read")


def test_missing_files_are_listed_and_verify_names_the_first_that_is_not_official(tmp_path, monkeypatch):
    downloads = tuple(Download(("http://127.0.0.1:9/x",), None, "keep", (data_file(name),)) for name in ("a", "b"))
    monkeypatch.setitem(source.SOURCES, "mnist", downloads)
    (tmp_path / "b").write_bytes(CONTENT)
    assert source.missing("mnist", tmp_path) == [tmp_path / "a"]
    with pytest.raises(UserError, match="a: missing"):
        source.verify("mnist", tmp_path)
    (tmp_path / "a").write_bytes(b"\0" * len(CONTENT))
    assert source.missing("mnist", tmp_path) == []
    with pytest.raises(UserError, match="a: its content is not the official file's"):
        source.verify("mnist", tmp_path)
    (tmp_path / "a").write_bytes(CONTENT)
    source.verify("mnist", tmp_path)


def test_a_download_stops_after_a_signal_and_leaves_nothing(server, tmp_path, monkeypatch):
    download = Download((server("/part", CONTENT),), md5(CONTENT), "keep", (data_file(),))
    monkeypatch.setattr(interrupt, "_noted_at", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist", tmp_path, [download], progress=False)
    assert leftovers(tmp_path) == []


def test_what_shall_be_whole_gets_its_name_at_the_end_or_never(tmp_path):
    final = tmp_path / "deep" / "part"
    with pytest.raises(KeyboardInterrupt), source.whole(final) as partial:
        partial.write_bytes(CONTENT[:7])
        assert not final.exists()
        raise KeyboardInterrupt
    assert leftovers(tmp_path) == []


def test_a_recompressed_gz_is_as_good_as_the_published_one(tmp_path):
    path = tmp_path / "part.gz"
    for level in (1, 9):
        path.write_bytes(gzip.compress(CONTENT, level))
        assert fault(path, data_file("part.gz")) == ""
    path.write_bytes(gzip.compress(CONTENT)[:-30])
    assert fault(path, data_file("part.gz")).startswith("truncated or damaged")


@pytest.mark.parametrize("name", ["mnist", "ni", "cifar10"])
def test_an_altered_file_of_the_real_layout_is_named(name, tmp_path, monkeypatch):
    for download in source.SOURCES[name]:
        for file in download.files:
            (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.path).write_bytes(gzip.compress(b"x") if file.path.endswith(".gz") else b"x")
    first = source.SOURCES[name][0].files[0]
    with pytest.raises(UserError, match=rf"{first.path}: 1 bytes, expected .*`dbnrun data {name}`"):
        source.ensure(name, tmp_path)
