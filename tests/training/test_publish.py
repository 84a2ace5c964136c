"""Pushing to a Hub: a server on this machine takes what the real one would."""

import base64
import json
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffkit.training import fit

TOKEN = "hf_" + "s3cretS3cretS3cretS3cret"


class Hub(BaseHTTPRequestHandler):
    """The three calls of an upload: create the repository, ask how to send, commit."""

    def log_message(self, *args):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.startswith("/api/whoami"):
            return self.answer({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        return self.answer({"id": "me/drawn", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunked()
        record = self.server.record
        record.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuse:
            return self.answer({"error": "no"}, 403)
        base = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{base}/me/{json.loads(body)['name']}", "id": "0"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            return self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": f"{base}/me/drawn/commit/1"})
        return self.answer({})

    def _chunked(self):
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.record, server.refuse = [], False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


PUSH = """
import sys
from pathlib import Path
from diffkit.recipes.reading import load_recipe
from diffkit.training import publish
recipe = load_recipe("digits", sets=["output.hub_id=me/drawn", *sys.argv[2:]], environ={})
print(publish.push(Path(sys.argv[1]), recipe))
"""


def push(folder, hub, *sets):
    env = {
        "PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", textwrap.dedent(PUSH), str(folder), *sets]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from tiny_run import TINY

    from diffkit.recipes.reading import load_recipe

    folder = tmp_path_factory.mktemp("runs") / "drawn"
    fit(load_recipe("digits", sets=[*TINY, "training.steps=4", f"output.dir={folder}"], environ={}))
    return folder


def committed(record):
    body = next(body for path, _, body in record if "/commit/" in path)
    lines = [json.loads(line) for line in body.decode().splitlines()]
    return {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}


def test_the_result_is_pushed_privately_without_checkpoints_or_tokens(hub, finished):
    done = push(finished, hub)
    assert done.returncode == 0, done.stderr
    create = json.loads(next(body for path, _, body in hub.record if path == "/api/repos/create"))
    assert create.get("private") is True or create.get("visibility") == "private"
    assert {auth for path, auth, _ in hub.record} == {f"Bearer {TOKEN}"}
    files = committed(hub.record)
    assert {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "README.md",
            "diffkit.json", "resolved.yaml", "loss.png"} <= set(files)  # fmt: skip
    assert any(name.startswith("samples/") for name in files)
    assert not any(name.startswith(("checkpoints", ".", "unet_raw")) for name in files)
    assert not any(TOKEN.encode() in content for content in files.values())
    assert files["unet/config.json"] == (finished / "unet" / "config.json").read_bytes()
    assert TOKEN not in done.stdout + done.stderr


def test_a_public_repository_is_asked_for(hub, finished):
    assert push(finished, hub, "output.hub_private=false").returncode == 0
    create = json.loads(next(body for path, _, body in hub.record if path == "/api/repos/create"))
    assert not create.get("private")
    assert create.get("visibility") in (None, "public")


def test_a_refusal_is_one_error_and_the_run_is_still_there(hub, finished):
    hub.refuse = True
    done = push(finished, hub)
    assert done.returncode != 0
    assert "ModelError: the run could not be pushed to me/drawn" in done.stderr.splitlines()[-1]
    assert TOKEN not in done.stdout + done.stderr
    assert (finished / "model_index.json").is_file()
