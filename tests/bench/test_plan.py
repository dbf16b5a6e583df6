"""What was asked for: names, sizes, memory. Everything is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from hfgraph import cli
from hfgraph.bench import drive, loading, presets
from hfgraph.bench.plan import Plan, check_outputs, source_of
from hfgraph.bench.presets import PRESETS
from hfgraph.bench.tasks import TASKS
from hfgraph.errors import CannotBench, CannotWrite, DoesNotFit, NotInAClone


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_size_of_its_model(name: str) -> None:
    model = loading.skeleton(Plan.of(name, device="cpu"))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == PRESETS[name].millions
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_tinylm_is_the_clones() -> None:
    assert (Path(source_of("tinylm")) / "model.safetensors").is_file()


def test_tinylm_outside_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(presets, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    with pytest.raises(NotInAClone):
        presets.tinylm()


def test_a_plan_survives_json() -> None:
    plan = Plan.of("smollm2-135m", device="cpu", tasks=["prefill"], rounds=2)
    assert Plan.read({**plan.to_dict(), "tasks": ["prefill"], "systems": list(plan.systems)}) == plan


def test_eager_is_always_there_and_tables_give_the_order() -> None:
    plan = Plan.of("smollm2-135m", device="cpu", systems=["hfgraph", "inductor"], tasks=["decode-8", "prefill"])
    assert plan.systems == ("eager", "inductor", "hfgraph")
    assert plan.tasks == ("prefill", "decode-8")


def test_freezing_is_for_processors() -> None:
    assert "inductor-freezing" in Plan.of("smollm2-135m", device="cpu").systems
    assert "inductor-freezing" not in Plan.of("smollm2-135m", device="cuda").systems


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("positions", [None, 16, 48, 300, 4096])
def test_tasks_shrink_to_the_model(name: str, positions: int | None) -> None:
    task = TASKS[name].within(positions)
    assert positions is None or task.length + task.new <= positions
    assert task.batch == TASKS[name].batch and min(task.prompts) >= 1
    assert (task.new == 0) == (TASKS[name].new == 0)
    if positions in (None, 4096):
        assert task is TASKS[name]


def test_the_reference_is_as_wide_as_memory_allows() -> None:
    plan = Plan.of("smollm2-135m", device="cpu", tasks=["prefill"], systems=["eager"])
    assert drive.fitting(plan, 1_000_000_000, 20e9) == "float64"
    assert drive.fitting(plan, 1_000_000_000, 8e9) == "float32"
    with pytest.raises(
        DoesNotFit, match=r"the reference of smollm2-135m in float32 needs about 5\.1 GB of memory, and 4\.0 GB are free\. Name a smaller model"
    ):
        drive.fitting(plan, 1_000_000_000, 4e9)


def test_all_systems_are_in_memory_together() -> None:
    plan = Plan.of("smollm2-135m", device="cpu", tasks=["prefill", "decode-1"])
    # Four times the weights, and a packed copy for each of the three graphs.
    with pytest.raises(DoesNotFit, match=r"by eager, inductor, inductor-freezing, hfgraph needs about 16\.8 GB .* fewer --systems"):
        drive.fitting(plan, 1_000_000_000, 16e9)
    assert drive.fitting(plan, 1_000_000_000, 17e9) == "float64"


def test_a_model_that_does_not_write(tmp_path: Path) -> None:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertConfig(**sizes, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(CannotBench, match="BertForMaskedLM does not write text"):
        loading.skeleton(Plan.of(str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smolm2-135m"], "there is no preset 'smolm2-135m' and no folder of that name. Did you mean 'smollm2-135m'?"),
        (["no/such-model"], "cannot load the model 'no/such-model': "),
        (["tinylm", "--tasks", "prefil"], "the bench has no task 'prefil'. Did you mean 'prefill'?"),
        (["tinylm", "--systems", "eager,indutcor"], "the bench has no system 'indutcor' on cpu. Did you mean 'inductor'?"),
        (["tinylm", "--systems", "eager", "--sabotage", "rms_norm"], "which is not among the systems"),
        (["tinylm", "--sabotage", "rms_nrm"], "hfgraph has no rule 'rms_nrm'. Did you mean 'rms_norm'?"),
        (["tinylm", "--out", "no/folder/a.json"], "cannot write 'no/folder/a.json': the folder"),
        (["tinylm", "--plot", "no/folder/a.png"], "cannot write 'no/folder/a.png': the folder"),
        (["llama-3.1-8b"], "needs about"),
    ],
)
def test_a_mistake_is_answered_in_words(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_work(*_: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(drive, "crew", no_work)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 8e9, "total": 8e9}))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments, "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("hfgraph bench: ") and message in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: MODEL"),
        (["tinylm", "--rounds", "0"], "expected a whole number from 1, found '0'"),
        (["tinylm", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["tinylm", "--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "tinylm", "--device", "cuda"]) == 2
    assert "there is no device 'cuda'" in capsys.readouterr().err


def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["bench", "tinylm", "--plot", str(tmp_path / "a.png")]) == 2
    assert "pip install 'hfgraph[plots]'" in capsys.readouterr().err


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    text = capsys.readouterr().out
    for name in (*PRESETS, "tinylm", *TASKS, "inductor-freezing", "--sabotage"):
        assert name in text


@pytest.mark.parametrize(("name", "taken"), [("fig", "fig.png"), ("fig", "fig.svg"), ("fig.png", "fig.png")])
def test_a_plot_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, name: str, taken: str) -> None:
    (tmp_path / taken).mkdir()
    (tmp_path / "fig").mkdir(exist_ok=True)  # which is no reason: nothing is written under that name
    with pytest.raises(CannotWrite, match="it is a folder"):
        check_outputs(None, tmp_path / name)
    (tmp_path / taken).rmdir()
    check_outputs(None, tmp_path / name)
