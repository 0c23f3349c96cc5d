"""The folder of documents that the commands' tests use, too."""

from tests.cli.conftest import docs as docs
