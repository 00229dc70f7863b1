"""The glossary: its sentences, and that the command line shows them where the words stand."""

import re

from convscope.cli.output import explain
from convscope.glossary import GLOSSARY


def test_each_word_has_one_sentence_in_alphabetical_order():
    assert list(GLOSSARY) == sorted(GLOSSARY, key=str.lower)
    for word, sentence in GLOSSARY.items():
        assert re.fullmatch(r"\S.{15,180}\.", sentence), word


def test_the_command_line_shows_the_sentence_under_the_word(capsys):
    explain("fingerprint", "Cohen's kappa")
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"  fingerprint: {GLOSSARY['fingerprint']}"
    assert "beyond chance" in second
