"""A trainer's news as a line for a person. Standard library only."""

from __future__ import annotations

from typing import Any


def describe(news: dict[str, Any]) -> str:
    """Return a trainer's news as a short text."""
    text = str(news.get("state", ""))
    if news.get("step"):
        text += f", step {news['step']} of at most {news['of']}"
    if news.get("tokens_per_second"):
        text += f", {news['tokens_per_second']:.0f} tok/s"
    return text
