"""The runner of documentation pages: it must be able to fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import main

GOOD = """# A page

```python file=numbers_of_ours.py
TWO = 2
```

```python
from numbers_of_ours import TWO
print(TWO + 1, "took 3 ms")
```

```text
3 took 77 ms
```

Prose, and what nobody runs:

```toml
[project]
```
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("3 took", "4 took", "-4 took 77 ms\n+3 took 3 ms"),
        ("TWO + 1", "TWO + ONE", "NameError: name 'ONE' is not defined"),
        ("TWO + 1", "TWO +", "page.md:7: the block fails"),
        ("```text\n3 took 77 ms\n```\n", "", "page.md:7: the block prints what the page does not show"),
        ("```text", "Prose between.\n\n```text", "page.md:7: the block prints what the page does not show"),
        ("```python\nfrom", "```pycon\nfrom", "page.md:12: a text block stands straight after a block that prints"),
        ("```toml\n[project]\n```", "```sh\nls\n```", "only commands of fxfuse can be run; given 'ls'"),
        ("[project]\n```\n", "[project]\n", "the block has no end"),
    ],
)
def test_a_page_that_is_wrong_fails_and_says_where(tmp_path: Path, capsys: Any, old: str, new: str, said: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(GOOD)
    assert main([str(page)]) == 0
    assert capsys.readouterr().out == "1 outputs compared, 0 differ\n"
    page.write_text(GOOD.replace(old, new))
    assert main([str(page)]) == 1
    assert said in capsys.readouterr().out


def test_writing_what_was_printed(tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text(GOOD.replace("3 took 77 ms", "nonsense\nof two lines"))
    assert main([str(page), "--write"]) == 0
    assert page.read_text() == GOOD.replace("77", "3")
    assert main([str(page)]) == 0
