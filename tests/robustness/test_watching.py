"""Watching an evaluation, and its report as a page."""

from __future__ import annotations

import html.parser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import weightnoise as wn
from tests.robustness.test_syntax import GAUSSIAN, Total, make, run


@pytest.mark.parametrize("threads", [False, True])
def test_each_level_is_logged_when_it_is_done(threads: bool) -> None:
    model, x = make()
    said: list[tuple[str, float, int]] = []
    options: dict[str, Any] = {"laws": {"a [b]": GAUSSIAN}, "draws": 4, "log": lambda *one: said.append(one)}
    with ThreadPoolExecutor(1) as pool:
        report = run(model, x, executor=pool if threads else None, **options)
    assert [(name, step) for name, _, step in said] == [
        (f"robustness/a _b_/{what}", step) for step in range(3) for what in ("mean", "standard error")
    ]
    assert [value for _, value, _ in said[::2]] == report.mean.tolist()
    assert [value for _, value, _ in said[1::2]] == report.sem.tolist()
    with pytest.raises(wn.OptionTypeError, match="takes a function of name, value and step"):
        run(model, x, law=GAUSSIAN, log=3)


def test_one_draw_has_no_standard_error_to_log() -> None:
    model, x = make()
    said: list[str] = []
    run(model, x, law=GAUSSIAN, draws=1, levels=[0.1], log=lambda name, value, step: said.append(name))
    assert said == ["robustness/Gaussian_std_1.0_ relative_to_absmax_/mean"]


@pytest.mark.ecosystem
def test_a_summary_writer_takes_it(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="needs tensorboard")
    model, x = make()
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        run(model, x, law=GAUSSIAN, log=writer.add_scalar)
    assert any(tmp_path.iterdir())


@pytest.mark.ecosystem
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="brings 22 packages along, so it is in no extra")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # A database wants a package more.
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    model, x = make()
    with mlflow.start_run() as active:
        report = run(model, x, laws={"a (b)": GAUSSIAN}, log=mlflow.log_metric)
    client = mlflow.MlflowClient()
    for what, expected in (("mean", report.mean), ("standard error", report.sem)):
        logged = client.get_metric_history(active.info.run_id, f"robustness/a _b_/{what}")
        assert [(one.step, one.value) for one in logged] == list(enumerate(expected.tolist()))


class Page(html.parser.HTMLParser):
    """The elements of a page, and whether they are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("figure", [True, False])
def test_a_page_has_all_in_it(figure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make()
    report = run(model, x, laws={"<a> & b": GAUSSIAN, "c": wn.Uniform(1.0)}, threshold=0.0, metric=Total(x))
    if not figure:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = report.to_html("accuracy < 1")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.found.count("img") == figure
    assert page.found.count("tr") == 1 + 3 + len(report.made_by) + 1
    for part in ("accuracy < 1", "<a> & b: interval", "c: yield", report.made_by["model"], torch.__version__):
        assert part in page.text
    assert "http" not in text
