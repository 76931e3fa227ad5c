"""Models by name: fetched from a hub on this machine, with everything that can go wrong on the way.

SPDX-License-Identifier: Apache-2.0"""

import fcntl
import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from common import BIN, MODEL, Server, TIMEOUT, lines, main
from fake_hub import TOKEN, Hub, Repo, etag_of, folder_files

try:
    import huggingface_hub  # noqa: F401
except ImportError:
    huggingface_hub = None

PEBBLE = folder_files(MODEL)
BIG = bytes(range(256)) * 20000  # 5 MB
SMALL = {"config.json": b'{"architectures":["LlamaForCausalLM"]}', "tokenizer.json": b"{}",
         "tokenizer_config.json": b"{ }"}
MODEL_FILES = {**SMALL, "model.safetensors": BIG}


class HubTest(unittest.TestCase):
    """A hub, an empty cache, and a client in an environment of its own."""

    def setUp(self):
        self.hub = Hub()
        self.addCleanup(self.hub.close)
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.cache = os.path.join(self.home, "hub")
        self.repo = self.hub.repos["org/m"] = Repo()

    def env(self, **more):
        env = {k: v for k, v in os.environ.items()
               if not k.startswith(("HF_", "HUGGING", "VLLM_", "SLUICE_", "XDG_"))
               and not k.lower().endswith("_proxy") and not k.startswith("SSL_CERT")
               and not k.endswith("_CA_BUNDLE")}
        env.update(HOME=self.home, HF_HOME=self.home, HF_ENDPOINT=self.hub.endpoint)
        env.update(more)
        return {k: v for k, v in env.items() if v is not None}

    def run_(self, *args, stdin="", env=None, **kw):
        done = subprocess.run([BIN, *args], input=stdin, capture_output=True, text=True,
                              env=self.env(**(env or {})), timeout=TIMEOUT, **kw)
        return done.returncode, done.stdout, done.stderr

    def pull(self, *args, name="org/m", **kw):
        code, out, err = self.run_("pull", name, *args, **kw)
        self.assertEqual(code, 0, err)
        return out.strip()

    def fails(self, *args, word, name="org/m", code=1, **kw):
        got, out, err = self.run_("pull", name, *args, **kw)
        self.assertEqual((got, out), (code, ""), err)
        self.assertIn(word, err)
        self.assertEqual(len([x for x in err.splitlines() if x.startswith("sluice: ")]), 1, err)
        return err

    def start(self, *args, **env):
        process = subprocess.Popen([BIN, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=self.env(**env))
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def path(self, *parts):
        return os.path.join(self.cache, "models--org--m", *parts)

    def blobs(self):
        return sorted(os.listdir(self.path("blobs"))) if os.path.isdir(self.path("blobs")) else []

    def no_model(self):
        """Nothing that looks like a model, and no blob but whole ones."""
        snapshots = self.path("snapshots")
        for commit in os.listdir(snapshots) if os.path.isdir(snapshots) else []:
            self.assertEqual(os.listdir(os.path.join(snapshots, commit)), [])
        self.assertFalse(os.path.exists(self.path("refs", "main")))
        for name in self.blobs():
            if not name.endswith(".incomplete"):
                with open(self.path("blobs", name), "rb") as f:
                    data = f.read()
                self.assertIn(name, {etag_of("a.bin", data), etag_of("a", data)})


class Layout(HubTest):
    def test_the_folder(self):
        files = {**MODEL_FILES, "README.md": b"x", "model.gguf": b"x", "onnx/model.onnx": b"x",
                 "consolidated.safetensors": b"x", "pytorch_model.bin": b"x", "merges.txt": b"x",
                 "training_args.bin": b"x", "original/params.json": b"{}", "modeling_m.py": b"x",
                 "additional_chat_templates/rag.jinja": b"{{ 1 }}", "chat_template.jinja": b"x",
                 "empty.tiktoken": b"", "generation_config.json": b"{}"}
        commit = self.repo.commit(files)
        folder = self.pull()
        self.assertEqual(folder, self.path("snapshots", commit))
        found = {os.path.relpath(os.path.join(d, f), folder) for d, _, fs in os.walk(folder)
                 for f in fs}
        self.assertEqual(found, {*MODEL_FILES, "additional_chat_templates/rag.jinja",
                                 "chat_template.jinja", "generation_config.json"})
        for name in found:
            path = os.path.join(folder, name)
            with open(path, "rb") as f:
                self.assertEqual(f.read(), files[name])
            self.assertEqual(os.readlink(path), "../" * (2 + name.count("/")) + "blobs/" +
                             etag_of(name, files[name]))
        with open(self.path("refs", "main"), encoding="ascii") as f:
            self.assertEqual(f.read(), commit)
        self.assertEqual(self.blobs(), sorted({etag_of(n, files[n]) for n in found}))
        locks = os.listdir(os.path.join(self.cache, ".locks", "models--org--m"))
        self.assertIn(etag_of("model.safetensors", BIG) + ".lock", locks)
        self.hub.reset()
        self.assertEqual(self.pull(), folder)
        self.assertEqual([r["path"] for r in self.hub.asked()],
                         ["/api/models/org/m/revision/main"])

    def test_shards_and_fallbacks(self):
        index = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors",
                                           "c": "m-1.safetensors"}}).encode()
        shards = {"m-1.safetensors": b"1" * 1000, "m-2.safetensors": b"2" * 1000}
        self.repo.commit({**SMALL, **shards, "model.safetensors.index.json": index,
                          "m-3.safetensors": b"3"})
        self.assertEqual(set(os.listdir(self.pull())),
                         {*SMALL, *shards, "model.safetensors.index.json"})
        self.repo.commit({**SMALL, "pytorch_model.bin": b"4"})
        self.assertEqual(set(os.listdir(self.pull())), {*SMALL, "pytorch_model.bin"})
        self.repo.commit({"config.json": b"{}", "vocab.json": b"{}", "merges.txt": b"x",
                          "model.safetensors": b"5"})
        self.assertEqual(set(os.listdir(self.pull())),
                         {"config.json", "vocab.json", "merges.txt", "model.safetensors"})
        self.repo.commit({**SMALL, "m.Q4_0.gguf": b"x"})
        self.fails(word="GGUF")
        self.repo.commit({**SMALL, "model.safetensors.index.json": index})
        self.fails(word="m-1.safetensors, which the repository does not have")

    def test_revisions(self):
        old = self.repo.commit(MODEL_FILES, "v1", "main", "refs/pr/1")
        new = self.repo.commit({**MODEL_FILES, "config.json": b'{"new":1}'})
        self.assertTrue(self.pull("--revision", "v1").endswith(old))
        self.hub.reset()
        self.assertTrue(self.pull().endswith(new))
        self.assertEqual(len(self.hub.asked("GET", "config.json")), 1)  # what changed
        self.assertEqual(self.hub.asked("GET", "model.safetensors"), [])
        self.assertTrue(self.pull("--revision", "refs/pr/1").endswith(old))
        self.assertTrue(self.pull("--revision", old).endswith(old))
        self.fails("--revision", "nope", word="org/m has no revision 'nope'")
        for bad in ("../x", "/x", "a\\b", "a/../b", ""):
            self.fails("--revision", bad, word="is not a revision's name")
        main_ref = self.path("refs", "main")
        with open(main_ref, encoding="ascii") as f:
            self.assertEqual(f.read(), new)

    def test_download_dir_and_other_homes(self):
        self.repo.commit(MODEL_FILES)
        other = os.path.join(self.home, "other")
        self.assertTrue(self.pull("--download-dir", other).startswith(other))
        for key in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            there = os.path.join(self.home, key)
            self.assertTrue(self.pull(env={key: there}).startswith(there))
        home = os.path.join(self.home, "h2")
        self.assertTrue(self.pull(env={"HF_HOME": None, "HOME": home}).startswith(
            os.path.join(home, ".cache", "huggingface", "hub")))
        self.assertIn("HF_HOME", self.fails(word="no folder",
                                            env={"HF_HOME": None, "HOME": None}))

    def test_names(self):
        for name in ("org/m/x", "/abs", "org--x/m", "-a/b", "a/b.git", "a..b", "~x"):
            code, _, err = self.run_("pull", name if name[0] != "-" else "./" + name)
            self.assertEqual(code, 2, err)
        self.assertEqual(self.hub.asked(), [])
        self.hub.repos["single"] = self.repo
        self.repo.commit(MODEL_FILES)
        self.assertIn("/models--single/", self.pull(name="single"))
        self.hub.repos["old/name"] = "org/m"  # a repository that moved
        self.assertIn("/models--old--name/", self.pull(name="old/name"))


@unittest.skipUnless(huggingface_hub, "no huggingface_hub")
class Sharing(HubTest):
    """The cache is huggingface_hub's own, both ways."""

    def python(self, code, *args, **env):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True,
                              env=self.env(HF_HUB_DISABLE_XET="1", **env), timeout=TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    SNAPSHOT = ("import sys; from huggingface_hub import snapshot_download as s;"
                "print(s('org/m', local_files_only=sys.argv[1] == 'local'))")

    def test_what_they_fetched(self):
        self.repo.commit(MODEL_FILES)
        folder = self.python(self.SNAPSHOT, "net")
        self.hub.reset()
        self.assertEqual(self.pull(), folder)
        self.assertEqual([(r["method"], r["path"]) for r in self.hub.asked()],
                         [("GET", "/api/models/org/m/revision/main")])
        self.hub.reset()
        self.assertEqual(self.pull(env={"HF_HUB_OFFLINE": "1"}), folder)
        self.assertEqual(self.hub.asked(), [])

    def test_what_we_fetched(self):
        self.repo.commit(MODEL_FILES)
        folder = self.pull()
        self.hub.reset()
        self.assertEqual(self.python(self.SNAPSHOT, "local"), folder)
        one = ("from huggingface_hub import hf_hub_download as d;"
               "print(d('org/m', 'model.safetensors', local_files_only=True))")
        self.assertEqual(self.python(one), os.path.join(folder, "model.safetensors"))
        scan = ("from huggingface_hub import scan_cache_dir as s; r = s(); assert not r.warnings;"
                "x, = r.repos; print(x.repo_id, x.nb_files, x.size_on_disk, *x.refs)")
        self.assertEqual(self.python(scan).split(),
                         ["org/m", "4", str(len(BIG) + len(SMALL["config.json"]) + 5), "main"])
        self.assertEqual([r for r in self.hub.asked() if "org/m" in r["path"]], [])
        self.assertEqual(self.python(self.SNAPSHOT, "net"), folder)
        self.assertEqual(self.hub.asked("GET", "model.safetensors"), [])

    def test_their_locks(self):
        self.repo.commit(MODEL_FILES)
        lock = os.path.join(self.cache, ".locks", "models--org--m",
                            etag_of("model.safetensors", BIG) + ".lock")
        os.makedirs(os.path.dirname(lock))
        hold = ("import sys, filelock; l = filelock.FileLock(sys.argv[1]); l.acquire();"
                "print('held', flush=True); sys.stdin.read()")
        holder = subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        self.assertEqual(holder.stdout.readline(), "held\n")
        client = self.start("pull", "org/m")
        for line in client.stderr:
            if "waiting for another download of model.safetensors" in line:
                break
        self.assertEqual(self.hub.asked("GET", "model.safetensors"), [])
        holder.communicate("")
        self.assertEqual(client.communicate(timeout=TIMEOUT)[0].strip(),
                         self.path("snapshots", self.repo.refs["main"]))


class Broken(HubTest):
    """A download that breaks never leaves a file that looks whole."""

    def setUp(self):
        super().setUp()
        self.repo.commit(MODEL_FILES)
        self.etag = etag_of("model.safetensors", BIG)
        self.partial = self.path("blobs", self.etag + ".incomplete")

    def whole(self, folder):
        with open(os.path.join(folder, "model.safetensors"), "rb") as f:
            self.assertEqual(f.read(), BIG)

    def ranges(self):
        return [r["headers"].get("range") for r in self.hub.asked("GET", "model.safetensors",
                                                                  "storage")]

    def test_cut_in_the_middle(self):
        self.hub.fault("storage model.safetensors", 2, cut_after=1500000)
        self.hub.fault("tokenizer.json", 1, cut_after=1)
        self.whole(self.pull())
        self.assertEqual(self.ranges(), [None, "bytes=1500000-", "bytes=3000000-"])
        self.assertFalse(os.path.exists(self.partial))

    def test_given_up_and_resumed(self):
        self.hub.fault("storage model.safetensors", 20, cut_after=5000)
        self.fails(word="model.safetensors")
        self.no_model()
        self.assertEqual(os.path.getsize(self.partial), 30000)
        self.assertEqual(len(self.ranges()), 6)
        self.hub.faults.clear()
        self.hub.reset()
        self.whole(self.pull())
        self.assertEqual(self.ranges(), ["bytes=30000-"])

    def test_ranges_that_are_none(self):
        self.hub.fault("storage model.safetensors", 1, cut_after=1500000)
        self.whole(self.pull())
        for fault in ({"ignore_range": True}, {"shift_range": 1}, {"status": 416}):
            shutil.rmtree(self.cache)
            os.makedirs(self.path("blobs"))
            with open(self.partial, "wb") as f:
                f.write(BIG[:1000000])
            self.hub.reset()
            self.hub.fault("storage model.safetensors", 1, **fault)
            self.whole(self.pull())
            self.assertEqual(self.ranges()[0], "bytes=1000000-", fault)

    def test_wrong_partials(self):
        for left in (b"wrong" * 1000, b"x" * len(BIG), BIG + b"more", BIG):
            os.makedirs(self.path("blobs"), exist_ok=True)
            with open(self.partial, "wb") as f:
                f.write(left)
            self.whole(self.pull())
            self.assertFalse(os.path.exists(self.partial))
            shutil.rmtree(self.cache)

    def test_wrong_hashes(self):
        for name in ("storage model.safetensors", "tokenizer.json"):
            wrong = bytearray(MODEL_FILES[name.split()[-1]])
            wrong[-1] ^= 1
            self.hub.fault(name, 1, data=bytes(wrong))
            self.assertIn(name.split()[-1], self.fails(word="does not have the hash"))
            self.no_model()
            self.assertFalse(os.path.exists(self.partial))
            shutil.rmtree(self.cache)
        self.whole(self.pull())

    def test_more_than_it_said(self):
        self.hub.fault("storage model.safetensors", 1, data=BIG + b"more")
        self.fails(word="sends more than its 5120000 bytes")
        self.no_model()

    def test_killed_and_resumed(self):
        from threading import Event
        fault = {"wait_after": 2000000, "waiting": Event(), "go_on": Event()}
        self.hub.fault("storage model.safetensors", 1, **fault)
        client = self.start("pull", "org/m")
        self.assertTrue(fault["waiting"].wait(TIMEOUT))
        deadline = time.monotonic() + TIMEOUT
        while (not os.path.exists(self.partial) or os.path.getsize(self.partial) < 1000000) and \
                time.monotonic() < deadline:
            time.sleep(0.01)
        client.send_signal(signal.SIGKILL)
        client.wait()
        fault["go_on"].set()
        self.no_model()
        left = os.path.getsize(self.partial)
        self.assertTrue(1000000 <= left <= 2000000, left)
        code, _, err = self.run_("pull", "org/m", env={"HF_HUB_OFFLINE": "1"})
        self.assertEqual((code, "HF_HUB_OFFLINE" in err), (1, True))
        self.hub.reset()
        self.whole(self.pull())
        self.assertEqual(self.ranges(), [f"bytes={left}-"])

    def test_a_server_that_falls_silent(self):
        from threading import Event
        fault = {"wait_after": 2000000, "waiting": Event(), "go_on": Event()}
        self.addCleanup(fault["go_on"].set)
        self.hub.fault("storage model.safetensors", 1, **fault)
        self.whole(self.pull(env={"HF_HUB_DOWNLOAD_TIMEOUT": "1"}))
        self.assertEqual(self.ranges()[0], None)
        self.assertRegex(self.ranges()[1], r"^bytes=\d+-$")

    def test_two_at_once(self):
        from threading import Event
        fault = {"wait_after": 1000, "waiting": Event(), "go_on": Event()}
        self.hub.fault("storage model.safetensors", 1, **fault)
        first = self.start("pull", "org/m")
        self.assertTrue(fault["waiting"].wait(TIMEOUT))
        second = self.start("pull", "org/m")
        for line in second.stderr:
            if "waiting for another download of model.safetensors" in line:
                break
        fault["go_on"].set()
        outs = [p.communicate(timeout=TIMEOUT)[0].strip() for p in (first, second)]
        self.assertEqual((first.returncode, second.returncode), (0, 0))
        self.assertEqual(outs[0], outs[1])
        self.whole(outs[0])
        self.assertEqual(len(self.ranges()), 1)

    def test_no_room(self):
        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000000, 2000000))

        err = self.fails(word="no room in", preexec_fn=small_files)
        self.assertIn("model.safetensors", err)
        self.no_model()
        self.assertEqual(os.path.getsize(self.partial), 2000000)
        self.hub.reset()
        self.whole(self.pull())
        self.assertEqual(self.ranges(), ["bytes=2000000-"])

    def test_a_full_disk(self):
        os.makedirs(self.cache)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", self.cache],
                                 capture_output=True, check=False)
        if mounted.returncode:
            self.skipTest("no right to mount")
        self.addCleanup(subprocess.run, ["umount", self.cache], check=False)
        err = self.fails(word="no room in")
        self.assertIn("5120000 bytes are needed", err)
        self.no_model()

    def test_a_folder_that_cannot_be_written(self):
        with open(self.cache, "wb"):
            pass
        self.fails(word="cannot make")


class Answers(HubTest):
    def setUp(self):
        super().setUp()
        self.repo.commit(MODEL_FILES)

    def test_denied(self):
        err = self.fails(name="org/none", word="no such model, or it is private: set HF_TOKEN")
        self.assertIn("org/none", err)
        self.repo.private = True
        self.fails(word="org/m: 127.0.0.1 answers 401")
        self.fails(word="the token that was given does not open it", env={"HF_TOKEN": "wrong"})
        self.repo.private, self.repo.gated = False, True
        self.fails(word="org/m is gated: accept its terms")
        self.fails(word="the account of the token that was given has none", env={"HF_TOKEN": "wr"})
        self.no_model()
        self.pull(env={"HF_TOKEN": TOKEN})

    def test_missing(self):
        self.hub.fault("listing", 1, status=404)
        self.fails(word="neither a folder here nor a model at 127.0.0.1")
        self.hub.fault("HEAD config.json", 1, status=404)
        self.fails(word="has no file config.json in revision 'main'")

    def test_asked_to_wait(self):
        self.hub.fault("listing", 2, status=429, headers={"Retry_After": "1"})
        self.hub.fault("HEAD config.json", 1, status=503)
        self.hub.fault("storage model.safetensors", 1, status=500)
        self.pull()
        self.hub.fault("listing", 1, status=429, headers={"Retry_After": "3600"})
        shutil.rmtree(self.cache)
        self.fails(word="asks to come back in 3600 seconds")
        self.hub.fault("listing", 99, status=502)
        self.fails(word="answers 502; try again later")
        self.assertLess(len(self.hub.asked("GET", "/revision/main")), 14)

    def test_the_cache_when_the_hub_is_away(self):
        folder = self.pull()
        self.hub.fault("listing", 1, status=503)
        code, out, err = self.run_("pull", "org/m")
        self.assertEqual((code, out.strip()), (0, folder))
        self.assertIn("using what the cache has", err)
        nobody = {"HF_ENDPOINT": "http://127.0.0.1:9"}
        self.assertEqual(self.pull(env=nobody), folder)
        self.hub.fault("listing", 1, status=401)  # that says something about the model
        self.fails(word="answers 401")
        os.remove(self.path("blobs", etag_of("model.safetensors", BIG)))
        self.fails(word="HF_HUB_OFFLINE", env={"HF_HUB_OFFLINE": "yes"})
        code, out, _ = self.run_("tokenize", "org/m", env={"HF_HUB_OFFLINE": "yes"})
        self.assertNotIn("HF_HUB_OFFLINE", out)  # needs no weights

    def test_hostile_listings(self):
        sha = self.repo.refs["main"]
        for name in ("../x", "/etc/x", "a/../../x", "a\\..\\x", "a//b", ".", "a/.", "x\0y", "a\nb"):
            body = json.dumps({"sha": sha, "siblings": [{"rfilename": name}]}).encode()
            self.hub.fault("listing", 1, body=body)
            self.fails(word="leaves the model's folder")
        for body in (b"", b"[]", b"{}", b"\xff", b'{"sha":"../../x","siblings":[]}',
                     b'{"sha":"%s"}' % sha.encode(), b'{"sha":"%s","siblings":[1]}' % sha.encode(),
                     b'{"sha":"%s","siblings":[]}' % sha.encode(), b"[" * 100000,
                     b'{"x":"' + b"y" * (9 << 20) + b'"}'):
            self.hub.fault("listing", 1, body=body)
            self.fails(word="org/m")
        index = json.dumps({"weight_map": {"a": "../../../x"}}).encode()
        self.repo.commit({**SMALL, "model.safetensors.index.json": index, "x": b""})
        self.fails(word="tensor 'a': '../../../x' is not the name of a file in this folder")
        self.assertEqual(sorted(os.listdir(self.home)), ["hub"])

    def test_hostile_headers(self):
        for headers, word in (({"ETag": '"../../x"'}, "no usable ETag"),
                              ({"ETag": '"' + "x" * 300 + '"'}, "no usable ETag"),
                              ({"ETag": '"."'}, "no usable ETag"),
                              ({"X_Repo_Commit": "0" * 40}, "another commit")):
            self.hub.fault("HEAD config.json", 1, headers=headers)
            self.fails(word=word)
        self.no_model()

    def test_links_in_the_snapshot(self):
        sha = self.repo.commit({**MODEL_FILES, "additional_chat_templates/a.jinja": b"x"})
        outside = os.path.join(self.home, "outside")
        os.makedirs(outside)
        os.makedirs(self.path("snapshots", sha))
        os.symlink(outside, self.path("snapshots", sha, "additional_chat_templates"))
        self.fails(word="cannot make the link")
        self.assertEqual(os.listdir(outside), [])


class Secrets(HubTest):
    def setUp(self):
        super().setUp()
        self.repo.private = True
        self.repo.commit(MODEL_FILES)

    def check(self, *args, **env):
        code, out, err = self.run_("pull", "org/m", *args, env=env)
        self.assertEqual(code, 0, err)
        self.assertNotIn("Secret", out + err)
        for r in self.hub.asked():
            seen = r["headers"].get("authorization")
            self.assertEqual(seen, f"Bearer {TOKEN}" if r["where"] == "hub" else None, r)
        self.assertEqual(len(self.hub.asked("GET", where="storage")), 1)
        self.hub.reset()
        shutil.rmtree(self.cache)

    def test_the_token_stays_at_the_hub(self):
        self.check(HF_TOKEN=f" {TOKEN}\n")
        self.check("--hf-token", TOKEN)
        with open(os.path.join(self.home, "token"), "w", encoding="ascii") as f:
            f.write(TOKEN + "\n")
        self.check()

    def test_not_in_errors(self):
        self.hub.fault("storage model.safetensors", 99, status=500)
        err = self.fails(word="answers 500", env={"HF_TOKEN": TOKEN})
        self.assertNotIn("Secret", err)
        self.assertNotIn("s3cret", err)
        err = self.fails(word="HF_TOKEN holds characters", env={"HF_TOKEN": f"{TOKEN}\r\nX: y"})
        self.assertNotIn("Secret", err)
        code, out, err = self.run_("serve", "/nonexistent", "--hf-token", TOKEN)
        self.assertEqual((code, "Secret" in out + err), (1, False))

    def test_where_redirects_lead(self):
        env = {"HF_TOKEN": TOKEN}
        for location in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://u:p@127.0.0.1/x",
                         "gopher://x/"):
            self.hub.fault("model.safetensors", 1, location=location)
            self.hub.fault("HEAD model.safetensors", 0)
            self.fails(word="redirects to where this program does not follow", env=env)
        here = "/org/m/resolve/" + self.repo.refs["main"] + "/model.safetensors"
        self.hub.fault("model.safetensors", 99, location=here)
        self.fails(word="more than 10 redirects", env=env)

    def test_https_stays_https(self):
        files = [os.path.join(self.home, n) for n in ("cert.pem", "key.pem")]
        try:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-out",
                            files[0], "-keyout", files[1], "-days", "2", "-subj", "/CN=hub",
                            "-addext", "subjectAltName=IP:127.0.0.1"], check=True,
                           capture_output=True)
        except OSError:
            self.skipTest("no openssl")
        hub = Hub(files)
        self.addCleanup(hub.close)
        hub.repos["org/m"] = self.repo
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
        self.fails(word="127.0.0.1: SSL peer certificate", env=env)
        env["SSL_CERT_FILE"] = files[0]
        self.fails(word="redirects to where this program does not follow", env=env)
        self.assertEqual(hub.asked(where="storage"), [])
        self.repo.commit({**SMALL, "pytorch_model.bin.index.json": json.dumps(
            {"weight_map": {"a": "part"}}).encode(), "part": b"small enough to stay at the hub"})
        self.pull(env=env)

    def test_endpoints(self):
        for bad in ("ftp://127.0.0.1", "127.0.0.1", "http://u:p@127.0.0.1", "file:///x", "http://"):
            self.fails(word="HF_ENDPOINT must be", env={"HF_ENDPOINT": bad})
        env = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": self.hub.endpoint + "/"}
        self.assertEqual(self.run_("pull", "org/m", env=env)[0], 0)


class Commands(HubTest):
    @classmethod
    def setUpClass(cls):
        cls.model = Repo()
        cls.model.commit(PEBBLE)
        cls.draft = Repo()
        cls.draft.commit(folder_files("models/pebble-draft"))

    def setUp(self):
        super().setUp()
        self.hub.repos["org/pebble"] = self.model
        self.hub.repos["org/draft"] = self.draft

    def test_serve(self):
        old = dict(os.environ)
        self.addCleanup(lambda: (os.environ.clear(), os.environ.update(old)))
        fresh = self.env()
        os.environ.clear()
        os.environ.update(fresh)
        with Server(model="org/pebble") as server:
            answer = server.post("/v1/chat/completions", {
                "model": "org/pebble", "temperature": 0, "max_tokens": 24,
                "messages": [{"role": "user", "content": "How do I list the files in a folder?"}]})
            self.assertEqual(answer["model"], "org/pebble")
            self.assertIn("ls", answer["choices"][0]["message"]["content"])
            import urllib.request
            with urllib.request.urlopen(server.base + "/v1/models") as r:
                card = json.load(r)["data"][0]
            self.assertEqual((card["id"], card["root"]), ("org/pebble", "org/pebble"))
            code, _, err = self.run_("bench", "serve", "--port", str(server.port), "--num-prompts",
                                     "2", "--random-input-len", "8", "--random-output-len", "4",
                                     "--model", "org/pebble")
            self.assertEqual(code, 0, err)
            self.assertEqual(server.stop(), 0)

    def test_the_text_commands_take_no_weights(self):
        code, out, err = self.run_("tokenize", "org/pebble", stdin='{"text":"ls -l"}\n')
        self.assertEqual(code, 0, err)
        ids = lines(out)[0]["ids"]
        self.assertEqual(self.run_("tokenize", MODEL, stdin='{"text":"ls -l"}\n')[1], out)
        code, out, _ = self.run_("detokenize", "--model", "org/pebble",
                                 stdin=json.dumps({"ids": ids}))
        self.assertEqual(lines(out)[0]["text"], "ls -l")
        code, out, _ = self.run_("render", "org/pebble", stdin='{"messages":[{"role":"user","content":"x"}]}\n')
        self.assertIn("text", lines(out)[0])
        code, _, err = self.run_("serve", "org/none", "--tokenizer", "org/pebble")
        self.assertEqual((code, "org/none" in err), (1, True))
        self.assertEqual(self.hub.asked(end="model.safetensors"), [])

    def test_what_computes(self):
        with tempfile.TemporaryDirectory() as d:
            batch = os.path.join(d, "in")
            with open(batch, "w", encoding="utf-8") as f:
                f.write(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions",
                                    "body": {"model": "org/pebble", "prompt": "ls",
                                             "max_tokens": 2}}))
            for args in (["generate", "org/pebble", "--max-tokens", "2", "ls"],
                         ["chat", "org/pebble", "-q", "Hello", "--max-tokens", "2"],
                         ["run-batch", "-i", batch, "-o", "-", "--model", "org/pebble"],
                         ["generate", "org/pebble", "--tokenizer", "org/pebble",
                          "--tokenizer-revision", "main", "--max-tokens", "2", "ls"],
                         ["bench", "latency", "org/pebble", "--num-iters", "1", "--input-len", "4",
                          "--num-iters-warmup", "0", "--batch-size", "1", "--output-len", "2"]):
                code, out, err = self.run_(*args)
                self.assertEqual((code, bool(out)), (0, True), err)
        self.run_("generate", "org/pebble", "--max-tokens", "2", "ls", "--speculative-config",
                  '{"model":"org/draft","num_speculative_tokens":2,"revision":"main"}')
        asked = [r["path"].split("?")[0] for r in self.hub.asked("GET", "model.safetensors",
                                                                 "storage")]
        self.assertEqual(sorted(a.split("/")[2] for a in asked), ["draft", "pebble"])

    def test_a_folder_wins(self):
        os.makedirs(os.path.join(self.home, "org"))
        os.symlink(os.path.abspath(MODEL), os.path.join(self.home, "org", "pebble"))
        done = subprocess.run([os.path.abspath(BIN), "tokenize", "org/pebble"], input="", text=True,
                              capture_output=True, env=self.env(), cwd=self.home, timeout=TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.hub.asked(), [])

    def test_remote_code_is_refused(self):
        config = json.dumps({"architectures": ["OwnForCausalLM"], "auto_map": {
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}).encode()
        self.repo.commit({**PEBBLE, "config.json": config, "modeling_own.py": b"raise"})
        code, _, err = self.run_("generate", "org/m", "x", "--trust-remote-code")
        self.assertEqual(code, 1)
        self.assertIn("OwnForCausalLM", err)
        self.assertIn("auto_map", err)
        self.assertEqual(self.hub.asked(end=".py"), [])

    def test_bars_on_a_terminal(self):
        self.repo.commit(MODEL_FILES)
        from threading import Event
        fault = {"wait_after": 2000000, "waiting": Event(), "go_on": Event()}
        self.hub.fault("storage model.safetensors", 1, **fault)
        master, slave = pty.openpty()
        client = subprocess.Popen([BIN, "pull", "org/m"], stdout=slave, stderr=slave,
                                  env=self.env())
        os.close(slave)
        seen = b""
        while b"[####" not in seen or b"of 5.1 MB" not in seen:
            seen += os.read(master, 4096)
        fault["go_on"].set()
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        os.close(master)
        self.assertEqual(client.wait(), 0)
        self.assertIn(b"fetched model.safetensors (5.1 MB)", seen)


class Cache(HubTest):
    def ls(self):
        code, out, err = self.run_("ls", "--json")
        self.assertEqual(code, 0, err)
        return json.loads(out)

    def test_ls(self):
        self.assertEqual(self.ls(), [])
        old = self.repo.commit(MODEL_FILES, "v1")
        new = self.repo.commit({**MODEL_FILES, "config.json": b'{"new":1}'}, "main", "v2")
        self.pull("--revision", "v1")
        self.pull()
        self.pull("--revision", "v2")
        rows = {r["revision"]: r for r in self.ls()}
        self.assertEqual(set(rows), {old, new})
        self.assertEqual(rows[old]["refs"], ["v1"])
        self.assertEqual(sorted(rows[new]["refs"]), ["main", "v2"])
        self.assertEqual(rows[new]["size_on_disk"], len(BIG) + 9 + 5)
        self.assertEqual((rows[new]["model"], rows[new]["files"], rows[new]["path"]),
                         ("org/m", 4, self.path("snapshots", new)))
        self.assertLess(abs(rows[new]["last_used"] - time.time()), 3600)
        code, out, _ = self.run_("ls")
        self.assertEqual(code, 0)
        self.assertRegex(out, rf"org/m +{new[:12]} +(main, v2|v2, main) +5.1 MB +4  20")

    def test_rm(self):
        old = self.repo.commit(MODEL_FILES, "v1")
        self.repo.commit({**MODEL_FILES, "config.json": b'{"new":1}'})
        self.pull("--revision", "v1")
        folder = self.pull()
        code, _, err = self.run_("rm", "org/m")
        self.assertEqual((code, "--yes" in err), (2, True))
        code, out, err = self.run_("rm", "org/m", "--revision", "v1", "--yes")
        self.assertEqual((code, out), (0, "removed org/m v1: 38 B\n"), err)
        self.assertFalse(os.path.exists(self.path("snapshots", old)))
        with open(os.path.join(folder, "model.safetensors"), "rb") as f:
            self.assertEqual(f.read(), BIG)
        self.assertEqual(os.listdir(self.path("refs")), ["main"])
        code, _, err = self.run_("rm", "org/m", "--revision", "v1", "-y")
        self.assertEqual((code, "has no revision 'v1'" in err), (1, True))
        code, out, _ = self.run_("rm", "org/m", "-y")
        self.assertEqual((code, out), (0, "removed org/m: 5.1 MB\n"))
        self.assertEqual(os.listdir(self.cache), [".locks"])
        self.assertEqual(os.listdir(os.path.join(self.cache, ".locks")), [])
        self.assertEqual(self.run_("rm", "org/m", "-y")[0], 1)

    def test_rm_stays_inside(self):
        sha = self.repo.commit(MODEL_FILES)
        self.pull()
        outside = os.path.join(self.home, "outside")
        os.makedirs(outside)
        with open(os.path.join(outside, "mine"), "wb"):
            pass
        os.symlink(outside, self.path("snapshots", sha, "folder"))
        os.symlink(os.path.join(outside, "mine"), self.path("blobs", "0" * 40))
        os.symlink("../../../../outside/mine", self.path("snapshots", sha, "file"))
        for name in ("../outside", "..", "a/../../outside"):
            self.assertEqual(self.run_("rm", name, "-y")[0], 1)
        self.assertEqual(self.run_("rm", "org/m", "--revision", "../x", "-y")[0], 1)
        self.assertEqual(self.run_("rm", "org/m", "-y")[0], 0)
        self.assertEqual(os.listdir(outside), ["mine"])
        os.symlink(outside, self.path())
        code, _, err = self.run_("rm", "org/m", "-y")
        self.assertEqual((code, "is a link" in err), (1, True))
        self.assertEqual(os.listdir(outside), ["mine"])

    def test_rm_waits_for_nobody(self):
        self.repo.commit(MODEL_FILES)
        self.pull()
        lock = os.path.join(self.cache, ".locks", "models--org--m",
                            etag_of("model.safetensors", BIG) + ".lock")
        with open(lock, "rb") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            code, _, err = self.run_("rm", "org/m", "-y")
        self.assertEqual((code, "is being fetched" in err), (1, True))
        self.assertEqual(len(self.ls()), 1)


class Batch(HubTest):
    """run-batch -i URL -o URL."""

    def setUp(self):
        super().setUp()
        self.hub.batch_input = json.dumps({
            "custom_id": "a", "method": "POST", "url": "/v1/completions",
            "body": {"model": MODEL, "prompt": "ls", "max_tokens": 2}}).encode()
        self.put_to = self.hub.endpoint + "/out?sig=s3cret"

    def batch(self, where="/batch/in", out=None):
        return self.run_("run-batch", "-i", self.hub.endpoint + where, "-o", out or self.put_to,
                         "--model", MODEL, "--output-tmp-dir", self.home, env={"HF_TOKEN": TOKEN})

    def test_there_and_back(self):
        self.hub.fault("batch", 1, status=503)
        self.hub.fault("put", 1, status=500)
        code, _, err = self.batch()
        self.assertEqual(code, 0, err)
        (path, body), = self.hub.puts
        self.assertEqual(path, "/out?sig=s3cret")
        self.assertEqual(json.loads(body)["response"]["status_code"], 200)
        self.assertEqual(os.listdir(self.home), [])
        self.assertTrue(all("authorization" not in r["headers"] for r in self.hub.asked()))

    def test_what_fails(self):
        code, _, err = self.batch("/nothing")
        self.assertEqual((code, "GET 127.0.0.1 answers 404" in err), (1, True), err)
        self.hub.fault("put", 9, status=403)
        code, _, err = self.batch()
        self.assertEqual((code, "PUT 127.0.0.1 answers 403" in err), (1, True), err)
        self.assertNotIn("s3cret", "".join(x for x in err.splitlines() if "sluice: " in x))
        code, _, err = self.batch(out="http://127.0.0.1:9/x")
        self.assertEqual((code, "could not be sent" in err), (1, True), err)


if __name__ == "__main__":
    main()
