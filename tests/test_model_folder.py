"""A model's folder whose files are not what they should be: one line says which and why, before any token."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfspec.errors import InputError
from selfspec.models import weight_files
from selfspec.models.load import Loaded, load
from selfspec.models.locate import locate
from tests.commands import write_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 26\n"
NAME = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; what it replaces is written anew, so the original stays whole."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in whole.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def loaded(folder: Path) -> Loaded:
    return load(locate(None, path=str(folder)), dtype="float64", device="cpu", threads=1)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = edit(load_file(folder / NAME))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / NAME, metadata={"format": "pt"})


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in parts)}


def configure(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        loaded(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("parts", "n_missing", "first"),
    [
        (["layers.1.self_attn.k_proj"], 1, "model.layers.1.self_attn.k_proj.weight"),
        (["model.norm."], 1, "model.norm.weight"),
        (["embed_tokens"], 1, "model.embed_tokens.weight"),
        (["layers.0.", "layers.2."], 18, "model.layers.0.input_layernorm.weight"),
    ],
)
def test_tensors_that_the_files_lack_are_named_instead_of_drawn(
    folder: Path, parts: list[str], n_missing: int, first: str
) -> None:
    change(folder, without(*parts))
    assert f"lacks {n_missing} of the model's tensors, as {first};" in refusal(folder)


def test_tensors_under_another_prefix_are_not_the_models(folder: Path) -> None:
    change(folder, lambda tensors: {f"student.{k}": v for k, v in tensors.items()})
    said = refusal(folder)
    assert "tensors, as " in said
    assert "others have unknown names, as student.lm_head.weight" in said


def test_tied_head_may_be_absent(folder: Path) -> None:
    change(folder, without("lm_head"))
    configure(folder, tie_word_embeddings=True)
    assert loaded(folder).decoder.n_layers == 4


def test_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    change(folder, lambda tensors: tensors | {"model.layers.3.mlp.up_proj.weight": torch.zeros(48, 32)})
    assert "model.layers.3.mlp.up_proj.weight has shape [48, 32], but config.json wants [64, 32] (1 such" in refusal(
        folder
    )


def test_layers_that_the_configuration_leaves_out_are_named(folder: Path) -> None:
    configure(folder, num_hidden_layers=3)
    assert "holds 9 tensors that config.json has no place for, as model.layers.3." in refusal(folder)


def test_bias_that_the_configuration_denies_is_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors | {"model.layers.2.self_attn.v_proj.bias": torch.ones(16)})
    assert "1 tensors that config.json has no place for, as model.layers.2.self_attn.v_proj.bias" in refusal(folder)


def test_tensors_of_another_tower_are_left_out_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(folder, lambda tensors: tensors | {"audio_tower.conv.weight": torch.ones(3, 3)})
    loaded(folder)
    assert "1 tensors are not part of the model and are left out, as audio_tower.conv.weight" in caplog.text


def test_missing_generation_config_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "generation_config.json").unlink()
    loaded(folder)
    assert "has no generation_config.json: answers end where config.json says (token 0)" in caplog.text


def write(content: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(content) and None


def cut(keep: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, keep(file.stat().st_size))


def put(data: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(data) and None


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (NAME, write(POINTER), "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (NAME, cut(lambda size: size // 3), "is cut off ("),
        (NAME, cut(lambda size: size - 1), "is cut off ("),
        (NAME, cut(lambda size: 900), "is cut off (900 bytes, and its header alone takes"),
        (NAME, cut(lambda size: 5), "is not a safetensors file"),
        (NAME, cut(lambda size: 0), "is empty; fetch that file again"),
        (NAME, write("<!DOCTYPE html><html>503 unavailable</html>"), "is not a safetensors file"),
        (NAME, put(b"\x04\0\0\0\0\0\0\0[{]}"), "is not a safetensors file (its header cannot be read)"),
        ("config.json", write(POINTER), "is a Git LFS pointer"),
        ("config.json", write("[1, 2]"), "is JSON of another kind (list instead of an object)"),
        ("tokenizer.json", write(POINTER), "is a Git LFS pointer"),
        ("tokenizer.json", write('{"model":'), "is not JSON ("),
        ("tokenizer.json", write('{"books": []}'), "cannot load the model"),
        ("tokenizer_config.json", write(""), "is empty"),
        ("generation_config.json", write(POINTER), "is a Git LFS pointer"),
        ("generation_config.json", write("{'eos': 1}"), "is not JSON ("),
        (weight_files.INDEX, write(POINTER), "is a Git LFS pointer"),
        (weight_files.INDEX, write('{"metadata": {}}'), "is not an index of weight files (it has no weight_map)"),
        (weight_files.INDEX, write('{"weight_map": {"x": 3}}'), "is not an index of weight files"),
        (weight_files.INDEX, write('{"weight_map": {"x": "z.safetensors"}}'), "lacks 1 of 1 weight files"),
    ],
)
def test_file_that_is_no_such_file_is_named(folder: Path, name: str, damage: Callable[[Path], None], said: str) -> None:
    damage(folder / name)
    message = refusal(folder)
    assert said in message
    if "cannot load" not in said and "lacks" not in said:
        assert str(folder / name) in message


def test_missing_tokenizer_is_told_in_a_whole_sentence(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert not refusal(folder).endswith(":")


def identity(folder: Path) -> str | None:
    return locate(None, path=str(folder)).sha256


def test_the_identity_of_a_folder_follows_its_tensors_and_shape_alone(folder: Path, whole: Path) -> None:
    assert identity(folder) == identity(whole)
    configure(folder, transformers_version="9.9", _name_or_path="elsewhere")
    assert identity(folder) == identity(whole)
    configure(folder, rms_norm_eps=1e-3)
    other = identity(folder)
    assert other != identity(whole)
    change(folder, lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1e-9})
    assert identity(folder) not in (other, identity(whole))


def test_identity_of_a_large_file_follows_every_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_WHOLE", 100)
    monkeypatch.setattr(weight_files, "_BLOCK", 16)
    seen = {identity(folder)}
    for name in load_file(folder / NAME):
        change(folder, lambda tensors, name=name: tensors | {name: tensors[name] * 1.001})
        seen.add(identity(folder))
    assert len(seen) == 1 + len(load_file(folder / NAME))


def test_identity_stands_in_the_facts(folder: Path) -> None:
    assert loaded(folder).facts["weights"] == {"origin": "path", "revision": None, "sha256": identity(folder)}
