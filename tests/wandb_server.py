"""A loopback W&B server: as much of the protocol as the client, `wandb sync` and wandb-workspaces ask for.

It keeps what it is sent: of each run its history by line, as the file stream numbers them, its summary, configuration
and files; pictures of tables; a project's views.
"""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40
TEAM = {"id": "t", "name": "team"}
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class StoredRun:
    """What the server knows of a run."""

    upserts: list[dict[str, Any]] = field(default_factory=list)  # variables of every UpsertBucket
    streamed: dict[str, dict[int, str]] = field(default_factory=dict)  # name -> line number -> line
    uploaded: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    def lines(self, name: str) -> int:
        return len(self.streamed.get(name, {}))

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.streamed.get(HISTORY, {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.streamed.get(SUMMARY, {0: "{}"})[0])

    def last(self, key: str) -> Any:
        """The value that the last upsert which had one gave."""
        return next((v[key] for v in reversed(self.upserts) if v.get(key) is not None), None)


class WandbServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[tuple[str, str], StoredRun] = {}  # (project, id)
        self.artifacts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.refused: set[str] = set()  # operations that are answered with an error
        self.unknown: list[str] = []  # operations that were asked for and are not below
        self.lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """Variables that send W&B's clients here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def run(self, project: str, name: str) -> StoredRun:
        return self.runs.setdefault((project, name), StoredRun())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients end without closing their connections."""

    def answer(self, operation: str, variables: dict[str, Any], query: str) -> dict[str, Any]:
        with self.lock:
            method = getattr(self, f"_{operation}", None)
            if operation in self.refused:
                return {"data": None, "errors": [{"message": "not allowed"}]}
            if method is None:
                self.unknown.append(f"{operation} {variables} {query}")
                return {"data": None, "errors": [{"message": f"{operation} is not known here"}]}
            return {"data": method(variables)}

    def _ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def _Viewer(self, _: dict) -> dict:
        teams = {"edges": [{"node": {"name": "team"}}]}
        viewer = {"id": "me", "entity": "team", "username": "me", "email": "", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    def _OrganizationCoreWeaveOrganizationID(self, _: dict) -> dict:
        return {"entity": None}

    # --------------------------------------------------------------------------------------------------------- runs

    def _RunResumeStatus(self, v: dict) -> dict:
        stored = self.runs.get((v["project"], v["name"]))
        if stored is None:
            return {"model": None}
        bucket = {
            "id": v["name"],
            "name": v["name"],
            "summaryMetrics": json.dumps(stored.summary),
            "displayName": stored.last("displayName"),
            "logLineCount": stored.lines("output.log"),
            "historyLineCount": stored.lines(HISTORY),
            "eventsLineCount": stored.lines("wandb-events.jsonl"),
            "historyTail": json.dumps([json.dumps(row) for row in stored.history[-1:]]),
            "eventsTail": "[]",
            "config": stored.last("config") or "{}",
            "tags": stored.last("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "p", "name": v["project"], "entity": TEAM, "bucket": bucket}}

    def _UpsertBucket(self, v: dict) -> dict:
        known = (v["project"], v["name"]) in self.runs
        stored = self.run(v["project"], v["name"])
        stored.upserts.append(v)
        bucket = {
            "id": v["name"],
            "name": v["name"],
            "displayName": v.get("displayName") or v["name"],
            "description": None,
            "config": v.get("config"),
            "sweepName": None,
            "project": {"id": "p", "name": v["project"], "entity": TEAM},
            "historyLineCount": stored.lines(HISTORY),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": not known}}

    def _CreateRunFiles(self, v: dict) -> dict:
        where = f"{self.url}/storage/{v['project']}/{v['run']}/"
        files = [{"name": name, "uploadUrl": where + name} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    # ----------------------------------------------------------------------------------- artifacts: pictures of tables

    def _CreateArtifact(self, v: dict) -> dict:
        name = v["input"]["artifactCollectionName"]
        self.artifacts.append({"name": name, "files": {}, "committed": False})
        sequence = {"id": name, "latestArtifact": None}
        artifact = {"id": str(len(self.artifacts) - 1), "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, v: dict) -> dict:
        file = self._artifact_file(v["artifactID"], v["name"]) | {"id": "f", "name": v["name"]}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def _UpdateArtifactManifest(self, v: dict) -> dict:
        file = self._artifact_file(v["artifactManifestID"], "wandb_manifest.json") | {"id": "f", "name": "m"}
        return {"updateArtifactManifest": {"artifactManifest": {"id": v["artifactManifestID"], "file": file}}}

    def _CreateArtifactFiles(self, v: dict) -> dict:
        asked = v["input"]["artifactFiles"]
        nodes = [self._artifact_file(a["artifactID"], a["name"]) | {"artifact": {"id": a["artifactID"]}} for a in asked]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _artifact_file(self, artifact: str, name: str) -> dict:
        url = f"{self.url}/artifacts/{artifact}/{name}"
        file = {"storagePath": name, "displayName": name, "uploadMultipartUrls": None}
        return file | {"uploadUrl": url, "uploadHeaders": []}

    def _CommitArtifact(self, v: dict) -> dict:
        self.artifacts[int(v["artifactID"])]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "d"}}}

    # ----------------------------------------------------------------------------------- dashboards: views and reports

    def _UpsertView2(self, v: dict) -> dict:
        return {"upsertView": {"view": self._keep_view(v), "inserted": True}}

    _upsertView = _UpsertView2

    def _keep_view(self, v: dict) -> dict:
        self.views.append(v)
        kept = {key: v[key] for key in ("name", "displayName", "description", "type", "spec")}
        project = {"id": "p", "name": v["projectName"], "entityName": v["entityName"]}
        return kept | {"id": f"view{len(self.views)}", "project": project, "updatedAt": "2026-01-01T00:00:00"}

    def _ProjectInternalId(self, v: dict) -> dict:
        return {"project": {"id": "p", "internalId": "1"}}

    def _GetProjects(self, v: dict) -> dict:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": []}}

    def _CreateProject(self, v: dict) -> dict:
        known = {"description": None, "access": None, "views": None}
        project = {"id": "p", "name": v["input"]["name"], "entityName": v["input"]["entityName"]} | known
        return {"result": {"project": project, "model": project, "inserted": True}}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        _, kind, *place = self.path.split("/", 4 if self.path.startswith("/storage") else 3)
        if kind == "storage":
            project, name, path = place
            self.server.run(project, name).uploaded[path] = self._body()
        else:
            self.server.artifacts[int(place[0])]["files"][place[1]] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            self._reply(self.server.answer(operation, asked.get("variables") or {}, asked["query"]))
        elif self.path.startswith("/files/"):
            _, _, _, project, name, _ = self.path.split("/")
            with self.server.lock:
                self._stream(self.server.run(project, name), json.loads(body))
            self._reply({"limits": {}})
        else:
            self._reply({})  # telemetry

    def _stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        for file, chunk in (sent.get("files") or {}).items():
            lines = {chunk["offset"] + k: line for k, line in enumerate(chunk["content"])}
            run.streamed.setdefault(file, {}).update(lines)
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Within, a server of its own that listens on a free port of this machine."""
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
