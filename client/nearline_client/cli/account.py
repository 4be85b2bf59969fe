"""Commands about configuration and login: init, login, renew and logout."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearline_client.auth_errors import ConfigError
from nearline_client.cli import options as opt
from nearline_client.cli.render import one_line
from nearline_client.config import ClientConfig, config_path, load_config, save_config

if TYPE_CHECKING:
    from nearline_client.auth import Credentials, LoginPrompt

_login_options = opt.options(
    click.option("--browser", is_flag=True, help="Log in through a browser on this machine."),
    click.option("--password", is_flag=True, help="Log in by user name and password; asks for it."),
    click.option("--password-stdin", is_flag=True, help="As --password, read from standard input."),
)


@click.command()
@opt.options(
    click.option(
        "-U", "--url", envvar="NEARLINE_URL", help="URL of the gateway: https://HOST:PORT."
    ),
    click.option(
        "--issuer", envvar="NEARLINE_ISSUER", help="URL of the identity provider (OpenID issuer)."
    ),
    click.option(
        "--ca",
        "ca_file",
        envvar="NEARLINE_CA",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Certificates to trust (PEM). Default: those of the system.",
    ),
    click.option("--client-id", help="OAuth client at the identity provider. Default: nlds."),
    click.option("--audience", help="What tokens are asked for, where the provider needs it."),
    click.option("-u", "--user", help="Your user name."),
    click.option("-g", "--group", help="Group to use when a command names none."),
    click.option("--no-login", is_flag=True, help="Only write the configuration."),
    _login_options,
    opt.verbose_option,
)
def init(
    ca_file: Path | None,
    no_login: bool,
    browser: bool,
    password: bool,
    password_stdin: bool,
    **settings: str | None,
) -> None:
    """Write the configuration, and log in.

    What neither options nor NEARLINE_URL, NEARLINE_ISSUER and NEARLINE_CA say stays as it is.
    Nothing is fetched from the gateway: whom to trust (--issuer,
    --ca) comes from the operator of the store.

    \b
    nlds init -U https://store.example.org --issuer https://login.example.org -g climate
    """
    given: dict[str, Any] = {key: value for key, value in settings.items() if value}
    if ca_file is not None:
        given["ca_file"] = ca_file.absolute()
    config = _configured(given)
    click.echo(f"configuration written to {one_line(str(save_config(config)))}", err=True)
    if config.issuer is None:
        click.echo("no --issuer is known: set NEARLINE_TOKEN for each command", err=True)
    elif not no_login:
        _login(config, browser, password, password_stdin)


@click.command()
@opt.options(
    click.option("-u", "--user", help="Your user name."), _login_options, opt.verbose_option
)
def login(user: str | None, browser: bool, password: bool, password_stdin: bool) -> None:
    """Log in at the identity provider.

    By a code that is typed into a browser on any machine (device flow) where the provider has it,
    else through a browser on this machine.
    """
    config = load_config()
    if user:
        config = replace(config, user=user)
    _login(config, browser, password, password_stdin)


@click.command()
@opt.verbose_option
def renew() -> None:
    """Renew the access token now; commands do it by themselves when it is needed."""
    _credentials(load_config()).renew()
    click.echo("the access token is renewed", err=True)


@click.command()
@opt.verbose_option
def logout() -> None:
    """Forget the tokens, and have the identity provider revoke them."""
    if _credentials(load_config()).logout():
        click.echo("logged out", err=True)
    else:
        click.echo("logged out here; the identity provider was not told", err=True)


COMMANDS = (init, login, renew, logout)


def _configured(given: dict[str, Any]) -> ClientConfig:
    """The configuration of before, if there is one, with what is given now."""
    if not config_path().exists() and "url" not in given:
        raise click.UsageError("say where the store is: -U https://HOST:PORT")
    # Checks the URL as a connection will; gRPC comes with it.
    from nearline_client.channel import parse_url

    environ = {"NEARLINE_URL": given["url"]} if "url" in given else {}
    try:
        config = replace(load_config(config_path(), environ), **given)
        parse_url(config.url)
        return config
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _credentials(config: ClientConfig) -> Credentials:
    from nearline_client.auth import Credentials

    return Credentials(config)


def _login(config: ClientConfig, browser: bool, password: bool, password_stdin: bool) -> None:
    if browser + password + password_stdin > 1:
        raise click.UsageError("--browser, --password and --password-stdin exclude each other")
    credentials = _credentials(config)
    if password or password_stdin:
        user, secret = _ask(config, password_stdin)
        credentials.login_with_password(user, secret)
    else:
        credentials.login(_show_prompt, browser=browser)
    click.echo("logged in", err=True)


def _ask(config: ClientConfig, from_stdin: bool) -> tuple[str, str]:
    if from_stdin:
        if not config.user:
            raise click.UsageError("--password-stdin needs the user name: -u USER")
        return config.user, sys.stdin.readline().rstrip("\r\n")
    user = config.user or click.prompt("User", err=True)
    return user, click.prompt(f"Password of {one_line(user)}", hide_input=True, err=True)


def _show_prompt(prompt: LoginPrompt) -> None:
    url = one_line(prompt.complete_url or prompt.url)
    if prompt.opened:
        click.echo(f"A browser was started; if it does not show, open {url}", err=True)
    else:
        click.echo(f"To log in, open {url}", err=True)
    if prompt.user_code:
        click.echo(f"and check or type the code {one_line(prompt.user_code)}", err=True)
    click.echo(f"(waiting up to {prompt.seconds:.0f} s)", err=True)
