"""What can go wrong with configuration and login; each text says what to do."""

from __future__ import annotations


class AuthError(Exception):
    """Base of the errors below."""


class ConfigError(AuthError):
    """The client's configuration is missing or cannot be used."""


class NotLoggedIn(AuthError):
    """There is no usable token: a person has to log in."""


class LoginFailed(AuthError):
    """The person or the provider said no, or nobody answered in time."""


class IssuerUnavailable(AuthError):
    """The identity provider cannot be reached, or answers something that is not OAuth."""


class TokenFileError(AuthError):
    """The token file cannot be used safely."""
