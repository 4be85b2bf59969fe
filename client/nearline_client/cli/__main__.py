"""`python -m nearline_client.cli` is `nlds`."""

from nearline_client.cli.main import main

main()
