"""The examples on context and on second derivatives."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples_runner import number_after, run_example


@pytest.mark.parametrize("example", ["context/sentences"], indirect=True)
def test_held_out_sentences_are_not_in_training(example: ModuleType) -> None:
    sentences = example.all_sentences()
    training = {each.words for each in sentences if each.part == example.TRAINING}
    for first, second in zip(sentences[::2], sentences[1::2], strict=True):
        assert first.part == second.part
        assert (first.words in training) == (first.part == example.TRAINING)
        assert sum(a != b for a, b in zip(first.words, second.words, strict=True)) == 1
        assert first.answer != second.answer

    def held_out(text: str) -> bool:
        return tuple(text.split()) in {each.words for each in sentences} - training

    for end in ("tired", "wide"):
        assert held_out(f"the animal did not cross the street because it was too {end}")
    for end in ("phones", "juice"):
        assert held_out(f"i love apple {end}")


@pytest.mark.parametrize("example", ["context/sentences"], indirect=True)
def test_nouns_held_out_together_never_meet_in_training(example: ModuleType) -> None:
    def nouns(sentence: object) -> frozenset[str]:
        return frozenset(sentence.words) & {*example.ANIMALS, *example.PLACES}

    about_it = [each for each in example.all_sentences() if each.words[each.asked] == "it"]
    training = {nouns(each) for each in about_it if each.part == example.TRAINING}
    held_out = {nouns(each) for each in about_it if each.part == example.NEW_WORDS}
    assert held_out
    assert not training & held_out
    seen = set().union(*training)
    assert seen == {*example.ANIMALS, *example.PLACES}  # each noun is known, though not each pair


def test_context_decides_meaning(tmp_path: Path) -> None:
    result = run_example("context/train.py", "--out", tmp_path, "--steps", 500)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("it_tired_or_wide", "apple_phones_or_juice", "apple_moves"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_untrained_context_is_reported(tmp_path: Path) -> None:
    result = run_example("context/train.py", "--out", tmp_path, "--steps", 20)
    assert result.returncode == 1
    assert "not all held-out shares reach 99%" in result.stderr


def test_derivatives_agree_with_the_math_path_but_a_short_training_is_reported(
    tmp_path: Path,
) -> None:
    options = ["--length=64", "--steps=10", "--products=3", "--threads=1"]
    result = run_example("second_derivatives/train.py", "--out", tmp_path, *options)
    assert result.returncode == 1, result.stderr
    assert "train longer" in result.stderr
    for task in ("training", "curvature"):
        words = f"{task}: relative difference of the derivatives at equal weights"
        assert 0 < number_after(words, result.stdout) < 1e-4
    assert (tmp_path / "derivatives.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("example", ["second_derivatives/critic"], indirect=True)
def test_critic_finds_distance_and_wave(example: ModuleType) -> None:
    settings = example.Settings(
        length=128,
        width=32,
        heads=4,
        batch=4,
        steps=120,
        learning_rate=2e-2,
        penalty=10.0,
        distance=4.0,
        products=1,
        seed=0,
        show_progress=False,
    )
    assert settings.wave().norm().item() == pytest.approx(4.0)
    report = example.train(settings, "torch_ext")
    last = [sum(report.curves[name][-12:]) for name in ("difference", "norm")]
    assert last[0] / last[1] == pytest.approx(4.0, rel=0.2)
    gradient = torch.tensor(report.curves["gradient"])
    assert torch.cosine_similarity(gradient, settings.wave(), 0) > 0.8


@pytest.mark.parametrize("example", ["second_derivatives/critic"], indirect=True)
def test_curvature_is_an_eigenvalue_of_the_hessian(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = example.Settings(
        *(16, 4, 2, 1, 10),  # length, width, heads, batch, steps
        *(1e-2, 10.0, 4.0),  # learning rate, penalty, distance
        products=300,
        seed=0,
        show_progress=False,
    )
    report = example.train(settings, "torch_ext")
    found = example.curvature(settings, "torch_ext", report.weights).curves["curvature"][-1]
    critic = example.Critic(settings, example.ATTENTIONS["SDPA math"])
    torch.manual_seed(settings.seed)
    example.Critic(settings, example.sdpa_math)  # draws as curvature() does before the signals
    noise, wave = settings.signals()
    names = list(report.weights)
    sizes = [report.weights[name].size for name in names]

    def difference(flat: torch.Tensor) -> torch.Tensor:
        weights = {
            name: part.view(report.weights[name].shape)
            for name, part in zip(names, flat.split(sizes), strict=True)
        }
        outputs = torch.func.functional_call(critic, weights, (torch.cat((wave, noise)),))
        return outputs[0] - outputs[1]

    point = torch.cat([torch.from_numpy(report.weights[name]).flatten() for name in names])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(difference, point))
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    assert abs(found) == pytest.approx(abs(largest), rel=1e-2)
