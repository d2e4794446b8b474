"""Files: written whole or not at all, leftovers removed, changed records noticed."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys

import pytest

from common import files
from common.errors import InputError, OutputError
from common.files import (
    atomic_write,
    code_digest,
    load_result,
    processor,
    require_regular,
    save_result,
    write_text,
)

FACTS = {"data": {"source": "none"}, "seed": 1, "device": "cpu", "seconds": 0.5}


def killed_while_writing(path):
    """Fork a process that is killed while it writes `path`."""
    pid = os.fork()
    if pid == 0:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    path = write_text(tmp_path / "a[1].txt", "earlier")
    killed_while_writing(path)
    killed_while_writing(tmp_path / "never written again.txt")
    here = f".{platform.node()}"
    others = {f"{here}-{os.getppid()}-{path.name}", f"{here}-x-{path.name}",
              f"{here}-{os.getpid()}-b.txt", f".elsewhere-1-{path.name}"}  # fmt: skip
    for name in others:
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 6
    assert path.read_text() == "earlier"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *others}


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "earlier")

    def fill_the_disk():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device", str(temporary))

    with pytest.raises(OutputError, match=r"a\.txt: can't be written \(No space left"):
        fill_the_disk()
    assert path.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["file/a.txt", "x" * 300, "folder"])
def test_a_path_that_cant_be_written_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / name, "text")
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def name_of(descriptor):
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc, to see which file a descriptor is")
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(name_of(d)), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda *p: (events.append("rename"), replace(*p)))
    write_text(tmp_path / "a.txt", "text")
    assert events == [f".{platform.node()}-{os.getpid()}-a.txt", "rename", tmp_path.name]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("pipe", "loop", "dangling", "missing", "", "null\0"):
        with pytest.raises(InputError) as caught:
            require_regular(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)[:10])
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    require_regular(tmp_path / "link")


def test_a_saved_result_is_read_back_with_all_its_values(tmp_path):
    path = save_result(tmp_path / "a.json", **FACTS, pairs={"x": (1, 2.5)}, name="\u00e9\udcff")
    record = load_result(path)
    assert record["pairs"] == {"x": [1, 2.5]}
    assert record["name"] == "\u00e9\udcff"
    assert {key: record[key] for key in FACTS} == FACTS
    assert record["command"].startswith(os.path.basename(sys.argv[0]))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"3", b"null", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000,
     b'{"sha256": null}', b'{"sha256": 1}', b"1" * 5000, b'{"a": NaN, "sha256": "x"}'],
)  # fmt: skip
def test_a_file_that_is_no_result_counts_as_none(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert load_result(path) is None


def test_a_result_that_is_missing_or_a_pipe_counts_as_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("missing.json", "pipe.json", "."):
        assert load_result(tmp_path / name) is None


def test_no_flipped_byte_of_a_result_changes_a_number(tmp_path):
    path = save_result(tmp_path / "a.json", **FACTS, curve=[0.1, 2e-7, 30], text="a b")
    whole, wanted = path.read_bytes(), load_result(path)
    for position in range(len(whole)):
        for mask in (1, 2, 16, 128):
            flipped = bytearray(whole)
            flipped[position] ^= mask
            path.write_bytes(flipped)
            assert load_result(path) in (None, wanted), (position, mask)


def test_the_digest_of_the_code_changes_with_the_code(tmp_path, monkeypatch):
    assert code_digest() == code_digest()
    monkeypatch.setattr(files, "ROOT", tmp_path)
    digests = []
    for name, code in (("a.py", "1"), ("b/c.py", "2"), ("b/c.py", "3"), ("b/c.txt", "4")):
        write_text(tmp_path / "common" / name, code)
        digests.append(code_digest())
    assert len(set(digests)) == 3
    assert digests[2] == digests[3]


def test_values_that_json_lacks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_result(tmp_path / "a.json", **FACTS, bad=float("nan"))
    assert not list(tmp_path.iterdir())
    assert json.loads(save_result(tmp_path / "b.json", **FACTS).read_text())["seed"] == 1


def test_a_result_names_the_gpu_that_it_is_from(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"the GPU {device}")
    for device, name in (("cuda:1", "the GPU cuda:1"), ("cpu", processor())):
        path = save_result(tmp_path / "a.json", data={}, seed=0, device=device, seconds=1.0)
        assert load_result(path)["processor"] == name


def test_processors_of_one_name_are_told_apart_by_their_instructions(monkeypatch):
    capability = "torch.backends.cpu.get_cpu_capability"
    monkeypatch.setattr(capability, lambda: "DEFAULT")
    name = processor()
    assert name
    assert "DEFAULT" not in name
    monkeypatch.setattr(capability, lambda: "AVX2")
    assert processor() == f"{name} (AVX2)"
