"""Loops as the tutorials of other libraries have them; each is tried where its library is installed.

``python test_libraries.py CASE RUN`` replays a run in that process's arithmetic and prints the verdict's result.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import vtrain
from vtrain.profiles import profile_environment

Enter: TypeAlias = "functools.partial[Any]"
"""``record`` or ``replay`` of the run, for a model and an optimizer."""


def begin(model: Any, optimizer: Any, *, path: Path, role: str) -> Any:
    settings = {"checkpoint_every": 4} if role == "record" else {}
    return getattr(vtrain, role)(path, model=model, optimizer=optimizer, **settings)


def samples() -> TensorDataset:
    with vtrain.seeded(0):
        return TensorDataset(torch.randn(32, 1, 4, 4), torch.randint(0, 3, (32,)))


def private(enter: Enter, mode: str) -> Any:
    """Opacus: noise, clipped gradients of single samples, batches by Poisson sampling, some of them empty."""
    import opacus

    with vtrain.seeded(0):
        model: Any = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Flatten(), torch.nn.Linear(16, 3)
        )
    torch.manual_seed(0)
    made = opacus.PrivacyEngine(accountant="rdp").make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=torch.nn.CrossEntropyLoss(),
        data_loader=DataLoader(samples(), batch_size=2), noise_multiplier=1.1, max_grad_norm=1.0, grad_sample_mode=mode,
    )  # fmt: skip
    model, optimizer, loader = made[0], made[1], made[-1]
    criterion = made[2] if len(made) == 4 else torch.nn.CrossEntropyLoss(reduction="mean")
    with enter(model, optimizer) as run:
        for x, y in loader:
            if mode != "hooks" and not len(x):
                continue  # these can't do without samples, under no run either
            with run.step((x, y)):
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
                if len(x):
                    run.metric(loss=loss)
    return run


def graphs(enter: Enter, kind: str) -> Any:
    """PyTorch Geometric: batches of graphs, messages between nodes, pooling."""
    import torch_geometric.nn as gnn
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader

    convolution = {
        "gcn": lambda a, b: gnn.GCNConv(a, b),
        "sage": lambda a, b: gnn.SAGEConv(a, b, aggr="max"),
        "gat": lambda a, b: gnn.GATConv(a, b, dropout=0.3),
    }[kind]
    with vtrain.seeded(0):
        parts = convolution(5, 8), convolution(8, 8), torch.nn.Linear(16, 2)
        edges = [torch.randint(0, 6 + i % 3, (2, 20)) for i in range(12)]
        data = [Data(x=torch.randn(6 + i % 3, 5), edge_index=e, y=torch.tensor([i % 2])) for i, e in enumerate(edges)]
    model = torch.nn.ModuleList(parts)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with enter(model, optimizer) as run:
        for batch in GraphLoader(data, batch_size=4, shuffle=True):
            with run.step(batch):
                x = parts[1](parts[0](batch.x, batch.edge_index).relu(), batch.edge_index)
                pooled = [pool(x, batch.batch) for pool in (gnn.global_mean_pool, gnn.global_max_pool)]
                loss = torch.nn.functional.cross_entropy(parts[2](torch.cat(pooled, 1)), batch.y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.metric(loss=loss)
    return run


def lightning(enter: Enter, how: str) -> Any:
    """Lightning's ``fit``, as docs/loops.md says: steps around batches by a callback, or in manual optimisation."""
    import lightning as lit

    class Net(lit.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 3))
            self.automatic_optimization = how == "automatic"

        def training_step(self, batch: Any, index: int) -> Any:
            if how == "automatic":
                return self.loss(batch)
            with self.run.step(batch):
                optimizer: Any = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()
            return None

        def loss(self, batch: Any) -> torch.Tensor:
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, on_step=True, on_epoch=True)
            self.run.metric(loss=loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    class Steps(lit.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.entered = enter(module, trainer.optimizers[0])
            module.run = self.entered.__enter__()

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if how == "automatic":
                self.step = module.run.step(batch)
                self.step.__enter__()

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            if how == "automatic":
                self.step.__exit__(None, None, None)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.entered.__exit__(None, None, None)

    with vtrain.seeded(0):
        module: Any = Net()
    torch.manual_seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = enter.keywords["path"].parent / "logs"
    logger = lit.pytorch.loggers.CSVLogger(where)
    trainer = lit.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[Steps()], logger=logger, log_every_n_steps=1,
        gradient_clip_val=0.5 if how == "automatic" else None, **quiet,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples(), batch_size=16, shuffle=True))
    return module.run


CASES: dict[str, tuple[str, Callable[[Enter, str], Any], str]] = {
    "opacus hooks": ("opacus", private, "hooks"),
    "opacus functorch": ("opacus", private, "functorch"),
    "opacus ew": ("opacus", private, "ew"),
    "opacus ghost": ("opacus", private, "ghost"),
    "gcn": ("torch_geometric", graphs, "gcn"),
    "sage": ("torch_geometric", graphs, "sage"),
    "gat": ("torch_geometric", graphs, "gat"),
    "lightning automatic": ("lightning", lightning, "automatic"),
    "lightning manual": ("lightning", lightning, "manual"),
}


def go(case: str, path: Path, role: str) -> Any:
    _, body, kind = CASES[case]
    return body(functools.partial(begin, path=path, role=role), kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(CASES))
def test_it_is_verified_in_another_arithmetic(tmp_path: Path, case: str) -> None:
    pytest.importorskip(CASES[case][0])
    go(case, tmp_path / "run", "record")
    done = subprocess.run([sys.executable, __file__, case, str(tmp_path / "run")], env=profile_environment("baseline"),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["verified"], done.stdout + done.stderr


if __name__ == "__main__":
    print(go(sys.argv[1], Path(sys.argv[2]), "replay").verdict.result)
