"""A hub on this machine, with faults on demand: the part of the protocol that a client speaks.

One port is the hub (it knows tokens), another the storage that it redirects large files to. What was
asked is in `hub.requests`; a fault is a function put into `hub.faults` for a file's name or "listing",
called once for each request until it is used up.

SPDX-License-Identifier: Apache-2.0"""

import contextlib
import hashlib
import json
import os
import re
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_SecretOfTheTest"


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag_of(name, data):
    """Large files are kept by their SHA-256, small ones by git's hash."""
    large = name.endswith((".safetensors", ".bin"))
    return hashlib.sha256(data).hexdigest() if large else git_hash(data)


class Repo:
    def __init__(self, gated=False, private=False):
        self.commits = {}  # commit -> {file name: bytes}
        self.refs = {}
        self.gated, self.private = gated, private

    def commit(self, files, *refs):
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = dict(files)
        for ref in refs or ("main",):
            self.refs[ref] = sha
        return sha


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code=None, **headers):
        self.answer(status, b'{"error":"no"}', X_Error_Code=code, **headers)

    def cut(self):
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)
        self.close_connection = True

    def send_file(self, data, fault=None, **headers):
        """The bytes, or the part that Range asks for."""
        begin, total = 0, len(data)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if fault and fault.get("ignore_range"):
            asked = None
        if asked:
            begin = int(asked[1])
            if begin >= total:
                return self.refuse(416)
            shown = begin + (fault or {}).get("shift_range", 0)
            headers["Content_Range"] = f"bytes {shown}-{total - 1}/{total}"
        body = data[begin:]
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and "wait_after" in fault:
            n = fault["wait_after"]
            self.wfile.write(body[:n])
            self.wfile.flush()
            fault["waiting"].set()
            fault["go_on"].wait(120)
            body = body[n:]
        if fault and "cut_after" in fault:
            self.wfile.write(body[:fault["cut_after"]])
            return self.cut()
        self.wfile.write(body)

    def do_GET(self):
        self.server.owner.serve(self)

    do_HEAD = do_GET

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.owner.put(self, body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass  # clients go away in the middle: that is what is tested


class Hub:
    def __init__(self, certificate=None):
        """`certificate`: files of one and of its key; the hub speaks TLS, the storage does not."""
        self.repos, self.requests, self.faults, self.puts = {}, [], {}, []
        self.lock = threading.Lock()
        self.hub = Server(("127.0.0.1", 0), Handler)
        self.storage = Server(("127.0.0.1", 0), Handler)
        for server in (self.hub, self.storage):
            server.owner = self
            if certificate and server is self.hub:
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                tls.load_cert_chain(*certificate)
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint = f"http{'s' if certificate else ''}://127.0.0.1:{self.hub.server_port}"
        self.storage_url = f"http://127.0.0.1:{self.storage.server_port}"

    def close(self):
        for server in (self.hub, self.storage):
            server.shutdown()
            server.server_close()

    def reset(self):
        with self.lock:
            self.requests.clear()

    def asked(self, method=None, end="", where=None):
        """Requests so far: dictionaries with where, method, path and headers."""
        with self.lock:
            return [r for r in self.requests
                    if method in (None, r["method"]) and r["path"].split("?")[0].endswith(end)
                    and where in (None, r["where"])]

    def fault(self, name, times=1, **what):
        """`status`, `cut_after`, `ignore_range`, ...: for the next `times` GETs of a file, for its
        HEADs ("HEAD name") or for the "listing"."""
        with self.lock:
            self.faults[name] = [dict(what) for _ in range(times)]

    def take_fault(self, name):
        with self.lock:
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting else None

    # ---- requests

    def serve(self, h):
        url = urllib.parse.urlsplit(h.path)
        where = "hub" if h.server is self.hub else "storage"
        with self.lock:
            self.requests.append({"where": where, "method": h.command, "path": h.path,
                                  "headers": {k.lower(): v for k, v in h.headers.items()}})
        parts = [urllib.parse.unquote(p) for p in url.path.strip("/").split("/")]
        if where == "storage":
            return self.serve_storage(h, parts)
        if parts[0] == "batch":
            return self.serve_batch(h, url.path)
        if parts[:2] == ["api", "models"]:
            return self.serve_api(h, parts[2:])
        if "resolve" in parts:
            i = parts.index("resolve")
            return self.serve_file(h, "/".join(parts[:i]), parts[i + 1], "/".join(parts[i + 2:]))
        return h.refuse(404)

    def allowed(self, h, repo):
        """Answers and gives False when there is no such repository for this client."""
        good = h.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not good):
            h.refuse(401, "RepoNotFound")
            return False
        return True

    def serve_api(self, h, parts):
        i = next((k for k, p in enumerate(parts) if p in ("revision", "tree")), len(parts))
        name = "/".join(parts[:i])
        repo = self.repos.get(name)
        if isinstance(repo, str):  # renamed
            return h.answer(307, Location=h.path.replace(f"/{name}/", f"/{repo}/"))
        fault = self.take_fault("listing")
        if fault and "status" in fault:
            return h.refuse(fault["status"], **fault.get("headers", {}))
        if fault and "body" in fault:
            return h.answer(200, fault["body"])
        if not self.allowed(h, repo):
            return None
        revision = "/".join(parts[i + 1:]) or "main"
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return h.refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if i < len(parts) and parts[i] == "tree":
            rows = []
            for path, data in files.items():
                row = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
                if len(etag_of(path, data)) == 64:
                    row["lfs"] = {"oid": etag_of(path, data), "size": len(data), "pointerSize": 1}
                rows.append(row)
            return h.answer(200, json.dumps(rows).encode())
        body = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [],
                "downloads": 0, "siblings": [{"rfilename": f} for f in files]}
        return h.answer(200, json.dumps(body).encode())

    def serve_file(self, h, name, revision, path):
        repo = self.repos.get(name)
        if isinstance(repo, str):
            return h.answer(307, Location=h.path.replace(f"/{name}/", f"/{repo}/"))
        if not self.allowed(h, repo):
            return None
        if repo.gated and h.headers.get("Authorization") != f"Bearer {TOKEN}":
            return h.refuse(403 if h.headers.get("Authorization") else 401, "GatedRepo")
        commit = repo.refs.get(revision, revision)
        data = repo.commits.get(commit, {}).get(path)
        if data is None:
            return h.refuse(404, "EntryNotFound")
        etag = etag_of(path, data)
        fault = self.take_fault(f"HEAD {path}" if h.command == "HEAD" else path)
        if fault and "status" in fault:
            return h.refuse(fault["status"], **fault.get("headers", {}))
        headers = {"X_Repo_Commit": commit, "ETag": f'"{etag}"'}
        if fault:
            headers.update(fault.get("headers", {}))
            data = fault.get("data", data)
        if len(etag) == 64:  # kept elsewhere
            return h.answer(302, X_Repo_Commit=commit, X_Linked_ETag=headers["ETag"],
                            X_Linked_Size=str(len(data)), ETag='"of-the-redirect"',
                            Location=(fault or {}).get(
                                "location", f"{self.storage_url}/{name}/{commit}/{path}?sig=s3cret"))
        return h.send_file(data, fault, **headers)

    def serve_storage(self, h, parts):
        i = next(k for k, p in enumerate(parts) if re.fullmatch("[0-9a-f]{40}", p))
        repo, path = self.repos["/".join(parts[:i])], "/".join(parts[i + 1:])
        fault = self.take_fault(f"storage {path}")
        if fault and "status" in fault:
            return h.refuse(fault["status"], **fault.get("headers", {}))
        data = (fault or {}).get("data", repo.commits[parts[i]][path])
        return h.send_file(data, fault, ETag='"something-else"')

    # ---- run-batch's URLs

    def serve_batch(self, h, path):
        fault = self.take_fault("batch")
        if fault:
            return h.refuse(fault["status"], **fault.get("headers", {}))
        return h.answer(200, self.batch_input)

    def put(self, h, body):
        fault = self.take_fault("put")
        if fault:
            return h.refuse(fault["status"], **fault.get("headers", {}))
        self.puts.append((h.path, body))
        return h.answer(200)


def folder_files(folder):
    files = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as f:
            files[name] = f.read()
    return files
