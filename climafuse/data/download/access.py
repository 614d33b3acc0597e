"""What a service asks of its users, told without ever telling a credential.

Credentials stay where their libraries keep them (`~/.netrc`, `~/.cdsapirc`, environment variables): nothing here
writes one. Whatever a service or a library says passes `told` before anybody reads it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from climafuse.errors import AccessError

_URL = re.compile(r"https?://[^\s'\"<>)]+")


@dataclass(frozen=True)
class Access:
    """A service, and what to do when it refuses.

    Args:
        service: Its name, for messages.
        remedy: How to get an account, and where its credentials belong.
        secrets: Credentials that must never be told.
    """

    service: str
    remedy: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def refused(self, received: str, *, argument: str | None = None) -> AccessError:
        """The error of a request that the service does not grant.

        Args:
            argument: What was asked for; the service itself where None.
            received: What it answered; may hold anything.
        """
        return AccessError(
            argument or self.service,
            expected=f"access to {self.service}" if argument else "a login that it accepts",
            received=self.told(received),
            remedy=self.remedy,
        )

    def told(self, text: str) -> str:
        """Text of a service or library without credentials, and URLs without what is signed into them."""
        for spelling in _spellings(self.secrets):
            text = text.replace(spelling, "***")
        return _URL.sub(lambda match: public_url(match[0]), " ".join(text.split()))[:500]


def public_url(url: str) -> str:
    """A URL without user, password, query and fragment, any of which may be a credential."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _spellings(secrets: Iterable[str]) -> list[str]:
    """Secrets as they may turn up, the longest first: as they are, and in base64 as HTTP sends them."""
    found = {secret for secret in secrets if secret}
    found |= {base64.b64encode(secret.encode()).decode() for secret in found}
    return sorted(found, key=len, reverse=True)
