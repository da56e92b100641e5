"""Runs the project's commands in the test's process, as their scripts would."""

import signal

import typer
from conftest import Project
from typer.testing import CliRunner, Result

from pipelines.run import Run


def call(command, *arguments: object) -> Result:
    """Runs a command in this process, as its script would."""
    app = typer.Typer()
    app.command()(command.main)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)


def succeed(command, *arguments: object) -> str:
    result = call(command, *arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def refused(command, *arguments: object) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    result = call(command, *arguments)
    assert result.exit_code == 2, f"{result.output}\n{result.exception!r}"
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def runs(project: Project, model: str) -> list[Run]:
    """The trainings of a model in a project, oldest first."""
    folders = sorted(project.runs.glob(f"{model}-*"), key=lambda folder: (folder / "run.json").stat().st_ctime)
    return [Run(folder) for folder in folders]
