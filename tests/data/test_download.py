"""Fetching from a local server: nothing gets its final name before it is verified."""

import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading

import pytest

from dbnrun import interrupt
from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.data import options
from dbnrun.data.download import DataFile, Download, ensure, faults, missing

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
    return DataFile(path, hashlib.sha256(content).hexdigest())


def data_of(*downloads):
    """A data set with these downloads."""
    return type("Few", (options.MNIST,), {"downloads": downloads})


def fetch(folder, *urls, path="raw/part"):
    ensure(data_of(Download(urls, (data_file(path),))), folder)


def leftovers(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_official_addresses_are_https_and_every_digest_is_sha256_but_those_of_cifar100():
    downloads = [download for data in registry.of("dataset").values() for download in data.downloads]
    assert len(downloads) == 12
    assert all(url.startswith("https://") for download in downloads for url in download.urls)
    digests = {file.path: file.digest for download in downloads for file in download.files}
    assert (
        {path for path, digest in digests.items() if not re.fullmatch("[0-9a-f]{64}", digest)}
        == {path for path, digest in digests.items() if re.fullmatch("md5:[0-9a-f]{32}", digest)}
        == {f"cifar-100-python/{name}" for name in ("meta", "train", "test")}
    )


@pytest.mark.parametrize("path", ["raw/part", "raw/part.gz"])
def test_a_compressed_file_is_fetched_verified_and_unpacked_unless_its_name_says_otherwise(server, tmp_path, path):
    body = gzip.compress(CONTENT)
    fetch(tmp_path, server("/part.gz", body), path=path)
    assert (tmp_path / path).read_bytes() == (body if path.endswith(".gz") else CONTENT)
    (tmp_path / "other").touch()
    assert (tmp_path / path).stat().st_mode == (tmp_path / "other").stat().st_mode
    assert leftovers(tmp_path) == ["other", path]


def test_a_sound_file_is_left_alone_and_a_damaged_one_replaced(server, tmp_path):
    url = server("/part.gz", gzip.compress(CONTENT))
    (tmp_path / "raw").mkdir()
    final = tmp_path / "raw/part"
    final.write_bytes(CONTENT)
    before = final.stat().st_mtime_ns
    fetch(tmp_path, url)
    assert final.stat().st_mtime_ns == before
    final.write_bytes(CONTENT[:-1])
    fetch(tmp_path, url)
    assert final.read_bytes() == CONTENT


def test_a_second_address_serves_where_the_first_fails_or_answers_with_something_else(server, tmp_path):
    moved = server("/moved.gz", b"<html>this page has moved</html>")
    for number, first in enumerate((moved.replace("moved", "gone"), moved)):
        fetch(tmp_path / str(number), first, server("/part", gzip.compress(CONTENT)))
        assert leftovers(tmp_path / str(number)) == ["raw/part"]


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
    ("name", "body", "problem"),
    [
        ("/part.gz", gzip.compress(CONTENT[:-1] + b"x"), "raw/part in it is not the official file"),
        ("/part.gz", gzip.compress(CONTENT)[:-20], "EOFError"),
        ("/part.gz", b"no gzip at all", "BadGzipFile"),
        ("/part", CONTENT[:-1], "raw/part in it is not the official file"),
        ("/a.tar.gz", _tar(("raw/part", REGULAR, CONTENT[:-1])), "raw/part in it is not the official file"),
        ("/a.tar.gz", _tar(("raw/part", tarfile.SYMTYPE, b"/etc/passwd")), "raw/part in it is missing"),
        ("/a.tar.gz", _tar(("raw/part", tarfile.LNKTYPE, b"../../outside")), "raw/part in it is missing"),
        ("/a.tar.gz", _tar(("../part", REGULAR, CONTENT)), "raw/part in it is missing"),
        ("/a.tar.gz", _tar(("raw/part", REGULAR, CONTENT))[:-30], "EOFError"),
        ("/a.tar.gz", b"no tar", "ReadError"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
)
def test_what_is_not_official_is_refused_in_one_line_and_leaves_nothing(server, tmp_path, name, body, problem):
    with pytest.raises(UserError, match=problem) as refused:
        fetch(tmp_path, server(name, body))
    assert "\n" not in str(refused.value)
    assert f"Put the official files into {tmp_path}: raw/part (missing); " in str(refused.value)
    assert leftovers(tmp_path) == []


def test_members_outside_the_expected_ones_are_never_written(server, tmp_path):
    outside = tmp_path / "outside"
    body = _tar(("../outside", REGULAR, b"evil"), (str(outside), REGULAR, b"evil"), ("raw/part", REGULAR, CONTENT))
    fetch(tmp_path / "data", server("/a.tar.gz", body))
    assert leftovers(tmp_path) == ["data/raw/part"]


def test_a_download_that_is_cut_off_leaves_nothing(server, tmp_path):
    body = gzip.compress(CONTENT)
    with pytest.raises(UserError, match=r"cannot fetch part\.gz"):
        fetch(tmp_path, server("/part.gz", body[:50], len(body)))
    assert leftovers(tmp_path) == []


def test_without_a_network_one_line_says_which_files_to_put_where(tmp_path):
    files = [data_file(f"raw/{name}") for name in ("a", "b", "c")]
    data = data_of(*(Download(("http://127.0.0.1:9/part.gz",), (file,)) for file in files))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/b").write_bytes(CONTENT)
    (tmp_path / "raw/c").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError) as refused:
        ensure(data, tmp_path)
    assert str(refused.value) == (
        "dataset=mnist: cannot fetch part.gz (http://127.0.0.1:9/part.gz: ConnectionError). "
        f"Put the official files into {tmp_path}: raw/a (missing), raw/c (not the official file, SHA-256 differs); "
        "set DBNRUN_DATA to where the data lies, or run `dbnrun data mnist` where there is a network."
    )
    assert (tmp_path / "raw/c").read_bytes() == CONTENT[:-1]  # the user's own file is not taken away
    assert missing(data, tmp_path) == [tmp_path / "raw/a"]


def test_a_status_that_the_server_gives_is_said(server, tmp_path):
    with pytest.raises(UserError, match=r"gone\.gz: HTTP status 404"):
        fetch(tmp_path, server("/x", b"").replace("/x", "/gone.gz"))


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"data/raw cannot be written: Not a directory"):
        fetch(tmp_path / "data", "http://127.0.0.1:9/x")


def test_a_fault_is_said_in_words_and_a_recompressed_gz_is_as_good_as_the_published_one(tmp_path):
    def fault(path, content):
        if content is not None:
            (tmp_path / path).write_bytes(content)
        return faults([Download(("unused",), (data_file(path),))], tmp_path).get(path)

    assert fault("part", None) == "missing"
    assert fault("part", CONTENT[:-1] + b"x") == "not the official file, SHA-256 differs"
    assert fault("part", CONTENT) is None
    assert fault("part.gz", gzip.compress(CONTENT, 1)) is None
    assert fault("part.gz", gzip.compress(CONTENT, 9)) is None
    assert fault("part.gz", gzip.compress(CONTENT)[:-30]) == "cannot be read: EOFError"
    (tmp_path / "folder").mkdir()
    assert fault("folder", None) == "cannot be read: Is a directory"


def test_a_download_stops_after_a_signal_and_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "_noted_at", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, server("/part", CONTENT))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "ni", "cifar10", "cifar100"])
def test_every_altered_file_of_the_real_layout_is_named(name, tmp_path):
    downloads = registry.of("dataset")[name].downloads
    paths = [file.path for download in downloads for file in download.files]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(gzip.compress(b"x") if path.endswith(".gz") else b"x")
    kind = "MD5" if name == "cifar100" else "SHA-256"
    assert faults(downloads, tmp_path) == dict.fromkeys(paths, f"not the official file, {kind} differs")
