"""With HF_HUB_OFFLINE, nothing opens a connection, not even to look up a name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PYTHONPATH

ASK_FOR_ALL = """
import json, socket, sys
tried = []

def refuse(*words, **named):
    tried.append(repr(words)[:200])
    raise OSError("no network here")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse

from micu_extract.backbones import BACKBONES, build_backbone
from micu_extract.backbones.base import Run
from micu.base.errors import MicuError

names = [name for name, _ in BACKBONES.items() if not name.endswith("-demo")]
names += ["timm:resnet18.a1_in1k", "timm:vit_tiny_patch16_224.augreg_in21k"]
told = {}
for name in sys.argv[1:] or names:
    try:
        build_backbone(name, "pretrained", Run(device="cpu"))
        told[name] = "built"
    except MicuError as error:
        told[name] = str(error)
try:
    from micu_extract.flow.raft import RAFT
    RAFT("small", "pretrained", "cpu")
except Exception as error:
    told["raft"] = str(error)
print(json.dumps({"told": told, "tried": tried}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", ""])
def test_no_backbone_opens_a_connection(tmp_path: Path, variable: str) -> None:
    homes = dict.fromkeys(("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "HOME"), str(tmp_path))
    known = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    offline = {variable: "1"} if variable else {}
    one = () if variable else ("timm:resnet18.a1_in1k",)
    done = subprocess.run(
        [sys.executable, "-c", ASK_FOR_ALL, *one],
        env={**known, **homes, **offline, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    if not variable:  # what is counted is what would be opened
        assert found["tried"]
        return
    assert len(found["told"]) > 8
    assert found["tried"] == []
    for name, told in found["told"].items():
        assert "HF_HUB_OFFLINE is set" in told or "no program may fetch" in told, (name, told)
        assert "weights PATH" in told or "weights DIR" in told or "cp" in told, (name, told)
    assert sum("HF_HUB_OFFLINE is set" in told for told in found["told"].values()) > 8
