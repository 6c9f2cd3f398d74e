"""Load tests. They ask this machine, whatever http_proxy says: else the way through the proxy would be measured."""

import os

for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost", "::1")))
