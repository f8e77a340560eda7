"""What `helm test` runs: the cluster serves the kind, and the operator is well.

Arguments: the URL of a list of services, the URL of the operator's health, the directory of the pod's credentials,
and how often to try, three seconds apart.
"""

import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SECONDS_BETWEEN = 3


def read(url: str, credentials: Path | None = None) -> bytes:
    request = urllib.request.Request(url)
    context = None
    if credentials is not None:
        request.add_header("Authorization", f"Bearer {(credentials / 'token').read_text().strip()}")
        if url.startswith("https:"):
            context = ssl.create_default_context(cafile=str(credentials / "ca.crt"))
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:
        return answer.read()


def check(services_url: str, health_url: str, credentials: Path) -> None:
    kind = json.loads(read(services_url, credentials)).get("kind")
    if kind != "MiniSGLangServiceList":
        raise ValueError(f"{services_url} is a {kind}, not a MiniSGLangServiceList")
    read(health_url)


def main() -> None:
    services_url, health_url, credentials, attempts = sys.argv[1:]
    for attempt in range(int(attempts)):
        if attempt:
            time.sleep(SECONDS_BETWEEN)
        try:
            check(services_url, health_url, Path(credentials))
        except urllib.error.HTTPError as error:
            problem = f"{error.url} answers {error.code}: {error.read(300).decode(errors='replace').strip()}"
        except (OSError, ValueError) as error:
            problem = str(error)
        else:
            print("The cluster serves MiniSGLangService, and the operator is well.")
            return
        print(problem, flush=True)
    sys.exit("helm test: error: the operator does not work; the lines above say what was seen")


main()
