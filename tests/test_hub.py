"""Fetching weights, against a hub of our own on this machine, through huggingface_hub's real client."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, CLIPModel, CLIPTokenizer

from src.errors import UserError
from src.hub import fetch, fetch_file, load_strictly, load_tokenizer, read_checkpoint
from src.mini.gold import GoldAnnotator
from src.mini.top_one import ClassifierTopOne
from src.rewards.aesthetic import AestheticReward
from src.rewards.clip import CLIPReward
from src.rewards.image_text import ImageTextReward
from tests.conftest import ROOT
from tests.released import write_clip, write_stable_diffusion

COMMIT = "a" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle", "sub/words.json": b"[]"}
ASK = """
import json, sys
from src.errors import UserError
from src.hub import fetch
for path, needed, also, revision in json.loads(sys.argv[1]):
    try:
        folder = fetch(path, "the option", needed, also, revision)
        print(json.dumps(sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())))
    except UserError as error:
        print(json.dumps(str(error)))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of the hub that the client asks for; `consent/...` is gated, of `absent/...` there is none."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]] = {}  # what others than someone/model hold

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        files = next((held for name, held in self.repositories.items() if f"/{name}/" in f"{path}/"), FILES)
        if "/absent/" in path:
            self.answer(404, error="RepoNotFound")
        elif "/revision/nowhere" in path:
            self.answer(404, error="RevisionNotFound")
        elif "/tree/" in path:
            rows = [{"type": "file", "path": k, "size": len(v), "oid": "b" * 40} for k, v in files.items()]
            self.answer(200, json.dumps(rows).encode())
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": siblings}).encode())
        elif "/consent/" in path or "/resolve/" not in path:
            self.answer(403, error="GatedRepo")
        else:
            self.answer(200, files[path.split(f"/resolve/{COMMIT}/")[1]])

    do_HEAD = do_GET

    def answer(self, code: int, body: bytes = b"", error: str = "") -> None:
        self.send_response(code)
        fields = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        fields |= {"ETag": f'"{hash(body)}"', "X-Repo-Commit": COMMIT} | ({"X-Error-Code": error} if error else {})
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


LOAD = """
import sys
from src.errors import UserError
from src.policy.loading import DTYPES, Source
for path in sys.argv[1:]:
    try:
        source = Source(path, None, None)
        source.parts(DTYPES["fp32"], None, None)
        folder = source.fetch(source.encoders)
        source.load("text_encoder", folder)
        print(source.family.kind.__name__)
    except UserError as error:
        print(error)
"""


def test_a_pipeline_is_looked_at_before_its_weights_are_fetched(tmp_path):
    sd = write_stable_diffusion(tmp_path / "sd")
    files = {str(f.relative_to(sd)): f.read_bytes() for f in sd.rglob("*") if f.is_file()}
    inpainting = json.loads(files["unet/config.json"]) | {"in_channels": 9}
    more = {"sd.safetensors": b"all of it in one file", "safety_checker/model.safetensors": b"not needed"}
    held = {"some/sd": files | more, "some/inpainting": files | {"unet/config.json": json.dumps(inpainting).encode()}}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Pipelines", (Hub,), {"repositories": held}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
    env = os.environ | address | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOAD, *held]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    server.shutdown()
    loaded, refused = done.stdout.splitlines()
    assert loaded == "StableDiffusionPipeline", done.stderr[-2000:]
    assert "some/inpainting: its UNet takes 9 channels" in refused
    fetched = {name: set() for name in held}
    for file in (tmp_path / "cache").rglob("snapshots/*/**/*"):
        if not file.is_dir():
            fetched["some/sd" if "some--sd" in str(file) else "some/inpainting"].add(file.name)
    assert {"diffusion_pytorch_model.safetensors", "model.safetensors"} < fetched["some/sd"]
    assert not any(name.endswith(".safetensors") for name in fetched["some/inpainting"])
    assert not list((tmp_path / "cache").rglob("safety_checker")) and "sd.safetensors" not in fetched["some/sd"]


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Asks `fetch` several things in a process of its own, whose hub is ours; returns its answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = tmp_path_factory.mktemp("cache")

    def answers(*questions, **environment: str) -> list:
        address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
        env = os.environ | address | {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"} | environment
        command = [sys.executable, "-c", ASK, json.dumps(questions)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    yield answers
    server.shutdown()


def test_what_the_hub_gives_and_what_it_refuses(ask):
    wanted = ["someone/model", ["config.json", "model.safetensors"], ["sub/*"], COMMIT]
    found, gated, absent, revision, pickled = ask(
        wanted,
        ["consent/model", ["config.json"], [], None],
        ["absent/model", ["config.json"], [], None],
        ["someone/model", ["config.json"], [], "nowhere"],
        ["someone/model", ["unet/model.safetensors"], [], None],
    )
    assert found == ["config.json", "model.safetensors", "sub/words.json"]  # and no pickle
    assert "consent/model" in gated and "licence" in gated and "hf auth login" in gated
    assert "absent/model: neither a folder here nor a repository" in absent
    assert "no revision nowhere" in revision
    assert "unet/model.safetensors is missing" in pickled and "pickled weights are not opened" in pickled
    cached, missing = ask(wanted, ["someone/other", ["config.json"], [], None], HF_HUB_OFFLINE="1")
    assert cached == found
    assert "HF_HUB_OFFLINE forbids" in missing
    (unreachable,) = ask(["someone/other", ["config.json"], [], None], HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached" in unreachable
    for sentence in (gated, absent, revision, pickled, missing, unreachable):
        assert "\n" not in sentence and sentence.count(". ") == 0


def test_a_local_folder_or_file_comes_first(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    assert fetch(str(tmp_path), "option", ["x.json"]) == tmp_path
    assert fetch_file(str(tmp_path), "option", "x.json") == tmp_path / "x.json"
    assert fetch_file(str(tmp_path / "x.json"), "option", "another") == tmp_path / "x.json"


def test_each_local_fault_is_one_sentence(tmp_path):
    write_clip(tmp_path / "clip")
    (tmp_path / "pickled").mkdir()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "code.pt")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text((tmp_path / "clip" / "config.json").read_text())
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"short")
    faults = {
        "no such folder; give one with config.json": lambda: fetch("/nowhere/at/all", "option", ["config.json"]),
        "pickled weights alone": lambda: fetch(str(tmp_path / "pickled"), "option", ["model.safetensors"]),
        "config.json is missing": lambda: fetch(str(tmp_path), "option", ["config.json"]),
        "text.pt is not a checkpoint": lambda: read_checkpoint(tmp_path / "text.pt", "option"),
        "holds a Tensor": lambda: read_checkpoint(tmp_path / "tensor.pt", "option"),
        "code.pt is not a checkpoint": lambda: read_checkpoint(tmp_path / "code.pt", "option"),
        "no tokenizer there": lambda: load_tokenizer(CLIPTokenizer, tmp_path / "pickled", "option"),
        "another architecture": lambda: load_strictly(BertModel, tmp_path / "clip", "option"),
        "cannot be read": lambda: load_strictly(CLIPModel, tmp_path / "broken", "option"),
    }
    for message, fault in faults.items():
        with pytest.raises(UserError, match=message) as told:
            fault()
        assert "\n" not in str(told.value), message
        assert str(told.value).startswith("option")


def test_a_model_takes_no_tensor_too_many_or_too_few(tmp_path):
    write_clip(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    state = dict(model.state_dict())
    loaded = load_strictly(CLIPModel, state, "option", model.config)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for change, message in (
        ({"more": torch.zeros(2)}, "unknown: more"),
        ({"logit_scale": None}, "missing: logit_scale"),
        ({"visual_projection.weight": torch.zeros(3, 3)}, "shape: visual_projection.weight"),
    ):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        with pytest.raises(UserError, match=message):
            load_strictly(CLIPModel, changed, "option", model.config)
    table = state | {"text_model.embeddings.position_ids": torch.arange(4)[None]}
    load_strictly(CLIPModel, table, "option", model.config, ignored=["embeddings.position_ids"])


def aesthetic(path: str) -> AestheticReward:
    return AestheticReward(str(ROOT / "src/mini/weights/clip"), path)


@pytest.mark.parametrize(("kind", "name"), [(GoldAnnotator, "gold"), (ClassifierTopOne, "classifier"),
    (CLIPReward, "hps"), (ImageTextReward, "imagereward"), (aesthetic, "aesthetic")])  # fmt: skip
@pytest.mark.parametrize("fault", ["missing", "more", "shape", "short"])
def test_no_reward_is_filled_with_random_weights(kind, name, fault, tmp_path):
    shutil.copytree(ROOT / "src/mini/weights" / name, tmp_path / name)
    file = next((tmp_path / name).rglob("model.safetensors"))
    state = load_file(file)
    key = max(state, key=lambda each: state[each].numel())
    value = state.pop(key).clone()
    state |= {"missing": {}, "more": {key: value, "more": value.clone()}}.get(fault, {key: value[1:].clone()})
    file.unlink()
    save_file(state, file, {"format": "pt"})
    if fault == "short":
        file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"of another architecture|cannot be read") as told:
        kind(str(tmp_path / name))
    assert "\n" not in str(told.value) and str(tmp_path / name) in str(told.value)
