"""A hub on loopback for the real `huggingface_hub` client: repositories, LFS, commits, branches, and failures to order.

It keeps every commit and every request. Xet is not spoken: clients set HF_HUB_DISABLE_XET.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from command_server import CommandServer

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.png", "*.model", "*.spm")
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "openrail", "other")
DATE = "2026-01-01T00:00:00.000Z"
NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]{0,95}", re.ASCII)
TOKEN = "hf_" + "writerWRITERwriterWRITERwriterWRIT"
READ_TOKEN = "hf_" + "readerREADERreaderREADERreaderREAD"

ROUTES = (
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", r"/api/models/(?P<repo>.+)/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", r"/api/models/(?P<repo>.+)/commit/(?P<revision>[^/]+)"),
    ("branch", "POST", r"/api/models/(?P<repo>.+)/branch/(?P<revision>[^/]+)"),
    ("refs", "GET", r"/api/models/(?P<repo>.+)/refs"),
    ("tree", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?(?P<path>.*)"),
    ("paths", "POST", r"/api/models/(?P<repo>.+)/paths-info/(?P<revision>[^/]+)"),
    ("info", "GET", r"/api/models/(?P<repo>.+)/revision/(?P<revision>[^/]+)"),
    ("info", "GET", r"/api/models/(?P<repo>.+)"),
    ("batch", "POST", r"/(?P<repo>.+)\.git/info/lfs/objects/batch"),
    ("verify", "POST", r"/(?P<repo>.+)\.git/info/lfs/verify"),
    ("put", "PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})"),
    ("bucket", "GET", r"/api/buckets/(?P<bucket>[^/]+/[^/]+)"),
    ("objects", "GET", r"/api/buckets/(?P<bucket>[^/]+/[^/]+)/tree/?(?P<path>.*)"),
    ("object", "GET", r"/buckets/(?P<bucket>[^/]+/[^/]+)/resolve/(?P<path>.+)"),
    ("resolve", "HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    ("resolve", "GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
)
"""Kind of request, method and path; the first that fits is taken. Kinds are what `HubServer.fail` speaks of."""
WRITES = ("create", "preupload", "commit", "branch", "batch", "verify")


@dataclass(frozen=True)
class Commit:
    """A commit: its message, everything that the branch holds after it, and what it changed."""

    oid: str
    title: str
    files: dict[str, bytes]
    added: list[str]
    deleted: list[str]


@dataclass
class Repo:
    """A repository: commits by their ids, and the commits of each branch, oldest first."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        if self.branches.get(revision):
            return self.commits[self.branches[revision][-1]]
        return self.commits.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a branch holds now."""
        commit = self.find(revision)
        assert commit is not None, f"no {revision}"
        return commit.files

    def log(self, revision: str = "main") -> list[Commit]:
        """The commits of a branch, without that which made the repository."""
        return [self.commits[oid] for oid in self.branches[revision]][1:]


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Failure:
    """What goes wrong at some requests of a kind: an answer with `status`, or a connection that breaks (0)."""

    kind: str
    numbers: Sequence[int]
    status: int
    seen: int = 0


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """A hub in threads of this process; use it in a `with` statement."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.requests: list[Request] = []
        self.failures: list[Failure] = []
        self.faults: list[str] = []
        self.pusher: Client | None = None  # where many commands run; set by who needs it
        self.users = {TOKEN: ("jane", "write"), READ_TOKEN: ("jane", "read")}
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        assert not self.faults, "\n".join(self.faults)

    def fail(self, kind: str, *, at: Sequence[int] = (0,), status: int = 500) -> None:
        """From now on, fail these requests of a kind (counted from 0) with a status; 0 breaks the connection."""
        self.failures.append(Failure(kind, at, status))

    def environment(self, home: Path, *, token: str | None = TOKEN, **more: str) -> dict[str, str]:
        """The environment of a client: this hub, a folder for what it keeps, a token, nothing of the tests' own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        kept |= {"HF_HOME": str(home), "HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        kept |= {"HF_DATASETS_CACHE": str(home / "datasets")}
        return {**kept, **({"HF_TOKEN": token} if token else {}), **more}

    def sent(self) -> bytes:
        """Everything that clients have sent but for the tokens by which they log in: paths, headers, bodies, files."""
        parts = []
        for request in self.requests:
            headers = {name: value for name, value in request.headers.items() if name != "authorization"}
            parts += [request.path.encode(), json.dumps(headers).encode(), request.body]
        for repo in self.repos.values():
            for commit in repo.commits.values():  # regular files are sent in base64
                parts += [part for name, content in commit.files.items() for part in (name.encode(), content)]
        return b"\n".join(parts)

    def kinds(self) -> list[str]:
        """The kinds of the requests, in order."""
        return [request.kind for request in self.requests]

    def reset(self) -> None:
        """Be as at the start; the address stays."""
        self.forget()
        self.repos.clear()
        self.objects.clear()
        self.buckets.clear()

    def forget(self) -> None:
        """Forget requests and failures; repositories stay."""
        self.requests.clear()
        self.failures.clear()

    def add_repo(self, name: str, *, private: bool = False) -> Repo:
        """A new repository, with the file that the Hub puts in."""
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repo = self.repos[name] = Repo(private)
        repo.branches["main"] = []
        self._commit(repo, "main", "initial commit", {".gitattributes": attributes.encode()}, [])
        return repo

    def answer(self, request: Request, groups: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
        """The body (bytes, or what becomes JSON) and headers of an answer.

        Raises:
            Refused: if there is none.
        """
        user = self._user(request)
        repo = self._repo(request, groups["repo"], user) if "repo" in groups else None
        revision = unquote(groups.get("revision", "main"))
        if repo is not None and request.kind not in ("branch", "batch", "verify", "refs") and not repo.find(revision):
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        answers: dict[str, Callable[[], Any]] = {
            "whoami": lambda: {"type": "user", "name": user, "fullname": user, "auth": {"type": "access_token"}},
            "create": lambda: self._create(json.loads(request.body), user),
            "validate": lambda: check_metadata(json.loads(request.body)["content"]),
            "preupload": lambda: self._preupload(repo, revision, json.loads(request.body)["files"]),
            "batch": lambda: self._batch(groups["repo"], json.loads(request.body)),
            "put": lambda: self._put(groups["oid"], request.body),
            "verify": lambda: self._verify(json.loads(request.body)),
            "commit": lambda: self._take_commit(groups["repo"], repo, revision, request.body),
            "branch": lambda: self._branch(repo, revision, json.loads(request.body or b"{}")),
            "refs": lambda: self._refs(repo),
            "tree": lambda: self._tree(repo, revision, groups["path"]),
            "paths": lambda: self._paths(repo, revision, parse_qs(request.body.decode())["paths"]),
            "info": lambda: self._info(groups["repo"], repo, revision),
            "bucket": lambda: {"id": groups["bucket"], "private": False, "createdAt": DATE, "size": 1, "totalFiles": 1},
            "objects": lambda: [
                {"type": "file", "path": path, "size": len(content), "xetHash": _oid(path, content), "mtime": DATE}
                for path, content in self.buckets[groups["bucket"]].items()
                if path.startswith(unquote(groups["path"]))
            ],
            "object": lambda: self.buckets[groups["bucket"]][unquote(groups["path"])],
        }
        if request.kind == "resolve":
            return self._resolve(repo, revision, unquote(groups["path"]))
        return answers[request.kind](), {}

    def _user(self, request: Request) -> str | None:
        if request.kind == "put":
            return None  # signed by its address
        user, role = self.users.get(request.token or "", (None, ""))
        if request.token and user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        if request.kind in (*WRITES, "whoami") and user is None:
            raise Refused(401, "Invalid username or password.")
        if request.kind in WRITES and role != "write":
            raise Refused(403, "You don't have the rights to do that with this token")
        return user

    def _repo(self, request: Request, name: str, user: str | None) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and user is None):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _create(self, given: Mapping[str, Any], user: str | None) -> dict[str, str]:
        name = f"{given.get('organization') or user}/{given['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if given.get("organization") not in (None, user):
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        if name in self.repos:
            raise Refused(409, json.dumps({"error": "You already created this model repo", **answer}))
        self.add_repo(name, private=given.get("visibility") == "private")
        return answer

    def _preupload(self, repo: Any, revision: str, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        present = repo.files(revision)
        found = []
        for entry in files:
            path = entry["path"]
            assert len(base64.b64decode(entry["sample"])) <= 512
            known = {"oid": _oid(path, present[path])} if path in present else {}
            mode = "lfs" if _is_lfs(path) else "regular"
            found.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": found}

    def _batch(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        assert (given["operation"], given["hash_algo"]) == ("upload", "sha256")
        objects = []
        for entry in given["objects"]:
            actions = {
                "upload": {"href": f"{self.url}/lfs-storage/{entry['oid']}?signature=abc", "header": {}},
                "verify": {"href": f"{self.url}/{name}.git/info/lfs/verify", "header": {}},
            }
            is_new = entry["oid"] not in self.objects
            objects.append({"oid": entry["oid"], "size": entry["size"], **({"actions": actions} if is_new else {})})
        return {"transfer": "basic", "objects": objects}

    def _put(self, oid: str, body: bytes) -> bytes:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "BadDigest")
        self.objects[oid] = body
        return b""

    def _verify(self, given: Mapping[str, Any]) -> dict[str, str]:
        if len(self.objects.get(given["oid"], b"")) != given["size"]:
            raise Refused(404, "Object is not there")
        return {"message": "ok"}

    def _take_commit(self, name: str, repo: Any, revision: str, body: bytes) -> dict[str, str]:
        title, added, deleted = "", {}, []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
            elif entry["key"] == "file":
                assert value["encoding"] == "base64"
                added[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, f"LFS object {value['oid']} is not there")
                added[value["path"]] = self.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
            else:
                raise Refused(400, f"Unknown operation {entry['key']}")
        if revision not in repo.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        for path in deleted:
            if path not in repo.files(revision):
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        if "README.md" in added:
            check_metadata(added["README.md"].decode())
        oid = self._commit(repo, revision, title, added, deleted)
        return {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def _commit(self, repo: Repo, revision: str, title: str, added: dict[str, bytes], deleted: list[str]) -> str:
        before = repo.find(revision)
        files = {path: content for path, content in (before.files if before else {}).items() if path not in deleted}
        oid = hashlib.sha1(f"{len(repo.commits)} {revision} {title}".encode()).hexdigest()
        repo.commits[oid] = Commit(oid, title, {**files, **added}, sorted(added), sorted(deleted))
        repo.branches[revision].append(oid)
        return oid

    def _branch(self, repo: Any, name: str, given: Mapping[str, Any]) -> dict[str, str]:
        if name in repo.branches:
            raise Refused(409, f"Reference already exists: {name}")
        start = given.get("startingPoint", "main")
        repo.branches[name] = list(repo.branches[start])
        return {}

    def _refs(self, repo: Any) -> dict[str, Any]:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oids[-1]}
            for name, oids in repo.branches.items()
        ]
        return {"branches": branches, "tags": [], "converts": []}

    def _tree(self, repo: Any, revision: str, folder: str) -> list[dict[str, Any]]:
        prefix = f"{unquote(folder)}/" if folder else ""
        paths = [path for path in repo.files(revision) if path.startswith(prefix)]
        if prefix and not paths:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        return self._paths(repo, revision, paths)

    def _paths(self, repo: Any, revision: str, paths: Sequence[str]) -> list[dict[str, Any]]:
        files = repo.files(revision)
        found = []
        for path in (path for path in paths if path in files):
            content = files[path]
            lfs = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
            entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            found.append({**entry, "lfs": lfs} if _is_lfs(path) else entry)
        return found

    def _info(self, name: str, repo: Any, revision: str) -> dict[str, Any]:
        commit = repo.find(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        found = {"_id": "0", "id": name, "modelId": name, "author": name.split("/")[0], "sha": commit.oid}
        return {**found, "private": repo.private, "disabled": False, "gated": False, "tags": [], "siblings": siblings}

    def _resolve(self, repo: Any, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        commit = repo.find(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        headers |= {"ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        if _is_lfs(path):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": headers["ETag"]}
        return content, headers


def check_metadata(text: str) -> dict[str, list[Any]]:
    """What the Hub says of a card's metadata.

    Raises:
        Refused: with status 400, naming every error.
    """
    match = re.match(r"---\n(.*?\n)---\n", text, flags=re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise _invalid([f"YAML: {error}"]) from error
    if not isinstance(found, dict):
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    errors = list(_metadata_errors(found))
    if errors:
        raise _invalid(errors)
    return {"errors": [], "warnings": []}


def _metadata_errors(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("license") not in (None, *LICENSES):
        yield f'"license" must be one of {", ".join(LICENSES)}'
    for key in ("base_model", "datasets"):
        names = found.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                yield f'"{key}" with value {name!r} is not valid'
    for key in ("tags", "metrics"):
        if not all(isinstance(text, str) and text for text in found.get(key, [])):
            yield f'"{key}" must be an array of strings'
    languages = found.get("language") or []
    for language in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}|multilingual", str(language)):
            yield f'"language" must be an ISO 639 code, got {language!r}'
    for model in found.get("model-index", []):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            yield '"model-index[].name" and "results" are required'
        for result in model.get("results", []):
            dataset = result.get("dataset", {})
            if not all(isinstance(text, str) for text in (dataset.get("name"), dataset.get("type"))):
                yield '"model-index[].results[].dataset" needs name and type'
            if not isinstance(result.get("task", {}).get("type"), str):
                yield '"model-index[].results[].task.type" is required'
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or "value" not in metric:
                    yield '"model-index[].results[].metrics[]" needs type and value'


def _invalid(errors: Sequence[str]) -> Refused:
    return Refused(400, json.dumps({"errors": [{"message": error} for error in errors], "warnings": []}))


def _is_lfs(path: str) -> bool:
    return any(fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in LFS_PATTERNS)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_lfs(path) else _git_oid(content)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            routes = ((kind, re.fullmatch(pattern, path)) for kind, way, pattern in ROUTES if way == self.command)
            kind, match = next(((kind, match) for kind, match in routes if match), ("unknown", None))
            length = int(self.headers.get("Content-Length") or 0)
            with hub.lock:
                failure = self._failure(kind)
            headers = {name.lower(): value for name, value in self.headers.items()}
            if failure is not None and failure.status == 0:
                half = self.rfile.read(length // 2)
                hub.requests.append(Request(kind, self.command, self.path, headers, half))
                # so that closing resets, and the client sees its connection broken
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            request = Request(kind, self.command, self.path, headers, self.rfile.read(length))
            with hub.lock:
                hub.requests.append(request)
                try:
                    if failure is not None:
                        raise Refused(failure.status, "Ordered failure")
                    if match is None:
                        raise Refused(404, f"No route for {self.command} {self.path}")
                    answer, more = hub.answer(request, match.groupdict())
                    status = 200
                except Refused as refused:
                    status, text = refused.status, str(refused)
                    answer = text.encode() if text.startswith("{") else {"error": text}
                    more = {"X-Error-Message": "" if text.startswith("{") else text}
                    if refused.code:
                        more["X-Error-Code"] = refused.code
                except Exception:
                    status, answer, more = 500, {"error": "fault of the test's hub"}, {}
                    hub.faults.append(traceback.format_exc())
            is_plain = isinstance(answer, bytes)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in more.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Type", "application/octet-stream" if is_plain else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

        def _failure(self, kind: str) -> Failure | None:
            found = None
            for failure in hub.failures:
                if failure.kind == kind:
                    found = failure if failure.seen in failure.numbers else found
                    failure.seen += 1
            return found

        do_POST = do_PUT = do_HEAD = do_GET

    return Handler


class Client:
    """Runs scripts as clients of a hub, each in a fork of a process that has the slow imports behind it.

    Args:
        hub: the hub.
        home: the folder in which it runs, and its home.
        imports: the modules that are imported beforehand.
    """

    def __init__(self, hub: HubServer, home: Path, *imports: str) -> None:
        self.hub, self.home = hub, home
        places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._path = os.pathsep.join(places)
        self._commands = contextlib.ExitStack()
        self._folder = Path(self._commands.enter_context(TemporaryDirectory()))
        environment = hub.environment(home, PYTHONPATH=self._path)
        self._commands.enter_context(CommandServer(self._folder, environment, *imports))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self._commands.close()

    def run(self, script: str, *arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
        """Run a script with `sys.argv[1:]`; what is read of the environment by an import cannot differ any more."""
        return subprocess.run(
            [self._folder / "python", "-c", script, *arguments],
            env=self.hub.environment(self.home, PYTHONPATH=self._path, **environment),
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )


def run_client(hub: HubServer, home: Path, *arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments as a client of the hub."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=hub.environment(home, **environment),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
