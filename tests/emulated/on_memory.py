"""Memory that runs out on the device, anywhere: a clear error, and a run that goes on to the same bits."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "attacks"))
from emulated import BACKEND, NAME
from run_helpers import KEY, STEPS, job, silent, toml, values

import vtrain
from auditor import replay
from auditor.audit import Request, audit
from auditor.evidence import open_run
from auditor.evidence.verify import verify
from trainer import record
from trainer.train import resume, train
from vtrain import cli
from vtrain.commit import keys
from vtrain.errors import BackendError, DeviceMemoryError
from vtrain.kernels.failures import OutOfMemory
from vtrain.profiles import DEVICE

HERE = Path(__file__).parent
OPS = torch.ops.emulated
gc.collect()
gc.freeze()  # what is imported; so that looking for garbage is quick
CANONICAL = {"policy": {"matmul": "chain"}, "train": {"steps": STEPS, "checkpoint_every": 2}}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(DEVICE, NAME)
    yield
    OPS.set_limit(0, 0)
    BACKEND.damage, BACKEND.recent = None, ()
    assert OPS.violations() == 0


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """So much beside what is held already."""
    gc.collect()
    OPS.set_limit(OPS.memory_of(0)[0] + size, 0)
    try:
        yield
    finally:
        OPS.set_limit(0, 0)


def room_after(step: int, size: int) -> Any:
    """An ``on_step`` that leaves so much after a step."""

    def leave(done: Any) -> None:
        if done.step == step:
            gc.collect()
            OPS.set_limit(OPS.memory_of(0)[0] + size, 0)

    return leave


def states(run: Path) -> list[Any]:
    found = open_run(run)
    return [(step, found.state(step).text) for step in found.checkpoints]


def check_text(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert isinstance(error.value, torch.OutOfMemoryError) and error.value.exit_code == 4
    assert "emulated out of memory. Tried to allocate " in text and "GPU 0 has a total capacity of" in text
    assert "a smaller batch" in text and len(error.value.args) == 1
    return text


# ---- jobs ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DEVICE, NAME)
        train(job(**CANONICAL), HERE, run, KEY, silent)
    return run


@pytest.mark.parametrize("size", [0, 1000, 7000, 14000, 20000, 27000])
def test_a_job_goes_on_where_there_is_memory(size: int, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(DeviceMemoryError) as found:
        train(job(**CANONICAL), HERE, run, KEY, room_after(3, size))
    OPS.set_limit(0, 0)
    assert check_text(found).startswith("step 4, aten.")
    assert open_run(run).last_step == 2
    resume(run, HERE, KEY, silent)
    assert states(run) == states(whole)
    verify(run, KEY.public_key(), silent)
    assert audit(Request(run, HERE), silent, silent).verified


def test_a_job_that_never_fits_leaves_nothing(tmp_path: Path) -> None:
    with room(5000), pytest.raises(DeviceMemoryError, match="Tried to allocate"):
        train(job(**CANONICAL), HERE, tmp_path / "run", KEY, silent)
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_it(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "job.toml").write_text(toml(values(**CANONICAL)))
    keys.save_private(tmp_path / "key", KEY)

    def vtrain_(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vtrain", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    run, key = str(tmp_path / "run"), ("--key", str(tmp_path / "key"))
    with room(40_000):
        code, text = vtrain_("train", str(tmp_path / "job.toml"), "--out", run, "--device", NAME, *key)
    assert code == 4 and "error: step 1, aten." in text and "a smaller batch" in text and "defect" not in text
    code, text = vtrain_("resume", run, "--program-dir", str(tmp_path), "--device", NAME, *key)
    assert code == 0 and states(tmp_path / "run") == states(whole)


def test_no_verdict_where_an_auditor_has_too_little(whole: Path) -> None:
    with room(30_000), pytest.raises(DeviceMemoryError):
        audit(Request(whole, HERE), silent, silent)


def test_a_rehearsal_that_does_not_fit_is_no_fault_of_the_program(whole: Path, tmp_path: Path) -> None:
    """It takes a second model and optimizer."""
    with pytest.warns(UserWarning, match="after step 2 was not tried.*Tried to allocate"):
        train(job(**CANONICAL), HERE, tmp_path / "run", KEY, room_after(2, 60_000))
    OPS.set_limit(0, 0)
    assert states(tmp_path / "run") == states(whole)


def test_a_checkpoint_that_can_t_be_copied(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: Any) -> Any:
        raise torch.OutOfMemoryError("emulated out of memory. Tried to allocate 8 bytes. GPU 0 has a total capacity of")

    def no_copies(done: Any) -> None:
        if done.step == 3:
            monkeypatch.setattr("trainer.stepwriter.state.as_bytes", full)

    with monkeypatch.context() as monkeypatch, pytest.raises(DeviceMemoryError) as found:
        train(job(**CANONICAL), HERE, tmp_path / "run", KEY, no_copies)
    assert check_text(found).startswith("copying a checkpoint to the host: ")
    resume(tmp_path / "run", HERE, KEY, silent)
    assert states(tmp_path / "run") == states(whole)


# ---- loops -----------------------------------------------------------------------------------------------------------
class Average:
    """Of weights: an ``extra`` object with memory on the device."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.kept = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model: torch.nn.Module) -> None:
        for name, p in model.named_parameters():
            self.kept[name].lerp_(p.detach(), 0.5)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.kept)

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        self.kept = {name: t.to(NAME) for name, t in kept.items()}


def model() -> torch.nn.Module:
    """Of many layers: at a step's end a copy of the state takes more than the optimizer's scratch memory did."""
    hidden = [m for _ in range(12) for m in (torch.nn.Linear(32, 32), torch.nn.GELU())]
    return torch.nn.Sequential(torch.nn.Linear(8, 32), *hidden, torch.nn.Linear(32, 1)).to(NAME)


def settings() -> dict[str, Any]:
    return {
        "model": model, "optimizer": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
        "extra": lambda m, o: {"average": Average(m)},
    }  # fmt: skip


def data(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    n = torch.arange(size * 9) * 7919 + step * 101
    x = (n % 257 - 128).view(size, 9) / 64.0
    return x[:, :8].contiguous(), x[:, 8:].contiguous()


def one_step(run: Any, step: int, size: int) -> None:
    x, y = data(step, size)
    with run.step((x, y)):
        loss = (run.model(x.to(NAME)) - y.to(NAME)).square().mean()
        loss.backward()
        run.optimizer.step()
        run.extra["average"].update(run.model)
        run.optimizer.zero_grad()
        run.metric(loss=loss)


def words(run: Any) -> list[Any]:
    tensors = [*run.model.parameters(), *run.extra["average"].kept.values()]
    return [t.detach().cpu().view(torch.int32).tolist() for t in tensors]


@pytest.mark.parametrize("matmul", ["chain", "logged"])
def test_a_loop_goes_on_wherever_memory_ran_out(matmul: str, tmp_path: Path) -> None:
    """Every step is tried with less and less too little: so it fails in each part of it, and outside of it."""
    settled = {"policy": vtrain.Policy(matmul=matmul), "checkpoint_every": 2}  # type: ignore[arg-type]
    with record(tmp_path / "whole", **settings(), **settled) as run:
        for step in range(1, 5):
            one_step(run, step, 4)
        wanted = words(run)
    places = set()
    with record(tmp_path / "run", **settings(), **settled) as run:
        for step in range(1, 5):
            for size in range(0, 400_000, 6007):
                try:
                    with room(size):
                        one_step(run, step, 4)
                except torch.OutOfMemoryError as error:
                    assert isinstance(error, DeviceMemoryError), error
                    places.add(str(error).split(": ")[0])
                if run.steps_done == step:
                    break
                run.rollback()
            assert run.steps_done == step
        assert words(run) == wanted
    parts = {place.partition(", ")[2] or place for place in places}
    assert {"aten.addmm.default", "aten.gelu_backward.default", "aten.addcdiv_.default"} & parts and len(parts) > 4
    assert "at the end of step 1" in places
    with replay(tmp_path / "run", **settings()) as run:
        for step in range(1, 5):
            one_step(run, step, 4)
    assert run.verdict.verified, run.verdict


def test_a_loop_that_ends_by_it_is_resumed(tmp_path: Path) -> None:
    with record(tmp_path / "whole", **settings()) as run:
        for step in range(1, 5):
            one_step(run, step, 4)
        wanted = words(run)
    with pytest.raises(DeviceMemoryError) as found, record(tmp_path / "run", **settings()) as run:
        one_step(run, 1, 4)
        with room(2000):
            one_step(run, 2, 4)
    assert check_text(found).startswith("step 2, aten.")
    with record(tmp_path / "run", resume=True, **settings()) as run:
        for step in range(run.steps_done + 1, 5):
            one_step(run, step, 4)
        assert words(run) == wanted
    verify(tmp_path / "run", None, silent)


def test_a_loop_goes_on_after_a_checkpoint_that_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: Any) -> Any:
        raise torch.OutOfMemoryError("emulated out of memory. Tried to allocate 8 bytes.")

    with record(tmp_path / "run", checkpoint_every=2, **settings()) as run:
        for step in range(1, 5):
            if step == 3:
                with monkeypatch.context() as patch, pytest.raises(DeviceMemoryError, match="copying a checkpoint"):
                    patch.setattr("trainer.stepwriter.state.as_bytes", full)
                    one_step(run, step, 4)
            one_step(run, step, 4)
    verify(tmp_path / "run", None, silent)
    assert open_run(tmp_path / "run").checkpoints == [0, 2, 4]
    with replay(tmp_path / "run", **settings()) as run:
        for step in range(1, 5):
            one_step(run, step, 4)
    assert run.verdict.verified, run.verdict


def test_a_smaller_batch_is_tried(tmp_path: Path) -> None:
    """As often as it takes, in one step after the other; who replays it does what was done."""
    sizes = {}
    with record(tmp_path / "run", **settings()) as run:
        for step in range(1, 4):
            size = 64
            while run.steps_done < step:
                try:
                    with room(150_000 if step > 1 else 400_000):
                        one_step(run, step, size)
                except torch.OutOfMemoryError:
                    run.rollback()
                    size //= 2
            sizes[step] = size
    assert sizes[1] == 64 > sizes[2] == sizes[3] >= 8
    with replay(tmp_path / "run", **settings()) as run:
        for step, size in sizes.items():
            one_step(run, step, size)
    assert run.verdict.verified, run.verdict


def test_find_executable_batch_size(tmp_path: Path) -> None:
    """accelerate's search begins the training anew: with a run of its own for each size."""
    memory = pytest.importorskip("accelerate.utils.memory")
    tried = []

    @memory.find_executable_batch_size(starting_batch_size=256)
    def training(batch_size: int) -> int:
        tried.append(batch_size)
        with record(tmp_path / f"run-{batch_size}", **settings()) as run, room(300_000):
            for step in (1, 2):
                one_step(run, step, batch_size)
        return batch_size

    size = training()
    assert tried[0] == 256 > size and tried[-1] == size
    with replay(tmp_path / f"run-{size}", **settings()) as run:
        for step in (1, 2):
            one_step(run, step, size)
    assert run.verdict.verified, run.verdict


def test_memory_that_ran_out_inside_a_step_can_t_be_passed_over(tmp_path: Path) -> None:
    """An auditor with more memory would do the operation that failed, and not what was done instead."""
    with record(tmp_path / "run", **settings()) as run:
        x, _ = data(1, 16)
        went_on = r"step 1, aten\.\S+: memory ran out, and the program went on"
        with pytest.raises(DeviceMemoryError, match=went_on), run.step(x):
            x = x.to(NAME)
            with contextlib.suppress(torch.OutOfMemoryError), room(100):
                run.model(x)
            run.model(x[:1]).sum().backward()
        run.rollback()
        one_step(run, 1, 4)
    assert run.steps_done == 1


def test_no_room_to_compare_the_state(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=model, optimizer=settings()["optimizer"]) as run:
        with room(0), pytest.raises(DeviceMemoryError, match="comparing the state"), run.step(data(1, 4)):
            pass
        with run.step(data(1, 4)):
            pass


def test_scratch_memory_is_given_back(tmp_path: Path) -> None:
    with record(tmp_path / "run", policy=vtrain.Policy(matmul="logged"), **settings()) as run:
        one_step(run, 1, 4)
        buffers = run._loop.session.engine.workspace._buffers
        assert buffers
        with room(3000), pytest.raises(DeviceMemoryError, match=r"^step 2, "):
            one_step(run, 2, 4)
        assert not buffers
        run.rollback()
        one_step(run, 2, 4)


# ---- a device that is lost -------------------------------------------------------------------------------------------
def test_an_error_that_comes_late_names_the_kernels(tmp_path: Path) -> None:
    def damage(name: str, blocks: Any) -> None:
        BACKEND.recent = (*BACKEND.recent, f"{name} on {NAME}:0")[-3:]
        if name == "gelu_erf_backward":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nSearch for ...")

    with record(tmp_path / "run", **settings()) as run:
        BACKEND.damage = damage
        with pytest.raises(BackendError) as found:
            one_step(run, 1, 4)
        BACKEND.damage = None
        text = str(found.value)
        assert text.startswith("step 1: CUDA error: an illegal memory access was encountered. The last kernels were: ")
        assert text.endswith(f"gelu_erf_backward on {NAME}:0.")
        run.rollback()
        one_step(run, 1, 4)


def test_it_travels_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(OutOfMemory("step 1: emulated out of memory")))
    assert isinstance(error, DeviceMemoryError) and str(error) == "step 1: emulated out of memory"
