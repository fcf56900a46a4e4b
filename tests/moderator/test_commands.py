"""The commands, from a file of prompts to figures by class and by source."""

import json
import shutil

import pytest

from evaluation.predictions import METRICS
from evaluation.runs import read_run
from model.qwen_dual_task import load_dual_task
from moderator.change import main as change
from moderator.moderator import ABOUT, Moderator
from moderator.options import AddConfig, FitConfig, RemoveConfig
from moderator.prompts import read_prompts
from moderator.readers import MonitorReader
from moderator.train import main as train
from monitor.rules import DelayK
from monitor.settings import write_settings
from monitor.stream import StreamingContentMonitor
from tests.conftest import run, settings_of
from utils.files import InputError, read_json


def fit_config(prompts, tiny, folder, **options) -> FitConfig:
    given = {"base_model_path": str(tiny), "state_cache": str(folder.parent / "states")} | options
    return FitConfig(prompts=str(prompts), output_dir=str(folder), **given)


@pytest.fixture(scope="module")
def made(prompts, tiny, tmp_path_factory):
    """A moderator of categories, with its states."""
    folder = tmp_path_factory.mktemp("made") / "mlpm"
    train(fit_config(prompts, tiny, folder, classes="categories", keep_states=True))
    return folder


def test_categories_are_classes_and_those_without_one_are_harmful(made):
    about = Moderator.load(made).about
    assert set(about.classes) == {"benign", "harmful", "poison", "weapon"}
    assert about.classes[0] == "benign" and about.counts[0] == 12 and sum(about.counts) == 24
    assert read_json(made / "run.json")["layers_that_speak"] == list(
        Moderator.load(made).combiner.layers
    )


@pytest.mark.slow
def test_the_script_trains_tests_and_changes(prompts, tiny, made, tmp_path):
    """Through the shell, as a user does."""
    model = ["--base-model-path", tiny, "--state-cache", tmp_path / "states"]
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "Spread a rumour."}\n{"prompt": "Make up some news."}')

    def mlpm(*words, check=True):
        return run("bash", "scripts/run-mlpm.sh", *words, check=check)

    added, removed = tmp_path / "added", tmp_path / "removed"
    change = ["--moderator-path", made, "--name", "rumours"]
    mlpm("add-class", *change, "--examples", more, "--output-dir", added, *model)
    assert Moderator.load(added).about.classes[-1] == "rumours"
    change = ["--moderator-path", added, "--name", "rumours", "--output-dir", removed]
    mlpm("remove-class", *change)
    assert Moderator.load(removed).about == Moderator.load(made).about

    metrics = tmp_path / "metrics"
    test = ["test", "--moderator-path", added, "--prompts", prompts, *model]
    said = mlpm(*test, "--output-dir", metrics / "mlpm").stdout
    assert "24 test prompts (12 harmful)" in said and "rumours" not in said
    result = read_json(metrics / "mlpm" / METRICS)
    assert result["full"]["theta"] == Moderator.load(added).about.threshold
    assert set(result["flagged"]) == {"benign", "harmful", "poison", "weapon"}
    mlpm(*test, "--output-dir", metrics / "half", "--theta", "0.5", "--name", "at 0.5")
    assert read_json(metrics / "half" / METRICS)["full"]["theta"] == 0.5
    for method in ("tfidf", "length"):
        given = ["--prompts", prompts, "--output-dir", metrics / method]
        mlpm("floor", method, *given)
    assert "finished already" in mlpm(*test, "--output-dir", metrics / "mlpm").stdout

    tests = [metrics / name for name in ("mlpm", "half", "tfidf", "length")]
    compared = ["--output-dir", tmp_path / "sources", "--source-pattern", r"(.*)-\d+"]
    text = run("bash", "scripts/compare-sources.sh", *tests, *compared).stdout
    assert "test0 (12, 0 harmful)" in text and "test1 (12, 12 harmful)" in text
    run("bash", "scripts/make-tables.sh", metrics)
    assert "at 0.5" in (metrics / "tables" / "table.md").read_text()
    assert read_run(metrics / "half").operating_points()["full"].theta == 0.5


def test_a_draw_of_each_class(prompts, tiny, tmp_path):
    few, more = tmp_path / "few", tmp_path / "more"
    train(fit_config(prompts, tiny, few, per_class=3, keep_states=True))
    train(fit_config(prompts, tiny, more, per_class=5, keep_states=True))
    assert Moderator.load(few).about.counts == [3, 3]
    kept = [Moderator.load(folder, with_states=True).rows for folder in (few, more)]
    states = [{one.tobytes() for one in rows.states[~rows.valid]} for rows in kept]
    assert states[0] < states[1]  # fewer are a part of more, in all layers
    with pytest.raises(InputError, match="--per-class: 13 of class 'benign', which has 12"):
        train(fit_config(prompts, tiny, tmp_path / "many", per_class=13))
    assert not (tmp_path / "many").exists()


def test_another_models_states_are_refused(made, tmp_path, monitors):
    folder = shutil.copytree(monitors("tiny")[0], tmp_path / "scm")
    write_settings(folder / "monitor.json", settings_of(DelayK(2), 0.5))
    examples = tmp_path / "e.jsonl"
    examples.write_text('{"prompt": "x"}')
    given = {"moderator_path": str(made), "name": "x", "output_dir": str(tmp_path / "out")}
    with pytest.raises(InputError, match=f"{ABOUT}: field 'source.kind'"):
        change(AddConfig(**given, examples=str(examples), monitor_path=str(folder)))
    with pytest.raises(InputError, match="'x' is not one of the harmful classes"):
        change(RemoveConfig(**given))
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_missing_is_named(prompts, tiny, tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [line for line in prompts.read_text().splitlines() if '"valid"' not in line]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="split 'valid' is missing"):
        train(fit_config(path, tiny, tmp_path / "out"))


def test_options_that_make_no_sense(prompts, tiny, tmp_path):
    for options in (
        {"monitor_path": "x"},
        {"base_model_path": ""},
        {"c": 0.0},
        {"target_false_alarm": 1.0},
        {"per_class": -1},
        {"seed": -1},
    ):
        with pytest.raises(InputError, match="--"):
            fit_config(prompts, tiny, tmp_path / "out", **options)


def test_the_prompts_of_a_file_are_told_by_its_content(prompts, tiny, tmp_path):
    """A run recognises that it is done; other prompts under the same name are another run."""
    path, folder = tmp_path / "p.jsonl", tmp_path / "out"
    path.write_text(prompts.read_text())
    train(fit_config(path, tiny, folder))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows[2:])))
    with pytest.raises(InputError, match=r"'data.meta_sha256': the run was started with another"):
        train(fit_config(path, tiny, folder))


def test_a_monitor_takes_a_moderator_of_its_own_reading(prompts, tmp_path, monitors):
    scm = shutil.copytree(monitors("tiny")[0], tmp_path / "scm")
    write_settings(scm / "monitor.json", settings_of(DelayK(2), 0.5))
    folder = tmp_path / "mlpm"
    train(fit_config(prompts, "", folder, monitor_path=str(scm)))
    moderator = Moderator.load(folder)
    monitor = StreamingContentMonitor.from_pretrained(scm, moderator=moderator)
    texts = [prompt.prompt for prompt in read_prompts(prompts)["test"]]
    reader = MonitorReader(monitor)
    expected = moderator.scores(reader.read([reader.encode(text) for text in texts]))
    for text, score in zip(texts, expected, strict=True):
        with monitor.open(text) as stream:
            assert stream.verdict().prompt.score == pytest.approx(score, abs=1e-4)
    model = load_dual_task(scm)
    model.model.norm.weight.data += 1
    other = StreamingContentMonitor(model, monitor.tokenizer, monitor.settings)
    with pytest.raises(InputError, match=r"moderator: field 'source.model'"):
        moderator.check(other.prompt_source(), "moderator")
