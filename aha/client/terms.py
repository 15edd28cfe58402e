"""What vendors say about training on their models' answers. A warning to read, not advice, and it blocks nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from aha.client.endpoint import Endpoint

CHECKED_ON = date(2026, 11, 24)
"""Day on which the table was put together. Terms change: read the source before you train on what it gave you."""


@dataclass(frozen=True, kw_only=True)
class VendorTerms:
    """One vendor's rule, as found."""

    vendor: str
    hosts: tuple[str, ...]
    """Host names; one that begins with a dot stands for every name that ends so."""
    models: str
    """A pattern of model names that point to this vendor behind another host."""
    rule: str
    is_restricted: bool
    source: str
    evidence: str
    """What the rule was read from."""


VENDORS = (
    VendorTerms(
        vendor="OpenAI",
        hosts=("api.openai.com", ".openai.com", ".openai.azure.com"),
        models=r"(gpt-\d|chatgpt|o[134](-|$)|text-davinci)",
        rule="output may not be used to develop models that compete with OpenAI",
        is_restricted=True,
        source="https://openai.com/policies/services-agreement/",
        evidence="Terms of Use effective 2024-01-31, read in a copy; the Services Agreement itself is unverified",
    ),
    VendorTerms(
        vendor="Anthropic",
        hosts=("api.anthropic.com", ".anthropic.com"),
        models=r"claude",
        rule="outputs may not be used to train models that compete with Anthropic's; narrow tools such as classifiers "
        "are named as allowed",
        is_restricted=True,
        source="https://support.claude.com/en/articles/12326764-can-i-use-my-outputs-to-train-an-ai-model",
        evidence="the vendor's help page",
    ),
    VendorTerms(
        vendor="Google",
        hosts=("generativelanguage.googleapis.com", "aiplatform.googleapis.com", "-aiplatform.googleapis.com"),
        models=r"gemini",
        rule="the service may not be used to develop models that compete with it, nor to replicate its models",
        is_restricted=True,
        source="https://ai.google.dev/gemini-api/terms",
        evidence="Gemini API Additional Terms effective 2025-05-20, read in a copy",
    ),
    VendorTerms(
        vendor="xAI",
        hosts=("api.x.ai", ".x.ai"),
        models=r"grok",
        rule="the terms are believed to forbid training competing models",
        is_restricted=True,
        source="https://x.ai/legal/terms-of-service-enterprise",
        evidence="unverified",
    ),
    VendorTerms(
        vendor="Amazon Bedrock",
        hosts=(".amazonaws.com",),
        models=r"(amazon\.)?(nova-|titan-)",
        rule="the services may not be used to develop large models that compete with Bedrock, and each model's own "
        "terms apply too",
        is_restricted=True,
        source="https://aws.amazon.com/service-terms/",
        evidence="quoted by a third party, otherwise unverified",
    ),
    VendorTerms(
        vendor="Mistral",
        hosts=("api.mistral.ai", ".mistral.ai"),
        models=r"(mistral-(small|medium|large)|magistral-medium|codestral)",
        rule="the commercial terms limit what outputs may be used for; whether that covers training text models is "
        "for you to read",
        is_restricted=True,
        source="https://mistral.ai/terms",
        evidence="unverified",
    ),
    VendorTerms(
        vendor="DeepSeek",
        hosts=("api.deepseek.com", ".deepseek.com"),
        models=r"deepseek-(r1|reasoner)",
        rule="DeepSeek-R1 was released under the MIT licence with distillation for training other models allowed in so "
        "many words; newer models behind the same name may have other terms",
        is_restricted=False,
        source="https://huggingface.co/deepseek-ai/DeepSeek-R1",
        evidence="the model card of R1; the API's own terms of use are unverified",
    ),
)


def terms_notice(endpoint: Endpoint) -> str:
    """What to know before training on an endpoint's answers; "" where nothing is known to stand in the way.

    The host decides. Behind other hosts (a proxy, a reseller, this machine) a model's name that looks like that of a
    vendor with restrictions gives a neutral line.
    """
    for terms in VENDORS:
        if any(_is_host(endpoint.host, known) for known in terms.hosts):
            return f"{_head(terms)}: {terms.rule} ({_origin(terms)})"
    for terms in VENDORS:
        if terms.is_restricted and re.match(terms.models, endpoint.model.lower().rpartition("/")[2]):
            return (
                f"the model's name {endpoint.model[:80]!r} looks like one of {terms.vendor}'s; if it is, its terms "
                f"may restrict training on outputs whoever serves it ({_origin(terms)})"
            )
    return ""


def _is_host(host: str, known: str) -> bool:
    return host.endswith(known) if known[0] in ".-" else host == known


def _head(terms: VendorTerms) -> str:
    return f"{terms.vendor}'s terms restrict training on outputs" if terms.is_restricted else f"{terms.vendor}'s terms"


def _origin(terms: VendorTerms) -> str:
    return f"{terms.source}; {terms.evidence}; table of {CHECKED_ON.isoformat()}, not legal advice"
