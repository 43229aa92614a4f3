"""The wrapper of the evaluation harness, beside a stand-in; beside the harness where it is installed."""

from __future__ import annotations

import errno
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evaluators.tasks.harness import Score, harness_examples, harness_score
from evaluators.tasks.task import ExampleScorer, Task, benchmark, harness_judge, tasks_of
from space.input_error import InputError
from tests.evaluators.tiny_models import tiny_model

DEMO = Path(__file__).parents[3] / "studies" / "demo"
TEACHER, PAIRS = DEMO / "teacher", DEMO / "pairs.jsonl"
FOUND: dict[str, Any] = {
    "results": {
        "quiz": {"alias": "quiz", "acc,none": 0.25, "perplexity,none": 7.0, "acc_stderr,none": "N/A"}
    },
    "higher_is_better": {"quiz": {"acc": True, "perplexity": False}},
}
NO_TOKENIZER = cast(PreTrainedTokenizerBase, None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A harness that knows one task and takes down how it is called."""
    calls: list[Any] = []

    def simple_evaluate(**arguments: Any) -> Any:
        calls.append(arguments)
        if arguments["limit"] == 0:
            raise ConnectionError("no route to the hub\nand more")
        if arguments["tasks"] == ["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return FOUND

    def manager(include_path: str | None, include_defaults: bool) -> Any:
        files = {"own": "own.yaml", "group": None} if include_path else {}
        index = {
            name: SimpleNamespace(yaml_path=file and Path(str(include_path)) / file)
            for name, file in files.items()
        }
        return SimpleNamespace(
            all_tasks=["quiz", "full", *index],
            task_index=index,
            include_path=include_path,
            include_defaults=include_defaults,
        )

    package, huggingface, tasks = (ModuleType(name) for name in ("lm_eval", "huggingface", "tasks"))
    cast(Any, package).simple_evaluate = simple_evaluate
    cast(Any, package).models = SimpleNamespace(huggingface=huggingface)
    cast(Any, package).tasks = tasks
    cast(Any, huggingface).HFLM = lambda **arguments: arguments
    cast(Any, tasks).TaskManager = manager
    modules = {"lm_eval.models.huggingface": huggingface, "lm_eval.models": huggingface}
    for name, module in {"lm_eval": package, "lm_eval.tasks": tasks, **modules}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_a_task_becomes_a_function_of_a_model(calls: list[Any], tmp_path: Path) -> None:
    model = tiny_model()
    judge = harness_judge(Task("quiz", tmp_path / "quiz.yaml"), NO_TOKENIZER, 5)
    assert judge(model) == 0.25
    call = calls[0]
    assert (call["tasks"], call["limit"]) == (["quiz"], 5)
    assert call["model"] == {"pretrained": model, "tokenizer": None, "batch_size": 16, "device": "cpu"}
    manager = call["task_manager"]
    assert (manager.include_path, manager.include_defaults) == (str(tmp_path), False)


def test_where_less_is_better_the_sign_turns(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FOUND["higher_is_better"], "quiz", {"perplexity": False, "acc": True})
    assert harness_judge(Task("quiz"), NO_TOKENIZER, 5)(tiny_model()) == -7.0


def test_a_task_that_there_is_not_is_refused(calls: list[Any]) -> None:
    with pytest.raises(InputError) as error:
        tasks_of(["quizz"])
    assert str(error.value) == (
        "A benchmark has to be a task of the evaluation harness; 'quizz': the harness has no such task. "
        "List the names with `python -m lm_eval --tasks list`."
    )
    assert not calls


def test_a_task_is_a_name_or_a_file(calls: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("task: own")
    assert tasks_of(["quiz", str(file)]) == [Task("quiz"), Task("own", file)]
    assert not calls


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["quizz"], "'quizz': the harness has no such task. List the names"),
        (["quiz", "quiz"], "A task is named once; 'quiz' was given twice. Leave one out."),
        (["gone.yaml"], "or a file of examples; there is no file gone.yaml. Check the path."),
        (
            ["other.yml"],
            "A task's file has to be YAML that names a task, as the evaluation harness reads it; "
            "other.yml is none. Mend it, and let its name end in .yaml.",
        ),
    ],
)
def test_what_is_neither_is_refused(
    texts: list[str], message: str, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yml").write_text("questions: 3")
    with pytest.raises(InputError) as error:
        tasks_of(texts)
    assert message in str(error.value)


def test_a_score_comes_with_its_metric_and_its_error(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert benchmark(tiny_model(), NO_TOKENIZER, Task("quiz")) == Score("acc", 0.25, None, True)
    assert (calls[0]["limit"], calls[0]["task_manager"].include_defaults) == (None, True)
    monkeypatch.setitem(FOUND["results"]["quiz"], "acc_stderr,none", 0.125)
    assert benchmark(tiny_model(), NO_TOKENIZER, Task("quiz")).error == 0.125


def test_a_full_disk_is_no_fault_of_the_task(calls: list[Any]) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        benchmark(tiny_model(), NO_TOKENIZER, Task("full"))
    assert error.value.errno == errno.ENOSPC


def test_examples_out_of_reach_are_told_in_one_line(calls: list[Any]) -> None:
    with pytest.raises(InputError) as error:
        harness_score(tiny_model(), NO_TOKENIZER, "quiz", examples=0)
    assert str(error.value) == (
        "The examples of a benchmark have to be at hand or within reach; those of 'quiz' are not "
        "(no route to the hub). Download them first, or name a task whose data_files lie on this machine."
    )
    assert len(calls) == 1


def test_without_the_harness_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError) as error:
        harness_score(tiny_model(), NO_TOKENIZER, "quiz")
    assert str(error.value) == (
        "Benchmarks are run by the package lm-eval; it cannot be imported (import of lm_eval halted; None in "
        "sys.modules). Install it: pip install 'lm-eval>=0.4.13'."
    )


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    """A task on this machine: which of two endings follows."""
    rows = [
        {"start": "import", "ends": [" os\nimport sys", " zq~~~"], "end": 0},
        {"start": "def f(self):\n   ", "ends": [" return self", "}}}}{{{{"], "end": 0},
        {"start": "for i in range(", "ends": ["@@@@", "10):"], "end": 1},
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "quiz.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{ends}}",
        "doc_to_target": "end",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "quiz.yaml").write_text(json.dumps(task))
    return tmp_path


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra that is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_the_harness_itself_on_a_folder_of_tasks(quiz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the ending of the higher log-probability, by the model's own logits."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(quiz / "cache"))
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TEACHER).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(TEACHER)
    before = torch.get_rng_state()
    (task,) = tasks_of([str(quiz / "quiz.yaml")])
    found = benchmark(model, tokenizer, task).value
    assert torch.equal(torch.get_rng_state(), before)
    right = 0
    for row in map(json.loads, (quiz / "quiz.jsonl").read_text().splitlines()):
        sums = [_log_probability(model, tokenizer, row["start"], end) for end in row["ends"]]
        right += sums.index(max(sums)) == row["end"]
    assert found == pytest.approx(right / 3)
    examples = harness_examples(task.name, task.folder)
    assert examples is not None
    assert examples[0].options[1] == ("import", " zq~~~")
    scores = ExampleScorer.of(examples, tokenizer, model).score(model)
    assert scores.accuracy.value == found, "the harness's examples come out the same by our own passes"


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra that is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_pairs_is_scored_as_the_harness_scores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: lm-evaluation-harness on the same pairs, written as it writes BLiMP's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    task = {
        "task": "pairs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(PAIRS)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "{{[good, bad]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "pairs.yaml").write_text(json.dumps(task))
    ours = tmp_path / "ours.jsonl"
    plain = ({"good": " " + row["good"], "bad": " " + row["bad"]} for row in rows)
    ours.write_text("\n".join(map(json.dumps, plain)))
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TEACHER).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(TEACHER)
    one, other = (
        benchmark(model, tokenizer, found) for found in tasks_of([str(tmp_path / "pairs.yaml"), str(ours)])
    )
    assert one.value == other.value


@torch.no_grad()
def _log_probability(model: PreTrainedModel, tokenizer: Any, start: str, end: str) -> float:
    whole, known = (tokenizer(text, return_tensors="pt").input_ids for text in (start + end, start))
    log_p = model(input_ids=whole).logits[0].log_softmax(-1)
    following = whole[0, known.shape[1] :]
    return float(log_p[known.shape[1] - 1 : -1].gather(-1, following[:, None]).sum())


@pytest.mark.parametrize(("answers", "known"), [((0, 1), True), ((0, [0, 1]), False), ((0, 2), False)])
def test_a_task_with_an_example_of_no_single_answer_is_no_choice(
    answers: tuple[Any, ...], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = [
        SimpleNamespace(doc_id=row, idx=column, doc={"answer": answer}, args=("q", f" {column}"))
        for row, answer in enumerate(answers)
        for column in (1, 0)
    ]
    leaf = SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        build_all_requests=lambda: None,
        instances=instances,
        doc_to_choice=lambda document: ["0", "1"],
        doc_to_target=lambda document: document["answer"],
        multiple_input=False,
    )
    manager = SimpleNamespace(load=lambda task: {"tasks": {task: leaf}})
    monkeypatch.setattr("evaluators.tasks.harness.check_task", lambda task, folder: manager)
    found = harness_examples("quiz")
    assert (found is not None) == known
    if found is not None:
        assert [one.answer for one in found] == [0, 1]
        assert found[0].options == (("q", " 0"), ("q", " 1"))
