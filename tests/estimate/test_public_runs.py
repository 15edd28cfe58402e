"""What docs/estimates.md says about single public runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from aha.estimate.training.public_runs import public_runs

DOCS = Path(__file__).parents[2] / "docs" / "estimates.md"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Llama 3.1 8B, whole run", "come to {share:.0%} and"),
        ("Llama 3.1 70B, whole run", "and {share:.0%} of the peak for the"),
        ("Phi-4 14B", "card's hours come to {share:.0%} of the peak"),
    ],
)
def test_docs_say_what_share_of_the_peak_published_hours_come_to(name: str, words: str) -> None:
    run = next(run for run in public_runs() if run.name == name)
    operations = run.bill().flops_per_token * run.run.tokens
    share = operations / (run.published * 3600 * run.run.gpu.flops_per_second("bfloat16"))
    said = words.format(share=share).replace("%", " %")
    assert said in " ".join(DOCS.read_text(encoding="utf-8").split())
