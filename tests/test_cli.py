"""The command line: what it prints, its exit status, and no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hfgraph
from hfgraph import cli, models
from hfgraph.errors import IllegalGraph
from hfgraph.verdict import Verdict

TINYLM = Path(__file__).parents[1] / "examples" / "tinylm"
LAYER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES: dict[str, Any] = {**LAYER, "vocab_size": 64, "max_position_embeddings": 32}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=1, pad_token_id=5))


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))


def t5() -> Any:
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def vit() -> Any:
    return transformers.ViTModel(transformers.ViTConfig(**LAYER, image_size=8, patch_size=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models on disk, one per family, without tokenizers."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for make in (llama, bert, t5, vit):
        make().save_pretrained(root / make.__name__)
    return root


def script() -> Path:
    return Path(sys.executable).with_name("hfgraph")


def test_help_is_light() -> None:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([script(), "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.3


@pytest.mark.parametrize("command", ["bench", "explain", "verify"])
def test_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.strip().splitlines()[-1].startswith(f"example: hfgraph {command} ")
    assert "exit status: 0" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"hfgraph {hfgraph.__version__} (torch {torch.__version__}, transformers {transformers.__version__}")


# --- it holds ----------------------------------------------------------------------------------------


def test_verify_in_a_shell(folder: Path) -> None:
    command = [script(), "verify", folder / "llama", "--sabotage", "--json", "--length", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["model"] == str(folder / "llama")
    assert found["ok"]
    assert {o["side"] for o in found["outputs"]} == {"rewritten", "compiled"}
    assert {s["rule"] for s in found["sites"]} >= {"rms_norm", "add_rms_norm"}
    assert found["sabotage"]
    assert all(found["sabotage"].values())


def test_explain_as_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(folder / "llama")]) == 0
    printed = capsys.readouterr()
    assert "input_layernorm" in printed.out
    assert printed.err == ""


def test_explain_as_a_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert cli.main(["explain", str(folder / "llama"), "--html", str(page)]) == 0
    assert f"The page is in {page}" in capsys.readouterr().out
    assert "LlamaForCausalLM" in page.read_text(encoding="utf-8")
    assert cli.main(["explain", str(folder / "llama"), "--html", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]  # and nothing else


def test_a_page_that_cannot_be_written_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("a model was loaded"))
    assert cli.main(["explain", "any", "--html", str(tmp_path / "none" / "report.html")]) == 2
    assert "the folder" in capsys.readouterr().err


def test_explain_says_what_each_rule_and_pass_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(folder / "llama"), "--json"]) == 0
    graph = json.loads(capsys.readouterr().out)["graphs"][0]
    rules = {r["rule"]: r for r in graph["rules"]}
    assert rules["rms_norm"]["matches"] == 3 and rules["rms_norm"]["removed"]["nodes"] == 15 and rules["rms_norm"]["added"]["nodes"] == 3
    assert [p["stage"] for p in graph["passes"]] == ["canonical", "recognise", "recognise", "recognise", "fuse", "merge", "lower", "lower"]
    assert graph["captured"]["bytes"] > graph["passes"][-1]["work"]["bytes"] > 0
    assert cli.main(["explain", str(folder / "llama")]) == 0
    printed = capsys.readouterr().out
    assert "15 -> 3" in printed and "spellings become ops" in printed


def test_explain_a_text_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(TINYLM), "--prompt", "In the beginning", "--dtype", "float32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"rms_norm": 9, "rope": 4, "attention": 4, "glu": 4, "add_rms_norm": 8, "merged_linear": 8}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("bert", {"layer_norm": 4, "attention": 1, "add_layer_norm": 2, "merged_linear": 1}),
        ("t5", {"rms_norm": 7, "attention": 3, "add_rms_norm": 5, "merged_linear": 3}),
    ],
)
def test_other_families(folder: Path, name: str, counts: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(folder / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == counts


# --- it does not hold --------------------------------------------------------------------------------


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_exit_status_of_verify(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], holds: bool, status: int) -> None:
    found = Verdict(sabotage={"rms_norm": holds})
    monkeypatch.setattr(hfgraph, "verify", lambda *_, **__: found, raising=False)
    assert cli.main(["verify", str(folder / "llama"), "--sabotage"]) == status
    assert ("DOES NOT HOLD" in capsys.readouterr().out) != holds


def test_a_bug_of_ours_is_no_wrong_usage(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise IllegalGraph("fuse", "mul has no recorded value")

    monkeypatch.setattr(hfgraph, "verify", fails, raising=False)
    assert cli.main(["verify", str(folder / "llama")]) == 1
    assert capsys.readouterr().err.startswith("hfgraph verify: after stage 'fuse' the graph is not legal")


def test_what_a_backend_raises_is_unwrapped(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "load", lambda *_: llama().to("meta"))
    assert cli.main(["explain", str(folder / "llama")]) == 2
    assert "on the meta device and hold no values" in capsys.readouterr().err


# --- wrong usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["explain"], "the following arguments are required: MODEL"),
        (["expalin", "x"], "invalid choice: 'expalin'"),
        (["verify", "x", "--batch", "0"], "expected a whole number from 1, found '0'"),
        (["verify", "x", "--length", "many"], "expected a whole number from 1, found 'many'"),
        (["verify", "x", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["verify", "x", "--length", "3", "--prompt", "x"], "argument --prompt: not allowed with argument --length"),
        (["explain", "x", "--sabotage"], "unrecognized arguments: --sabotage"),
    ],
)
def test_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch/model"], "cannot load the model 'nosuch/model': "),
        (["./nosuch"], "cannot load the model './nosuch': "),
        (["."], "cannot load the model '.': Unrecognized model in ."),
        (["llama", "--length", "33"], "33 tokens are asked for, and the model reads at most 32"),
        (["llama", "--prompt", "In the beginning"], "a text was given, but no tokenizer comes with the model"),
        (["vit"], "the model reads pixel_values, and the command line makes tokens only"),
    ],
)
def test_a_mistake_is_answered_in_words(
    folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["explain", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("hfgraph explain: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_an_empty_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(TINYLM), "--prompt", ""]) == 2
    assert "the text '' gives no tokens" in capsys.readouterr().err


def test_weights_that_do_not_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (folder / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:100] if file.suffix == ".safetensors" else file.read_bytes())
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "cannot load the model" in capsys.readouterr().err


# --- models and their inputs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architectures", "config", "expected"),
    [
        (["BertForSequenceClassification"], transformers.BertConfig(), "BertForSequenceClassification"),
        (["BertModel"], transformers.BertConfig(), "BertModel"),
        (["MyOwnModel"], transformers.LlamaConfig(), "AutoModelForCausalLM"),
        (None, transformers.LlamaConfig(), "AutoModelForCausalLM"),
        (None, transformers.BertConfig(), "AutoModelForMaskedLM"),
        (None, transformers.T5Config(), "AutoModelForSeq2SeqLM"),
        (None, transformers.ViTConfig(), "AutoModel"),
    ],
)
def test_class_of(architectures: list[str] | None, config: Any, expected: str) -> None:
    config.architectures = architectures
    assert models.class_of(config).__name__ == expected


def test_inputs_are_seeded_and_hold_no_special_tokens() -> None:
    model = llama()
    given = models.inputs(model, batch=8, length=32, seed=3)
    ids = given["input_ids"]
    assert isinstance(ids, torch.Tensor)
    assert ids.shape == (8, 32)
    assert not set(ids.flatten().tolist()) & {1, 2, 5}
    assert torch.equal(ids, models.inputs(model, batch=8, length=32, seed=3)["input_ids"])  # type: ignore[arg-type]
    assert not torch.equal(ids, models.inputs(model, batch=8, length=32, seed=4)["input_ids"])  # type: ignore[arg-type]
    assert given["use_cache"] is False


def test_an_encoder_decoder_gets_both_sides() -> None:
    assert set(models.inputs(t5())) == {"input_ids", "decoder_input_ids", "use_cache"}
    assert set(models.inputs(bert())) == {"input_ids"}


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)])
def test_dtype(dtype: str, expected: torch.dtype) -> None:
    assert models.load(str(TINYLM), dtype).dtype == expected


def test_a_text_repeated_and_cut() -> None:
    given = models.encoded(models.load(str(TINYLM)), "In the beginning God created", batch=3, limit=4)
    assert {name: tuple(v.shape) for name, v in given.items() if isinstance(v, torch.Tensor)} == {"input_ids": (3, 4), "attention_mask": (3, 4)}
