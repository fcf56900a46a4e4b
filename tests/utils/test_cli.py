"""The way into every command."""

import pytest

from utils.cli import Command, run_command


def test_a_message_steers_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["command", "né\x1b[31m\n"])
    with pytest.raises(SystemExit):
        run_command({"known": Command(object, "nowhere")})
    message = "error: 'né\\x1b[31m\\n': the first word must be one of known\n"
    assert capsys.readouterr().err == message
