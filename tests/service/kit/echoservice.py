"""A whole service process around the echo service; its argument is the configuration file."""

import asyncio
import sys

from services.kit import config, server, telemetry
from tests.service.kit.mesh import Echo, mount


class Config(config.Section, frozen=True):
    """What the process reads."""

    server: config.ServerConfig
    log: config.LogConfig


class Slow(Echo):
    """Answers "slow" after a while; fails at "crash"; otherwise as Echo."""

    async def _who(self, text: str) -> str:
        if text == "crash":
            raise RuntimeError("a bug")
        if text == "slow":
            await asyncio.sleep(1)
        return await super()._who(text)


async def main() -> None:
    """Wire and serve."""
    settings = config.load(Config, sys.argv[1])
    telemetry.configure(settings.log, "echo")
    serving = server.Server(settings.server)
    mount(serving, Slow())
    await serving.run()


if __name__ == "__main__":
    sys.exit(server.run(main()))
