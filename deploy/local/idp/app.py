"""The provider's HTTP face: OAuth endpoints, discovery, and the pages a person sees."""

# mypy: disallow-subclassing-any=False

from __future__ import annotations

import secrets
import threading
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2 import OAuth2Error
from flask import Flask, Response, jsonify, request
from flask.typing import ResponseReturnValue
from flask.views import MethodView

from deploy.local import files
from deploy.local.idp import grants, pages
from deploy.local.idp.config import IdpConfig
from deploy.local.idp.keys import SigningKeys
from deploy.local.idp.store import Pending, TokenStore
from deploy.local.idp.users import User, load_users


class Provider(AuthorizationServer):
    """Authlib's server with this provider's state: users, keys, tokens, logins under way."""

    def __init__(self, app: Flask, config: IdpConfig) -> None:
        """Open the state. Raises ConfigError when the users file is bad."""
        app.config["OAUTH2_SCOPES_SUPPORTED"] = list(grants.SCOPES)
        super().__init__(app)
        self.config = config
        self.users = load_users(config.users_file)
        self.keys = SigningKeys(config.key_directory)
        self.tokens = TokenStore(config.key_directory / "tokens.sqlite")
        self.admin_secret = files.secret(config.key_directory / "admin-secret")
        self.clients = {c.id: grants.Client(c) for c in config.resolved_clients()}
        self.pending = Pending()
        # Checking a code or a refresh token and using it up must not interleave with another.
        self.token_lock = threading.Lock()
        self._register()

    def _register(self) -> None:
        self.register_token_generator("default", grants.AccessTokens(self))
        self.register_grant(grants.CodeGrant, [grants.RequiredS256(required=True)])
        for grant in (
            grants.DeviceGrant,
            grants.PasswordGrant,
            grants.RefreshGrant,
            grants.ServiceGrant,
        ):
            self.register_grant(grant)
        for endpoint in (grants.DeviceEndpoint, grants.Introspection, grants.Revocation):
            self.register_endpoint(endpoint)

    def query_client(self, client_id: str) -> grants.Client | None:
        return self.clients.get(client_id)

    def save_token(self, token: dict[str, Any], request: Any) -> None:
        for row in grants.stored_tokens(token, request, self.config.refresh_token_seconds):
            self.tokens.add(row)

    def authenticate_user(self, name: str, password: str) -> User | None:
        user = self.users.get(name)
        return user if user is not None and user.has_password(password) else None

    def form_user(self) -> User | None:
        """The user whose name and password the submitted form holds."""
        return self.authenticate_user(
            request.form.get("username", ""), request.form.get("password", "")
        )

    def metadata(self) -> dict[str, Any]:
        """The discovery document (RFC 8414). There are no ID tokens, only access tokens."""
        issuer = self.config.issuer
        return {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/jwks.json",
            "authorization_endpoint": f"{issuer}/authorize",
            "token_endpoint": f"{issuer}/token",
            "device_authorization_endpoint": f"{issuer}/device_authorization",
            "introspection_endpoint": f"{issuer}/introspect",
            "revocation_endpoint": f"{issuer}/revoke",
            "response_types_supported": ["code"],
            "grant_types_supported": sorted(
                {g for c in self.clients.values() for g in c.config.grants}
            ),
            "scopes_supported": list(grants.SCOPES),
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": grants.PUBLIC_OR_SECRET,
            "service_documentation": "Development only. Never give it real users.",
        }


class AuthorizePage(MethodView):
    """Sign in and send the code back to the client's loopback address."""

    init_every_request = False

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def get(self) -> ResponseReturnValue:
        try:
            self._provider.get_consent_grant()
        except OAuth2Error as error:
            return self._refusal(error)
        return pages.sign_in()

    def post(self) -> ResponseReturnValue:
        try:
            grant = self._provider.get_consent_grant()
        except OAuth2Error as error:
            return self._refusal(error)
        user = None
        if "deny" not in request.form and (user := self._provider.form_user()) is None:
            return pages.sign_in("The user name or the password is wrong."), 401
        response: Response = self._provider.create_authorization_response(
            grant_user=user, grant=grant
        )
        return response

    def _refusal(self, error: Any) -> Response:
        response: Response = self._provider.handle_error_response(None, error)
        return response


class DevicePage(MethodView):
    """A person types the code that the device shows, signs in, and approves or denies."""

    init_every_request = False

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def get(self) -> ResponseReturnValue:
        return pages.device(request.args.get("user_code", ""))

    def post(self) -> ResponseReturnValue:
        code = request.form.get("user_code", "")
        if (user := self._provider.form_user()) is None:
            return pages.device(code, "The user name or the password is wrong."), 401
        waiting = self._provider.pending.device_to_approve(code)
        if waiting is None:
            return pages.device(code, "This code is unknown, used or expired: log in again."), 404
        approved = "deny" not in request.form
        waiting.answer = (user, approved)
        return pages.notice("Approved. You can close this page." if approved else "Denied.")


def create_app(config: IdpConfig) -> Flask:
    """The WSGI application. Reads users and keys from disk; raises ConfigError."""
    app = Flask("nearline-development-idp", static_folder=None)
    provider = Provider(app, config)
    _add_oauth_routes(app, provider)
    _add_admin_routes(app, provider)
    app.add_url_rule("/", view_func=pages.home, endpoint="home")
    app.add_url_rule("/authorize", view_func=AuthorizePage.as_view("authorize", provider))
    app.add_url_rule("/device", view_func=DevicePage.as_view("device", provider))
    app.after_request(_mark_development_only)
    return app


def _add_oauth_routes(app: Flask, provider: Provider) -> None:
    @app.get("/.well-known/openid-configuration")
    @app.get("/.well-known/oauth-authorization-server")
    def discovery() -> Response:
        return jsonify(provider.metadata())

    @app.get("/jwks.json")
    def jwks() -> Response:
        return jsonify(provider.keys.public())

    @app.post("/token")
    def token() -> ResponseReturnValue:
        with provider.token_lock:
            response: Response = provider.create_token_response()
            return response

    for path, endpoint in (
        ("/device_authorization", grants.DeviceEndpoint),
        ("/introspect", grants.Introspection),
        ("/revoke", grants.Revocation),
    ):
        app.add_url_rule(
            path,
            endpoint.ENDPOINT_NAME,
            lambda name=endpoint.ENDPOINT_NAME: provider.create_endpoint_response(name),
            methods=["POST"],
        )


def _add_admin_routes(app: Flask, provider: Provider) -> None:
    @app.post("/admin/rotate")
    def rotate() -> ResponseReturnValue:
        """New signing key; `retire_old=1` also withdraws the old ones. Needs the admin secret."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), provider.admin_secret.encode()):
            return jsonify(error="send the content of admin-secret as bearer token"), 401
        return jsonify(kid=provider.keys.rotate(retire_old=bool(request.form.get("retire_old"))))

    @app.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return jsonify(status="ok", warning=pages.WARNING)


def _mark_development_only(response: Response) -> Response:
    response.headers["X-Development-Only"] = "true"
    response.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
