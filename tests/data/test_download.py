"""Downloads, from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch
import pytest
from rich.console import Console

from dskd.data import cifar, download, load_dataset, tiny_imagenet
from dskd.errors import InputError
from tests.data.file_writers import write_cifar10, write_tar, write_tiny_imagenet, write_zip


class Server:
    """Serves one folder and records the requests."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.cut = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) - outer.cut])

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of both archives, to which all addresses are redirected."""
    folder = tmp_path / "served"
    folder.mkdir()
    tar = write_tar(write_cifar10(tmp_path / "made"), folder / "cifar-10-python.tar.gz")
    archive = write_zip(write_tiny_imagenet(tmp_path / "made"), folder / "tiny-imagenet-200.zip")
    served = Server(folder)
    published = replace(cifar.CIFAR10, url=f"{served.url}/{tar.name}", md5=_md5(tar))
    monkeypatch.setattr(cifar, "CIFAR10", published)
    monkeypatch.setattr(tiny_imagenet, "URL", f"{served.url}/{archive.name}")
    monkeypatch.setattr(tiny_imagenet, "MD5", _md5(archive))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=served.http.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.http.shutdown()
    served.http.server_close()
    thread.join()


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_an_archive_is_fetched_once_and_read_in_place(
    name: str, server: Server, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = load_dataset(name, cache_dir=cache)
    second = load_dataset(name, cache_dir=cache)
    assert len(server.requests) == 1
    assert first.fingerprint() == second.fingerprint()
    local = load_dataset(name, root=tmp_path / "made", cache_dir=tmp_path / "other")
    assert first.fingerprint() == local.fingerprint()
    assert sorted(path.suffix for path in cache.iterdir()) in (
        [".gz", ".safetensors"],
        [".safetensors", ".zip"],
    )


@pytest.mark.parametrize("trouble", ["md5", "cut", "large", "missing", "no server", "no folder"])
def test_trouble_is_told_and_leaves_nothing(
    trouble: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    if trouble == "md5":
        monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, md5="0" * 32))
    elif trouble == "cut":
        server.cut = 100
    elif trouble == "large":
        monkeypatch.setattr("dskd.data.download._MAX_BYTES", 1000)
    elif trouble == "missing":
        (tmp_path / "served" / "cifar-10-python.tar.gz").unlink()
    elif trouble == "no server":
        monkeypatch.setattr(
            cifar, "CIFAR10", replace(cifar.CIFAR10, url="http://127.0.0.1:9/cifar.tar.gz")
        )
    else:
        cache.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot download http://127\.0\.0\.1.* set data\.root"):
        load_dataset("cifar10", cache_dir=cache)
    assert not cache.is_dir() or list(cache.iterdir()) == []


def test_nothing_has_the_name_of_an_archive_before_its_md5_is_right(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, seen, hashed = tmp_path / "cache", [], pooch.file_hash

    def watched(path: str, algorithm: str) -> Any:
        seen.append((Path(path).suffix, sorted(there.suffix for there in cache.iterdir())))
        return hashed(path, algorithm)

    monkeypatch.setattr(pooch, "file_hash", watched)
    load_dataset("cifar10", cache_dir=cache)
    assert seen == [(".part", [".part"])]
    load_dataset("cifar10", cache_dir=cache)
    assert seen[1:] == [(".gz", [".gz", ".safetensors"])]


def test_what_a_killed_download_left_goes_after_a_day(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_dataset("cifar10", cache_dir=cache)
    part = cache / ".cifar-10-python.tar.gz.x0_abcde.part"
    part.write_bytes(b"half")
    load_dataset("cifar10", cache_dir=cache)
    assert part.exists()
    os.utime(part, (0, 0))
    load_dataset("cifar10", cache_dir=cache)
    assert not part.exists()


def test_a_damaged_archive_is_fetched_again(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_dataset("cifar10", cache_dir=cache)
    (cache / "cifar-10-python.tar.gz").write_bytes(b"damaged")
    assert load_dataset("cifar10", cache_dir=cache).fingerprint() == first.fingerprint()
    assert len(server.requests) == 2


def test_the_progress_bar_counts_starts_again_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        download, "Console", lambda **_: Console(file=shown, force_terminal=True, width=100)
    )
    bar = download._ProgressBar("a.zip")
    bar.reset()  # nothing was received
    bar.total = 100
    bar.update(40)
    (task,) = bar._progress.tasks
    assert (task.completed, task.total) == (40, 100)
    bar.update(20)
    assert len(bar._progress.tasks) == 1
    assert task.completed == 60
    bar.reset()
    assert task.completed == 0
    bar.update(100)
    assert task.completed == 100
    started = [bar._progress.live.is_started]
    bar.close()
    started.append(bar._progress.live.is_started)
    assert started == [True, False]
    assert bar._progress.live.transient, "a bar that is done leaves no line"
    assert "downloading a.zip" in shown.getvalue()
