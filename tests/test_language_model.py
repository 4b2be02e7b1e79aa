"""The language model: training, its report, its options, its data, and the C++ program."""

import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples_runner import ROOT, number_after, run, run_example
from torch import Tensor

import torch_ext

GENERATE = ROOT / "build" / "generate"
LIBRARY = ROOT / "torch_ext" / "libtorch_ext.so"

SIZES = {"context": 16, "width": 32, "heads": 2, "layers": 2, "batch": 16, "sample-bytes": 20}
SMALL = ["--threads=1", *(f"--{name}={size}" for name, size in SIZES.items())]
EASY_TEXT = b"aabb" * 10_000  # after an a comes a or b: a bigram model cannot know, two bytes tell


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a small language model trained on an easy text, and what training printed."""
    folder = tmp_path_factory.mktemp("language_model")
    text = folder / "text"
    text.write_bytes(EASY_TEXT)
    options = ["--steps=200", "--learning-rate=1e-2", "--map-text=aabb", "--prompt=aab"]
    result = run_example(
        "language_model/train.py", "--text", text, "--out", folder, *SMALL, *options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout + result.stderr


def test_training_beats_the_bigram_model_and_agrees_with_sdpa(trained: tuple[Path, str]) -> None:
    _, printed = trained
    model = number_after("held-out loss:", printed)
    bigram = number_after("bigram model", printed)
    assert model < 0.3 < bigram
    assert bigram == pytest.approx(math.log(2), abs=0.1)  # either letter follows either letter
    assert 0 <= number_after("  logits", printed) < 1e-4
    assert 0 <= number_after("  gradients", printed) < 1e-4
    assert "tokens/s" in printed


def test_training_saves_pictures_model_and_sample(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    for name in ("loss.png", "attention_layer_1.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    sample = (folder / "sample.txt").read_text()
    assert "aabb" in sample
    assert len(sample) == len("aab") + 20


def test_an_untrained_model_is_reported(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(EASY_TEXT)
    result = run_example(
        "language_model/train.py", "--text", text, "--out", tmp_path, *SMALL, "--steps", 1
    )
    assert result.returncode == 1
    assert "does not beat the bigram model" in result.stderr


def test_too_little_text_is_reported(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"short")
    result = run_example("language_model/train.py", "--text", text, "--out", tmp_path)
    assert result.returncode == 2
    assert "the training text has 5 bytes" in result.stderr
    result = run_example("language_model/train.py", "--text", tmp_path / "none", "--out", tmp_path)
    assert result.returncode == 2
    assert "cannot read the text" in result.stderr


@pytest.mark.parametrize("example", ["language_model/train"], indirect=True)
def test_steps_multiply_in_the_dtype_asked_for(example: ModuleType) -> None:
    dtypes: list[torch.dtype] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
        dtypes.extend((query.dtype, key.dtype, value.dtype))
        return torch_ext.attention(query, key, value, is_causal=is_causal)

    sizes = {name: SIZES[name] for name in ("context", "width", "heads", "layers")}
    text = example.as_tensor(EASY_TEXT[:68]).long().view(4, 17)
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = example.LanguageModel(**sizes, attention=attention)
        optimizer = example.make_optimizer(model, betas=(0.9, 0.95), weight_decay=0.1)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        dtypes.clear()
        losses[dtype] = [
            example.update(model, optimizer, text, clip=1.0, dtype=dtype) for _ in range(20)
        ]
        assert dtypes == [dtype] * 3 * SIZES["layers"] * 20
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert losses[dtype][-1] < losses[dtype][0] / 2
    assert losses[torch.bfloat16] != losses[torch.float32]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)


NUMBERS = ("width", "heads", "batch", "steps", "learning-rate", "clip", "threads")
MORE_NUMBERS = ("context", "layers", "minutes", "evaluations", "held-out-windows", "temperature")

IMPOSSIBLE = {
    "language_model/train": [
        *(f"--{name}=0" for name in NUMBERS + MORE_NUMBERS),
        "--minutes=nan",
        "--learning-rate=inf",
        "--steps=many",
        "--sample-bytes=-1",
        "--seed=-1",
        "--weight-decay=-1",
        "--betas 0.9 1",
        "--dtype=float16",  # torch multiplies it slowly on CPUs, and gradients would vanish
        "--held-out-share=1",
        "--warm-up=1",
        "--width=24 --heads=5",
        "--width=12 --heads=4",  # heads of 3: no pairs to rotate
        "--prompt=",
        "--map-text=",
        "--out=README.md",
    ],
    "context/train": [
        *(f"--{name}=0" for name in NUMBERS),
        "--width=24 --heads=5",
        "--width=5 --heads=5",
        "--least=1.5",
        "--warm-up=0",
        "--warm-up=0.1 --steps=10",
        "--warm-up=1",
        "--seed=-1",
        "--weight-decay=-1",
        "--out=README.md",
    ],
    "second_derivatives/train": [
        *(f"--{name}=0" for name in ("length", "width", "heads", "batch", "steps", "products")),
        *(f"--{name}=0" for name in ("learning-rate", "penalty", "distance", "threads")),
        "--width=24 --heads=5",
        "--width=5 --heads=5",
        "--steps=9",
        "--length=31",
        "--least=1.5",
        "--penalty=nan",
        "--seed=-1",
        "--out=README.md",
    ],
}


@pytest.mark.parametrize(
    ("example", "options"),
    [(script, options) for script in IMPOSSIBLE for options in IMPOSSIBLE[script]],
    indirect=["example"],
)
def test_impossible_options_are_refused(
    example: ModuleType,
    options: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--out={tmp_path}", *options.split()])
    with pytest.raises(SystemExit) as left:
        sys.exit(example.main())
    assert left.value.code == 2
    name = re.split("[= ]", options)[0]
    assert name in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("example", ["language_model/data"], indirect=True)
def test_bigram_counts(example: ModuleType) -> None:
    model = example.BigramModel(example.as_tensor(b"abababac"))
    a, b, c = b"abc"
    # Four pairs start with a: ab three times, ac once; three with b: ba. One more for each of 256.
    assert model.log_probability[a, b].exp().item() == pytest.approx(4 / 260)
    assert model.log_probability[a, c].exp().item() == pytest.approx(2 / 260)
    assert model.log_probability[b, a].exp().item() == pytest.approx(4 / 259)
    assert model.log_probability[c, a].exp().item() == pytest.approx(1 / 256)
    batch = torch.tensor([[a, b, a], [b, a, c]])
    expected = -(2 * math.log(4 / 259) + math.log(4 / 260) + math.log(2 / 260)) / 4
    assert model.loss(batch) == pytest.approx(expected)


@pytest.mark.parametrize("example", ["language_model/data"], indirect=True)
def test_corpus_holds_out_the_end_of_each_file(example: ModuleType, tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    files[0].write_bytes(b"0123456789")
    files[1].write_bytes(b"abcde" * 4)
    corpus = example.read_corpus(files, 0.1)
    assert bytes(corpus.training.tolist()) == b"012345678" + b"abcde" * 3 + b"abc"
    assert bytes(corpus.held_out.tolist()) == b"9de"
    windows = example.even_windows(corpus.training, 100, 5)
    assert windows.shape == (5, 6)
    assert bytes(windows[1].tolist()) == b"5678ab"


@pytest.mark.parametrize("example", ["language_model/data"], indirect=True)
def test_the_standard_library_is_text_enough(example: ModuleType) -> None:
    files = example.standard_library()
    assert files == sorted(files)
    assert "argparse.py" in {path.name for path in files}
    assert not any("site-packages" in path.parts for path in files)
    assert sum(path.stat().st_size for path in files) > 5_000_000


def test_generate_writes_and_trains_without_python(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    options = [
        "--prompt",
        "aab",
        "--sample-bytes",
        20,
        "--temperature",
        0.1,
        "--lesson",
        "abcd" * 10,
    ]
    result = run(GENERATE, folder / "model.pt", LIBRARY, *options)
    assert result.returncode == 0, result.stderr
    text, step = result.stdout.splitlines()
    assert re.fullmatch("aab[ab]{20}", text)
    assert "aabbaabb" in text
    before, after = re.findall(r"\d+\.\d+", step)
    assert float(after) < float(before)
    linked = run("ldd", GENERATE).stdout + run("ldd", LIBRARY).stdout
    assert "libtorch_cpu" in linked
    assert "python" not in re.sub(r"=> \S+", "", linked)  # names, not the folders they are in


def test_generate_repeats_with_the_seed(trained: tuple[Path, str]) -> None:
    folder, _ = trained

    def text(seed: int) -> str:
        options = ["--sample-bytes", 30, "--temperature", 5, "--seed", seed]
        return run(GENERATE, folder / "model.pt", LIBRARY, *options).stdout

    assert text(1) == text(1) != text(2)


def test_generate_fails_when_the_loss_does_not_go_down(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    result = run(
        GENERATE, folder / "model.pt", LIBRARY, "--sample-bytes", 0, "--learning-rate", 1e6
    )
    assert result.returncode == 1
    assert "did not go down" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}"], "expected an archive and an operator library"),
        (["missing.pt", "{library}"], "no file missing.pt"),
        (["{text}", "{library}"], "cannot load the model archive"),
        (["{model}", "{text}"], "cannot load the operator library"),
        (["{model}", "{library}", "--temperature", "warm"], "--temperature needs a number"),
        (["{model}", "{library}", "--sample-bytes", "-1"], "--sample-bytes needs a whole number"),
        (["{model}", "{library}", "--seed", "-1"], "--seed needs a whole number"),
        (["{model}", "{library}", "--threads", "0"], "--threads must be above 0"),
        (["{model}", "{library}", "--prompt", ""], "--prompt needs at least one byte"),
        (["{model}", "{library}", "--temperature", "0"], "--temperature must be above 0"),
        (["{model}", "{library}", "--colour", "red"], "unknown option --colour"),
        (["{model}", "{library}", "--seed"], "--seed needs a value"),
    ],
)
def test_generate_explains_what_is_wrong(
    trained: tuple[Path, str], arguments: list[str], message: str
) -> None:
    folder, _ = trained
    paths = {"model": folder / "model.pt", "text": folder / "text", "library": LIBRARY}
    result = run(GENERATE, *(argument.format(**paths) for argument in arguments))
    assert result.returncode in (1, 2)
    assert message in result.stderr


def test_generate_explains_its_options() -> None:
    result = run(GENERATE, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for option in ("prompt", "sample-bytes", "temperature", "seed", "lesson", "learning-rate"):
        assert f"--{option} " in result.stdout
    assert re.search(r"--sample-bytes N .*\(300\)", result.stdout)
    assert re.search(r"--threads N .*\(\d+\)", result.stdout)
