"""The README's commands: each is valid, and each is either run by something named here or marked as run by hand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from brnf import cli
from brnf.config import RunConfig, as_dict, load_recipe
from brnf.verbs import stages

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines() if line
]

SET_UP = {
    "brnf demo": "by hand, on a clean clone",
    "pytest": ".ci/run",
}
"""The two commands that set everything up, by what they end with, and what runs them."""
RUN_BY = {
    "demo": "by hand, on a clean clone",
    "sample": "tests/data/test_scenes.py",
    "prepare": "tests/integration/test_prepare.py",
    "train": "tests/integration",
    "seeds": "tests/integration",
    "irn": "tests/integration/test_irn.py",
    "label": "tests/integration",
    "evaluate": "tests/evaluation",
    "export": "tests/export",
    "pipeline": "by hand: hours on real photographs",
    "tune": "tests/integration/test_tune.py",
    "ablate": "tests/integration/test_ablate.py",
    "bias": "tests/test_bias_curve.py",
}
"""What runs the stage behind each verb; that its flags are valid is tested here."""


def test_readme__has_commands_and_every_verb_is_accounted_for() -> None:
    verbs = {shlex.split(command)[1] for command in COMMANDS if command.startswith("brnf ")}
    assert verbs | {"demo"} == set(RUN_BY)


@pytest.mark.parametrize("runner", sorted({path for path in RUN_BY.values() if path.startswith("tests/")}))
def test_readme__what_is_said_to_run_a_command_exists(runner: str) -> None:
    assert (ROOT / runner).exists()


def test_readme__says_where_every_field_of_the_method_comes_from() -> None:
    table = README.split("| Fields of |")[1].split("\n\n")[0]
    for section in re.findall(r"`(brnf[.\w]*)`", table):
        node = as_dict(RunConfig())
        for name in section.split("."):
            node = node[name]
        row = next(line for line in table.splitlines() if f"`{section}`" in line)
        missing = [name for name, value in node.items() if not isinstance(value, dict) and f"`{name}`" not in row]
        assert not missing, f"the row of {section} does not name {missing}"
    sections = {name for name, value in as_dict(RunConfig())["brnf"].items() if isinstance(value, dict)}
    assert set(re.findall(r"`brnf\.(\w+)`", table)) == sections - {"optim"}


JOBS = [command for command in COMMANDS if command.startswith("ray job submit")]
"""tests/integration/test_jobs.py submits jobs; an AWS cluster is not at hand."""


def as_verb(job: str) -> str:
    """The `brnf` command that a job runs."""
    script, arguments = job.split("-- python jobs/")[1].split(".py ", 1)
    return f"brnf {script} {arguments}"


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("brnf ")] + [as_verb(job) for job in JOBS]
)
def test_readme__command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "run_config", lambda *_: load_recipe("demo"))  # of runs that are not here
    words = ["demo" if word in ("mine.yaml", "out/sweep/best.yaml") else word for word in shlex.split(command)[1:]]
    verb, arguments = cli.split_verb(words)
    cli.parse_verb(verb, arguments)


def test_readme__two_commands_set_everything_up() -> None:
    others = [command for command in COMMANDS if not command.startswith(("brnf ", "ray job submit"))]
    assert len(others) == len(SET_UP)
    for command, end in zip(others, SET_UP, strict=True):
        venv, install, run = command.split(" && ")
        assert venv == "python3 -m venv .venv"
        assert install.startswith(".venv/bin/pip install")
        assert run.startswith(f".venv/bin/{end}")


def test_readme__ci_installs_by_the_test_command() -> None:
    command = next(command for command in COMMANDS if command.endswith("pytest"))
    assert command.removesuffix(" && .venv/bin/pytest") in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_readme__links_and_pictures_exist(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()
