from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cuvee.errors import SourceError
from cuvee.tensors import hub, hub_refusals
from cuvee.tensors.hub import Hub
from cuvee.tensors.location import Directory
from cuvee.tensors.places import open_location
from cuvee.tensors.reference import ModelRef, looks_like_hub_id
from support.hub_server import Faults, HubServer, use_hub

REPO = "vineyard/merlot"
TOKEN = "hf_secretsecretsecret"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_refusals, "_WAITS_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "extra").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "extra" / "notes & more.txt").write_text("below")
    save_file({"w": np.arange(300_000, dtype=np.float32)}, folder / WEIGHTS)
    return folder


@pytest.fixture
def server(files: Path) -> Iterator[HubServer]:
    with HubServer() as running:
        running.add(REPO, files)
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def online(server: HubServer, cache: Path) -> Iterator[HubServer]:
    with use_hub(server, cache):
        yield server


@pytest.mark.parametrize(
    "text", ["gpt2", "org/name", "Qwen/Qwen2.5-0.5B", "a/b", "0x/_y", "o/" + "n" * 96, "model.safetensors"]
)
def test_hub_ids(text: str) -> None:
    assert looks_like_hub_id(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a/b/c", "/a", "a/", "./a", "../a", "~/a", "a b", "a--b", "a..b", "-a", "a-", ".a", "a.", "a.git"),
        *("größe/x", "o/" + "n" * 97, "a\\b", "C:\\models\\a", "a/b\n", "org/name@main", "a//b"),
    ],
)
def test_what_is_no_hub_id(text: str) -> None:
    assert not looks_like_hub_id(text)


def test_sizes_and_identity_are_of_one_commit(online: HubServer, files: Path) -> None:
    first = Hub(REPO, None)
    sizes = {path.relative_to(files).as_posix(): path.stat().st_size for path in files.rglob("*") if path.is_file()}
    commit = online.commit(REPO, "main")
    assert commit
    assert first.sizes() == sizes
    assert first.identity == f"hf://{REPO}@{commit.sha}"
    assert first.uri("config.json") == f"hf://{REPO}@{commit.sha}/config.json"
    assert len(online.log) == 1


def test_headers_are_read_without_the_file(online: HubServer, files: Path, cache: Path) -> None:
    whole = (files / WEIGHTS).read_bytes()
    location = Hub(REPO, "main")
    length = int.from_bytes(location.read(WEIGHTS, 0, 8), "little")
    assert json.loads(location.read(WEIGHTS, 8, 8 + length))["w"]["shape"] == [300_000]
    assert location.read(WEIGHTS, 1_000_000, 1_000_005) == whole[1_000_000:1_000_005]
    assert online.sent(WEIGHTS) == 8 + length + 5
    assert not (cache / "hub").exists()


def test_reads_end_where_the_file_ends(online: HubServer, files: Path) -> None:
    whole = (files / WEIGHTS).read_bytes()
    location = Hub(REPO, None)
    assert location.read(WEIGHTS, len(whole) - 3, len(whole) + 100) == whole[-3:]
    assert location.read(WEIGHTS, len(whole), len(whole) + 1) == b""
    assert location.read("config.json", 0, 1 << 40) == b'{"model_type": "llama"}'
    assert location.read("extra/notes & more.txt", 0, 99) == b"below"


def test_a_fetched_file_is_whole_and_then_read_from_the_cache(online: HubServer, files: Path, cache: Path) -> None:
    location = Hub(REPO, None)
    path = location.fetch(WEIGHTS)
    assert path.read_bytes() == (files / WEIGHTS).read_bytes()
    assert path.is_relative_to(cache / "hub")
    requests = len(online.log)
    assert location.fetch(WEIGHTS) == path
    assert location.read(WEIGHTS, 100, 200) == (files / WEIGHTS).read_bytes()[100:200]
    assert Hub(REPO, None).read(WEIGHTS, 0, 8) == (files / WEIGHTS).read_bytes()[:8]
    assert len(online.log) == requests + 1  # the new location asked for its commit


def test_another_cache_may_be_named(online: HubServer, tmp_path: Path) -> None:
    location = open_location(ModelRef.parse(REPO), tmp_path / "elsewhere")
    assert location.fetch("config.json").is_relative_to(tmp_path / "elsewhere")


def test_a_repository_that_moves_on_stays_at_its_commit(online: HubServer, files: Path, tmp_path: Path) -> None:
    location = Hub(REPO, None)
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "config.json").write_text('{"model_type": "mistral"}')
    sha = online.add(REPO, newer)
    assert location.read("config.json", 0, 99) == b'{"model_type": "llama"}'
    assert location.fetch("config.json").read_text() == '{"model_type": "llama"}'
    assert Hub(REPO, None).identity == f"hf://{REPO}@{sha}"


def test_revisions_are_branches_with_slashes_and_commits(online: HubServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    sha = online.add(REPO, other, "refs/pr/3")
    for revision in ("refs/pr/3", sha):
        location = open_location(ModelRef.parse(f"{REPO}@{revision}"))
        assert location.identity == f"hf://{REPO}@{sha}"
        assert location.read("config.json", 0, 9) == b"{}"


def test_large_files_on_another_host_are_read_without_the_token(files: Path, cache: Path) -> None:
    whole = (files / WEIGHTS).read_bytes()
    with HubServer(token=TOKEN, cdn=True) as server, use_hub(server, cache, token=TOKEN):
        server.add(REPO, files)
        location = Hub(REPO, None)
        assert location.read(WEIGHTS, 40, 90) == whole[40:90]
        assert location.fetch(WEIGHTS).read_bytes() == whole
        elsewhere = [served for served in server.log if served.path.startswith("/cdn/")]
        here = [served for served in server.log if not served.path.startswith("/cdn/")]
    assert [served.sent_bytes for served in elsewhere if served.method == "GET"] == [50, len(whole)]
    assert {served.authorization for served in elsewhere} == {None}
    assert {served.authorization for served in here} == {f"Bearer {TOKEN}"}


def test_dropped_connections_go_on_where_they_broke_off(online: HubServer, files: Path) -> None:
    location = Hub(REPO, None)
    online.faults = Faults(drop_after=150_000, drops=3)
    assert location.read(WEIGHTS, 10, 500_010) == (files / WEIGHTS).read_bytes()[10:500_010]
    assert online.log[1].span == "bytes=10-500009"
    assert len(online.log) == 1 + 4
    assert online.sent(WEIGHTS) < 700_000  # from the start each time, it would be 950,000


def test_bytes_are_asked_for_as_they_are(online: HubServer, files: Path) -> None:
    location = Hub(REPO, None)
    online.faults = Faults(compresses=True)
    assert location.read(WEIGHTS, 3, 99) == (files / WEIGHTS).read_bytes()[3:99]
    online.faults = Faults(compresses=True, whatever_is_accepted=True)
    with pytest.raises(SourceError, match="cannot send parts"):
        location.read(WEIGHTS, 3, 99)


def test_a_connection_that_always_breaks_is_given_up(online: HubServer) -> None:
    location = Hub(REPO, None)
    online.faults = Faults(drop_after=0)
    with pytest.raises(SourceError, match=r"broke off|cannot reach"):
        location.read(WEIGHTS, 0, 100)
    assert len(online.log) == 1 + 4


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_failures_are_tried_again(online: HubServer, files: Path, status: int) -> None:
    location = Hub(REPO, None)
    online.faults = Faults(failures=3, failure_status=status)
    assert location.read(WEIGHTS, 0, 8) == (files / WEIGHTS).read_bytes()[:8]
    online.faults = Faults(failures=4, failure_status=status)
    with pytest.raises(SourceError) as caught:
        location.read(WEIGHTS, 0, 8)
    assert caught.value.status == status


def test_lasting_failures_are_not_tried_again(online: HubServer) -> None:
    location = Hub(REPO, None)
    online.faults = Faults(failures=1, failure_status=403)
    with pytest.raises(SourceError, match="does not let this account read"):
        location.read(WEIGHTS, 0, 8)


def test_a_server_without_ranges_is_read_no_further_than_needed(online: HubServer, files: Path) -> None:
    whole = (files / WEIGHTS).read_bytes()
    location = Hub(REPO, None)
    online.faults = Faults(no_ranges=True)
    for start, stop in ((0, 8), (5, 70_000), (65_530, 65_540), (131_072, 131_073), (len(whole) - 1, len(whole))):
        assert location.read(WEIGHTS, start, stop) == whole[start:stop]


def test_a_server_without_ranges_is_not_made_to_send_gigabytes(
    online: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_MAX_SKIPPED_BYTES", 1000)
    location = Hub(REPO, None)
    online.faults = Faults(no_ranges=True)
    with pytest.raises(SourceError, match="cannot send parts of") as caught:
        location.read(WEIGHTS, 1001, 1002)
    assert "hf download" in str(caught.value)


@pytest.mark.parametrize("faults", [Faults(extra_bytes=1), Faults(extra_bytes=900_000), Faults(shifted_bytes=1)])
def test_answers_to_another_question_are_refused(online: HubServer, faults: Faults) -> None:
    location = Hub(REPO, None)
    online.faults = faults
    with pytest.raises(SourceError, match=r"sent more|cannot send parts"):
        location.read(WEIGHTS, 0, 100)


def test_a_slow_server_is_not_waited_for_forever(online: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    location = Hub(REPO, None)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    online.faults = Faults(delay_seconds=0.5)
    with pytest.raises(SourceError, match="cannot reach"):
        location.read(WEIGHTS, 0, 8)


@pytest.mark.parametrize(
    ("reference", "words", "fix"),
    [
        ("vineyard/syrah", "no model vineyard/syrah, or it is private", "write ./vineyard/syrah"),
        (f"{REPO}@nowhere", f"{REPO} has no revision 'nowhere'", "choose one"),
        ("not/a/hub/id", "neither a directory nor a Hub id", "check the spelling"),
        ("two words", "neither a directory nor a Hub id", "check the spelling"),
    ],
)
def test_what_is_not_there(online: HubServer, reference: str, words: str, fix: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_location(ModelRef.parse(reference))
    assert words in caught.value.what
    assert fix in str(caught.value.fix)
    assert caught.value.checkpoint == reference


def test_a_file_that_is_not_there(online: HubServer) -> None:
    location = Hub(REPO, None)
    for ask in (lambda: location.read("nothing.json", 0, 1), lambda: location.fetch("nothing.json")):
        with pytest.raises(SourceError, match=r"has no file nothing\.json"):
            ask()
    assert len(online.log) == 1


@pytest.mark.parametrize(
    ("gated", "sent", "words"),
    [
        (True, None, "is gated"),
        (False, None, "or it is private"),
        (True, "hf_anotheranother", "or it is private"),
    ],
)
def test_closed_repositories_say_how_to_log_in(
    files: Path, cache: Path, gated: bool, sent: str | None, words: str
) -> None:
    with HubServer(token=TOKEN, gated=gated) as server, use_hub(server, cache, token=sent):
        server.add(REPO, files)
        with pytest.raises(SourceError, match=words) as caught:
            Hub(REPO, None)
    assert "`hf auth login` or set HF_TOKEN" in str(caught.value.fix)
    assert caught.value.status == 401


def test_the_token_opens_a_closed_repository(files: Path, cache: Path) -> None:
    with HubServer(token=TOKEN, gated=True) as server, use_hub(server, cache, token=TOKEN):
        server.add(REPO, files)
        location = Hub(REPO, None)
        assert location.read("config.json", 0, 2) == b'{"'
        assert location.fetch("config.json").is_file()


@pytest.mark.parametrize("token", [TOKEN, f"{TOKEN}\x01", f"{TOKEN}é"])
def test_no_message_repeats_the_token(server: HubServer, cache: Path, token: str) -> None:
    with use_hub(server, cache, token=token):
        texts = []
        for faults in (Faults(api_status=401), Faults(api_status=403), Faults(api_status=500), Faults(not_a_hub=True)):
            server.faults = faults
            with pytest.raises(SourceError) as caught:
                Hub(REPO, None)
            texts += [str(caught.value), repr(caught.value), str(caught.value.facts), str(caught.value.__cause__)]
    assert TOKEN not in "".join(texts)


def test_a_password_in_the_endpoint_is_not_repeated(cache: Path) -> None:
    with use_hub("http://user:pass-word@127.0.0.1:9", cache), pytest.raises(SourceError) as caught:
        Hub(REPO, None)
    assert "127.0.0.1:9" in str(caught.value)
    assert "pass-word" not in str(caught.value)


def test_a_refused_connection_is_told(cache: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with use_hub(f"http://{address}", cache), pytest.raises(SourceError) as caught:
        Hub(REPO, None)
    assert f"cannot reach {address} for {REPO}" in caught.value.what
    assert "HF_ENDPOINT" in str(caught.value.fix)


def test_a_server_that_goes_away_is_told(files: Path, cache: Path) -> None:
    with HubServer() as server, use_hub(server, cache):
        server.add(REPO, files)
        location = Hub(REPO, None)
        server.faults = Faults(failures=99, failure_status=403)
        with pytest.raises(SourceError, match="does not let this account read"):
            location.fetch("config.json")


@pytest.mark.parametrize("endpoint", ["http://[oops", "gopher://127.0.0.1", "nonsense"])
def test_an_endpoint_that_cannot_be_is_told(cache: Path, endpoint: str) -> None:
    with use_hub(endpoint, cache), pytest.raises(SourceError) as caught:
        Hub(REPO, None)
    assert "HF_ENDPOINT" in str(caught.value.fix)


def test_a_web_page_in_place_of_the_api_is_told(online: HubServer) -> None:
    online.faults = Faults(not_a_hub=True)
    with pytest.raises(SourceError, match="does not describe vineyard/merlot as the Hub does"):
        Hub(REPO, None)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "a\\..\\b", "."])
def test_names_that_lead_out_of_the_repository_are_refused(online: HubServer, files: Path, name: str) -> None:
    commit = online.commit(REPO, "main")
    assert commit
    commit.files[name] = files / "config.json"
    with pytest.raises(SourceError, match="does not describe"):
        Hub(REPO, None)


def test_offline_the_cached_snapshot_is_all_there_is(server: HubServer, files: Path, cache: Path) -> None:
    with use_hub(server, cache):
        known = Hub(REPO, None)
        known.fetch("config.json")
        known.fetch("extra/notes & more.txt")
    asked = len(server.log)
    commit = known.identity.rpartition("@")[2]
    with use_hub(server, cache, offline=True):
        for revision in (None, "main", commit):
            location = Hub(REPO, revision)
            assert location.identity == known.identity
            assert location.sizes() == {"config.json": 23, "extra/notes & more.txt": 5}
            assert location.read("config.json", 2, 12) == b"model_type"
            assert location.fetch("config.json").read_bytes() == (files / "config.json").read_bytes()
            with pytest.raises(SourceError, match="has no file"):
                location.fetch(WEIGHTS)
    assert len(server.log) == asked


@pytest.mark.parametrize(
    "reference", ["vineyard/syrah", f"{REPO}@other", f"{REPO}@../../x", f"{REPO}@{'f' * 40}", f"{REPO}@{'x' * 999}"]
)
def test_offline_what_is_not_cached_is_told(server: HubServer, cache: Path, reference: str) -> None:
    with use_hub(server, cache):
        known = Hub(REPO, None)
        known.fetch("config.json")
    (cache / "hub" / "x").write_text(known.identity.rpartition("@")[2])
    with use_hub(server, cache, offline=True), pytest.raises(SourceError, match="not in the local cache") as caught:
        open_location(ModelRef.parse(reference))
    assert "HF_HUB_OFFLINE" in str(caught.value.fix)


def test_offline_what_others_fetched_is_found(server: HubServer, cache: Path) -> None:
    from huggingface_hub import hf_hub_download

    with use_hub(server, cache):
        path = hf_hub_download(REPO, "config.json", revision="main")
    with use_hub(server, cache, offline=True):
        assert Hub(REPO, None).fetch("config.json") == Path(path)


def test_a_damaged_cache_is_named(online: HubServer) -> None:
    location = Hub(REPO, None)
    path = location.fetch("config.json")
    path.resolve().write_text("{")
    with pytest.raises(SourceError, match="damaged in the local cache") as caught:
        location.fetch("config.json")
    assert str(path.resolve()) in str(caught.value.fix)
    assert location.read("config.json", 0, 99) == b'{"model_type": "llama"}'


def test_a_full_disk_is_named(online: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import huggingface_hub

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    location = Hub(REPO, None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(SourceError, match=r"cannot keep config\.json of vineyard/merlot: No space left") as caught:
        location.fetch("config.json")
    assert "HF_HUB_CACHE" in str(caught.value.fix)


@pytest.mark.parametrize("text", ["{0}", "~/files", "./files", "files", "../files/../files"])
def test_directories_come_first(files: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HOME", str(files.parent))
    monkeypatch.chdir(files.parent if not text.startswith("..") else files)
    location = open_location(ModelRef(text.format(files)))
    assert isinstance(location, Directory)
    assert location.identity == str(files.resolve())


def test_a_path_that_is_spelled_as_one_is_never_asked_for_on_the_hub(tmp_path: Path, online: HubServer) -> None:
    for text in ("./vineyard/merlot", "../x", "~/no-such", str(tmp_path / "no"), "~no-such-user/x"):
        with pytest.raises(SourceError, match="no checkpoint at"):
            open_location(ModelRef(text))
    assert online.log == []


def test_a_file_is_not_a_checkpoint(files: Path, monkeypatch: pytest.MonkeyPatch, online: HubServer) -> None:
    monkeypatch.chdir(files)
    for text in ("config.json", str(files / "config.json")):
        with pytest.raises(SourceError) as caught:
            open_location(ModelRef(text))
        assert caught.value.found == "a file"


def test_a_revision_means_the_hub_and_is_refused_for_paths(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: HubServer
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / REPO).mkdir(parents=True)
    assert isinstance(open_location(ModelRef.parse(REPO)), Directory)
    assert isinstance(open_location(ModelRef.parse(f"{REPO}@main")), Hub)
    with pytest.raises(SourceError, match="a revision of a directory"):
        open_location(ModelRef.parse(f"{files}@main"))
    files.rename(tmp_path / "files@v2")
    assert isinstance(open_location(ModelRef.parse(f"{tmp_path}/files@v2")), Directory)


SCRIPT = """
import sys
from cuvee.tensors.places import open_location
from cuvee.tensors.reference import ModelRef
assert "huggingface_hub" not in sys.modules
location = open_location(ModelRef.parse(sys.argv[1]))
print(location.identity, location.read("config.json", 0, 99).decode(), location.fetch("config.json").parent.name)
assert "torch" not in sys.modules
"""


def test_a_fresh_process_takes_everything_from_the_environment(server: HubServer, files: Path, cache: Path) -> None:
    server.token = TOKEN

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        environment = server.environment(cache, **more)
        command = [sys.executable, "-W", "error", "-c", SCRIPT, REPO]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    commit = server.commit(REPO, "main")
    assert commit
    expected = f'hf://{REPO}@{commit.sha} {{"model_type": "llama"}} {commit.sha}\n'
    assert "SourceError" in run().stderr
    first = run(HF_TOKEN=TOKEN)
    assert (first.returncode, first.stdout) == (0, expected), first.stderr
    asked = len(server.log)
    assert run(HF_HUB_OFFLINE="1").stdout == expected
    assert "not in the local cache" in run(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache / "other")).stderr
    assert len(server.log) == asked
