"""Teachers and texts from the hub, through its real client, against a hub on loopback."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load, save
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluators.huggingface.hub import HubRequest, hub_refusals, refusal_of
from tests.hub_client import HubClient
from tests.hub_server import HubServer, Repository

ROWS = [
    {"url": f"https://example.org/{n}", "text": f"A story about the number {n}. " * 5} for n in range(600)
]
WEIGHTS = "model.safetensors"


class Hub:
    """A server and a client that talks to it.

    The server can be stopped for a while, at the same address.
    """

    def __init__(self, home: Path, teacher: Path) -> None:
        self.server = HubServer()
        self.client = HubClient(self.server.url, home)
        self.home, self.tokenizer = home, str(teacher)
        self.files = {path.name: path.read_bytes() for path in teacher.iterdir()}

    def add_model(self, id: str, files: dict[str, bytes] | None = None, **traits: object) -> Repository:
        """Files are made different from those of other models, or the client would have them already."""
        files = dict(self.files if files is None else files)
        files["generation_config.json"] = json.dumps({"of": id}).encode()
        self.server.models[id] = Repository(files, **traits)  # type: ignore[arg-type]
        return self.server.models[id]

    def add_dataset(self, id: str, files: dict[str, bytes], **traits: object) -> Repository:
        self.server.datasets[id] = Repository(files, **traits)  # type: ignore[arg-type]
        return self.server.datasets[id]

    def corpus(self, data: str, cache: Path) -> dict[str, str]:
        """The arguments of a request for text."""
        return {"data": data, "tokenizer": self.tokenizer, "cache": str(cache)}

    def arguments(self, call: str, id: str, cache: Path) -> dict[str, str]:
        """The arguments of a request for either."""
        return {"id": id} if call == "teacher" else self.corpus(id, cache)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub") / "home", tiny_teacher)
    with hub.client, hub.server.running():
        yield hub


def json_lines(rows: list[dict[str, str]] = ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, str]] = ROWS) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=50)
    return file.getvalue()


def test_what_lies_here_is_loaded_without_a_word_to_the_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(json_lines())
    (tmp_path / "train.txt").write_bytes(json_lines())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    before = len(hub.server.requests)
    assert "answer" in hub.client.ask("teacher", id=hub.tokenizer)
    for kind in ("txt", "jsonl", "parquet"):
        assert "answer" in hub.client.ask("corpus", **hub.corpus(f"{tmp_path}/train.{kind}", tmp_path))
    assert hub.server.requests[before:] == []


class TestTeachers:
    def test_a_model_is_found_and_loaded(self, hub: Hub) -> None:
        hub.add_model("org/tiny", {**hub.files, "pytorch_model.bin": b"0" * 1000, "onnx/model.onnx": b"0"})
        local = hub.client.ask("teacher", id=hub.tokenizer)
        fetched = hub.client.ask("teacher", id="org/tiny")
        assert fetched["answer"]["id"] == "org/tiny"
        assert fetched["answer"]["fingerprint"] == local["answer"]["fingerprint"]
        assert "looking up org/tiny on the hub" in fetched["log"]
        asked = [line for line in hub.server.requests if "org/tiny" in line]
        assert not any("pytorch_model.bin" in line or "onnx" in line for line in asked)
        # Once: config and weights are of one commit, whatever is pushed in between.
        assert [line for line in asked if "/revision/" in line] == ["GET /api/models/org/tiny/revision/main"]

    def test_what_goes_with_a_model_is_fetched_and_other_folders_are_not(self, hub: Hub) -> None:
        """Terms, named chat templates, settings of processors; of a folder with the same model, nothing."""
        beside = {"README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"MIT", "NOTICE.txt": b"Name us."}
        chat = {"additional_chat_templates/tool_use.jinja": b"{{ messages }}"}
        pictures = {"preprocessor_config.json": b"{}", "processor_config.json": b"{}"}
        other = {"original/tokenizer.model": b"0", "adapter/README.md": b"0", "a/LICENSE": b"0"}
        hub.add_model("org/terms", {**hub.files, **beside, **chat, **pictures, **other})
        assert "answer" in hub.client.ask("teacher", id="org/terms")
        [snapshot] = (hub.home / "hub" / "models--org--terms" / "snapshots").iterdir()
        found = {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if not file.is_dir()}
        assert {*beside, *chat, *pictures} <= found
        assert not found & other.keys()

    def test_the_index_says_which_shards_are_fetched(self, hub: Hub) -> None:
        """By any names, also in folders; other files of weights are not."""
        names = ["pytorch_model-00001.safetensors", "part/b[1]*.safetensors"]
        tensors = load(hub.files[WEIGHTS])
        halves = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
        shards = {name: save(half, {"format": "pt"}) for name, half in zip(names, halves, strict=True)}
        index = {name: shard for shard, half in zip(names, halves, strict=True) for name in half}
        others = {name: content for name, content in hub.files.items() if name != WEIGHTS}
        others[f"{WEIGHTS}.index.json"] = json.dumps({"metadata": {}, "weight_map": index}).encode()
        hub.add_model("org/shards", {**others, **shards, "consolidated.safetensors": b"0", "part/c": b"0"})
        fetched = hub.client.ask("teacher", id="org/shards")
        local = hub.client.ask("teacher", id=hub.tokenizer)
        assert fetched["answer"]["fingerprint"] == local["answer"]["fingerprint"]
        asked = [line for line in hub.server.requests if "org/shards/resolve" in line]
        assert not any("consolidated" in line or line.endswith("part/c") for line in asked)

    def test_only_the_config_is_fetched_where_it_is_enough(self, hub: Hub) -> None:
        hub.add_model("org/config")
        assert hub.client.ask("config", id="org/config")["answer"] == {"type": "llama"}
        files = [line for line in hub.server.requests if "org/config/resolve" in line]
        assert files
        assert all(line.endswith("/config.json") for line in files)

    def test_a_commit_is_a_revision(self, hub: Hub) -> None:
        commit = hub.add_model("org/commit").commit
        assert "answer" in hub.client.ask("teacher", id="org/commit", revision=commit)

    def test_a_wrong_revision_is_refused(self, hub: Hub) -> None:
        hub.add_model("org/revision")
        message = hub.client.refused("teacher", id="org/revision", revision="v2")
        assert "branch, tag or commit of the repository; org/revision has none called v2. See" in message

    @pytest.mark.parametrize("id", ["org/missing", "org/a.name-with_all"])
    def test_a_missing_model_is_refused(self, hub: Hub, id: str) -> None:
        message = hub.client.refused("teacher", id=id)
        assert message == (
            "--model takes a path or the id of a model on the hub; "
            f"the hub knows no public model {id}, and {id} does not exist. "
            "Check the spelling; for a private one run `hf auth login` or set HF_TOKEN."
        )

    def test_a_gated_model_is_refused_with_what_to_do(self, hub: Hub) -> None:
        hub.add_model("org/gated", gated=True)
        message = hub.client.refused("teacher", id="org/gated")
        assert "org/gated is gated: its owners ask for consent to their terms" in message
        assert f"Agree to them at {hub.server.url}/org/gated, then run `hf auth login`" in message
        assert "`hf download org/gated --local-dir DIR`, bring DIR here and give --model DIR" in message

    def test_a_connection_cut_once_recovers(self, hub: Hub) -> None:
        repository = hub.add_model("org/cut-once", cuts={WEIGHTS: 1})
        answer = hub.client.ask("teacher", id="org/cut-once")
        assert "answer" in answer
        assert repository.cuts[WEIGHTS] == 0
        assert any("Trying to resume download" in line for line in answer["log"])

    def test_a_large_file_goes_on_from_where_it_was_cut(
        self, hub: Hub, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        config = LlamaConfig(
            vocab_size=50_000,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        byte_tokenizer.save_pretrained(tmp_path)
        local = hub.client.ask("teacher", id=str(tmp_path))
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        hub.add_model("org/large", files, cuts={WEIGHTS: 1})
        fetched = hub.client.ask("teacher", id="org/large")
        assert fetched["answer"]["fingerprint"] == local["answer"]["fingerprint"]
        asked = [line for line in hub.server.requests if line.startswith("GET /org/large/resolve")]
        (begun, resumed) = (line for line in asked if WEIGHTS in line)
        assert begun.endswith(WEIGHTS)
        assert int(resumed.partition("bytes=")[2].rstrip("-")) > 0

    def test_a_connection_that_is_always_cut_is_told_and_the_part_not_taken_for_the_whole(
        self, hub: Hub
    ) -> None:
        repository = hub.add_model("org/cut", cuts={WEIGHTS: 10**6})
        message = hub.client.refused("teacher", id="org/cut")
        assert "files of the hub have to arrive whole; the connection to" in message
        assert "broke off within org/cut, several times over" in message
        assert "Start the same command again, files that arrived whole are kept" in message
        assert not list((hub.home / "hub" / "models--org--cut").rglob(WEIGHTS))
        assert not list((hub.home / "hub" / "models--org--cut").rglob("*.incomplete"))
        repository.cuts.clear()
        assert "answer" in hub.client.ask("teacher", id="org/cut")

    def test_a_model_without_safetensors_is_refused(self, hub: Hub) -> None:
        hub.add_model("org/pickle", {name: data for name, data in hub.files.items() if name != WEIGHTS})
        assert "a teacher's weights lie beside its config" in hub.client.refused("teacher", id="org/pickle")

    def test_a_model_without_config_is_refused(self, hub: Hub) -> None:
        hub.add_model("org/empty", {})
        assert "org/empty has no config.json" in hub.client.refused("teacher", id="org/empty")

    def test_a_hub_that_fails_is_told(self, hub: Hub) -> None:
        hub.add_model("org/down", status=HTTPStatus.SERVICE_UNAVAILABLE)
        message = hub.client.refused("teacher", id="org/down")
        assert "the hub has to hand out org/down; it answered 503 (" in message
        assert "Try again later; or where there is a network run `hf download org/down" in message

    def test_a_token_that_may_not_is_told(self, hub: Hub) -> None:
        hub.add_model("org/forbidden", status=HTTPStatus.FORBIDDEN)
        message = hub.client.refused("teacher", id="org/forbidden")
        assert "it answered 403 (" in message
        assert (
            f"Run `hf auth login` or set HF_TOKEN to a token that may read {hub.server.url}/org/forb"
            in message
        )


class TestTexts:
    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_a_dataset_is_found_and_streamed(self, hub: Hub, tmp_path: Path, kind: str) -> None:
        content = json_lines() if kind == "jsonl" else parquet()
        hub.add_dataset(
            f"org/{kind}", {"README.md": b"---\nlicense: mit\n---\n", f"data/train.{kind}": content}
        )
        answer = hub.client.ask("corpus", **hub.corpus(f"org/{kind}", tmp_path))
        assert answer["answer"]["id"] == f"org/{kind}"
        assert answer["answer"]["blocks"] == {"calibration": 4, "distillation": 20, "validation": 4}

    def test_the_same_text_is_the_same_corpus_from_the_hub_and_from_a_file(
        self, hub: Hub, tmp_path: Path
    ) -> None:
        hub.add_dataset("org/same", {"train.jsonl": json_lines()})
        (tmp_path / "train.jsonl").write_bytes(json_lines())
        fetched = hub.client.ask("corpus", **hub.corpus("org/same", tmp_path))
        local = hub.client.ask("corpus", **hub.corpus(str(tmp_path / "train.jsonl"), tmp_path))
        assert fetched["answer"]["fingerprint"] == local["answer"]["fingerprint"]

    def test_a_part_of_a_dataset_is_named_after_a_colon(self, hub: Hub, tmp_path: Path) -> None:
        parts = "".join(f"- config_name: {part}\n  data_files: {part}.jsonl\n" for part in "ab")
        card = f"---\nconfigs:\n{parts}---\n"
        files = {"README.md": card.encode(), "a.jsonl": json_lines(), "b.jsonl": json_lines(ROWS[::-1][:500])}
        hub.add_dataset("org/parts", files)
        message = hub.client.refused("corpus", **hub.corpus("org/parts", tmp_path))
        assert "Please pick one among the available configs: ['a', 'b']" in message
        assert "Name a part of it as org/parts:PART" in message
        a, b = (hub.client.ask("corpus", **hub.corpus(f"org/parts:{part}", tmp_path)) for part in "ab")
        assert a["answer"]["fingerprint"] != b["answer"]["fingerprint"]
        assert b["answer"]["id"] == "org/parts:b"

    def test_a_new_commit_is_read_anew_and_an_old_one_can_be_named(self, hub: Hub, tmp_path: Path) -> None:
        old = hub.add_dataset("org/new", {"train.jsonl": json_lines()})
        first = hub.client.ask("corpus", **hub.corpus("org/new", tmp_path))
        again = hub.client.ask("corpus", **hub.corpus("org/new", tmp_path))
        assert again["answer"] == first["answer"]
        assert "reusing the text of org/new, read and tokenised before" in again["log"]
        hub.add_dataset("org/new", {"train.jsonl": json_lines().replace(b"story", b"tale")}, before=old)
        changed = hub.client.ask("corpus", **hub.corpus("org/new", tmp_path))
        assert changed["answer"]["fingerprint"] != first["answer"]["fingerprint"]
        pinned = hub.client.ask("corpus", **hub.corpus(f"org/new@{old.commit}", tmp_path))
        assert pinned["answer"]["fingerprint"] == first["answer"]["fingerprint"]
        message = hub.client.refused("corpus", **hub.corpus("org/new@v1", tmp_path))
        assert "org/new has none called v1" in message

    def test_a_missing_dataset_is_refused(self, hub: Hub, tmp_path: Path) -> None:
        message = hub.client.refused("corpus", **hub.corpus("org/missing", tmp_path))
        assert "the hub knows no public dataset org/missing, and org/missing does not exist" in message

    def test_a_gated_dataset_is_refused_with_what_to_do(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_dataset("org/gated", {"README.md": b"", "train.jsonl": json_lines()}, gated=True)
        message = hub.client.refused("corpus", **hub.corpus("org/gated", tmp_path))
        assert "org/gated is gated" in message
        assert f"Agree to them at {hub.server.url}/datasets/org/gated," in message
        assert (
            "`hf download org/gated --repo-type dataset --local-dir DIR`, bring DIR here and give --data"
            in message
        )

    def test_a_connection_cut_once_recovers(self, hub: Hub, tmp_path: Path) -> None:
        repository = hub.add_dataset("org/cut-once", {"train.jsonl": json_lines()}, cuts={"train.jsonl": 1})
        answer = hub.client.ask("corpus", **hub.corpus("org/cut-once", tmp_path))
        assert "answer" in answer
        assert repository.cuts["train.jsonl"] == 0
        assert any("Retrying in" in line for line in answer["log"])

    def test_a_connection_that_is_always_cut_is_told_and_nothing_kept(self, hub: Hub, tmp_path: Path) -> None:
        hub.add_dataset("org/cut", {"train.parquet": parquet()}, cuts={"train.parquet": 10**6})
        message = hub.client.refused("corpus", **hub.corpus("org/cut", tmp_path / "cache"))
        assert "broke off within org/cut, several times over" in message
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            ({"README.md": b"about"}, "doesn't contain any data files"),
            ({"train.jsonl": b'{"a": 1, "b": 2}\n'}, "has the columns a, b. Rename"),
            (
                {"empty.py": b"print('code')", "train.jsonl": b'{"text": "a"}\n'},
                "scripts are no longer supported",
            ),
            ({"train.jsonl": json_lines(ROWS[:3])}, "need at least one block of 16 tokens each"),
        ],
    )
    def test_datasets_without_enough_text_are_refused(
        self, hub: Hub, tmp_path: Path, files: dict[str, bytes], found: str
    ) -> None:
        hub.add_dataset("org/empty", files)
        assert found in hub.client.refused("corpus", **hub.corpus("org/empty", tmp_path))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("without") / "home"


@pytest.fixture(scope="module")
def silent(home: Path, hub: Hub) -> Iterator[HubClient]:
    server = HubServer()
    server.models["org/before"] = Repository(hub.files)
    server.datasets["org/before"] = Repository({"train.jsonl": json_lines()})
    with HubClient(server.url, home) as client:
        with server.running():
            client.ask("teacher", id="org/before")
            client.ask("corpus", **hub.corpus("org/before", home / "cache"))
        yield client


@pytest.fixture(scope="module")
def offline(silent: HubClient, home: Path) -> Iterator[HubClient]:
    with HubClient("http://127.0.0.1:9", home, offline=True) as client:
        yield client


class TestWithoutAHub:
    """A client whose hub has stopped, and what it fetched before."""

    @pytest.mark.parametrize(("call", "flag"), [("teacher", "--model"), ("corpus", "--data")])
    @pytest.mark.slow
    def test_nobody_answers(self, hub: Hub, silent: HubClient, tmp_path: Path, call: str, flag: str) -> None:
        message = silent.refused(call, **hub.arguments(call, "org/tiny", tmp_path))
        assert message.startswith(f"{flag} takes a path or the id of a ")
        assert "org/tiny does not exist, and the hub at http://127.0.0.1:" in message
        assert "cannot be reached ([Errno 111] Connection refused)" in message
        assert f"bring DIR here and give {flag} DIR" in message

    @pytest.mark.parametrize(("call", "flag"), [("teacher", "--model"), ("corpus", "--data")])
    @pytest.mark.slow
    def test_nobody_may_be_asked(
        self, hub: Hub, offline: HubClient, tmp_path: Path, call: str, flag: str
    ) -> None:
        message = offline.refused(call, **hub.arguments(call, "org/tiny", tmp_path))
        assert "HF_HUB_OFFLINE forbids to ask the hub. Unset HF_HUB_OFFLINE; or" in message
        assert f"bring DIR here and give {flag} DIR" in message

    @pytest.mark.parametrize("client", ["silent", "offline"])
    @pytest.mark.slow
    def test_what_was_fetched_before_serves(
        self, hub: Hub, home: Path, client: str, request: pytest.FixtureRequest
    ) -> None:
        asked: HubClient = request.getfixturevalue(client)
        assert "answer" in asked.ask("teacher", id="org/before")
        text = asked.ask("corpus", **hub.corpus("org/before", home / "cache"))
        assert text["answer"]["blocks"]["distillation"] == 20
        assert any(
            "reusing the text of org/before, read and tokenised before: " in line for line in text["log"]
        )


def test_a_full_disk_is_told() -> None:
    refusal = refusal_of(OSError(errno.ENOSPC, "No space left on device"), HubRequest("model", "org/tiny"))
    assert "need room on the disk; there is none left for org/tiny in" in str(refusal)


def test_what_is_not_the_hubs_passes() -> None:
    with pytest.raises(ZeroDivisionError), hub_refusals(HubRequest("model", "org/tiny")):
        raise ZeroDivisionError


def test_the_libraries_print_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.add_model("org/last", cuts={WEIGHTS: 1})
    hub.client.ask("teacher", id="org/last")
    assert hub.client.printed.read_text() == ""
