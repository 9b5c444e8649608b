"""The torchmetrics classes over two processes, and the package's own loader on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.metrics import frechet_package
from eval.metrics.frechet import frechet_distance_of_samples
from eval.metrics.kernel import kernel_distance

WORKER = """
import json, sys
from datetime import timedelta
import numpy as np, torch, torch.distributed as dist
from eval.metrics.frechet import FrechetAudioDistance
from eval.metrics.kernel import KernelAudioDistance
from eval.metrics.ratio import SummedRatio
from eval.metrics.retrieval import RetrievalRanks

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
x, y = (torch.from_numpy(a)[rank::2] for a in np.load(sys.argv[4]).values())
fad, kad, ratio, ranks = FrechetAudioDistance(4), KernelAudioDistance(2.0), SummedRatio(), RetrievalRanks()
fad.update(x, real=True), fad.update(y, real=False)
kad.update(x, y)
ratio.update(x[:, 0], y[:, 0] ** 2)
ranks.update(x[:, 1])
values = [float(m.compute()) for m in (fad, kad, ratio, ranks)]
if rank == 0:
    open(out, "w").write(json.dumps(values))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_values_are_the_same_from_two_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 31, 4))
    np.savez(tmp_path / "samples.npz", x=x, y=y)
    names = [str(tmp_path / n) for n in ("store", "out.json", "samples.npz")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(r), *names], env=environment) for r in (0, 1)]
    assert [w.wait(120) for w in workers] == [0, 0]
    found = json.loads((tmp_path / "out.json").read_text())
    order = np.concatenate([np.arange(31)[0::2], np.arange(31)[1::2]])
    expected = [
        frechet_distance_of_samples(x, y),
        kernel_distance(x[order], y[order], 2.0),
        x[:, 0].sum() / (y[:, 0] ** 2).sum(),
        np.median(x[:, 1]),
    ]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(not frechet_package.available(), reason=frechet_package.HOW_TO_ADD)
def test_vggish_loads_through_the_package_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of VGGish's interface in torch.hub's layout: its last activation is taken off, as the package does."""
    repository = tmp_path / "harritaylor_torchvggish_master"
    repository.mkdir()
    hubconf = """
        import torch
        class Tiny(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embeddings = torch.nn.Sequential(torch.nn.Linear(160, 3), torch.nn.ReLU())
                torch.nn.init.constant_(self.embeddings[0].weight, -1.0)
                torch.nn.init.zeros_(self.embeddings[0].bias)
            def forward(self, clip, rate):
                assert rate == 16000
                return self.embeddings(torch.from_numpy(clip).reshape(-1, 160))
        def vggish():
            return Tiny()
    """
    (repository / "hubconf.py").write_text(textwrap.dedent(hubconf))
    monkeypatch.setitem(frechet_package._NEEDS, "vggish", ())
    assert "vggish-10086976.pth" in (frechet_package.missing_weights("vggish", tmp_path) or "")
    weights = frechet_package.weight_file("vggish", tmp_path)
    weights.parent.mkdir()
    weights.touch()
    hub = torch.hub.get_dir()
    monkeypatch.setattr(torch.hub, "_parse_repo_info", lambda github: ("harritaylor", "torchvggish", "master"))
    found = frechet_package.load_model("vggish", tmp_path)(np.ones(320, dtype=np.float32))
    assert torch.hub.get_dir() == hub
    assert found.shape == (2, 3)
    assert np.allclose(found, -160.0), "negative: the activation after the last layer is off"
