"""A development-only OpenID provider with test users, on Authlib's own server classes.

It issues RFC 9068 access tokens (ES256) and speaks authorization code with PKCE, the device flow,
the password grant, client credentials, refresh with rotation, introspection and revocation. It
listens on loopback only and keeps passwords in plain text: never give it real users.

    python -m deploy.local.idp --config idp.toml
"""
