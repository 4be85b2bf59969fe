"""Run the development provider: `python -m deploy.local.idp --config FILE`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from werkzeug.serving import make_server

from deploy.local.idp.app import create_app
from deploy.local.idp.config import load_config
from deploy.local.idp.pages import WARNING
from services.kit.config import ConfigError

log = logging.getLogger("nearline.idp")


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns 2 when the configuration is bad."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.idp", description=WARNING)
    parser.add_argument("--config", type=Path, required=True, help="TOML file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = load_config(arguments.config)
        app = create_app(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Werkzeug would log whole request lines, and with them authorization codes in queries.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", config.listen_port, app, threaded=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    log.warning(WARNING)
    log.info("issuer %s, users from %s", config.issuer, config.users_file)
    server.serve_forever()
    server.server_close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
