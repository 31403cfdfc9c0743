"""Patterns from files cannot keep the program busy."""

from __future__ import annotations

import re

import pytest

from tangora.support.patterns import check_pattern

USUAL = [
    "q_proj",
    r"^encoder\.layer\.0\.attention\.self\.query",
    r".*layers\.(0|1|2)\.(self_attn|mlp)\.(q|k|v|o|up|down|gate)_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:k_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.k_proj)",
    r"^(?!.*vision).*(q_proj|v_proj)$",
    r"model\.layers\.(?:[0-9]|1[0-9])\..*",
    r"blocks\.\d+\.attn\.qkv",
    r"(layers\.\d+\.)?fc[12]",
    r"[a-z_]{3,40}",
]
HOSTILE = [
    r"(a+)+$",
    r"(a|a)*$",
    r"(a|aa)+$",
    r"(.*)*x",
    r"([a-z]+)*\d",
    r"(a?){40}a{40}",
    r"((ab)*c?)*",
    r"(?:x+x+)+y",
    r"(?P<n>a*)*b",
    r"(?=(a+)+)x",
    r"(a(?:b*)){2,}",
    ".*" * 6 + "x",
    "a" * 3000,
    "(" * 500 + "a" + ")" * 500,
    "(",
    "a{99999999999999999999}",
    "*",
    "(?P<1>a)",
]


@pytest.mark.parametrize("pattern", USUAL)
def test_what_people_write_is_accepted(pattern):
    check_pattern(pattern)
    re.fullmatch(pattern, "a" * 150)


@pytest.mark.parametrize("pattern", HOSTILE)
def test_what_could_take_for_ever_is_refused(pattern):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the parser's own words are among them
        check_pattern(pattern)
    assert str(caught.value)
