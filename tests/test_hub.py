"""Downloads against a local server that speaks the hub's protocol, and the search for tokenizers.

huggingface_hub reads its settings when it is imported, so each way of running it (online, server
gone, offline) is one subprocess that reports what every call gave.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny_config, tiny_tokenizer_model
from tokenize_anything.config import PRESETS
from tokenize_anything.hub import (
    PUBLISHED_CONCEPTS,
    PUBLISHED_REPO_ID,
    PUBLISHED_WEIGHTS,
    TEXT_TOKENIZER_VARIABLE,
    find_text_tokenizer,
)
from tokenize_anything.modeling import TAP
from tokenize_anything.published_format import to_published_state_dict

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BODY = bytes(range(251)) * 41
LONG_BODY = np.random.default_rng(0).bytes(24_000_001)  # longer than two chunks of the library
LONG_BREAK = 15_000_000
REPO = Path(__file__).parents[1]


class HubServer(http.server.ThreadingHTTPServer):
    """Serves `files`; remembers each request as "METHOD path" or "METHOD path range"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.requests: list[str] = []
        self.files = {
            "whole.bin": BODY,
            "folder/other.bin": BODY[:997],
            "broken_off.bin": LONG_BODY,
            "damaged.bin": BODY[1:],
            "tokenizer.model": tiny_tokenizer_model(),
            "models/tap_vit_b_v1_1.pkl": published_pickle(seed=11),
            "models/tap_vit_l_v1_0.pkl": published_pickle(seed=10),
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond(send_body=False)

    def do_GET(self) -> None:
        self.respond(send_body=True)

    def respond(self, *, send_body: bool) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(f"{self.command} {self.path} {wanted or ''}".strip())
        repo_id, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, filename = rest.partition("/")
        if repo_id == "owner/closed":
            return self.refuse(403, "GatedRepo")
        if repo_id != PUBLISHED_REPO_ID:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if filename not in self.server.files:
            return self.refuse(404, "EntryNotFound")
        self.send_file(filename, wanted, send_body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, filename: str, wanted: str | None, send_body: bool) -> None:
        body = self.server.files[filename]
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not send_body:
            return
        if filename == "broken_off.bin" and not wanted:
            self.wfile.write(body[:LONG_BREAK])
            self.close_connection = True
        elif filename == "damaged.bin":
            self.wfile.write(bytes(len(body) - start))
        else:
            self.wfile.write(body[start:])


def published_pickle(seed: int) -> bytes:
    config = tiny_config(max_text_length=40)
    state = to_published_state_dict(TAP(config))
    state["text_decoder.transformer.norm.bias"].fill_(seed)
    return pickle.dumps({name: tensor.numpy() for name, tensor in state.items()}, protocol=4)


SCRIPT_START = """
import json, sys, time
time.sleep = lambda seconds: None  # the library waits between its attempts
from tokenize_anything.hub import download, find_text_tokenizer
results = {}
def attempt(name, function, *args, **kwargs):
    try:
        results[name] = ["ok", str(function(*args, **kwargs))]
    except Exception as error:
        results[name] = [type(error).__name__, str(error)]
"""
ONLINE = """
attempt("whole", download, "whole.bin")
attempt("again", download, "whole.bin")
attempt("commit", download, "folder/other.bin", revision=COMMIT)
attempt("elsewhere", download, "whole.bin", cache_dir=sys.argv[1])
attempt("broken off", download, "broken_off.bin")
attempt("damaged", download, "damaged.bin")
attempt("damaged again", download, "damaged.bin")
attempt("no file", download, "absent.bin")
attempt("no revision", download, "whole.bin", revision="v9")
attempt("no repository", download, "whole.bin", repo_id="owner/absent")
attempt("closed", download, "whole.bin", repo_id="owner/closed")
attempt("bad name", download, "whole.bin", repo_id="a/b/c")
attempt("tokenizer", find_text_tokenizer, "BAAI/tokenize-anything:tokenizer.model", 43)
def norm(name):
    from tokenize_anything.build import load_model
    return load_model(name, device="cpu").text_decoder.norm.bias[0].item()
attempt("tap_vit_b", norm, "tap_vit_b")
attempt("tap_vit_l.v1_0", norm, "tap_vit_l.v1_0")
"""
WITHOUT_SERVER = """
attempt("cached", download, "whole.bin")
attempt("not cached", download, "never.bin")
"""


def run_script(body: str, folder: Path, **environment: str) -> dict[str, list[str]]:
    script = SCRIPT_START + f"COMMIT = {COMMIT!r}\n" + body + "print(json.dumps(results))"
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder / "elsewhere")],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPO),
            **environment,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found: dict[str, list[str]] = json.loads(finished.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def online(server: HubServer, folder: Path) -> dict[str, list[str]]:
    return run_script(ONLINE, folder, HF_ENDPOINT=server.address)


def count_gets(server: HubServer, filename: str) -> list[str]:
    return [r for r in server.requests if r.startswith("GET") and f"/{filename}" in r]


def test_a_file_is_downloaded_once(
    server: HubServer, online: dict[str, list[str]], folder: Path
) -> None:
    assert online["whole"][0] == "ok", online["whole"]
    assert Path(online["whole"][1]).read_bytes() == BODY
    assert Path(online["whole"][1]).is_relative_to(folder / "home")
    assert online["again"] == online["whole"]
    assert Path(online["elsewhere"][1]).is_relative_to(folder / "elsewhere")
    assert len(count_gets(server, "whole.bin")) == 2  # once for each cache folder


def test_a_revision_and_a_folder_in_the_repository(online: dict[str, list[str]]) -> None:
    path = Path(online["commit"][1])
    assert path.read_bytes() == BODY[:997]
    assert path.parts[-3:] == (COMMIT, "folder", "other.bin")


def test_a_broken_download_goes_on_where_it_stopped(
    server: HubServer, online: dict[str, list[str]]
) -> None:
    assert online["broken off"][0] == "ok", online["broken off"]
    assert Path(online["broken off"][1]).read_bytes() == LONG_BODY
    first, second = count_gets(server, "broken_off.bin")
    assert "bytes=" not in first
    start = int(second.split("bytes=")[1].rstrip("-"))
    assert 0 < start <= LONG_BREAK


def test_damaged_bytes_are_found_and_removed(
    server: HubServer, online: dict[str, list[str]], folder: Path
) -> None:
    for name in ("damaged", "damaged again"):
        kind, message = online[name]
        assert kind == "ValueError"
        assert "damaged.bin: the downloaded bytes are damaged" in message
        assert hashlib.sha256(BODY[1:]).hexdigest() in message
        assert "try again" in message
    assert len(count_gets(server, "damaged.bin")) == 2  # nothing wrong was left in the cache
    blobs = {path.name for path in folder.glob("home/**/blobs/*")}
    assert hashlib.sha256(BODY).hexdigest() in blobs
    assert hashlib.sha256(BODY[1:]).hexdigest() not in blobs
    assert not list(folder.glob("home/**/damaged.bin"))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("no file", "FileNotFoundError", "absent.bin (revision main): the repository has no such "),
        (
            "no revision",
            "FileNotFoundError",
            "whole.bin (revision v9): the repository has no such ",
        ),
        ("no repository", "FileNotFoundError", "owner/absent:whole.bin"),
        ("no repository", "FileNotFoundError", "no such repository, or it is private"),
        ("closed", "PermissionError", "log in with `hf auth login`"),
        ("bad name", "ValueError", "expected owner/name as repo_id"),
    ],
)
def test_refusals_of_the_hub_name_file_and_cure(
    online: dict[str, list[str]], name: str, kind: str, words: str
) -> None:
    assert online[name][0] == kind
    assert words in online[name][1]


def test_model_names_lead_to_their_version(online: dict[str, list[str]]) -> None:
    assert online["tap_vit_b"] == ["ok", "11.0"]
    assert online["tap_vit_l.v1_0"] == ["ok", "10.0"]


def test_a_tokenizer_may_come_from_the_hub(online: dict[str, list[str]]) -> None:
    assert Path(online["tokenizer"][1]).read_bytes() == tiny_tokenizer_model()


@pytest.mark.parametrize(
    ("environment", "kind", "words"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "ConnectionError", "Check the network, proxy and"),
        ({"HF_HUB_OFFLINE": "1"}, "FileNotFoundError", "Unset HF_HUB_OFFLINE, or copy the file"),
    ],
)
def test_without_server_the_cache_serves(
    online: dict[str, list[str]], folder: Path, environment: dict[str, str], kind: str, words: str
) -> None:
    found = run_script(WITHOUT_SERVER, folder, **environment)
    assert found["cached"] == online["whole"]
    assert found["not cached"][0] == kind
    assert words in found["not cached"][1]
    assert "never.bin" in found["not cached"][1]
    assert str(folder / "home") in found["not cached"][1]


def test_tables_of_published_files() -> None:
    versions = {"tap_vit_b": "v1_1 v1_0", "tap_vit_l": "v1_1 v1_0", "tap_vit_h": "v1_1"}
    expected = {
        f"{model}.{version}": f"models/{model}_{version}.pkl"
        for model, names in versions.items()
        for version in names.split()
    }
    expected |= {model: f"models/{model}_v1_1.pkl" for model in versions}
    assert dict(PUBLISHED_WEIGHTS) == expected
    assert {name.split(".")[0] for name in PUBLISHED_WEIGHTS} <= set(PRESETS)
    assert PUBLISHED_CONCEPTS == {
        name: f"concepts/{name}.pkl" for name in ("merged_2560", "lvis_1203", "coco_80")
    }


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEXT_TOKENIZER_VARIABLE, raising=False)


def write_tokenizer(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tiny_tokenizer_model())
    return path


@pytest.mark.parametrize("name", ["text_tokenizer.model", "tokenizer.model"])
@pytest.mark.usefixtures("no_variable")
def test_a_tokenizer_beside_the_checkpoint_is_found(tmp_path: Path, name: str) -> None:
    path = write_tokenizer(tmp_path / name)
    assert find_text_tokenizer(None, 43, beside=tmp_path / "weights.safetensors") == path


def test_order_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("given/a.model", "variable/b.model", "text_tokenizer.model", "tokenizer.model")
    given, variable, first, second = (write_tokenizer(tmp_path / name) for name in names)
    beside = tmp_path / "weights.pkl"
    monkeypatch.setenv(TEXT_TOKENIZER_VARIABLE, str(variable))
    assert find_text_tokenizer(given, 43, beside=beside) == given
    assert find_text_tokenizer(str(given), 43) == given
    assert find_text_tokenizer(None, 43, beside=beside) == variable
    monkeypatch.setenv(TEXT_TOKENIZER_VARIABLE, "")
    assert find_text_tokenizer(None, 43, beside=beside) == first
    first.unlink()
    assert find_text_tokenizer(None, 43, beside=beside) == second


@pytest.mark.usefixtures("no_variable")
def test_no_tokenizer_names_all_the_ways(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_text_tokenizer(None, 32000, beside=tmp_path / "weights.pkl")
    for way in (
        "32000 pieces",
        "text_tokenizer=<path",
        "owner/name:filename",
        TEXT_TOKENIZER_VARIABLE,
        f"text_tokenizer.model or tokenizer.model into {tmp_path}",
        "LLaMA",
    ):
        assert way in str(caught.value)


def test_a_named_tokenizer_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(FileNotFoundError, match=r"text_tokenizer: .*absent.model is no file"):
        find_text_tokenizer(tmp_path / "absent.model", 43, beside=tmp_path / "weights.pkl")
    monkeypatch.setenv(TEXT_TOKENIZER_VARIABLE, "absent.model")
    with pytest.raises(FileNotFoundError, match=f"{TEXT_TOKENIZER_VARIABLE}: absent.model is no"):
        find_text_tokenizer(None, 43, beside=tmp_path / "weights.pkl")


def test_a_tokenizer_must_fit_the_model(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(
        ValueError, match="expected the 47 pieces of the model's vocabulary, got 43"
    ):
        find_text_tokenizer(path, 47)
    path.write_bytes(np.arange(9).tobytes())
    with pytest.raises(ValueError, match=r"tokenizer.model"):
        find_text_tokenizer(path, 43)
