"""The few HTML pages, each of which says that this provider is for development only."""

from __future__ import annotations

from flask import render_template_string

WARNING = (
    "DEVELOPMENT ONLY: a provider with test users for one machine. Never type a real password here."
)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }} (development only)</title>
<style>
  body { font: 16px/1.5 sans-serif; max-width: 32rem; margin: 3rem auto; padding: 0 1rem }
  .warning { background: #ffe08a; border: 2px solid #b58900; padding: .5rem 1rem }
  .error { color: #b00020 } label { display: block; margin: .5rem 0 } input { width: 100% }
</style>
<p class="warning">{{ warning }}</p>
<h1>{{ title }}</h1>
{% if error %}<p class="error" role="alert">{{ error }}</p>{% endif %}
{% if text %}<p>{{ text }}</p>{% endif %}
{% if form %}<form method="post">
  {% if user_code is not none %}
  <label>Code shown by the device <input name="user_code" value="{{ user_code }}" required></label>
  {% endif %}
  <label>User name <input name="username" autocomplete="off" autofocus></label>
  <label>Password (the user name, by default)
    <input name="password" type="password" autocomplete="off"></label>
  <button name="approve" value="1">Approve</button> <button name="deny" value="1">Deny</button>
</form>{% endif %}
</html>"""


def _render(
    title: str,
    *,
    text: str = "",
    error: str = "",
    form: bool = False,
    user_code: str | None = None,
) -> str:
    return render_template_string(
        _PAGE, title=title, warning=WARNING, text=text, error=error, form=form, user_code=user_code
    )


def home() -> str:
    return _render("Test identity provider", text="Device codes are approved at /device.")


def sign_in(error: str = "") -> str:
    return _render("Sign in", error=error, form=True)


def device(user_code: str, error: str = "") -> str:
    return _render("Approve a device", error=error, form=True, user_code=user_code)


def notice(text: str) -> str:
    return _render("Device login", text=text)
