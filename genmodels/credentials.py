"""Recognises secrets by their form, so that none lies in a file that is kept, sent or shown."""

from __future__ import annotations

import re

FORMS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "an access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}|AccountKey=",
    "an access token": r"\b(?:(?:gh[pousr]_|github_pat_|hf_|glpat-|sk-(?:\w+-)?)[a-zA-Z0-9]{20}|xox[abprs]-\d{8})",
    "a signed token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8}",
    "a URL with a password": r"://[^\s/:@]*:[^\s/@]+@",
    "a signed URL": r"[?&](?:X-Amz-Signature|X-Goog-Signature|sig)=",
}
KNOWN = re.compile("|".join(f"({form})" for form in FORMS.values()))


def masked(text: str) -> str:
    """`text` with the passwords of its URLs left out."""
    return re.sub(r"(://[^\s/:@]*):[^\s/@]+@", r"\1:***@", text)


def secret_in(text: str) -> str | None:
    """What kind of secret `text` holds, None where nothing looks like one."""
    found = KNOWN.search(text)
    return list(FORMS)[(found.lastindex or 1) - 1] if found else None
