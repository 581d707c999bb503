import pytest

from extract.plan import Limit, parse_share
from micu.errors import ConfigError


def test_a_limit_is_a_number_of_clips_or_a_share() -> None:
    assert parse_share("20") == Limit(count=20)
    assert parse_share(" 5% ") == Limit(share=0.05)
    assert parse_share("0") == Limit(count=0)


@pytest.mark.parametrize("text", ["", "%", "-1", "5.5", "101%", "-1%", "nan%", "5 %%", "five", "²"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-failures 5%"):
        parse_share(text)


def test_a_number_is_reached_by_one_more() -> None:
    limit = parse_share("3")
    assert [limit.reached(failed, 3) for failed in (0, 3, 4)] == [False, False, True]


def test_a_share_is_judged_after_a_hundred_clips_or_at_the_end() -> None:
    limit = parse_share("5%")
    assert not limit.reached(99, 99)
    assert limit.reached(99, 99, at_end=True)
    assert not limit.reached(5, 100)
    assert limit.reached(6, 100)
    assert not limit.reached(0, 0, at_end=True)
