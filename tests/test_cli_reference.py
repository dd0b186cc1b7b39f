"""docs/cli.md says what the command line offers."""

from pathlib import Path

from puzzlebench.cli_reference import cli_reference

DOCS = Path(__file__).parents[1] / "docs"


def test_the_committed_reference_is_current():
    assert (DOCS / "cli.md").read_text() == cli_reference(), "run: python -m puzzlebench.cli_reference > docs/cli.md"


def test_every_command_and_option_is_in_it():
    text = cli_reference()
    for word in ("profile", "show", "estimate", "validate", "gpus", "models", "--context-lens", "--memory-fraction"):
        assert word in text
